"""`moorctl`: the commands put together, and the one edge where every failure becomes a few lines and an exit status.

Exit statuses are those of `core.errors`, listed in docs/reference/exit-codes.md. Nothing that happens below `main` may
show a traceback, except to who asked for it with --debug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version as installed_version

import click
from click.shell_completion import get_completion_class

from cli import output
from cli.apply import apply_command, diff_command
from cli.audit import audit
from cli.bundle import bundle
from cli.context import context
from cli.event import event
from cli.instance import instance
from cli.instance_leadership import COMMANDS as LEADERSHIP_COMMANDS
from cli.node import node
from cli.project import project
from cli.session import Root, Session, Verb
from cli.status import status_command
from cli.token import token
from core.errors import MoorageError, UserError

PROGRAM = "moorctl"
COMPLETE_VARIABLE = "_MOORCTL_COMPLETE"
INTERRUPTED = 130  # as shells tell of SIGINT
BROKEN_PIPE = 141  # as shells tell of SIGPIPE


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": None},
)
@click.version_option(installed_version("moorage"), prog_name=PROGRAM)
def moorctl() -> None:
    """Databases as a service on your own machines.

    Options above may also follow the command, as in `moorctl node list -o json`. Exit statuses: 0 done, 2 wrong input,
    3 not found, 4 conflict, 5 hub unavailable, 6 denied, 7 timed out, 9 degraded (status --check).
    """


moorctl.add_command(apply_command)
moorctl.add_command(diff_command)
moorctl.add_command(bundle)
for command in LEADERSHIP_COMMANDS:
    instance.add_command(command)
moorctl.add_command(instance)
moorctl.add_command(node)
moorctl.add_command(project)
moorctl.add_command(event)
moorctl.add_command(status_command)
moorctl.add_command(context)
moorctl.add_command(token)
moorctl.add_command(audit)


@moorctl.command("completion", cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: moorctl completion bash > /etc/bash_completion.d/moorctl
    zsh:  moorctl completion zsh > "${fpath[1]}/_moorctl"
    fish: moorctl completion fish > ~/.config/fish/completions/moorctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell  # click knows all three
    output.say(kind(moorctl, {}, PROGRAM, COMPLETE_VARIABLE).source())


def main() -> None:
    """The console script."""
    sys.exit(run(moorctl, sys.argv[1:], program=PROGRAM, complete_variable=COMPLETE_VARIABLE))


def run(
    command: click.Command,
    arguments: Sequence[str],
    *,
    program: str,
    complete_variable: str | None = None,
    interrupted: str = "interrupted; what the hub was asked for goes on",
) -> int:
    """Run a command line; returns the exit status whatever happens. `interrupted` is what is said after Ctrl-C."""
    session = Session()
    try:
        result = command.main(
            list(arguments), prog_name=program, complete_var=complete_variable, standalone_mode=False, obj=session
        )
        sys.stdout.flush()
    except (output.ReaderGone, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain once more when it flushes at exit
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        output.note(interrupted)
        return INTERRUPTED
    except Exception as error:
        return _failed(error, program, debug=session.debug or "--debug" in arguments)
    return result if isinstance(result, int) else 0


def _failed(error: Exception, program: str, *, debug: bool) -> int:
    """Tell of a failure; returns its exit status."""
    told = _as_told(error, program)
    if debug:
        output.note("".join(traceback.format_exception(error)).rstrip())
    output.fail(told)
    return told.exit_code


def _as_told(error: Exception, program: str) -> MoorageError:
    match error:
        case MoorageError():
            return error
        case click.UsageError():
            path = error.ctx.command_path if error.ctx is not None else program
            return UserError(error.format_message().rstrip("."), hint=f"See: {path} --help")
        case click.ClickException():
            return UserError(error.format_message())
        case _:
            what = f"unexpected {type(error).__name__}: {error}"
            return MoorageError(
                what, hint=f"This is a fault of {program}: run it again with --debug for its traceback."
            )

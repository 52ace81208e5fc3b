"""The edge: exit statuses, help, completion, and that nothing ever ends in a traceback."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.demo.command import demo
from cli.main import BROKEN_PIPE, INTERRUPTED, moorctl, run
from cli.session import Seconds
from cli.status import DEGRADED
from core import errors

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "exit-codes.md"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.delenv("MOORAGE_CONTEXT", raising=False)


def ctl(*arguments: str) -> int:
    return run(moorctl, arguments, program="moorctl")


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from verbs(child, (*path, name))
    else:
        yield path, command


# --- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", errors.ERRORS, ids=lambda kind: kind.code)
def test_every_kind_of_error_ends_with_its_documented_status(
    kind: type[errors.MoorageError], capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise kind("it went wrong", object="demo/x", hint="Do this.")

    assert run(failing, [], program="moorctl") == kind.exit_code
    assert capsys.readouterr().err == "error: demo/x: it went wrong\n  Do this.\n"
    assert re.search(rf"^\| {kind.exit_code} \| .*`{kind.code}`", DOCUMENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("status", [0, DEGRADED, 70, INTERRUPTED, BROKEN_PIPE])
def test_other_statuses_are_documented(status: int) -> None:
    assert re.search(rf"^\| {status} \|", DOCUMENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("0", 0)]
)
def test_times_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "soon", "1w", "1e9", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


def test_unexpected_failure_is_one_line_and_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError("division\nby zero")

    assert run(failing, [], program="moorctl") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug" in told
    assert "Traceback" not in told


def test_traceback_is_shown_to_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("--debug", "status") == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-2].startswith("error: ")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_interruption_is_no_failure_of_ours(
    interruption: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def waiting() -> None:
        raise interruption

    assert run(waiting, [], program="moorctl") == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("instnace", "list"), "did you mean 'instance'?"),
        (("instance", "lits"), "did you mean 'list'?"),
        (("instance", "create"), "Missing argument 'PROJECT/NAME'"),
        (("instance", "create", "orders"), "write PROJECT/INSTANCE"),
        (("instance", "list", "-o", "xml"), "'xml' is not one of"),
        (("instance", "list", "--hub", "nowhere"), "HOST:PORT"),
        (("node", "token", "--ttl", "soon"), "'soon' is not a time"),
        (("status",), "no context is chosen"),
        (("instance", "explain"), "name either an instance or a file"),
    ],
)
def test_wrong_command_lines_end_with_2_and_say_what_to_do(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in shown.err
    assert 1 <= len(shown.err.splitlines()) <= 3
    assert shown.err.startswith("error: ")


# fmt: off
_WORDS = st.sampled_from([
    "instance", "node", "project", "create", "list", "show", "delete", "apply", "-f", "-", "diff", "--yes", "-o",
    "json", "demo/x", "--hub", "127.0.0.1:1", "--wait", "--timeout", "nan", "-1", "event", "status", "context", "set",
    "--to", "--param", "completion", "bash",
])
# fmt: on


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(_WORDS, st.text(max_size=8)), max_size=6))
def test_no_command_line_ends_in_a_traceback(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    if "--debug" in arguments:
        return
    status = ctl(*arguments)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert "error: unexpected" not in told.err, told.err
    assert status in {0, 2, 3}


def test_reader_that_goes_away_is_not_an_error() -> None:
    result = subprocess.run(
        ["bash", "-c", "moorctl completion bash | true; exit ${PIPESTATUS[0]}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode in {0, BROKEN_PIPE}
    assert result.stderr == ""


# --- help and completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in verbs(moorctl)], ids=" ".join)
def test_every_verb_explains_itself_and_takes_the_shared_options(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl(*path, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: moorctl {' '.join(path)}")
    assert "--output" in told
    command = dict(verbs(moorctl))[path]
    assert command.help
    assert {"--hub", "--context", "--token-file", "--ca-file", "--debug"} <= {
        name for param in command.params for name in param.opts
    }


@pytest.mark.parametrize("path", [path for path, _ in verbs(moorctl) if path[-1] == "delete"], ids=" ".join)
def test_verbs_that_destroy_can_be_confirmed_beforehand(path: tuple[str, ...]) -> None:
    assert "--yes" in {name for param in dict(verbs(moorctl))[path].params for name in param.opts}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("completion", shell) == 0
    assert "_MOORCTL_COMPLETE" in capsys.readouterr().out


def completed(*words: str) -> list[str]:
    completer = ShellComplete(moorctl, {}, "moorctl", "_MOORCTL_COMPLETE")
    return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]


def test_words_are_completed() -> None:
    assert {"instance", "node", "project", "event", "status", "apply", "diff", "context"} <= set(completed(""))
    assert completed("instance", "sw") == ["switchover"]
    assert "--replicas" in completed("instance", "create", "--")
    assert completed("instance", "show", "de") == []  # no hub to ask: no names, and no noise


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("--version") == 0
    assert capsys.readouterr().out.startswith("moorctl, version ")


def test_demo_takes_the_same_care(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(demo, ["kill-primary", "--root", str(tmp_path)], program="moorage-demo") == 3
    assert "no demo runs here" in capsys.readouterr().err


def test_lists_are_valid_json_even_when_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("context", "list", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == []

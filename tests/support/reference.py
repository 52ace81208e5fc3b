"""Make the generated reference again: `./dev docs`. A test fails when what lies in docs/reference is stale."""

from __future__ import annotations

from pathlib import Path

from agent.engines.troubles import TOLD, Cure
from core.errors import ERRORS
from core.specs import write_schemas
from hub.judges.lifecycle import mermaid
from tests.support import events

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    """Text of each generated page below docs/reference, by file name."""
    return {
        "lifecycle.md": lifecycle_page(),
        "errors.md": errors_page(),
        "troubles.md": troubles_page(),
        "events.md": events.page(),
    }


def lifecycle_page() -> str:
    return (
        "# Life of an instance\n\nDrawn from the transition table in `hub/judges/lifecycle.py` by `./dev docs`.\n\n"
        f"```mermaid\n{mermaid().rstrip()}\n```\n"
    )


_CURES = {
    Cure.RETRY: "tries again, with pauses that grow to a minute",
    Cure.LOOK: "does not start the engine, looks every few seconds, starts it when the cause is gone",
    Cure.COPY: "copies the data anew from another member; a sole one stops after three tries",
    Cure.WARNING: "goes on",
}


def troubles_page() -> str:
    lines = [
        "# What can be wrong with an engine\n\nMade from `agent/engines/troubles.py` by `./dev docs`. The reason stands"
        " in conditions, in\n`moorctl instance show`, and in the events `trouble_met` and `trouble_ended`.\n",
        "| reason | what it means | what to do | what the agent does |",
        "|---|---|---|---|",
    ]
    for trouble, told in TOLD.items():
        lines.append(f"| `{trouble.value}` | {told.sentence} | {told.next_step} | {_CURES[told.cure]} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    lines = [
        "# Errors\n\nMade from `core/errors.py` by `./dev docs`.\n",
        "| code | meaning | exit status | gRPC | SQLSTATE | try again |",
        "|---|---|---|---|---|---|",
    ]
    for error in ERRORS:
        story = (error.__doc__ or "").splitlines()[0]
        again = "yes" if error.retryable else "no"
        lines.append(
            f"| `{error.code}` | {story} | {error.exit_code} | {error.grpc_status} | {error.sqlstate} | {again} |"
        )
    return "\n".join(lines) + "\n"


def write() -> None:
    """All generated files."""
    folder = ROOT / "docs" / "reference"
    write_schemas(folder / "schema")
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write()

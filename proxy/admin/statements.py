"""Pure: what was asked of the proxy's own database.

Beside SHOW only what drivers say of themselves is understood: beginning and ending of transactions, and settings of
theirs that change nothing here. All else is refused by a sentence that tells where to go instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STATEMENT_CHARS_MAX = 10_000

_PIECES = re.compile(r"(?P<text>'(?:[^']|'')*'|\"[^\"]*\")|(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<end>;)|.", re.DOTALL)
_BEGIN = re.compile(r"(?:begin|start transaction)\b", re.IGNORECASE)
_END = re.compile(r"(?P<verb>commit|end|rollback|abort)\b", re.IGNORECASE)
# What drivers set when they connect, and connection pools when they hand a connection back.
_SETTING = re.compile(
    r"(?:set\s+(?:session\s+|local\s+)?(?:application_name|bytea_output|client_encoding|client_min_messages|datestyle"
    r"|extra_float_digits|idle_in_transaction_session_timeout|intervalstyle|lock_timeout|search_path|session\s+"
    r"characteristics|standard_conforming_strings|statement_timeout|time\s*zone|timezone|transaction)\b"
    r"|reset\b|discard\b|deallocate\b|close\b)",
    re.IGNORECASE,
)
_SHOW = re.compile(r"show\s+(?P<what>[a-z_]+(?:\s+[a-z_]+)*)", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]+", re.IGNORECASE)
_DOCUMENT = "Change the instance's document and `moorctl apply` it; it is in force at once."
_INSTEAD = {
    "pause": "`moorctl instance switchover` holds clients by itself while it moves the primary.",
    "resume": "Clients are held only while a primary is moved or awaited; `moorctl status` tells why.",
    "suspend": "Nothing need be suspended: the agent replaces a proxy without losing a client.",
    "disable": "Set proxy.allow in the instance's document to keep clients out, and `moorctl apply` it.",
    "enable": "Set proxy.allow in the instance's document to let clients in, and `moorctl apply` it.",
    "kill": "Set proxy.allow in the instance's document to keep clients out; `moorctl instance restart` ends them.",
    "kill_client": "Connect to the instance's own database and call pg_terminate_backend(remote_pid).",
    "reconnect": "`moorctl instance restart` restarts the engines one after another.",
    "wait_close": "`moorctl instance show` tells when a change is done.",
    "reload": f"There is nothing to reload. {_DOCUMENT}",
    "shutdown": "The proxy belongs to the node's agent: `systemctl stop moorage-agent`, or drain the node.",
    "set": _DOCUMENT,
    "select": "There are no tables here: SHOW HELP lists what can be asked. Data is in the instance's own databases.",
}


@dataclass(frozen=True, slots=True)
class Show:
    """`what` in lower case, its words joined by `_`."""

    what: str


@dataclass(frozen=True, slots=True)
class Control:
    """Of the driver's own making. `open`: a transaction is, afterwards; None: as before."""

    tag: str
    open: bool | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """What cannot be done here, and what to do instead."""

    message: str
    hint: str
    sqlstate: str = "0A000"


Statement = Show | Control | Unknown


def read(text: str) -> list[Statement]:
    """The statements of a query string; none of an empty one."""
    if len(text) > STATEMENT_CHARS_MAX:
        return [Unknown(f"a statement of {len(text)} characters", "SHOW HELP lists what can be asked.", "54000")]
    return [_one(statement) for statement in _split(text)]


def _split(text: str) -> list[str]:
    """At semicolons, comments left out; what is quoted stays whole."""
    found, present = list[str](), ""
    for piece in _PIECES.finditer(text):
        if piece["end"]:
            found.append(present.strip())
            present = ""
        else:
            present += " " if piece["comment"] else piece[0]
    return [statement for statement in (*found, present.strip()) if statement]


def _one(text: str) -> Statement:
    if (shown := _SHOW.fullmatch(text)) is not None:
        return Show("_".join(shown["what"].lower().split()))
    if _BEGIN.match(text):
        return Control("BEGIN", open=True)
    if (end := _END.match(text)) is not None:
        return Control("COMMIT" if end["verb"].lower() in ("commit", "end") else "ROLLBACK", open=False)
    if (setting := _SETTING.match(text)) is not None:
        return Control(setting[0].split()[0].upper())
    word = _WORD.match(text)
    verb = word[0].lower() if word else ""
    what = f"{verb.upper()} is not supported here" if verb else "the statement was not understood"
    return Unknown(
        f"{what}: the proxy's own database is read only", _INSTEAD.get(verb, "SHOW HELP lists what can be asked.")
    )

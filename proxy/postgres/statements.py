"""Whether a statement may change what its session carries: settings, prepared statements, channels, and what cannot be
moved.

Asked of every statement, so it looks for a few words and, seldom, at the beginnings. To say yes where nothing changes
costs one question to the server (`carried`); to say no where something does would lose it in a failover. What a
function does inside is not seen.

Settings of an application's own (`myapp.tenant`) are the exception: the server does not list them, so their names are
read here. A name that is not in the text (a parameter of set_config) cannot be asked for: `hidden`. Nor does the server
say which libraries it has loaded: `loads`.

Apart from all that, a statement may `mute` the warnings that the proxy listens for (`doubt`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CACHED_BYTES_MAX = 2048  # of a statement
CACHE_ENTRIES_MAX = 1024  # statements that have one of the words; cleared when full
READ_BYTES_MAX = 64 << 10  # a longer one is taken to change something


@dataclass(frozen=True, slots=True)
class Effect:
    """`names`: settings of its own that the statement may set, in lower case. `hidden`: it may set some whose names it
    does not show. `forgets`: all settings are as after the login. `loads`: a library. `mutes`: the server may no longer
    say its warnings, be it for one transaction. `locks`: it may take an advisory lock."""

    changes: bool = False
    names: frozenset[bytes] = frozenset()
    hidden: bool = False
    forgets: bool = False
    loads: bool = False
    mutes: bool = False
    locks: bool = False


NONE = Effect()
UNREAD = Effect(changes=True, hidden=True)
# Most statements: one that begins like this, calls nothing and makes nothing temporary, changes nothing.
_COMMON = frozenset({b"select", b"insert", b"update", b"delete"})
_OPENING, _UPDATE = b"(u"
# One of these is in every statement that changes something. Cheap to look for, not yet the verdict.
_WORDS = re.compile(rb"set|liste|prepa|alloc|temp|hold|advis|load|disca|call|do\b|origin")
_FORGETS = re.compile(rb"\s*(?:discard|reset)\s+all\s*;?\s*")
_SKIPPED = re.compile(rb"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_PLAIN = re.compile(
    rb"(?:select|insert|update|delete|merge|with|values|table|copy|explain|execute|begin|start|commit|end|rollback|abort"
    rb"|savepoint|release|fetch|move|close|show|lock|notify|truncate|vacuum|analyze|checkpoint|refresh|comment|grant"
    rb"|revoke|alter|reindex|cluster|prepare\s+transaction|set\s+(?:local|transaction|constraints))\b"
)
_IN_PLAIN = re.compile(
    rb"set_config|setseed|advisory_(?:lock|unlock)|into\s+temp|pg_temp|session_setup|update\b.*pg_settings", re.DOTALL
)
_NAMED = re.compile(rb"\bset\s+(?:session\s+)?\"?([a-z_\x80-\xff][\w$\x80-\xff]*\.[\w$.\x80-\xff]+)")
_CONFIG = re.compile(rb"set_config\s*\(\s*(?:(?:pg_catalog\.)?e?'([^'\\]*)'(?:::\w+)?\s*,)?")
_CONFIG_LOCAL = re.compile(rb"set_config\s*\(\s*[^,()]+(?:::\w+)?\s*,[^,()]+,\s*(?:true|'t'|'true')(?:::\w+)?\s*\)")
_BLANK = rb"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
_LOADS = re.compile(rb"\bload" + _BLANK + rb"(?:e|u&)?['$]", re.DOTALL)
_LEVEL = re.compile(r"client_min_messages\s*=\s*'?(?:error|fatal|panic)")  # `-c name=value`, `--name=value`
_LOCKS = re.compile(rb"advisory_(?:xact_)?lock")
_MUTED = b"client_min_messages"
_MUTES = re.compile(
    rb"(?:\bset\s+(?:session\s+|local\s+)?\"?client_min_messages\"?\s*(?:=|\bto\b)"
    rb"|set_config\s*\(\s*e?'client_min_messages'(?:::\w+)?\s*,)"
    rb"(?!\s*e?'?(?:debug\d?|log|notice|info|warning|default)\b)|update\b.*pg_settings.*client_min_messages",
    re.DOTALL,
)
_cache: dict[bytes, Effect] = {}


def effect_of(statement: bytes) -> Effect:
    """Of a query string, which may hold several statements."""
    if len(statement) > READ_BYTES_MAX:
        return UNREAD
    text = statement.lower()
    # `find` and a number, because `in` with bytes first tries to make a number of them, which is dear.
    if (
        text[:6] in _COMMON
        and _OPENING not in text
        and text.find(b";", 0, -1) < 0
        and text.find(b"temp") < 0
        and (text[0] != _UPDATE or text.find(b"pg_settings") < 0)
    ):
        return NONE
    if _WORDS.search(text) is None:
        return NONE
    if len(statement) > CACHED_BYTES_MAX:
        return _examine(text)
    found = _cache.get(statement)
    if found is None:
        if len(_cache) >= CACHE_ENTRIES_MAX:
            _cache.clear()
        found = _cache[statement] = _examine(text)
    return found


def mutes(name: str, value: str) -> bool:
    """Whether a startup parameter does."""
    return _LEVEL.search(_shown(name, value)) is not None


def names_mute(name: str, value: str) -> bool:
    """Whether a startup parameter says which messages are sent."""
    return "client_min_messages" in _shown(name, value)


def _shown(name: str, value: str) -> str:
    return (value if name == "options" else f"{name}={value}").lower().replace("-", "_")


def _examine(text: bytes) -> Effect:
    muting = _MUTED in text and _MUTES.search(text) is not None
    locking = _LOCKS.search(text) is not None
    if not _may_change(text):
        return Effect(mutes=muting, locks=locking) if muting or locking else NONE
    if _FORGETS.fullmatch(text):
        return Effect(changes=True, forgets=True)
    names = {name for name in _NAMED.findall(text) if not name.endswith(b".")}
    hidden = False
    if b"set_config" in text:
        lasting = _CONFIG_LOCAL.sub(b"", text)
        for name in _CONFIG.findall(lasting):
            names |= {name} if b"." in name else set()
            hidden |= not name
    return Effect(True, frozenset(names), hidden, loads=_LOADS.search(text) is not None, mutes=muting, locks=locking)


def _may_change(text: bytes) -> bool:
    if b"*/" in text and b";" in text:
        return True  # a comment may hide where a statement begins
    return any(_one_may_change(text, at) for at in _beginnings(text))


def _beginnings(text: bytes) -> list[int]:
    """Behind every semicolon: those inside of strings are no beginnings, and do no harm."""
    return [0, *(found.end() for found in re.finditer(rb";", text))]


def _one_may_change(text: bytes, at: int) -> bool:
    skipped = _SKIPPED.match(text, at)
    begin = skipped.end() if skipped else at
    end = text.find(b";", begin)
    statement = text[begin : end if end >= 0 else len(text)]
    if not statement:
        return False
    if _PLAIN.match(statement):
        return _IN_PLAIN.search(statement) is not None
    return _WORDS.search(statement) is not None

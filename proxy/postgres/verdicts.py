"""Pure: whether a statement only reads, so that a replica may answer it. Told from the tree that a real parser makes.

Everything is listed that a reading statement may be made of: kinds of nodes, their fields, functions. What is not in
the lists is no read, be it known to write or not known at all. Functions are those of PostgreSQL itself that have no
effect and tell nothing of the server they run on; which others are called is part of the verdict, for the instance's
document may allow them. So are the catalogs left out: they tell what holds at the primary.

What a view, an operator, a cast or a function of the same name in another schema does inside is not seen. That such a
thing writes is seen by the replica, which refuses it.

A text that the server might take apart in another way than the parser is never read here: one with a backslash, which
means this or that by a setting, or one that is not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from proxy.postgres.harmless import HARMLESS

# With these two a verdict takes at most some 10 ms, in which nobody else is served; of a common statement 20 to 200 us.
TEXT_BYTES_MAX = 16 << 10
TREE_CHARS_MAX = 128 << 10  # as JSON; some 1,000 constants or columns
CACHE_BYTES_MAX = 8 << 20  # of texts whose verdicts are remembered
ENTRY_BYTES = 300  # that one costs beside its text
Parse = Callable[[str], str]  # the tree as JSON; any Exception when it is no SQL


class Kind(Enum):
    READS = auto()
    BEGINS = auto()  # a transaction that will only read
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`calls`: functions that are not known to be harmless, as the statement names them."""

    kind: Kind
    calls: frozenset[str] = frozenset()


OTHER = Verdict(Kind.OTHER)
BEGINS = Verdict(Kind.BEGINS)
READS = Verdict(Kind.READS)
# Else it need not be parsed. A comment may stand before anything.
_CANDIDATE = re.compile(rb"[\s(;]*(?:select|with|values|table|begin|start|--|/\*)", re.I)
_NODES = """
    SelectStmt ResTarget ColumnRef A_Star A_Const A_Expr A_ArrayExpr A_Indirection A_Indices BoolExpr NullTest
    BooleanTest CaseExpr CaseWhen CoalesceExpr MinMaxExpr RowExpr SubLink ParamRef TypeCast CollateClause
    FuncCall NamedArgExpr SQLValueFunction GroupingFunc GroupingSet SortBy WindowDef RangeVar RangeSubselect
    RangeFunction JoinExpr CommonTableExpr List String Integer Float Boolean BitString TypeName Alias
"""
# Of a statement, of what it reads from, of expressions, of calls. Neither intoClause nor lockingClause.
_FIELDS = """
    distinctClause targetList fromClause whereClause groupClause groupDistinct havingClause windowClause
    valuesLists sortClause limitOffset limitCount limitOption withClause op all larg rarg ctes recursive ctename
    aliascolnames ctematerialized ctequery location schemaname relname inh relpersistence alias aliasname
    colnames lateral subquery functions ordinality is_rowsfrom coldeflist jointype isNatural usingClause quals
    join_using_alias name val indirection fields kind lexpr rexpr rexpr_list_start rexpr_list_end elements
    list_start list_end arg is_slice lidx uidx boolop args nulltesttype argisrow booltesttype casetype defresult
    expr result row_format subLinkType testexpr operName subselect number typeName names typmods typemod
    arrayBounds setof pct_type collname items sval ival fval boolval bsval isnull func argnumber content node
    sortby_dir sortby_nulls useOp funcname agg_order agg_filter over agg_within_group agg_star agg_distinct
    func_variadic funcformat refname partitionClause orderClause frameOptions startOffset endOffset typmod
"""
_KNOWN = frozenset((_NODES + _FIELDS).split())
_CATALOGS = ("pg_", "information_schema")
_ISOLATIONS = frozenset({"read committed", "repeatable read", "read uncommitted"})  # a replica has no serializable


def judge(text: bytes, parse: Parse) -> Verdict:
    """Of a query string."""
    if len(text) > TEXT_BYTES_MAX or b"\\" in text or b"\0" in text or _CANDIDATE.match(text) is None:
        return OTHER
    try:
        tree = parse(text.decode())
        statements: list[dict[str, Any]] = json.loads(tree)["stmts"] if len(tree) <= TREE_CHARS_MAX else []
    except Exception:  # whatever a parser may say of strangers' texts
        return OTHER
    if len(statements) != 1:
        return OTHER
    root = statements[0].get("stmt", {})
    if "TransactionStmt" in root:
        return BEGINS if _begins_read_only(root["TransactionStmt"]) else OTHER
    calls = _calls(root) if root.keys() == {"SelectStmt"} else None
    if calls is None:
        return OTHER
    return Verdict(Kind.READS, frozenset(calls)) if calls else READS


def _begins_read_only(statement: dict[str, Any]) -> bool:
    if statement.get("kind") not in ("TRANS_STMT_BEGIN", "TRANS_STMT_START"):
        return False
    options = [option.get("DefElem", {}) for option in statement.get("options", [])]
    constants = {option.get("defname"): option.get("arg", {}).get("A_Const", {}) for option in options}
    if len(constants) != len(options) or not constants.keys() <= {"transaction_read_only", "transaction_isolation"}:
        return False
    isolation = constants.get("transaction_isolation", {}).get("sval", {}).get("sval", "read committed")
    only = constants.get("transaction_read_only", {}).get("ival", {}).get("ival")
    return only == 1 and isolation in _ISOLATIONS


def _calls(tree: object) -> set[str] | None:
    """Functions that are called and not known to be harmless. None when there is anything that is no read."""
    calls: set[str] = set()
    left: list[object] = [tree]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            if not (part.keys() <= _KNOWN and _is_harmless(part, calls)):
                return None
            left += part.values()
    return calls


def _is_harmless(part: dict[str, Any], calls: set[str]) -> bool:
    """By the names of what it reads from and calls."""
    if "RangeVar" in part:
        relation = part["RangeVar"]
        names = (relation.get("schemaname", ""), relation.get("relname", ""))
        return not any(name.startswith(_CATALOGS) for name in names)
    if "FuncCall" in part:
        words = [one.get("String", {}).get("sval", "") for one in part["FuncCall"].get("funcname", [])]
        bare = words[1:] if words[:1] == ["pg_catalog"] else words
        if len(bare) == 1 and bare[0] in HARMLESS:
            return True
        calls.add(".".join(words))
    return True


class Verdicts:
    """Remembers those of late."""

    def __init__(self, parse: Parse, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._parse = parse
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()  # the one used last stands last

    def of(self, text: bytes) -> Verdict:
        known = self._known
        found = known.get(text)
        if found is not None:
            known.move_to_end(text)
            return found
        found = judge(text, self._parse)
        if len(text) <= TEXT_BYTES_MAX:
            known[text] = found
            self._bytes += len(text) + ENTRY_BYTES
            while self._bytes > self._bytes_max:
                former, _ = known.popitem(last=False)
                self._bytes -= len(former) + ENTRY_BYTES
        return found

    @property
    def bytes(self) -> int:
        return self._bytes

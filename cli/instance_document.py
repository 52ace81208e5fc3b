"""The flags of `moorctl instance create`, and `--file`, as an Instance document.

Flags say what a person most often wants said; whatever else a document can hold comes from the file. A flag wins over
the file. The finished document is checked here, so that a mistake is told before the hub is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cli.apply import read_sources
from core.errors import UserError
from core.ids import InstanceRef
from core.specs import parse_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The flags of create; None and empty were not given."""

    replicas: int | None
    engine_version: int | None
    cpu: float | None
    memory: str | None
    disk: str | None
    mode: str | None
    k: int | None
    quorum: int | None = None
    strict: bool | None = None
    parameters: tuple[str, ...]
    databases: tuple[str, ...]
    users: tuple[str, ...]
    extensions: tuple[str, ...]


def document_for(ref: InstanceRef, wishes: Wishes, base: dict[str, Any]) -> dict[str, Any]:
    """The Instance document: `base` (of --file), overridden by flags. UserError names what does not fit."""
    for field, value in (("project", ref.project), ("name", ref.instance)):
        if base.get(field, value) != value:
            raise UserError(f"{field} is {base[field]!r} in the file, but {value!r} was named", object=str(ref))
    document: dict[str, Any] = {"kind": "Instance", **base, "project": ref.project, "name": ref.instance}
    plain = {"replicas": wishes.replicas, "engine_version": wishes.engine_version}
    document |= {field: value for field, value in plain.items() if value is not None}
    _merge(document, "resources", {"cpu": wishes.cpu, "memory": wishes.memory, "disk": wishes.disk})
    _merge(document, "replication", _replication(wishes))
    _merge(document, "parameters", dict(_parameter(text) for text in wishes.parameters))
    _add_users_and_databases(document, wishes)
    parse_document(document, where=str(ref))
    return document


def _merge(document: dict[str, Any], field: str, given: dict[str, Any]) -> None:
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen:
        document[field] = {**document.get(field, {}), **chosen}


def _replication(wishes: Wishes) -> dict[str, Any]:
    """`--quorum K` says mode and number at once."""
    if wishes.quorum is None:
        return {"mode": wishes.mode, "k": wishes.k, "strict": wishes.strict}
    if wishes.mode not in (None, "quorum") or wishes.k not in (None, wishes.quorum):
        other = f"--mode {wishes.mode}" if wishes.mode not in (None, "quorum") else f"--k {wishes.k}"
        raise UserError(f"--quorum {wishes.quorum} does not go with {other}", object="--quorum")
    return {"mode": "quorum", "k": wishes.quorum, "strict": wishes.strict}


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{text!r} is not NAME=VALUE", object="--param", hint="Such as --param work_mem=64MB.")
    return name.strip(), value.strip()


def _add_users_and_databases(document: dict[str, Any], wishes: Wishes) -> None:
    """The first user owns the databases. Naming only the one leaves the other as the hub would make it."""
    if wishes.users:
        document["users"] = [{"name": user} for user in wishes.users]
    if wishes.users or wishes.databases or wishes.extensions:
        owner = document["users"][0]["name"] if document.get("users") else "app"
        known = document.get("databases") or []
        names = wishes.databases or [database["name"] for database in known] or ["app"]
        extensions = {"extensions": list(wishes.extensions)} if wishes.extensions else {}
        document["databases"] = [{"name": name, "owner": owner, **extensions} for name in names]


def base_document(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    sources = read_sources([file])
    if len(sources) != 1 or sources[0].document.get("kind") != "Instance":
        raise UserError("must hold exactly one Instance document", object=file, hint="Use `moorctl apply -f` for more.")
    return sources[0].document

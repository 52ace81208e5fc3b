"""Documents: what is refused, and in which words; what is taken; what is exported."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.specs import InstanceSpec, ProjectSpec, json_schemas, parse_document, parse_json, write_schemas

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "docs" / "reference" / "schema"
ORDERS: dict[str, Any] = {"kind": "Instance", "project": "demo", "name": "orders"}


def orders(**fields: Any) -> dict[str, Any]:
    return {**ORDERS, **fields}


# Each bad document, and the whole message that its author gets.
REFUSED: list[tuple[object, str]] = [
    ([], "d: a document must be a mapping with `kind`"),
    ({}, "d: kind is required. Use one of Project, Node, Instance."),
    ({"kind": "Instanz"}, "d.kind: kind 'Instanz' is not known. Use one of Project, Node, Instance."),
    ({"kind": "Instance"}, "d: project: is required; name: is required"),
    (
        orders(name="Orders"),
        "d: name: name 'Orders' is not valid: use 1 to 40 of a-z, 0-9 and '-', starting with a letter, "
        "not ending with '-'",
    ),
    (orders(name=5), "d: name: must be text"),
    (orders(version=2), "d: version: must be 1, got 2"),
    (orders(replica=2), "d: replica: is not a known field; did you mean 'replicas'?"),
    (orders(resources={"memry": 1}), "d: resources.memry: is not a known field; did you mean 'memory'?"),
    (
        orders(users=[{"name": "a", "xyz": 1}], databases=[]),
        "d: users[0].xyz: is not known; fields: name, superuser, roles",
    ),
    (orders(replicas="2"), "d: replicas: must be a whole number, got '2'"),
    (orders(replicas=1.5), "d: replicas: must be a whole number, got 1.5"),
    (orders(replicas=True), "d: replicas: must be a whole number, got true"),
    (orders(replicas=-1), "d: replicas: must be at least 0, got -1"),
    (orders(replicas=99), "d: replicas: must be at most 8, got 99"),
    (orders(engine="oracle"), "d: engine: must be 'postgresql', got 'oracle'"),
    (orders(engine_version=9), "d: engine_version: must be at least 13, got 9"),
    (orders(resources=None), "d: resources: must be a mapping"),
    (orders(resources={"cpu": 0}), "d: resources.cpu: must be above 0, got 0"),
    (orders(resources={"cpu": float("nan")}), "d: resources.cpu: must be a finite number, got nan"),
    (
        orders(resources={"memory": "1GB"}),
        "d: resources.memory: is not a size: write bytes, or a number with Ki, Mi, Gi or Ti, such as 512Mi",
    ),
    (orders(resources={"memory": "64Mi"}), "d: resources.memory: must be at least 128Mi"),
    (orders(resources={"disk": "9999999Ti"}), "d: resources.disk: is too large to be a size"),
    (
        orders(replication={"mode": "synchronous"}),
        "d: replication.mode: must be 'async', 'sync' or 'quorum', got 'synchronous'",
    ),
    (orders(replication={"mode": "sync"}), "d: replicas: sync replication needs at least 1, got 0"),
    (
        orders(replicas=1, replication={"mode": "quorum", "k": 2}),
        "d: replicas: quorum replication needs at least 2, got 1",
    ),
    (
        orders(users=[{"name": "App"}]),
        "d: users[0].name: user name 'App' is not valid: use 1 to 63 of a-z, 0-9 and _, "
        "not starting with a digit or pg_",
    ),
    (orders(users=[{"name": "moorage"}]), "d: users[0].name: user name 'moorage' is reserved"),
    (orders(users=[{"name": "a"}, {"name": "a"}], databases=[]), "d: users: 'a' occurs twice"),
    (
        orders(users=[{"name": "a", "roles": ['x"; DROP ROLE y']}], databases=[]),
        "d: users[0].roles: 'x\"; DROP ROLE y' is not a role one can be a member of",
    ),
    (orders(databases=[{"name": "x"}]), "d: databases[0].owner: is required"),
    (
        orders(databases=[{"name": "x", "owner": "nobody"}]),
        "d: databases: owner 'nobody' of 'x' is not among the users; declare it there",
    ),
    (
        orders(databases=[{"name": "x", "owner": "app", "extensions": ["a b"]}]),
        "d: databases[0].extensions: 'a b' is not an extension name",
    ),
    (orders(parameters={"port": 5}), "d: parameters: port is managed by Moorage; leave it out"),
    (orders(parameters={"archive_command": "x"}), "d: parameters: archive_command is managed by Moorage; leave it out"),
    (orders(parameters={"Work Mem": 5}), "d: parameters: 'Work Mem' is not a parameter name"),
    (orders(parameters={"work_mem": None}), "d: parameters.work_mem: must be text, a number, true or false"),
    (
        orders(parameters={"work_mem": "1MB\nport=1"}),
        "d: parameters.work_mem: must be one line of at most 1000 printable characters",
    ),
    (orders(proxy={"allow": ["10.0.0.1/8"]}), "d: proxy.allow: 10.0.0.1/8 has host bits set"),
    (orders(proxy={"tls": "yes"}), "d: proxy.tls: must be 'off', 'prefer' or 'require', got 'yes'"),
    (orders(placement={"zones": "z1"}), "d: placement.zones: must be a list, got 'z1'"),
    (
        orders(members={"primary": {}}),
        "d: members: 'primary' is not a member name: they are m1, m2, ..., see `moorctl instance show`",
    ),
    (
        orders(members={"m2": {"no_failovr": True}}),
        "d: members.m2.no_failovr: is not a known field; did you mean 'no_failover'?",
    ),
    (
        orders(members={"m2": {"weight": 1}}),
        "d: members.m2.weight: is not a known field; did you mean 'read_weight'?",
    ),
    (orders(members={"m2": 5}), "d: members.m2: must be a mapping, got 5"),
    (orders(members={"m2": {"priority": 101}}), "d: members.m2.priority: must be at most 100, got 101"),
    (orders(members={"m2": {"priority": -1}}), "d: members.m2.priority: must be at least 0, got -1"),
    (orders(members={"m2": {"upstream": "m2"}}), "d: members.m2.upstream: a member cannot stream from itself"),
    (
        orders(replicas=3, members={"m2": {"upstream": "m3"}, "m3": {"upstream": "m4"}, "m4": {"upstream": "m2"}}),
        "d: members.m2.upstream: goes in a circle: m2 from m3 from m4 from m2",
    ),
    (
        orders(replicas=3, members={"m1": {"upstream": "m2"}, "m2": {"upstream": "m3"}, "m3": {"upstream": "m2"}}),
        "d: members.m2.upstream: goes in a circle: m2 from m3 from m2",
    ),
    (
        orders(replicas=1, members={"m1": {"no_failover": True}, "m2": {"no_failover": True}}),
        "d: members: no member is left to be primary: m1, m2 have no_failover, of 2 in all",
    ),
    (
        orders(replicas=1, replication={"mode": "sync"}, members={"m2": {"no_failover": True}}),
        "d: members: sync replication needs 1 members beside the primary that can confirm a commit; m2 cannot "
        "(no_failover or upstream), of 2 members in all",
    ),
    (
        orders(replicas=2, replication={"mode": "quorum", "k": 2}, members={"m3": {"upstream": "m2"}}),
        "d: members: quorum replication needs 2 members beside the primary that can confirm a commit; m3 cannot "
        "(no_failover or upstream), of 3 members in all",
    ),
    (orders(labels={"team": 1}), "d: labels.team: must be text, got 1"),
    (orders(deletion_protection="yes"), "d: deletion_protection: must be true or false, got 'yes'"),
    ({"kind": "Node", "name": "n1", "price_per_hour": -1}, "d: price_per_hour: must be at least 0, got -1"),
    ({"kind": "Project", "name": "p", "quota": {"memory": -1}}, "d: quota.memory: must not be negative"),
    (
        {"kind": "Project", "name": "p", "quota": {"cpu": "x" * 200}},
        "d: quota.cpu: must be a number, got '" + "x" * 59 + "...",
    ),
    (
        orders(foo=1, engine="x", replicas=99, users=3, databases=4, proxy=5, labels=6),
        "d: labels: must be a mapping, got 6; engine: must be 'postgresql', got 'x'; replicas: must be at most 8, got "
        "99; users: must be a list, got 3; databases: must be a list, got 4 (and 2 more)",
    ),
]


@pytest.mark.parametrize(("document", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_bad_document_is_refused_with_its_path(document: object, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_document(document, where="d")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "d: not valid JSON: "),
        ("[" * 100_000, "d: not valid JSON: "),
        ('{"kind": "Node", "kind": "Node", "name": "n1"}', "d: not valid JSON: field 'kind' occurs twice"),
        ('"' + "x" * 300_000 + '"', "d: document has 300002 bytes, more than 262144"),
        ('{"kind": "Node", "name": "\\ud800"}', "d: "),
    ],
)
def test_text_that_is_no_document_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_json(text, where="d")
    assert str(refused.value).startswith(message)


def test_value_that_only_yaml_knows_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"JSON cannot carry.*date.*Put it in quotes"):
        parse_document(orders(labels={"since": dt.date(2026, 1, 1)}), where="d")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_document_whatsoever_is_more_than_refused(raw: object) -> None:
    for document in (
        raw,
        {"kind": "Instance", "users": raw},
        orders(parameters=raw),
        orders(resources={"memory": raw}),
    ):
        with contextlib.suppress(UserError):
            parse_document(document)


def test_defaults_make_a_whole_instance() -> None:
    spec = parse_document(ORDERS)
    assert isinstance(spec, InstanceSpec)
    assert (spec.replicas, spec.replication.mode, spec.resources.memory) == (0, "async", 1 << 30)
    assert [user.name for user in spec.users] == ["app"]


def test_sizes_are_written_as_people_write_them() -> None:
    spec = parse_document(orders(resources={"memory": "1.5Gi", "disk": 1 << 30}))
    assert isinstance(spec, InstanceSpec)
    assert (spec.resources.memory, spec.resources.disk) == (1536 << 20, 1 << 30)


def test_what_was_stored_is_read_back_the_same() -> None:
    spec = parse_document(orders(replicas=2, parameters={"work_mem": "8MB", "jit": False, "random_page_cost": 1.1}))
    assert isinstance(spec, InstanceSpec)
    assert InstanceSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_members_may_be_particular_as_long_as_enough_are_able() -> None:
    members = {"m2": {"priority": 10, "clone_source": True}, "m3": {"no_load_balance": True, "upstream": "m2"}}
    spec = parse_document(orders(replicas=2, replication={"mode": "sync"}, members=members))
    assert isinstance(spec, InstanceSpec)
    assert (spec.members["m2"].priority, spec.members["m3"].upstream) == (10, "m2")
    assert InstanceSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_null_means_no_bound_in_quotas() -> None:
    spec = parse_document({"kind": "Project", "name": "demo", "quota": {"memory": None, "cpu": 4}})
    assert isinstance(spec, ProjectSpec)
    assert (spec.quota.memory, spec.quota.cpu) == (None, 4.0)


def test_schema_describes_every_field() -> None:
    for kind, schema in json_schemas().items():
        models = {kind: schema, **schema.get("$defs", {})}
        for model, part in models.items():
            for field, facts in part.get("properties", {}).items():
                assert field in ("kind", "version") or facts.get("description"), f"{model}.{field} has no description"


RENEW = "from pathlib import Path; from core.specs import write_schemas; write_schemas(Path('docs/reference/schema'))"


def test_exported_schemas_are_not_stale(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    assert kept == fresh, f'{SCHEMAS} is stale; run: python -c "{RENEW}"'

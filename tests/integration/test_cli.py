"""`moorctl` against a real hub on a real etcd: what a person types, sees, and what a script gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.identity import make_ca
from core.ids import InstanceRef
from core.records import Event, HaRecord, InstanceStatus, LeaderRecord, NodeRecord
from core.status import Condition, ConditionType, Phase
from hub.etcd import keys, txns
from tests.support.api import Api, empty, one_etcd, running_api
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_port
from tests.support.waiting import eventually

MOORCTL = str(Path(sys.executable).parent / "moorctl")
ORDERS = InstanceRef("demo", "orders")
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdProcess]:
    with one_etcd() as etcd:
        yield etcd


@pytest.fixture
async def api(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Api]:
    await empty(etcd)
    (tmp_path / "hub").mkdir()
    async with running_api(etcd.endpoint, tmp_path / "hub") as api:
        yield api


@dataclass
class Answer:
    """How a command ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


class Ctl:
    """moorctl with a context of its own."""

    def __init__(self, folder: Path) -> None:
        self.environ = {**os.environ, "MOORAGE_CONFIG": str(folder / "config.yaml"), "COLUMNS": "200"}
        self.environ.pop("MOORAGE_CONTEXT", None)

    async def __call__(self, *arguments: str, input: str = "") -> Answer:
        return await asyncio.to_thread(self._run, arguments, input)

    def _run(self, arguments: tuple[str, ...], input: str) -> Answer:
        command = [MOORCTL, *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True, env=self.environ, timeout=WITHIN_S)
        assert "Traceback" not in done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    async def on_terminal(self, typed: str, *arguments: str) -> Answer:
        """As a person at a terminal who types one line; `out` is all that the terminal shows."""
        return await asyncio.to_thread(self._typed, typed, arguments)

    def _typed(self, typed: str, arguments: tuple[str, ...]) -> Answer:
        own, theirs = os.openpty()
        try:
            process = subprocess.Popen(
                [MOORCTL, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=self.environ
            )
            os.close(theirs)
            os.write(own, f"{typed}\n".encode())
            shown = b""
            with contextlib.suppress(OSError):  # the last one to hold the terminal has gone
                while part := os.read(own, 65536):
                    shown += part
            return Answer(process.wait(WITHIN_S), shown.decode(), "")
        finally:
            os.close(own)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            MOORCTL, *arguments, stdout=pipe, stderr=pipe, env={**self.environ, "PYTHONUNBUFFERED": "1"}
        )


@pytest.fixture
async def ctl(api: Api, tmp_path: Path) -> Ctl:
    ctl = Ctl(tmp_path)
    config = api.hub.config
    files = ("--token-file", str(config.admin_token_path), "--ca-file", str(config.ca_path))
    assert (await ctl("context", "set", "test", "--hub", config.listen_operators, *files)).status == 0
    return ctl


async def running_orders(api: Api, ctl: Ctl) -> None:
    """demo/orders on n1 and n2, running."""
    made = await ctl("instance", "create", "demo/orders", "--replicas", "1", "--create-project", "--no-wait")
    assert made.status == 0, made.err
    await api.place(ORDERS, "n1", "n2")
    await change_status(api, observed_generation=1)


async def change_status(api: Api, **changes: Any) -> None:
    known = api.hub.mirror.status.get(ORDERS)
    before = known.record if known is not None else InstanceStatus(project="demo", name="orders")
    await api.put(keys.status(ORDERS), replace(before, **changes))


# --- documents ------------------------------------------------------------------------------------------------------

DOCUMENTS = """\
kind: Project
name: shop
---
kind: Instance
project: shop
name: db
replicas: 1
"""


async def test_apply_is_idempotent_and_diff_tells_what_it_would_do(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(DOCUMENTS)
    before = await ctl("diff", "-f", str(file))
    assert (before.status, before.out.splitlines()[0]) == (1, "+ project shop")
    assert (await ctl("project", "show", "shop")).status == 3  # diff writes nothing
    applied = await ctl("apply", "-f", "-", "--no-wait", input=DOCUMENTS)
    assert applied.out.splitlines()[:2] == ["project shop created", "instance shop/db created"]
    assert (await ctl("diff", "-f", str(file))).status == 0
    again = (await ctl("apply", "-f", str(file), "--no-wait", "-o", "json")).json()
    assert [result["outcome"] for result in again] == ["unchanged", "unchanged"]
    file.write_text(DOCUMENTS.replace("replicas: 1", "replicas: 2"))
    changed = await ctl("diff", "-f", str(file), "-o", "yaml")
    assert changed.status == 1
    assert yaml.safe_load(changed.out)[1]["changes"] == ["replicas: 1 -> 2"]


async def test_nothing_is_written_when_one_document_is_wrong(ctl: Ctl) -> None:
    refused = await ctl("apply", "-f", "-", input=DOCUMENTS + "replication: {mode: fast}\n")
    assert refused.status == 2
    assert refused.err.startswith("error: standard input:8: document 2: replication.mode: ")
    unknown = await ctl("apply", "-f", "-", input="kind: Instance\nproject: gone\nname: db\n")  # only the hub can know
    assert unknown.status == 3
    assert (await ctl("project", "list", "-o", "json")).json() == []


async def test_diff_tells_trouble_from_differences(ctl: Ctl) -> None:
    assert (await ctl("diff", "-f", "-", input="kind: Projekt\n")).status == 2


# --- instances ------------------------------------------------------------------------------------------------------


async def test_create_makes_the_project_only_when_asked(ctl: Ctl) -> None:
    refused = await ctl("instance", "create", "demo/orders", "--no-wait")
    assert refused.status == 3
    assert "moorctl project create demo" in refused.err
    made = await ctl("instance", "create", "demo/orders", "--create-project", "--no-wait", "-o", "json")
    assert [result["name"] for result in made.json()] == ["demo", "demo/orders"]
    again = await ctl("instance", "create", "demo/orders", "--create-project", "--no-wait")
    assert again.status == 4
    assert "exists already" in again.err


async def test_create_waits_until_it_runs_and_tells_how_to_connect(api: Api, ctl: Ctl) -> None:
    await ctl("project", "create", "demo")
    process = await ctl.start("instance", "create", "demo/orders", "--replicas", "1", "--mode", "sync")

    async def created() -> bool:
        return ORDERS in api.hub.mirror.instances

    await eventually(created, within=20)
    await change_status(api, phase=Phase.CREATING)
    assert b"Creating" in await one_line(process.stderr, b"Creating")
    await api.place(ORDERS, "n1", "n2")
    await change_status(api, observed_generation=1)
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"read-write:  127.0.0.11:15001,127.0.0.12:15001" in out
    assert b"moorctl instance connect demo/orders" in out


async def one_line(stream: asyncio.StreamReader | None, wanted: bytes) -> bytes:
    assert stream is not None
    async with asyncio.timeout(20):
        while wanted not in (line := await stream.readline()):
            assert line, f"the command ended without saying {wanted!r}"
    return line


async def test_waiting_ends_with_what_is_missing(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    message = "m2 on n2 is down"
    down = Condition(type=ConditionType.REPLICAS_AVAILABLE, status=False, reason="MemberCrashed", message=message)
    await change_status(api, phase=Phase.DEGRADED, conditions=(down,))
    document = "kind: Instance\nproject: demo\nname: orders\nreplicas: 2\n"
    waited = await ctl("apply", "-f", "-", "--timeout", "1", input=document)
    assert waited.status == 7
    assert waited.err.splitlines()[-2] == f"error: demo/orders: not Running after 1 s: {message}"


async def test_interrupted_waiting_leaves_the_work_going_on(api: Api, ctl: Ctl) -> None:
    process = await ctl.start("instance", "create", "demo/orders", "--create-project")
    await one_line(process.stderr, b"Pending")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert ORDERS in api.hub.mirror.instances


async def test_show_and_list_agree_in_every_format(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    shown = (await ctl("instance", "show", "demo/orders", "-o", "json")).json()
    assert shown["spec"]["replicas"] == 1
    assert shown["status"]["phase"] == "Running"
    assert (await ctl("-o", "json", "instance", "list", "--project", "demo")).json() == [shown]
    assert yaml.safe_load((await ctl("instance", "list", "-o", "yaml")).out)[0]["name"] == "demo/orders"
    table = (await ctl("instance", "list")).out.splitlines()
    assert table[1].split()[:4] == ["demo/orders", "Running", "m1@n1", "2/2"]
    page = (await ctl("instance", "show", "demo/orders")).out
    assert "read-write:  127.0.0.11:15001,127.0.0.12:15001" in page
    assert (await ctl("instance", "list", "--project", "other", "-o", "json")).json() == []


async def test_protected_instance_is_not_deleted(ctl: Ctl) -> None:
    document = (
        "kind: Project\nname: demo\n---\nkind: Instance\nproject: demo\nname: orders\ndeletion_protection: true\n"
    )
    await ctl("apply", "-f", "-", "--no-wait", input=document)
    refused = await ctl("instance", "delete", "demo/orders", "--yes")
    assert refused.status == 4
    assert "deletion_protection: false" in refused.err


async def test_delete_asks_and_then_waits_until_it_is_gone(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    assert (await ctl("instance", "delete", "demo/orders")).status == 2  # nobody there to answer
    process = await ctl.start("instance", "delete", "demo/orders", "--yes")

    async def deleting() -> bool:
        return api.hub.mirror.instances[ORDERS].record.deleting

    await eventually(deleting, within=20)
    await one_line(process.stderr, b"m1")
    gone = [txns.Delete(key) for key in (keys.instance(ORDERS), keys.status(ORDERS))]
    assert await api.hub.store.commit(txns.all_of([], gone))
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert out.decode() == "instance demo/orders deleted\n"


async def test_switchover_waits_for_the_new_primary(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    process = await ctl.start("instance", "switchover", "demo/orders", "--to", "m2", "-o", "json")

    async def asked() -> bool:
        return api.hub.mirror.ha[ORDERS].record.switchover is not None

    await eventually(asked, within=20)
    await api.place(ORDERS, "n1", "n2", leader="m2")
    await api.put(keys.ha(ORDERS), HaRecord(term=2, leader="m2"))
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    told = json.loads(out)
    assert (told["from"], told["to"]) == ("m1", "m2")


async def test_switchover_that_was_rolled_back_is_a_failure(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    process = await ctl.start("instance", "switchover", "demo/orders")

    async def asked() -> bool:
        return api.hub.mirror.ha[ORDERS].record.switchover is not None

    await eventually(asked, within=20)
    await api.put(keys.ha(ORDERS), HaRecord(term=1, leader="m1"))
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert process.returncode == 4
    assert b"the primary is as before" in err
    assert b"moorctl event list --object demo/orders" in err


async def test_switchover_is_scheduled_shown_and_cancelled(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    planned = await ctl("instance", "switchover", "demo/orders", "--to", "m2", "--at", "+10m")
    assert planned.status == 0, planned.err
    assert planned.out.startswith("instance demo/orders: switchover to m2 at 20")
    assert "scheduled:   switchover to m2 at 20" in (await ctl("instance", "show", "demo/orders")).out
    again = await ctl("instance", "switchover", "demo/orders")
    assert again.status == 4
    assert "moorctl instance switchover demo/orders --cancel" in again.err
    cancelled = (await ctl("instance", "switchover", "demo/orders", "--cancel", "-o", "json")).json()
    assert (cancelled["name"], cancelled["to"]) == ("demo/orders", "m2")
    past = await ctl("instance", "switchover", "demo/orders", "--at", "2020-01-01T00:00Z")
    assert past.status == 2
    assert "is past" in past.err


async def test_pause_is_seen_wherever_one_looks_until_resume(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    paused = await ctl("instance", "pause", "demo/orders", "--reason", "new disks")
    assert paused.out.startswith("instance demo/orders: automatic failover is paused by admin since 20")
    assert "moorctl instance resume demo/orders" in paused.err
    shown = (await ctl("instance", "show", "demo/orders")).out
    assert re.search(r"^failover:    paused by admin \d+s ago \(new disks\)$", shown, re.MULTILINE)
    assert (await ctl("instance", "resume", "demo/orders")).out == "instance demo/orders: automatic failover is on\n"
    told = (await ctl("instance", "history", "demo/orders")).out
    assert "term 1  automatic failover was paused\n  why     automatic failover paused by admin: new disks\n" in told
    entries = (await ctl("instance", "history", "demo/orders", "-o", "json")).json()
    assert [entry["kind"] for entry in entries] == ["paused", "resumed"]


async def test_history_of_an_instance_that_nobody_has_led_is_a_remark(ctl: Ctl) -> None:
    await ctl("instance", "create", "demo/orders", "--create-project", "--no-wait")
    told = await ctl("instance", "history", "demo/orders")
    assert (told.status, told.out, told.err) == (0, "", "nobody has led demo/orders yet\n")
    assert (await ctl("instance", "history", "demo/none")).status == 3


async def test_failover_without_force_explains_and_ends_with_2(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    await api.put(keys.ha(ORDERS), replace(api.hub.mirror.ha[ORDERS].record, system_id="7"))
    told = await ctl("instance", "failover", "demo/orders")
    assert told.status == 2
    assert told.out.splitlines()[0] == "demo/orders: m1 leads in term 1 and is alive"
    assert "Better: m1 is alive: `moorctl instance switchover demo/orders --to m2`" in told.out
    assert "moorctl instance failover demo/orders --force" in told.err
    assert (await ctl("instance", "failover", "demo/orders", "--to", "m1", "--force", "--yes")).status == 2
    unconfirmed = await ctl("instance", "failover", "demo/orders", "--force")
    assert unconfirmed.status == 2
    assert "needs to be confirmed" in unconfirmed.err
    assert api.hub.mirror.ha[ORDERS].record.forced is None


async def test_who_forces_a_failover_types_the_name_of_the_instance(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    await api.put(keys.ha(ORDERS), replace(api.hub.mirror.ha[ORDERS].record, system_id="7"))
    command = ("instance", "failover", "demo/orders", "--force", "--no-wait")
    mistyped = await ctl.on_terminal("demo/order", *command)
    assert mistyped.status == 130
    assert "Type demo/orders to confirm" in mistyped.out
    assert api.hub.mirror.ha[ORDERS].record.forced is None
    assert (await ctl.on_terminal("demo/orders", *command)).status == 0
    ordered = api.hub.mirror.ha[ORDERS].record.forced
    assert ordered is not None
    assert ordered.target == "m2"


async def test_forced_failover_waits_until_the_target_accepts_writes(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    await api.put(keys.ha(ORDERS), replace(api.hub.mirror.ha[ORDERS].record, system_id="7"))
    process = await ctl.start("instance", "failover", "demo/orders", "--force", "--yes", "-o", "json")

    async def ordered() -> bool:
        return api.hub.mirror.ha[ORDERS].record.forced is not None

    await eventually(ordered, within=20)
    await api.place(ORDERS, "n1", "n2", leader="m2")
    await api.put(keys.leader(ORDERS), LeaderRecord(member="m2", node="n2", term=2))
    await api.put(keys.ha(ORDERS), HaRecord(term=2, leader="m2"))
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    told = json.loads(out)
    assert (told["to"], told["after_term"]) == ("m2", 1)
    assert "async: commits that m1 acknowledged and m2 had not received are lost" in told["loss"]


async def test_what_is_particular_to_members_is_shown(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    assert "TAGS" not in (await ctl("instance", "show", "demo/orders")).out
    (pair,) = [pair for pair in api.hub.mirror.members if pair[0] == "n2"]
    tagged = replace(api.hub.mirror.members[pair].record, no_failover=True, priority=10, upstream="m1")
    await api.put(keys.member(*pair), tagged)
    shown = (await ctl("instance", "show", "demo/orders")).out
    assert "no_failover priority=10 upstream=m1" in shown
    page = (await ctl("instance", "show", "demo/orders", "-o", "json")).json()
    assert page["status"]["members"][1]["tags"] == {"no_failover": True, "priority": 10, "upstream": "m1"}


async def test_how_commits_are_acknowledged_is_chosen_and_shown(api: Api, ctl: Ctl) -> None:
    arguments = ("--replicas", "2", "--quorum", "2", "--no-strict", "--create-project", "--no-wait")
    made = await ctl("instance", "create", "demo/orders", *arguments)
    assert made.status == 0, made.err
    assert api.hub.mirror.instances[ORDERS].record.spec["replication"]["k"] == 2
    assert "replication: quorum of 2, not strict" in (await ctl("instance", "show", "demo/orders")).out


async def test_explain_tells_why(api: Api, ctl: Ctl, tmp_path: Path) -> None:
    await running_orders(api, ctl)
    file = tmp_path / "big.yaml"
    file.write_text("kind: Instance\nproject: demo\nname: big\nresources: {memory: 9Ti}\n")
    told = await ctl("instance", "explain", "-f", str(file))
    assert told.status == 0, told.err
    assert "n1" in told.out
    assert isinstance((await ctl("instance", "explain", "demo/orders", "-o", "json")).json(), dict)


async def test_connect_prints_a_connection_string_for_programs(api: Api, ctl: Ctl, tmp_path: Path) -> None:
    early = await ctl("instance", "connect", "demo/orders")
    assert early.status == 3
    await running_orders(api, ctl)
    uri = (await ctl("instance", "connect", "demo/orders", "--print")).out.strip()
    password = api.hub.secrets.password(ORDERS, "app")
    assert uri.startswith(f"postgresql://app:{password}@127.0.0.11:15001,127.0.0.12:15001/app?sslmode=verify-full&")
    read_only = (await ctl("instance", "connect", "demo/orders", "--print", "--read-only", "-o", "json")).json()
    assert ":15002," in read_only["uri"]
    assert (await ctl("instance", "connect", "demo/orders", "--print", "--user", "nobody")).status == 3
    psql = tmp_path / "bin" / "psql"
    psql.parent.mkdir()
    psql.write_text(
        '#!/bin/sh\necho "$@" "$PGHOST" "$PGPORT" "$PGUSER" "$PGDATABASE" "$PGSSLMODE" "${PGPASSWORD:+set}"\n'
    )
    psql.chmod(0o755)
    ctl.environ["PATH"] = f"{psql.parent}:{ctl.environ['PATH']}"
    opened = await ctl("instance", "connect", "demo/orders", "--", "-c", "select 1")
    assert opened.out == "-c select 1 127.0.0.11,127.0.0.12 15001 app app verify-full set\n"


# --- projects and nodes ---------------------------------------------------------------------------------------------


async def test_project_from_create_to_delete(api: Api, ctl: Ctl) -> None:
    made = await ctl("project", "create", "demo", "--max-memory", "8Gi", "--label", "team=shop")
    assert made.status == 0, made.err
    await ctl("instance", "create", "demo/orders", "--no-wait")
    assert (await ctl("project", "list")).out.splitlines()[1].split() == ["demo", "1", "1", "1Gi/8Gi", "10Gi"]
    page = (await ctl("project", "show", "demo")).out
    assert "team=shop" in page
    assert "demo/orders" in page
    refused = await ctl("project", "delete", "demo", "--yes")
    assert refused.status == 4
    assert "Delete them first" in refused.err
    assert (await ctl("project", "create", "free")).status == 0
    assert (await ctl("project", "delete", "free", "--yes")).out == "project free deleted\n"


async def test_node_enrols_by_token_is_cordoned_and_removed(api: Api, ctl: Ctl) -> None:
    token = (await ctl("node", "token", "n1", "--ttl", "10m")).out.strip()
    await api.enrol("n1", token)
    rows = (await ctl("node", "list")).out.splitlines()
    assert rows[1].split()[:3] == ["n1", "ready", "127.0.0.11"]
    assert (await ctl("node", "cordon", "n1")).out == "node n1 cordoned\n"
    assert (await ctl("node", "show", "n1", "-o", "json")).json()["spec"]["cordoned"] is True
    assert "cordoned" in (await ctl("node", "show", "n1")).out
    assert (await ctl("node", "uncordon", "n1")).status == 0
    assert (await ctl("node", "delete", "n1", "--yes")).status == 0
    assert (await ctl("node", "list", "-o", "json")).json() == []
    assert (await ctl("node", "cordon", "n1")).status == 3


async def test_names_are_completed_from_the_hub(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    ctl.environ |= {"_MOORCTL_COMPLETE": "bash_complete", "COMP_WORDS": "moorctl instance show de", "COMP_CWORD": "3"}
    assert (await ctl()).out == "plain,demo/orders\n"


async def test_operator_tokens_are_made_listed_and_revoked(ctl: Ctl, tmp_path: Path) -> None:
    made = await ctl("token", "create", "ada", "--role", "operator")
    assert made.status == 0, made.err
    file = tmp_path / "ada.token"
    file.write_text(made.out)
    as_ada = ("--token-file", str(file))
    assert (await ctl("instance", "list", *as_ada)).status == 0
    assert (await ctl("token", "list", *as_ada)).status == 6
    rows = [line.split() for line in (await ctl("token", "list")).out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["ada", "operator"], ["admin", "admin"]]
    assert rows[1][-1] == "you"
    assert (await ctl("token", "revoke", "ada")).status == 2  # nobody there to answer
    assert (await ctl("token", "revoke", "ada", "--yes")).out.endswith(" of ada revoked\n")
    assert (await ctl("instance", "list", *as_ada)).status == 6
    assert (await ctl("token", "revoke", "admin", "--yes")).status == 4


# --- the whole and its events ---------------------------------------------------------------------------------------


async def test_status_check_is_for_monitoring(api: Api, ctl: Ctl) -> None:
    await running_orders(api, ctl)
    page = (await ctl("status", "-o", "json")).json()
    assert [one["name"] for one in page["instances"]] == ["demo/orders"]
    message = "node n2 is silent"
    silent = Condition(type=ConditionType.NODES_REACHABLE, status=False, reason="NodeSilent", message=message)
    await change_status(api, phase=Phase.DEGRADED, conditions=(silent,))
    checked = await ctl("status", "--check")
    assert checked.status == 9
    assert f"! instance demo/orders is Degraded: {message}" in checked.out
    assert (await ctl("status")).status == 0


async def test_events_are_followed_as_they_happen(api: Api, ctl: Ctl) -> None:
    await ctl("project", "create", "demo")
    process = await ctl.start("event", "list", "--follow", "--object", "project/")
    assert b"project_created" in await one_line(process.stdout, b"project/demo")
    await ctl("project", "create", "later")
    assert b"project_created" in await one_line(process.stdout, b"project/later")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == 130


async def test_events_for_programs_come_one_a_line(api: Api, ctl: Ctl) -> None:
    hostile = Event(at=1.0, event="tried", object="demo/x", message="\x1b[2J\nfake line")
    await api.hub.store.add_event(hostile)
    lines = (await ctl("event", "list", "-o", "json")).out.splitlines()
    assert json.loads(lines[0])["message"] == hostile.message
    table = (await ctl("event", "list", "--object", "demo/")).out
    assert "\x1b" not in table
    assert len(table.splitlines()) == 1


# --- trouble on the way to the hub -----------------------------------------------------------------------------------


async def test_first_hub_that_answers_is_used(api: Api, ctl: Ctl) -> None:
    dead = f"127.0.0.1:{free_port()}"
    answer = await ctl("project", "list", "-o", "json", "--hub", f"{dead},{api.hub.config.listen_operators}")
    assert answer.json() == []
    nobody = await ctl("project", "list", "--hub", dead)
    assert nobody.status == 5
    assert nobody.err.splitlines()[0] == f"error: hub {dead}: connection refused"


async def test_who_is_not_known_or_not_allowed_is_told(api: Api, ctl: Ctl, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mo1.00000000.00000000000000000000000000000000")
    stranger = await ctl("status", "--token-file", str(token))
    assert stranger.status == 6
    assert "moorctl context show" in stranger.err
    token.write_text(await api.operator("viewer"))
    viewer = await ctl("project", "create", "x", "--token-file", str(token))
    assert viewer.status == 6
    assert "role" in viewer.err
    assert (await ctl("project", "list", "--token-file", str(token))).status == 0


async def test_hub_of_another_ca_is_not_trusted(api: Api, ctl: Ctl, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(make_ca(now=api.hub.clock.wall()).cert_pem)
    answer = await ctl("status", "--ca-file", str(other))
    assert answer.status == 5
    assert "certificate is not from the CA" in answer.err
    assert len(answer.err.splitlines()) == 2


async def test_waiting_goes_on_while_the_hub_is_away(etcd: EtcdProcess, tmp_path: Path) -> None:
    await empty(etcd)
    (tmp_path / "hub").mkdir()
    ctl = Ctl(tmp_path)
    async with running_api(etcd.endpoint, tmp_path / "hub") as api:
        config = api.hub.config
        files = ("--token-file", str(config.admin_token_path), "--ca-file", str(config.ca_path))
        await ctl("context", "set", "test", "--hub", config.listen_operators, *files)
        process = await ctl.start("instance", "create", "demo/orders", "--create-project")
        await one_line(process.stderr, b"Pending")
    await one_line(process.stderr, b"still trying")
    process.terminate()
    await process.wait()


async def test_nodes_of_several_zones_are_listed_with_silent_ones_first(api: Api, ctl: Ctl) -> None:
    for name in ("n1", "n2"):
        await api.put(keys.node(name), NodeRecord(name=name, address="127.0.0.11", zone="a"))
    await api.put(keys.node("n3"), NodeRecord(name="n3", address="127.0.0.13", zone="b", cordoned=True))
    assert [line.split()[0] for line in (await ctl("node", "list")).out.splitlines()[1:]] == ["n3", "n1", "n2"]

"""What the controllers and operators do in the simulated world: mark silent nodes, let members come and go one at a
time, change what is wanted.

It keeps the rules of `hub.judges.members`: the leader never leaves, a member in the recorded sync set is first barred
from election until it is out of it, and nobody comes or goes while nobody leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from core.records import HaRecord, MemberDesired, ObservedMember, Replication, to_json
from core.status import MemberState
from hub.etcd import keys, txns
from tests.sim.hub_model import member_ref, parse
from tests.sim.world import Host, Process, Work

if TYPE_CHECKING:
    from tests.sim.group import Group
    from tests.sim.scenario import Scenario

SILENT_AFTER_S = 12.0
LOOK_EVERY_S = 1.0


class Control:
    """The holder of the controllers' claim."""

    def __init__(self, scenario: Scenario) -> None:
        self._s = scenario
        self._process = Process(Host(scenario.world, "controllers"), "controllers")
        self._joining: list[tuple[Group, str]] = []  # and the node
        self._leaving: list[tuple[Group, str]] = []  # and the member

    def start(self) -> None:
        self._process.start()
        self._process.spawn(self._work())

    # --- what operators ask for ---

    def add_member(self, group: Group, node: str) -> None:
        self._joining.append((group, node))

    def remove_member(self, group: Group, member: str) -> None:
        self._leaving.append((group, member))

    def standbys(self, group: Group) -> int:
        """How many there will be."""
        leaving = sum(1 for leaving, _ in self._leaving if leaving is group)
        cascaded = sum(1 for desired in group.desired.values() if desired.upstream)
        return len(group.desired) - leaving - 1 - cascaded

    def replicate(self, group: Group, wanted: Replication) -> None:
        """All members are told at once, in one transaction."""
        group.replication = wanted
        for member, desired in group.desired.items():
            group.desired[member] = replace(desired, replication=wanted)
        self._put(group, *group.desired.values())

    def write_ha(self, group: Group, change: Callable[[HaRecord], HaRecord]) -> None:
        """As an operator's request does it."""
        entry = self._s.etcd.store.entries[keys.ha(group.ref)]
        next_ha = change(parse(HaRecord, entry.value))
        self._s.etcd.commit(txns.request_on_ha(group.ref, ha_revision=entry.mod_revision, next_ha=next_ha))
        assert to_json(next_ha) == self._s.etcd.store.entries[keys.ha(group.ref)].value, "nobody writes in between"

    def lacking(self) -> str:
        """What is still to be done."""
        if self._joining:
            return f"a member on {self._joining[0][1]} has not joined"
        leaving = [member for group, member in self._leaving if group.leader() is not group.node(member)]
        return f"{leaving[0]} has not left" if leaving else ""

    # --- the loop ---

    def _work(self) -> Work:
        started = self._s.world.now
        while True:
            yield self._process.sleep(LOOK_EVERY_S)
            if not self._s.etcd.process.alive or self._s.etcd.process.paused:
                continue
            self._mark_silent(started)
            self._joining = [due for due in self._joining if not self._joined(*due)]
            self._leaving = [due for due in self._leaving if not self._left(*due)]

    def _mark_silent(self, started: float) -> None:
        for machine in self._s.machines:
            node = machine.host.name
            heard = max(hub.heard.get(node, started) for hub in self._s.hubs)
            silent = self._s.world.now - heard > SILENT_AFTER_S
            key = keys.silent(node)
            if silent != (key in self._s.etcd.store.entries):
                op: txns.Op = txns.Put(key, b"{}") if silent else txns.Delete(key)
                self._s.etcd.commit(txns.all_of([], [op]))

    def _joined(self, group: Group, node: str) -> bool:
        leader = group.leader()
        if leader is None:
            return False
        taken = {*group.desired, *self._ha(group).sync.names}
        name = next(f"m{number}" for number in range(1, 99) if f"m{number}" not in taken)
        desired = MemberDesired(
            project=group.ref.project,
            instance=group.ref.instance,
            member=name,
            node=node,
            replication=group.replication,
        )
        machine = next(machine for machine in self._s.machines if machine.host.name == node)
        group.place(machine, desired)
        self._put(group, desired)
        self._s.world.note(f"{name} joins on {node}")
        return True

    def _left(self, group: Group, member: str) -> bool:
        """One step of its leaving."""
        node, leader = group.node(member), group.leader()
        if node is None:
            return True
        desired = group.desired[member]
        if desired.desired == "absent":
            return self._dropped(group, desired)
        if leader is None or leader.member == member:
            return False
        if member not in self._ha(group).sync.names:
            group.desired[member] = replace(desired, desired="absent")
        elif not desired.no_failover:
            group.desired[member] = replace(desired, no_failover=True)
        else:
            return False
        self._put(group, group.desired[member])
        return False

    def _dropped(self, group: Group, desired: MemberDesired) -> bool:
        ref = member_ref(desired.member, group.ref)
        entry = self._s.etcd.store.entries.get(keys.observed(desired.node, ref))
        if entry is None or parse(ObservedMember, entry.value).state is not MemberState.DELETED:
            return False
        gone = [txns.Delete(keys.member(desired.node, ref)), txns.Delete(keys.observed(desired.node, ref))]
        self._s.etcd.commit(txns.all_of([], gone))
        self._s.world.note(f"{desired.member} has left")
        node = group.node(desired.member)
        assert node is not None, "it was there"
        group.forget(node)
        return True

    def _ha(self, group: Group) -> HaRecord:
        return parse(HaRecord, self._s.etcd.store.entries[keys.ha(group.ref)].value)

    def _put(self, group: Group, *members: MemberDesired) -> None:
        puts = [txns.Put(keys.member(m.node, member_ref(m.member, group.ref)), to_json(m)) for m in members]
        self._s.etcd.commit(txns.all_of([], puts))

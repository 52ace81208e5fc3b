"""Views for the tables of leadership, each built from a plain situation by naming only what differs.

The plain situation: instance demo/orders with members m1, m2, m3, where m1 leads term 1 on timeline 1; time is 100, the
lease of m1 was renewed at 99 and ends, margin taken off, at 103.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.ha.actions import Action, Decision, Reason
from agent.ha.decide import decide
from agent.ha.view import Engine, EngineState, Lease, Operation, OperationKind, Standby, View
from core.positions import Lsn, WalPosition
from core.records import (
    Ballot,
    HaRecord,
    InstanceView,
    LeaderRecord,
    MemberDesired,
    PeerMember,
    Replication,
    SyncRecord,
)
from core.status import MemberState, Role

NOW = 100.0
SYSTEM_ID = "7000000000000000001"
HELD = Lease(term=1, renewed_at=99.0, fence_at=103.5)
SYNC = Replication(mode="sync")
QUORUM = Replication(mode="quorum", k=1)


def at(lsn: int, timeline: int = 1) -> WalPosition:
    return WalPosition(timeline, Lsn(lsn))


def desired(member: str = "m1", **changes: Any) -> MemberDesired:
    return replace(MemberDesired(project="demo", instance="orders", member=member, node=f"n{member[1:]}"), **changes)


def peer(member: str, **changes: Any) -> PeerMember:
    """A running replica."""
    plain = PeerMember(
        member=member,
        node=f"n{member[1:]}",
        address="127.0.0.1",
        engine_port=1,
        peer_port=2,
        alive=True,
        state=MemberState.RUNNING,
        role=Role.REPLICA,
        timeline=1,
    )
    return replace(plain, **changes)


def leading_peer(member: str = "m1", **changes: Any) -> PeerMember:
    return peer(member, role=Role.PRIMARY, **changes)


def ha(**changes: Any) -> HaRecord:
    return replace(HaRecord(term=1, leader="m1", bootstrap="m1", system_id=SYSTEM_ID), **changes)


def instance(
    *,
    leader: str = "m1",
    term: int = 1,
    ballots: Sequence[Ballot] = (),
    members: Sequence[PeerMember] | None = None,
    record: HaRecord | None = None,
    **ha_changes: Any,
) -> InstanceView:
    """`leader` empty = nobody leads."""
    return InstanceView(
        project="demo",
        instance="orders",
        leader=LeaderRecord(member=leader, node=f"n{leader[1:]}", term=term, lease_id=7) if leader else None,
        ha=record or ha(**{"term": term, "leader": leader or "m1", **ha_changes}),
        ballots=tuple(ballots),
        members=tuple(members) if members is not None else (leading_peer("m1"), peer("m2"), peer("m3")),
    )


def primary(**changes: Any) -> Engine:
    plain = Engine(state=EngineState.RUNNING, role=Role.PRIMARY, position=at(1000), system_id=SYSTEM_ID)
    return replace(plain, **changes)


def replica(upstream: str = "m1", **changes: Any) -> Engine:
    plain = Engine(
        state=EngineState.RUNNING,
        role=Role.REPLICA,
        position=at(1000),
        system_id=SYSTEM_ID,
        upstream=upstream,
        streaming=bool(upstream),
    )
    return replace(plain, **changes)


def standby(member: str, flushed: int = 1000, *, streaming: bool = True) -> Standby:
    return Standby(member=member, flushed=Lsn(flushed), streaming=streaming)


def ballot(member: str, lsn: int = 1000, *, timeline: int = 1, term: int = 2, **changes: Any) -> Ballot:
    plain = Ballot(member=member, node=f"n{member[1:]}", term=term, timeline=timeline, lsn=lsn)
    return replace(plain, **changes)


def sync(k: int, *names: str, mode: str = "sync", seq: int = 0) -> SyncRecord:
    return SyncRecord(mode=mode, k=k, names=names, seq=seq)  # type: ignore[arg-type]


def busy(kind: OperationKind) -> Operation:
    return Operation(kind=kind, since=NOW - 1)


def as_leader(**changes: Any) -> View:
    """m1, which leads and is a running primary."""
    plain = View(me="m1", desired=desired(), instance=instance(), engine=primary(), lease=HELD, ttl_s=6.0)
    return replace(plain, **changes)


def as_follower(**changes: Any) -> View:
    """m2, a streaming replica of m1."""
    plain = View(me="m2", desired=desired("m2"), instance=instance(), engine=replica(), lease=Lease(), ttl_s=6.0)
    return replace(plain, **changes)


def as_candidate(**changes: Any) -> View:
    """m2, a replica that has left m1, of which nobody has heard since 98."""
    plain = View(
        me="m2",
        desired=desired("m2"),
        instance=instance(leader=""),
        engine=replica(""),
        lease=Lease(),
        ttl_s=6.0,
        started_at=50.0,
        leaderless_since=98.0,
    )
    return replace(plain, **changes)


def as_voter(*ballots: Ballot, **changes: Any) -> View:
    """m2 after it has cast its ballot at 1000; `ballots` are the others'."""
    mine = ballot("m2")
    found = instance(leader="", ballots=(mine, *ballots), **changes.pop("of_instance", {}))
    return as_candidate(ballot_term=2, ballot_position=at(1000), instance=found, **changes)


@dataclass(frozen=True)
class Case:
    """A sentence, the view it is about, and the decision that must follow at NOW."""

    sentence: str
    view: View
    reason: Reason
    actions: tuple[Action, ...] = ()
    detail: str = ""  # that the decision's detail contains

    def __str__(self) -> str:
        return self.sentence

    def check(self) -> Decision:
        decision = decide(self.view, NOW)
        assert decision.reason is self.reason, f"{decision.reason.name}: {decision.detail}"
        assert decision.actions == self.actions
        assert self.detail in decision.detail
        assert decision.wake_at > NOW
        return decision

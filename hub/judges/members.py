"""Which members an instance shall have, and what each shall be: pure, one small change at a time, each safe to repeat.

Names are m1 ... mN and stay with their node for life. A new member takes the lowest free number; a name that the record
of leadership still mentions is not free, for it stands for data which the newcomer does not have.

A changed spec reaches all members at once, as `generation`. What must not happen at once goes in turns:

- A restart: one replica after the other, each when the one before runs again, the leader last.
- Leaving: the leader never leaves. A replica that may hold the last acknowledged commit (it is in the recorded sync
  set) is first only barred from election, which makes the leader replace it in the set; it goes when it is out.
- Nobody joins or is given up while an initialised instance has no leader: there is nobody to copy from, and the
  member given up might be the one with the data.
- A member whose whole node has been removed is given up (and so replaced) as soon as somebody else leads.

While nothing has been initialised there is no data to lose: then the right to initialise (`bootstrap`) moves away
from a node that has fallen silent. The former holder cannot use it any more, since taking the leadership compares the
ha record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from core.ids import InstanceRef
from core.records import (
    DatabaseDesired,
    Followers,
    HaRecord,
    InstanceRecord,
    LeadershipChange,
    MemberDesired,
    RemotePrimary,
    Replication,
    SyncRecord,
    UserDesired,
)
from core.specs.instance import InstanceSpec, MemberSpec
from core.specs.standby import FollowersSpec, StandbySpec
from core.status import MemberState
from hub.history import with_line
from hub.judges.clients import clients_of
from hub.judges.placement import Placement
from hub.judges.situation import Current, Situation, member_number

PORTS_PER_INSTANCE = 3
_NO_TAGS = MemberSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The same three on every node of an instance."""

    engine: int
    rw: int
    ro: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.engine, self.rw, self.ro


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a member that people should read: becomes an event."""

    event: str
    member: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What is to be written: changed members, members whose keys go, and the member that may initialise now."""

    changed: tuple[MemberDesired, ...] = ()
    dropped: tuple[Current, ...] = ()
    bootstrap: str = ""  # empty = as it is
    unbound: bool = False  # a standby instance follows its remote primary no longer
    notes: tuple[Note, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.changed or self.dropped or self.bootstrap or self.unbound)


# --- from the spec to one member --------------------------------------------------------------------------------------


def parameter_text(value: str | bool | int | float) -> str:
    """A parameter as the engine's configuration wants it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def desired_member(
    record: InstanceRecord,
    spec: InstanceSpec,
    *,
    name: str,
    node: str,
    engine_version: int,
    ports: Ports,
    restart_id: int,
) -> MemberDesired:
    """The whole input of the agent for one member."""
    replication, tags, remote = spec.replication, spec.members.get(name, _NO_TAGS), spec.standby
    return MemberDesired(
        project=record.project,
        instance=record.name,
        member=name,
        node=node,
        generation=record.generation,
        engine=spec.engine,
        engine_version=engine_version,
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory,
        disk_bytes=spec.resources.disk,
        engine_port=ports.engine,
        rw_port=ports.rw,
        ro_port=ports.ro,
        replication=Replication(
            mode=replication.mode if remote is None else "async",  # nothing is acknowledged here
            k=replication.k if replication.mode == "quorum" else 1,
            strict=replication.strict,
            max_failover_lag_bytes=replication.max_failover_lag,
        ),
        parameters={key: parameter_text(value) for key, value in spec.parameters.items()},
        databases=tuple(DatabaseDesired(name=d.name, owner=d.owner, extensions=d.extensions) for d in spec.databases),
        users=tuple(UserDesired(name=u.name, superuser=u.superuser, roles=u.roles) for u in spec.users),
        no_failover=tags.no_failover,
        priority=tags.priority,
        no_load_balance=tags.no_load_balance,
        clone_source=tags.clone_source,
        read_weight=tags.read_weight,
        upstream=tags.upstream or "",
        restart_id=restart_id,
        hold_s=spec.proxy.hold_timeout_s,
        client_tls=spec.proxy.tls,
        allow=spec.proxy.allow,
        clients=clients_of(spec),
        standby=_remote(remote) if remote is not None else None,
        followers=_followers(spec.followers) if spec.followers is not None else None,
    )


def _followers(spec: FollowersSpec) -> Followers:
    return Followers(user=spec.user, networks=spec.networks)


def _remote(spec: StandbySpec) -> RemotePrimary:
    return RemotePrimary(hosts=spec.hosts, user=spec.user, sslmode=spec.sslmode, ca=spec.ca or "", slot=spec.slot or "")


def choose_ports(port_range: tuple[int, int], taken: Mapping[int, str], ref: InstanceRef) -> Ports | None:
    """The ports that are the instance's already, else the lowest free ones of the range (both ends included); None when
    fewer than three are free."""
    own = sorted(number for number, owner in taken.items() if owner == ref.key)
    free = (number for number in range(port_range[0], port_range[1] + 1) if number not in taken)
    found = own if len(own) == PORTS_PER_INSTANCE else list(islice(free, PORTS_PER_INSTANCE))
    return Ports(engine=found[0], rw=found[1], ro=found[2]) if len(found) == PORTS_PER_INSTANCE else None


# --- joining --------------------------------------------------------------------------------------------------------


def first_members(s: Situation, placement: Placement, ports: Ports) -> tuple[MemberDesired, ...]:
    """m1 ... mN on the placement's nodes, the best node first."""
    return _on_nodes(s, placement, ports, names=[f"m{number + 1}" for number in range(len(placement.nodes))])


def further_members(s: Situation, placement: Placement) -> tuple[MemberDesired, ...]:
    """New members beside those there are, on the same ports."""
    known = s.members[0].desired
    ports = Ports(engine=known.engine_port, rw=known.rw_port, ro=known.ro_port)
    return _on_nodes(s, placement, ports, names=_free_names(s, len(placement.nodes)))


def _on_nodes(s: Situation, placement: Placement, ports: Ports, *, names: Sequence[str]) -> tuple[MemberDesired, ...]:
    assert s.spec is not None, "nothing is placed without a spec"
    return tuple(
        desired_member(
            s.record,
            s.spec,
            name=name,
            node=node,
            engine_version=placement.engine_version,
            ports=ports,
            restart_id=s.record.restart_id,
        )
        for name, node in zip(names, placement.nodes, strict=True)
    )


def _free_names(s: Situation, count: int) -> list[str]:
    taken = {current.name for current in s.members}
    if s.ha is not None:
        taken |= {*s.ha.sync.named, s.ha.leader, s.ha.handover, s.ha.bootstrap if not s.initialised else ""}
    numbers = range(1, count + len(taken) + 1)
    return [name for name in (f"m{number}" for number in numbers) if name not in taken][:count]


def first_ha(s: Situation, first: Sequence[MemberDesired]) -> HaRecord:
    """The memory of leadership at the start: nobody has led, the first member may initialise."""
    assert s.spec is not None, "nothing is placed without a spec"
    standby = s.spec.standby is not None
    mode = "async" if standby else s.spec.replication.mode
    return HaRecord(bootstrap=first[0].member, sync=SyncRecord(mode=mode), standby=standby)


# --- changing ---------------------------------------------------------------------------------------------------------


def adjust(s: Situation) -> Adjustment:
    """What is due to the members there are; an empty adjustment when they are as they should be."""
    dropped = tuple(current for current in s.members if _to_be_dropped(s, current))
    staying = tuple(current for current in s.staying if current not in dropped)
    retiring = _retiring(s, staying)
    changed: list[MemberDesired] = []
    notes = [removed_note(current) for current in dropped]
    if s.spec is not None:
        turn = _next_to_restart(s, [current for current in staying if current not in retiring])
        for current in staying:
            desired, more = _adjusted(s, s.spec, current, retiring=current in retiring, turn=turn)
            notes += more
            if desired != current.desired:
                changed.append(desired)
    bootstrap = _next_bootstrap(s, staying)
    if bootstrap:
        notes.append(Note("bootstrap_moved", bootstrap, "the member that was to initialise cannot be reached"))
    unbound = s.ha is not None and s.ha.standby and s.spec is not None and s.spec.standby is None
    if unbound:
        notes.append(Note("standby_promoted", s.leader_name, "follows its remote primary no longer"))
    return Adjustment(changed=tuple(changed), dropped=dropped, bootstrap=bootstrap, unbound=unbound, notes=tuple(notes))


def unbound(ha: HaRecord, now: float) -> HaRecord:
    """The memory of leadership of a standby instance from its promotion on. It is never bound again."""
    line = LeadershipChange(
        term=ha.term,
        member=ha.leader,
        reason="the instance follows its remote primary no longer: an operator promoted it",
        at=now,
        kind="unbound",
        loss="possibly commits that the remote primary acknowledged and nobody here received",
    )
    return with_line(replace(ha, standby=False), line)


def leave_all(s: Situation) -> tuple[MemberDesired, ...]:
    """Every member that has not been told to leave, told so: for the deletion of the instance."""
    return tuple(replace(current.desired, desired="absent") for current in s.staying)


def removed_note(current: Current) -> Note:
    """Why the keys of a member go."""
    why = "is deleted" if current.deleted else "is given up: its node was removed"
    return Note("member_removed", current.name, f"{current.place} {why}")


def _adjusted(
    s: Situation, spec: InstanceSpec, current: Current, *, retiring: bool, turn: Current | None
) -> tuple[MemberDesired, list[Note]]:
    known = current.desired
    desired = desired_member(
        s.record,
        spec,
        name=known.member,
        node=known.node,
        engine_version=known.engine_version,
        ports=Ports(engine=known.engine_port, rw=known.rw_port, ro=known.ro_port),
        restart_id=s.record.restart_id if current is turn else known.restart_id,
    )
    if current is turn:
        return desired, [
            Note("member_restart_requested", known.member, f"restart {desired.restart_id} of {current.place}")
        ]
    if not retiring:
        return desired, []
    if not _out_of_sync_set(s, current):
        return replace(desired, no_failover=True), []
    message = f"{current.place} leaves: the spec asks for {s.wanted} member(s)"
    return replace(desired, no_failover=True, desired="absent"), [Note("member_leaving", known.member, message)]


def _to_be_dropped(s: Situation, current: Current) -> bool:
    if current.leaving:
        return s.is_gone(current)
    if current.node in s.nodes:
        return False
    led_by_another = s.leader is not None and s.leader.member != current.name
    return led_by_another or (s.leader is None and not s.initialised)


def _retiring(s: Situation, staying: Sequence[Current]) -> tuple[Current, ...]:
    """The members too many: replicas, highest number first. Nobody while it is not known who must stay."""
    surplus = len(staying) - s.wanted
    if surplus <= 0 or not s.may_join:
        return ()
    kept = s.leader_name or (s.ha.bootstrap if s.ha is not None else "")
    replicas = [current for current in staying if current.name != kept]
    return tuple(sorted(replicas, key=lambda current: -member_number(current.name))[:surplus])


def _out_of_sync_set(s: Situation, current: Current) -> bool:
    return s.ha is None or current.name not in s.ha.sync.named


def _next_to_restart(s: Situation, staying: Sequence[Current]) -> Current | None:
    """Whose turn it is; None while a former one is not back, nobody leads, or nothing is to do.

    A member that cannot be reached is neither waited for nor restarted: it gets its turn when it is back, as a replica.
    """
    reachable = [current for current in staying if not s.is_lost(current)]
    behind = [current for current in reachable if current.desired.restart_id < s.record.restart_id]
    if not behind or s.leader is None:
        return None
    former = [current for current in reachable if current not in behind and not current.joining]
    if any(current.restart_due or current.state is not MemberState.RUNNING for current in former):
        return None
    replicas = [current for current in behind if current.name != s.leader_name]
    return replicas[0] if replicas else behind[0]


def _next_bootstrap(s: Situation, staying: Sequence[Current]) -> str:
    """Who may initialise instead of a member that is lost; empty = no change."""
    if s.ha is None or s.initialised or s.leader is not None:
        return ""
    able = [current.name for current in staying if not s.is_lost(current)]
    return able[0] if able and s.ha.bootstrap not in able else ""

"""The next thing to write for an instance, as one etcd transaction: pure, derived from etcd's facts alone.

`next_step` looks at the situation and gives at most one `Step`; when that is written, whoever asks again gets the
next one, and None when everything is as it should be. Nothing is remembered between two steps, so a controller may
die after any of them, and the next one, on whatever hub, goes on from there. Why a step may be written at all:

- It compares the mod_revision of every record that the decision turned on (the spec above all), so it changes nothing
  if the world is no longer the one judged. The holder of the controllers' claim adds its own compare.
- Every step of a living instance writes its status and compares the status's mod_revision. So of two steps judged
  from the same situation only one can happen, even when the first was given up as timed out and is carried out late.
- An event lies in the same transaction as what it tells of: it is there exactly when that happened.
- An instance comes into being in one transaction (members, ports, memory of leadership, status) and its records go in
  one, with the last member. No crash leaves half of either.

Nothing below members/ is ever deleted for lack of an instance record: that would tell agents to let go of data
because somebody removed a key. `sweep` of `hub.judges.upkeep` removes only
what is left without record and without members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from core.ids import InstanceRef
from core.records import Event, InstanceStatus, MemberDesired, MemberPlace, to_json
from core.specs.instance import InstanceSpec
from core.status import Phase
from hub.etcd import keys
from hub.etcd.txns import Compare, CreatedIs, Delete, DeletePrefix, ModIs, Op, Put
from hub.judges import members, schedule
from hub.judges.conditions import Judgement, judge
from hub.judges.lifecycle import next_phase
from hub.judges.notices import event, phase_event
from hub.judges.placement import (
    Placement,
    Request,
    Unplaceable,
    place,
    request_for,
    usage_of,
)
from hub.judges.situation import Contents, Current, Situation, member_ref

# Reports that came after their member was gone: hardly ever one. etcd takes 128 operations in one transaction; what is
# beyond is swept later.
STALE_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One transaction. Its events are written with it, under keys that the shell makes (they hold dice).

    `frees` tells that room was made on nodes, so that what could not be placed is worth another look.
    """

    compares: tuple[Compare, ...]
    ops: tuple[Op, ...]
    events: tuple[Event, ...] = ()
    frees: bool = False


def next_step(contents: Contents, s: Situation, *, port_range: tuple[int, int], now: float) -> Step | None:
    """What is due to the instance; `now` is wall seconds. None when nothing is."""
    if s.record.deleting:
        return _deletion(contents, s, now)
    if not s.members and not s.initialised:
        return _creation(contents, s, port_range, now)
    appointment = schedule.due(s, now)
    if appointment is not None:
        ha, told = appointment
        put = Put(keys.ha(s.ref), to_json(ha))
        return _changing(replace(s, ha=ha), before=s, ops=(put,), events=(told,), now=now)
    adjustment = members.adjust(s)
    if not adjustment.is_empty:
        return _adjustment(s, adjustment, now)
    if s.missing == 0 or not s.may_join or s.spec is None or not s.members:
        return _status(s, None, now)
    outcome = _place(contents, s, s.spec, count=s.missing)
    if isinstance(outcome, Unplaceable):
        return _status(s, outcome, now)
    return _joining(contents, s, members.further_members(s, outcome), now)


# --- placing ----------------------------------------------------------------------------------------------------------


def _place(contents: Contents, s: Situation, spec: InstanceSpec, *, count: int) -> Placement | Unplaceable:
    """Leaving members still hold their node: no newcomer goes there before they are gone."""
    request = replace(_request(contents, spec, tuple(current.desired for current in s.members)), count=count)
    nodes = {name: node.record for name, node in contents.nodes.items()}
    usage = usage_of(member.record for member in contents.members.values())
    return place(request, nodes, usage, contents.silent)


def _request(contents: Contents, spec: InstanceSpec, present: Sequence[MemberDesired]) -> Request:
    project = contents.projects.get(spec.project)
    allowed = project.record.spec.get("allowed_regions") or () if project is not None else ()
    return request_for(
        spec,
        count=max(0, 1 + spec.replicas - len(present)),
        allowed_regions=tuple(allowed),
        engine_version=present[0].engine_version if present else None,
        existing={member.node: member.member for member in present},
    )


# --- coming into being, growing -------------------------------------------------------------------------------------


def _creation(contents: Contents, s: Situation, port_range: tuple[int, int], now: float) -> Step | None:
    """Everything of a new instance at once, or its status with the reason why not."""
    if s.spec is None:
        return _status(s, None, now)
    outcome = _place(contents, s, s.spec, count=s.wanted)
    ports = members.choose_ports(port_range, contents.ports, s.ref)
    if isinstance(outcome, Placement) and ports is None:
        text = f"fewer than {members.PORTS_PER_INSTANCE} ports of {port_range[0]}-{port_range[1]} are free"
        outcome = Unplaceable(f"{text}; widen port_range in the hubs' configuration", {})
    if isinstance(outcome, Unplaceable) or ports is None:
        return _status(s, outcome if isinstance(outcome, Unplaceable) else None, now)
    first = members.first_members(s, outcome, ports)
    ha = members.first_ha(s, first)
    claimed = [number for number in ports.numbers if number not in contents.ports]
    return _changing(
        replace(_with(s, added=first), ha=ha),
        before=s,
        compares=(*_absent_members(contents, first), *(ModIs(keys.port(number), 0) for number in claimed)),
        ops=(
            *_member_puts(first),
            Put(keys.ha(s.ref), to_json(ha)),
            *(Put(keys.port(number), s.ref.key.encode()) for number in claimed),
        ),
        now=now,
    )


def _joining(contents: Contents, s: Situation, joining: Sequence[MemberDesired], now: float) -> Step:
    return _changing(
        _with(s, added=joining),
        before=s,
        compares=tuple(_absent_members(contents, joining)),
        ops=_member_puts(joining),
        events=tuple(
            event(now, "member_added", f"{s.ref}/{m.member}", f"{m.member} goes to {m.node}") for m in joining
        ),
        now=now,
    )


def _absent_members(contents: Contents, new: Sequence[MemberDesired]) -> Iterable[Compare]:
    """New members: their keys are not there, their nodes are the very ones that were judged."""
    for member in new:
        yield ModIs(keys.member(member.node, member_ref(member)), 0)
        yield CreatedIs(keys.node(member.node), contents.nodes[member.node].create_revision)


def _member_puts(changed: Iterable[MemberDesired]) -> tuple[Op, ...]:
    return tuple(Put(keys.member(member.node, member_ref(member)), to_json(member)) for member in changed)


# --- changing ---------------------------------------------------------------------------------------------------------


def _adjustment(s: Situation, adjustment: members.Adjustment, now: float) -> Step:
    after = _with(s, changed=adjustment.changed, dropped=adjustment.dropped)
    ops = [*_member_puts(adjustment.changed), *_member_deletes(adjustment.dropped)]
    if s.ha is not None and (adjustment.bootstrap or adjustment.unbound):
        ha = replace(s.ha, bootstrap=adjustment.bootstrap or s.ha.bootstrap)
        after = replace(after, ha=members.unbound(ha, now) if adjustment.unbound else ha)
        ops.append(Put(keys.ha(s.ref), to_json(after.ha)))
    return _changing(
        after,
        before=s,
        ops=tuple(ops),
        events=tuple(
            event(now, note.event, f"{s.ref}/{note.member}".rstrip("/"), note.message) for note in adjustment.notes
        ),
        frees=bool(adjustment.dropped),
        now=now,
    )


def _changing(
    after: Situation,
    *,
    before: Situation,
    ops: tuple[Op, ...],
    now: float,
    compares: tuple[Compare, ...] = (),
    events: tuple[Event, ...] = (),
    frees: bool = False,
) -> Step:
    """A step about members: `ops`, and the status as it reads after them. It turns on the spec, the leadership and all
    members, and compares all of them."""
    ref = before.ref
    status, phase_events = _judged(after, None, now)
    return Step(
        compares=(
            ModIs(keys.instance(ref), before.record_revision),
            ModIs(keys.status(ref), before.status_revision),
            ModIs(keys.leader(ref), before.leader_revision),
            ModIs(keys.ha(ref), before.ha_revision),
            *(ModIs(keys.member(*current.pair), current.revision) for current in before.members),
            *compares,
        ),
        ops=(*ops, Put(keys.status(ref), to_json(status))),
        events=(*events, *phase_events),
        frees=frees,
    )


def _with(
    s: Situation,
    *,
    changed: Iterable[MemberDesired] = (),
    dropped: Iterable[Current] = (),
    added: Iterable[MemberDesired] = (),
) -> Situation:
    """The situation after a step, as far as it is known: what the status will be judged by."""
    by_pair = {(member.node, member.member): member for member in changed}
    gone = {current.pair for current in dropped}
    kept = [current for current in s.members if current.pair not in gone]
    # A report from before the change says nothing about it: revision 0.
    kept = [
        replace(current, desired=by_pair[current.node, current.name], observed_revision=0)
        if (current.node, current.name) in by_pair
        else current
        for current in kept
    ]
    new = [Current(desired=member) for member in added]
    return replace(s, members=(*kept, *new), nodes=s.nodes | {current.node for current in new})


def _member_deletes(dropped: Iterable[Current]) -> Iterable[Op]:
    for current in dropped:
        yield Delete(keys.member(*current.pair))
        yield Delete(keys.observed(*current.pair))


def _status(s: Situation, unplaceable: Unplaceable | None, now: float) -> Step | None:
    """The status as it should read; None when it reads so already."""
    status, events = _judged(s, unplaceable, now)
    if status == s.status:
        return None
    return Step(
        compares=(ModIs(keys.instance(s.ref), s.record_revision), ModIs(keys.status(s.ref), s.status_revision)),
        ops=(Put(keys.status(s.ref), to_json(status)),),
        events=events,
    )


def _judged(s: Situation, unplaceable: Unplaceable | None, now: float) -> tuple[InstanceStatus, tuple[Event, ...]]:
    """The status after one transition, and the event that tells of it."""
    judgement = judge(s, unplaceable=unplaceable, now=now)
    phase = next_phase(s.phase, judgement.facts)
    changed = s.status is None or phase is not s.phase
    known = s.members[0].desired if s.members else None
    status = InstanceStatus(
        project=s.ref.project,
        name=s.ref.instance,
        phase=phase,
        conditions=judgement.conditions,
        observed_generation=_observed_generation(s, judgement),
        primary="" if s.ha is not None and s.ha.standby else s.leader_name,
        members=tuple(MemberPlace(member=current.name, node=current.node) for current in s.members),
        rw_port=known.rw_port if known is not None else 0,
        ro_port=known.ro_port if known is not None else 0,
        engine_port=known.engine_port if known is not None else 0,
        since=now if s.status is None or changed else s.status.since,
    )
    return status, (phase_event(s, judgement, phase, now),) if changed else ()


def _observed_generation(s: Situation, judgement: Judgement) -> int:
    """The highest generation that is real: all its members are there and have converged. It never goes back."""
    before = s.status.observed_generation if s.status is not None else 0
    complete = len(s.staying) == len(s.members) == s.wanted and s.spec is not None
    if judgement.facts.deleting or not complete:
        return before
    reached = [current.observed.generation if current.observed is not None else 0 for current in s.members]
    return max(before, min(*reached, s.record.generation))


# --- going ------------------------------------------------------------------------------------------------------------


def _deletion(contents: Contents, s: Situation, now: float) -> Step | None:
    if s.staying:
        leaving = members.leave_all(s)
        return _changing(_with(s, changed=leaving), before=s, ops=_member_puts(leaving), now=now)
    gone = tuple(current for current in s.members if s.is_gone(current))
    if len(gone) == len(s.members):
        return _end(contents, s, now)
    if gone:
        notes = tuple(members.removed_note(current) for current in gone)
        return _adjustment(s, members.Adjustment(dropped=gone, notes=notes), now)
    return _status(s, None, now)


def _end(contents: Contents, s: Situation, now: float) -> Step:
    """The last step: the last members and all records of the instance go."""
    facts = judge(replace(s, members=()), now=now).facts
    assert next_phase(next_phase(s.phase, facts), facts) is Phase.DELETED, "only what is empty ends"
    notes = [members.removed_note(current) for current in s.members]
    return Step(
        compares=(
            ModIs(keys.instance(s.ref), s.record_revision),
            *(ModIs(keys.member(*current.pair), current.revision) for current in s.members),
        ),
        ops=(
            Delete(keys.instance(s.ref)),
            *(Delete(keys.member(*current.pair)) for current in s.members),
            *residue(contents, s.ref),
        ),
        events=(
            *(event(now, note.event, f"{s.ref}/{note.member}", note.message) for note in notes),
            event(now, "instance_deleted", str(s.ref), "nothing of it is left"),
        ),
        frees=True,
    )


def residue(contents: Contents, ref: InstanceRef) -> tuple[Op, ...]:
    """Everything of an instance but its record and its members."""
    stale = [pair for pair in contents.observed if pair[1].instance == ref][:STALE_MAX]
    ports = [number for number, owner in contents.ports.items() if owner == ref.key]
    return (
        Delete(keys.status(ref)),
        Delete(keys.ha(ref)),
        Delete(keys.leader(ref)),
        DeletePrefix(keys.ballots(ref)),
        DeletePrefix(keys.secrets(ref)),
        *(Delete(keys.observed(*pair)) for pair in stale),
        *(Delete(keys.port(number)) for number in ports),
    )

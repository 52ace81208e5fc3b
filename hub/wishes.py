"""What operators ask about leadership: switchover now or later, forced failover, pause, and what has happened.

Each wish is laid down in the memory of leadership (`HaRecord`) by compare-and-swap on what it was judged by; the
members' agents carry it out, save for the scheduled switchover, which the controllers turn into a request when its time
has come (`hub.judges.schedule`). A pause forbids only what happens by itself: a switchover or a forced failover is a
person's wish and goes on during a pause.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from core.clock import moment
from core.errors import ConflictError, MoorageError, NotFoundError, UserError
from core.ids import InstanceRef
from core.positions import Lsn, WalPosition
from core.records import (
    Ballot,
    ForcedFailover,
    HaRecord,
    InstanceRecord,
    LeadershipChange,
    ScheduledSwitchover,
    SwitchoverRequest,
)
from core.specs.instance import InstanceSpec
from hub.authority import Operator
from hub.context import Hub
from hub.etcd import txns
from hub.etcd.mirror import Versioned
from hub.history import entries, with_line
from hub.judges.candidates import Obstacle, obstacle, unfit_to_be_forced
from hub.judges.outlook import Heard, Outlook, outlook
from hub.judges.situation import Situation, gather
from hub.operations import live_instance, settle
from hub.status_page import Page, change_page

SCHEDULE_MAX_S = 90 * 86400.0
LATE_S = 60.0  # a time that was right when it was typed
REASON_MAX_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A switchover that was asked for. `at` 0 = now."""

    id: str
    at: float = 0.0


class Wishes:
    """Carries out what operators ask about leadership, in their name."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    # --- switchover ---

    async def switchover(self, operator: Operator, ref: InstanceRef, target: str, *, at: float = 0.0) -> Asked:
        """Ask for another primary, at a wall time or (0) now. ConflictError tells why it cannot be."""
        if at:
            return await self._schedule(operator, ref, target, at)
        request = SwitchoverRequest(
            id=str(uuid.uuid4()), target=target, requested_by=operator.name, requested_at=self._hub.clock.wall()
        )

        def judge(s: Situation, ha: HaRecord) -> HaRecord:
            _refuse_second(ref, ha)
            _refuse(ref, obstacle(s, target))
            return replace(ha, switchover=request)

        await self._change(operator, ref, judge)
        message = f"by {operator.name}, to {target or 'the best replica'}"
        await self._hub.events.emit("switchover_requested", str(ref), message)
        return Asked(id=request.id)

    async def _schedule(self, operator: Operator, ref: InstanceRef, target: str, at: float) -> Asked:
        now = self._hub.clock.wall()
        if at < now - LATE_S:
            raise UserError(f"{moment(at)} is past: it is {moment(now)} at the hub", object="--at")
        if at > now + SCHEDULE_MAX_S:
            raise UserError(f"{moment(at)} is more than {SCHEDULE_MAX_S / 86400:.0f} days ahead", object="--at")
        wish = ScheduledSwitchover(
            id=str(uuid.uuid4()), at=at, target=target, requested_by=operator.name, requested_at=now
        )

        def judge(s: Situation, ha: HaRecord) -> HaRecord:
            _refuse_second(ref, ha)
            standing = obstacle(s, target)
            # What passes by itself may have passed by then; it is judged again when the time has come.
            _refuse(ref, standing if standing is not None and standing.lasting else None)
            return replace(ha, scheduled=wish)

        await self._change(operator, ref, judge)
        message = f"by {operator.name} for {moment(at)}, to {target or 'the best replica'}"
        await self._hub.events.emit("switchover_scheduled", str(ref), message)
        return Asked(id=wish.id, at=at)

    async def cancel_switchover(self, operator: Operator, ref: InstanceRef) -> ScheduledSwitchover:
        """Take a scheduled switchover back; returns it. ConflictError when there is none, or when it has begun."""
        taken: list[ScheduledSwitchover] = []

        def judge(_s: Situation, ha: HaRecord) -> HaRecord:
            if ha.scheduled is None and ha.switchover is not None:
                hint = "It ends by itself: within a minute the primary has moved or is where it was."
                raise ConflictError(f"switchover {ha.switchover.id} has begun", object=str(ref), hint=hint)
            if ha.scheduled is None:
                raise ConflictError("no switchover is scheduled", object=str(ref))
            taken[:] = [ha.scheduled]
            return replace(ha, scheduled=None)

        await self._change(operator, ref, judge)
        (wish,) = taken
        message = f"by {operator.name}: it was scheduled by {wish.requested_by} for {moment(wish.at)}"
        await self._hub.events.emit("switchover_cancelled", str(ref), message)
        return wish

    # --- forced failover ---

    def plan_failover(self, ref: InstanceRef, target: str) -> Page:
        """What a forced failover would do and lose. NotFoundError for a member that is not there."""
        s, ha = self._look(ref)
        found = self._outlook(s, ha, target)
        return plan_page(s, ha, found)

    async def failover(self, operator: Operator, ref: InstanceRef, target: str, *, after_term: int) -> str:
        """Order `target` to lead after `after_term`, whatever is lost; returns the order's id."""
        if not target:
            raise UserError("no member is named", object="target", hint="Look at the plan first.")
        order = ForcedFailover(
            id=str(uuid.uuid4()),
            target=target,
            after_term=after_term,
            requested_by=operator.name,
            requested_at=self._hub.clock.wall(),
        )
        loss, found = "", order.id

        def judge(s: Situation, ha: HaRecord) -> HaRecord | None:
            nonlocal loss, found
            _refuse_never_initialised(s)
            _refuse_other_term(s, ha, after_term)
            _refuse(ref, unfit_to_be_forced(s, target))
            if ha.forced is not None and (ha.forced.target, ha.forced.after_term) == (target, after_term):
                found = ha.forced.id  # it is under way; what does not come about is dropped (`hub.judges.schedule`)
                return None
            prospect = next(one for one in self._outlook(s, ha, target).prospects if one.member == target)
            loss = prospect.loss_text
            line = LeadershipChange(
                term=ha.term, member=target, reason=f"forced failover to {target}, ordered by {operator.name}",
                at=order.requested_at, kind="ordered", seen_by=operator.name, loss=loss,
            )  # fmt: skip
            # A switchover that is asked for as well would be another primary's business.
            return replace(with_line(ha, line), forced=order, switchover=None)

        if await self._change(operator, ref, judge):
            message = f"by {operator.name}, to {target} after term {after_term}: {loss}"
            await self._hub.events.emit("failover_forced", str(ref), message, "warning")
        return found

    def _outlook(self, s: Situation, ha: HaRecord, target: str) -> Outlook:
        cast = self._hub.mirror.ballots.get(s.ref, {})
        ballots = [known.record for known in cast.values() if known.record.term == ha.term + 1]
        return outlook(s, ha, self._heard(s, ballots), ballots, target)

    def _heard(self, s: Situation, ballots: list[Ballot]) -> dict[str, Heard]:
        """Where each member was last heard of: heartbeats of this hub, better ballots."""
        now, heard = self._hub.clock.now(), {}
        for current in s.members:
            sample = self._hub.liveness.samples.get(current.node)
            for member in sample.members if sample is not None else ():
                if sample is not None and member.ref == current.pair[1] and member.lsn:
                    position = WalPosition(member.timeline, Lsn(member.lsn))
                    heard[current.name] = Heard(position=position, source="heartbeat", age_s=max(0.0, now - sample.at))
        for ballot in ballots:
            heard[ballot.member] = Heard(position=WalPosition(ballot.timeline, Lsn(ballot.lsn)), source="ballot")
        return heard

    # --- pause ---

    async def pause(self, operator: Operator, ref: InstanceRef, reason: str) -> None:
        """No automatic failover from now on. Asking twice is fine, and changes neither reason nor time."""
        now, why = self._hub.clock.wall(), " ".join(reason.split())[:REASON_MAX_CHARS]

        def judge(_s: Situation, ha: HaRecord) -> HaRecord | None:
            if ha.paused:
                return None
            line = LeadershipChange(
                term=ha.term, member=ha.leader, reason=f"automatic failover paused by {operator.name}{_colon(why)}",
                at=now, kind="paused", seen_by=operator.name,
            )  # fmt: skip
            return replace(with_line(ha, line), paused=True, paused_by=operator.name, paused_at=now, pause_reason=why)

        if await self._change(operator, ref, judge):
            await self._hub.events.emit("failover_paused", str(ref), f"by {operator.name}{_colon(why)}", "warning")

    async def resume(self, operator: Operator, ref: InstanceRef) -> None:
        """Automatic failover goes on. Asking twice is fine."""
        now = self._hub.clock.wall()

        def judge(_s: Situation, ha: HaRecord) -> HaRecord | None:
            if not ha.paused:
                return None
            line = LeadershipChange(
                term=ha.term, member=ha.leader, reason=f"automatic failover resumed by {operator.name}",
                at=now, kind="resumed", seen_by=operator.name,
            )  # fmt: skip
            return replace(with_line(ha, line), paused=False, paused_by="", paused_at=0.0, pause_reason="")

        if await self._change(operator, ref, judge):
            await self._hub.events.emit("failover_resumed", str(ref), f"by {operator.name}")

    # --- history ---

    def history(self, ref: InstanceRef, limit: int) -> list[Page]:
        """The newest changes of leadership, oldest first."""
        if ref not in self._hub.mirror.instances:
            raise NotFoundError("instance does not exist", object=str(ref), hint="See `moorctl instance list`.")
        lines = entries(self._hub.mirror, ref)
        shown = lines[-limit:] if limit else lines
        return [change_page(line) for line in shown]

    # --- the inside ---

    async def _change(
        self, operator: Operator, ref: InstanceRef, judge: Callable[[Situation, HaRecord], HaRecord | None]
    ) -> bool:
        """Write what `judge` makes of the memory of leadership; False when it leaves it as it is."""

        def judged() -> txns.Txn | None:
            s, ha = self._look(ref)
            next_ha = judge(s, ha)
            if next_ha is None:
                return None
            return txns.request_on_ha(ref, ha_revision=s.ha_revision, next_ha=next_ha)

        return await settle(self._hub, operator, judged, str(ref))

    def _look(self, ref: InstanceRef) -> tuple[Situation, HaRecord]:
        """The instance at this moment. ConflictError when it is being deleted or has no memory of leadership yet."""
        known = live_instance(self._hub, ref)
        pairs = [pair for pair in self._hub.mirror.members if pair[1].instance == ref]
        s = gather(self._hub.mirror, ref, pairs, spec=_spec_of(known))
        if s.ha is None:
            hint = "Wait until it is Running."
            raise ConflictError("instance has no primary now: it is not placed yet", object=str(ref), hint=hint)
        return s, s.ha


def plan_page(s: Situation, ha: HaRecord, found: Outlook) -> Page:
    """The plan of a forced failover as operators get it."""
    chosen = next((one for one in found.prospects if one.member == found.target), None)
    if found.target and chosen is None:
        _refuse(s.ref, unfit_to_be_forced(s, found.target))
    return {
        "name": str(s.ref),
        "term": found.term,
        "mode": ha.sync.mode,
        "strict": s.spec.replication.strict if s.spec is not None else None,
        "sync": {"k": ha.sync.k, "names": list(ha.sync.names)},
        "last_leader": found.last_leader,
        "leader": s.leader_name or None,
        "primary_alive": found.primary_alive,
        "paused": ha.paused,
        "furthest": found.furthest or None,
        "members": [
            {
                "name": one.member,
                "node": one.node,
                "silent": one.node in s.silent or one.node not in s.nodes,
                "timeline": one.heard.position.timeline if one.heard is not None else None,
                "lsn": str(one.heard.position.lsn) if one.heard is not None else None,
                "position_from": one.heard.source if one.heard is not None else None,
                "position_age_s": round(one.heard.age_s, 1) if one.heard is not None else None,
                "behind_bytes": one.behind_bytes,
                "obstacle": one.obstacle or None,
                "loss": one.loss,
                "loss_text": one.loss_text,
            }
            for one in found.prospects
        ],
        "target": found.target or None,
        "obstacle": (chosen.obstacle if chosen is not None else "no member can be forced to lead") or None,
        "loss": chosen.loss if chosen is not None else None,
        "loss_text": chosen.loss_text if chosen is not None else None,
        "waits_for": list(found.waits_for),
        "advice": found.advice or None,
    }


def _refuse(ref: InstanceRef, standing: Obstacle | None) -> None:
    if standing is None:
        return
    kind: type[MoorageError] = NotFoundError if standing.unknown else ConflictError
    raise kind(standing.text, object=str(ref), hint=standing.hint)


def _refuse_second(ref: InstanceRef, ha: HaRecord) -> None:
    """One change of primary at a time, and one appointment."""
    if ha.switchover is not None:
        what = f"switchover {ha.switchover.id} is under way"
        raise ConflictError(what, object=str(ref), hint="Wait until it is over.")
    if ha.forced is not None and ha.forced.after_term == ha.term:
        raise ConflictError(f"a forced failover to {ha.forced.target} is under way", object=str(ref))
    if ha.scheduled is not None:
        wish = ha.scheduled
        what = f"{wish.requested_by} has scheduled a switchover to {wish.target or 'the best replica'}"
        hint = f"Take that one back first: moorctl instance switchover {ref} --cancel"
        raise ConflictError(f"{what} for {moment(wish.at)}", object=str(ref), hint=hint)


def _refuse_never_initialised(s: Situation) -> None:
    if not s.initialised:
        what = "the database has never been initialised: there is no data to go on with"
        raise ConflictError(what, object=str(s.ref), hint=f"See: moorctl instance show {s.ref}")


def _refuse_other_term(s: Situation, ha: HaRecord, after_term: int) -> None:
    if ha.term != after_term:
        what = f"things have changed: {ha.leader} has led in term {ha.term} since, not {after_term}"
        raise ConflictError(what, object=str(s.ref), hint="Look again before you decide.")


def _spec_of(known: Versioned[InstanceRecord]) -> InstanceSpec | None:
    """None for a document that is not valid by today's rules: leadership does not hang on it."""
    try:
        return InstanceSpec.model_validate(known.record.spec)
    except ValidationError:
        return None


def _colon(text: str) -> str:
    return f": {text}" if text else ""

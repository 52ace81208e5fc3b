"""Tells the hub what changed on the node: member states and events, kept until the hub has them.

States are level-triggered: only the newest of each member is kept. Events are bounded; when the hub is away for long
the oldest go first, and the loss is said.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import replace
from typing import Literal

from agent.link import HubLink
from core.backoff import Backoff
from core.clock import Clock
from core.errors import ConflictError, DeniedError, MoorageError, NotFoundError, UserError
from core.ids import MemberRef
from core.log import EventLog
from core.records import Event, ObservedMember, PeerMember, to_json
from protos.v1 import agent_pb2 as pb

log = EventLog("agent.reporter")
EVENTS_KEPT_MAX = 1000
CALL_TIMEOUT_S = 5.0
REFUSED: tuple[type[MoorageError], ...] = (UserError, DeniedError, ConflictError, NotFoundError)


class Reporter:
    """One a node. `state()` and `event()` never block; `run()` delivers."""

    def __init__(self, node: str, link: HubLink, clock: Clock) -> None:
        self._node = node
        self._link = link
        self._clock = clock
        self._facts: pb.NodeFacts | None = None
        self._facts_due = False
        self._last: dict[MemberRef, ObservedMember] = {}
        self._due: set[MemberRef] = set()
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._work = asyncio.Event()

    def facts(self, facts: pb.NodeFacts) -> None:
        """The node's facts; sent when they differ from the last ones."""
        if facts != self._facts:
            self._facts = facts
            self._facts_due = True
            self._work.set()

    def state(self, ref: MemberRef, observed: ObservedMember) -> None:
        """A member's state; sent when it differs from the last one in anything but `since`."""
        last = self._last.get(ref)
        if last is not None and replace(observed, since=last.since) == last:
            return
        same_state = last is not None and last.state == observed.state
        self._last[ref] = replace(observed, since=last.since if same_state and last else self._clock.wall())
        self._due.add(ref)
        self._work.set()

    def shown(self, ref: MemberRef, member: PeerMember) -> None:
        """What the hub shows of the member. A report that was held up on its way may have overwritten a later one: tell
        it again."""
        last = self._last.get(ref)
        if last is not None and (last.state, last.role, last.timeline, last.streaming_from, last.late) != (
            member.state,
            member.role,
            member.timeline,
            member.streaming_from,
            member.late,
        ):
            self._due.add(ref)
            self._work.set()

    def forget(self, ref: MemberRef) -> None:
        """The member is gone from desired state: nothing more to tell of it."""
        self._last.pop(ref, None)
        self._due.discard(ref)

    def resync(self) -> None:
        """Everything again: the hub misses it."""
        self._due.update(self._last)
        self._facts_due = self._facts is not None
        self._work.set()

    def event(
        self, event: str, subject: str, message: str, *, severity: Literal["info", "warning", "error"] = "info"
    ) -> None:
        """Something for people, into the hub's events and the own log."""
        getattr(log, severity)(event, object=subject, message=message)
        self._events.append(
            Event(
                at=self._clock.wall(),
                event=event,
                object=subject,
                severity=severity,
                message=message,
                source=self._node,
            )
        )
        self._work.set()

    async def run(self) -> None:
        backoff = Backoff(base_s=0.2, cap_s=3.0, uniform=random.uniform)
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._deliver()
                backoff.reset()
            except MoorageError as error:
                if backoff.failures == 0:
                    log.warning("report_failed", error=str(error))
                self._work.set()
                await asyncio.sleep(backoff.next_delay())

    async def _deliver(self) -> None:
        await self._deliver_states()
        while self._events:
            event = self._events[0]
            request = pb.ReportEventRequest(event_json=to_json(event))
            try:
                await self._link.call(lambda stub: stub.ReportEvent, request, timeout_s=CALL_TIMEOUT_S)
            except REFUSED as error:
                log.warning("event_refused", event_name=event.event, error=str(error))
            if self._events and self._events[0] is event:
                self._events.popleft()

    async def _deliver_states(self) -> None:
        due = {ref: self._last[ref] for ref in self._due if ref in self._last}
        facts = self._facts if self._facts_due else None
        if not due and facts is None:
            return
        request = pb.ReportStatusRequest(
            node_id=self._node, facts=facts, observed_json=[to_json(observed) for observed in due.values()]
        )
        try:
            await self._link.call(lambda stub: stub.ReportStatus, request, timeout_s=CALL_TIMEOUT_S)
        except REFUSED as error:
            # Repeating the same words would be refused again; the next change or a resync tries anew.
            log.warning("report_refused", error=str(error))
        for ref, observed in due.items():
            if self._last.get(ref) == observed:
                self._due.discard(ref)
        if facts is self._facts:
            self._facts_due = False

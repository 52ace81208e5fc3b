"""Ends clients that stand still for longer than their instance allows (`standstill`): one look at all of them now and
then, in slices, between which everybody else has its turn.

Time in which this process did not run itself does not count: what clients have sent meanwhile has not been read yet.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from core.log import EventLog
from proxy.gate import Gate
from proxy.parting import dismiss, give_up
from proxy.postgres.requests import IDLE
from proxy.session import Session
from proxy.sockets import unsent_bytes
from proxy.standstill import Sight, Stance, Standstills, bound_s, farewell, look_every_s

log = EventLog("proxy.sweeping")
SLICE = 500  # clients, of a microsecond or two each
UNREAD = "08006"  # connection_failure: so a client counts that could not be told anything


def sight_of(session: Session) -> Sight:
    """What it is at just now."""
    requests = session.requests
    if session.ended or session.transport is None:
        return Sight(Stance.BUSY, 0)
    if session.full:
        return Sight(Stance.UNREAD, unsent_bytes(session.transport))
    if session.waiting.waits or requests.outstanding or requests.open or requests.unclear or requests.leaving:
        return Sight(Stance.BUSY, 0)
    return Sight(Stance.IDLE if requests.state == IDLE else Stance.IN_TRANSACTION, session.bytes_in)


class Sweep:
    """One a process."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._standstills: Standstills[Session] = Standstills()
        self._awake_s = 0.0  # that this process has run so far
        self._looked_at = gate.clock.now()

    async def run(self) -> None:
        """For ever."""
        table, version, every_s = self._gate.table, -1, 0.0
        while True:
            if version != table.version:
                version, every_s = table.version, look_every_s(table.routes())
            await asyncio.sleep(every_s)
            now = self._gate.clock.now()
            self._awake_s += min(now - self._looked_at, 2 * every_s)
            self._looked_at = now
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        self._standstills.begin()
        ended: Counter[tuple[str, Stance]] = Counter()
        for number, guest in enumerate(tuple(self._gate.guests)):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if isinstance(guest, Session) and (stance := self._look_at(guest)) is not None:
                ended[guest.instance, stance] += 1
        for (instance, stance), count in ended.items():
            log.info("silent_clients_ended", instance=instance, stance=stance.value, clients=count)

    def _look_at(self, session: Session) -> Stance | None:
        """What it was at, if it is ended."""
        route = self._gate.table.route(session.instance)
        if route is None:
            return None
        sight = sight_of(session)
        most_s = bound_s(route, sight.stance)
        if not most_s or self._standstills.look(session, sight, self._awake_s) < most_s:
            return None
        if sight.stance is Stance.UNREAD:
            unread = sight.position
            log.warning("slow_client_ended", client=session.address, instance=session.instance, unread_bytes=unread)
            give_up(session, UNREAD)
            return None
        dismiss(session, self._gate, farewell(route, sight.stance))
        return sight.stance

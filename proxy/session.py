"""One authenticated client: the relay of whole buffers both ways, and what becomes of it when its server goes.

A session *at rest* (every request answered, no transaction) outlives its server: it keeps the client, lets the server
go, and looks for the next one (`attaching`), which is made to carry what the former did (`carried`) before anything of
the client reaches it. One that is not at rest ends with its server, by error 57P01: what was under way may have been
done, and nothing is ever sent twice.

What it carries is asked of its server in time (`asking`). In transaction mode it gives the server back at each rest and
takes another one for what comes next (`sharing`). A client that leaves in good order leaves its connection to the next
one: made like new, unless it never used it.
"""

from __future__ import annotations

import asyncio

from core.routes import Endpoint
from proxy.account import Account
from proxy.asking import Asking
from proxy.attaching import Departure, Lease, Offer, attach, took_free_one
from proxy.gate import Gate
from proxy.headcount import Seat
from proxy.meters import NEVER
from proxy.parting import drop, go_on_without, leave_if_rested, left_server, obstacle, said_goodbye, turn_back
from proxy.postgres import refusals
from proxy.postgres.login import is_ordinary
from proxy.postgres.messages import TERMINATE
from proxy.postgres.prepared import Statements
from proxy.postgres.renaming import translate
from proxy.postgres.requests import Requests
from proxy.postgres.scram import Login
from proxy.postgres.startup import Startup
from proxy.postgres.statements import mutes
from proxy.server import ServerLink
from proxy.sharing import Sharing, replicates, shares_servers
from proxy.sockets import LINGER_S, client_address, close_soon, part_with
from proxy.splitting import speaks_amiss
from proxy.table import Fence
from proxy.told import Told
from proxy.waiting import Waiting


class Session(asyncio.Protocol):
    """The client's side; the server's side is `ServerLink`. Takes over the transport of a `Reception`."""

    def __init__(
        self,
        gate: Gate,
        transport: asyncio.Transport,
        startup: Startup,
        login: Login,
        seat: Seat,
        *,
        read_only: bool,
        tls: bool,
    ) -> None:
        self.instance = instance = seat.instance
        self.read_only = read_only
        self.endpoint: Endpoint | None = None
        self.fence: Fence | None = None
        self.transport: asyncio.Transport | None = transport
        self.address = client_address(transport)
        self.login = login
        self.database = startup.database
        self.parameters = tuple(pair for pair in startup.parameters.items() if is_ordinary(*pair))
        shares = shares_servers(gate.table.route(instance), startup)
        self.requests = Requests(gate.statements, keeps=not shares)
        self.requests.unclear = replicates(startup)  # what it is in the middle of, its messages do not tell
        self.requests.muted = any(mutes(*pair) for pair in startup.parameters.items())
        self.account = Account(self, gate, startup, tls=tls)
        self.waiting = Waiting(self, gate)
        self.kept = False
        self.departure: Departure | None = None
        self.dialing: asyncio.Timeout | None = None
        self.lease: Lease | None = None  # it waits for a connection of a pool
        self.holding = False  # there is a server, but nothing goes to it
        self.bytes_in = 0
        self.bytes_out = 0
        self._gate = gate
        self._table = gate.table
        self._seat = seat
        self._now = gate.clock.now
        self._tls = tls
        self._link: ServerLink | None = None
        self.asking = Asking(self, gate)
        self.told = Told(self, gate, startup, tls=tls)
        self.sharing = Sharing(self, gate) if shares else None
        self.statements = Statements(gate.library) if shares else None
        self._task: asyncio.Task[None] | None = None
        self.full = False  # the client does not keep up
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    def begin(self, early: bytes, proof: bytes = b"") -> None:
        """Look for a server. `early`: what the client sent behind its login; `proof`: what it is to be told first."""
        self.told.first = proof
        if self.sharing is not None:
            self._table.share(self)
        if self.sharing.greeted(self._now()) if self.sharing is not None else took_free_one(self, self._gate):
            if early:
                self.data_received(early)
            return
        self.told.tell({})
        self.look_for_server()
        self.account.hold(self._now())
        self.waiting.begin()
        if early:
            self._hold(early)

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def idle(self) -> bool:
        return self._link is None or self.requests.resting

    @property
    def busy(self) -> bool:
        if self._link is None or self.requests.unclear:
            return False
        paused = self.fence is not None and self.fence.paused
        return not (self.asking.parked if paused else self.requests.resting)

    @property
    def looking(self) -> bool:
        return self._task is not None

    @property
    def queued(self) -> bool:
        return self.lease is not None or (self.sharing is not None and self.sharing.queued)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        link, now = self._link, self._now()
        if data[-5:] == TERMINATE and said_goodbye(self, self._gate, data):
            return
        if self.sharing is not None and not self._ended:
            if link is None:
                link = self.sharing.take(data, now)
            elif self.sharing.splitting.active and not (data := self.sharing.splitting.next(link, data)):
                return
        if link is None or self.holding:
            self._hold(data)
            return
        # The fence: nothing that a client sends reaches a primary past the end of its route, also when this process
        # was frozen and thaws late.
        fence, requests, account = self.fence, self.requests, self.account
        if fence is not None and now >= fence.until_s:
            self.cut()
            self._hold(data)
            return
        self.bytes_in += len(data)
        statements = self.statements
        out = data if statements is None else translate(statements, link.held, data, requests)
        requests.feed(data)
        if not account.running and (requests.outstanding or requests.open):
            account.start(now)
            if account.wishes.slow_s < NEVER:
                account.remember(data)
        if (requests.muted or requests.locks) and speaks_amiss(self, self.sharing):
            return
        link.write(out)
        if statements is not None and (statements.waits or statements.lost) and self.sharing is not None:
            self.sharing.barred()

    def _hold(self, data: bytes) -> None:
        """It cannot be sent yet."""
        if not self._ended:
            self.account.held(data, self._now())
            self.waiting.hold(data)

    def go_on(self) -> None:
        """There is a server that may be written to: nothing is held back any more."""
        self.account.release(self._now())
        held = self.waiting.end()
        if held:
            self.data_received(held)
        self.waiting.read_on()
        if self.sharing is not None and not held:
            self.rested()

    def read_client(self, go: bool) -> None:
        self.waiting.read_client(go)

    def eof_received(self) -> bool:
        """A client that only stopped sending still gets its answers: the server, told the same way, ends the session.
        TLS cannot be half closed."""
        link = self._link
        if link is None or self._tls or self._ended or self.waiting.holds or left_server(self, self._gate):
            return False
        if self.sharing is not None:  # its server is for others as well, and is told nothing
            self.requests.leaving = True
            leave_if_rested(self, self._gate)
        elif self.requests.leaving:  # the server ends by itself after a goodbye, unless it hangs
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.close)
        else:
            self.requests.leaving = True
            link.half_close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._seat.leave()
        _ = self.waiting.end()
        self.asking.stop()
        if self._task is not None:
            self._task.cancel()
        if exc is None and not self._ended:
            _ = left_server(self, self._gate)
        link = self._link
        if link is None or link.lost:
            self._settle()
        elif exc is None and not self._ended:
            link.release()
        else:
            link.abort()
        if self.sharing is not None:
            _ = self.sharing.withdraw()
            self._settle()

    def pause_writing(self, *, full: bool = True) -> None:
        self.full = full
        if self._link is not None:
            self._link.client_is_full(full)

    def resume_writing(self) -> None:
        self.pause_writing(full=False)

    # --- finding a server -----------------------------------------------------------------------------------------

    def look_for_server(self, offer: Offer | None = None) -> None:
        """`offer`: what a pool has given."""
        self.told.looks()
        way = attach(self, self._gate, offer)
        self._task = self._gate.tasks.spawn(way, f"client {self.address}", failed=self.close)
        if offer is not None:
            self._task.add_done_callback(lambda _: offer.settle())  # a task that is cancelled early never runs

    def relay(self, link: ServerLink, notices: bytes) -> None:
        """The link is logged in and carries what it should."""
        assert link.cancel_key is not None, "given at the login"
        self.account.release(self._now())
        if not self.kept:
            self.told.greet(link.parameters, link.cancel_key[1], notices)
        else:
            if self.sharing is None or self.sharing.pinned:  # others go from one to another all the time
                self.told.moved()
            self.told.tell(link.parameters)
        self._link, self._task, self.departure = link, None, None
        self.holding = self.asking.parked = False
        link.client_is_full(self.full)
        link.begin_relay()
        if self._link is not link:
            return
        self.look()
        if self.holding and not self.waiting.holds:
            _ = self.waiting.end()

    def reported(self, parameters: dict[str, str]) -> None:
        """The server has told that its parameters are these now."""
        self.told.parameters = parameters
        if self.sharing is not None:
            self.requests.changed = True

    def adopt(self, link: ServerLink) -> None:
        """A free connection that carries what it should, for the transaction that begins."""
        if link.parameters is not self.told.parameters:
            self.told.tell(link.parameters)
        self._link = link
        link.serve(self)
        link.go_on()
        if self.full:
            link.client_is_full(True)

    def let_go(self) -> None:
        """The connection is somebody else's from now on."""
        self._link = None
        self._table.unbind(self)
        self.fence = None

    @property
    def server(self) -> ServerLink | None:
        return self._link

    @property
    def shown(self) -> Account:
        return self.account

    def look(self) -> None:
        """The fence is paused, or is no longer; or there is a new one."""
        if self._link is not None:
            self.asking.look()
        elif self.fence is not None and self.fence.paused:
            turn_back(self, self._gate)

    def rested(self) -> None:
        """All is answered, it seems."""
        sharing = self.sharing
        if sharing is not None and sharing.rested():
            return
        if sharing is not None and self.requests.leaving:
            leave_if_rested(self, self._gate)
        elif self.requests.changed or (self.fence is not None and self.fence.paused):
            self.asking.rested()
        elif sharing is not None and sharing.pinned:
            self.asking.settle()

    # --- the end --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The fence falls. A client that is only on its way to that server looks for another one."""
        if self._link is not None:
            self.part_from_server(self._link, refusals.failover)
        elif self.dialing is not None and not self.dialing.expired():
            self.dialing.reschedule(asyncio.get_running_loop().time())
        else:
            turn_back(self, self._gate)

    def server_lost(self, link: ServerLink) -> None:
        if link is self._link:
            if link.dismissal and self.endpoint is not None and not self.asking.parked:
                self.departure = Departure(link.dismissal, self.endpoint, self.fence)
            self.part_from_server(link, refusals.server_lost)
        if self.transport is None:
            self._settle()

    def part_from_server(self, link: ServerLink, farewell: refusals.Farewell) -> None:
        """Let the server go and keep the client, if that can be; else end it."""
        if self._ended:
            return
        why = obstacle(self, self._gate)
        if why is not None:
            self.end_with(farewell(why))
            return
        go_on_without(self, link)

    def shut_down(self) -> None:
        if self._link is None and (self.sharing is None or not self.kept):
            self.refuse(refusals.STOPPING, "stopping")
        else:
            self.end_with(refusals.SHUTDOWN)

    def end_with(self, farewell: bytes) -> None:
        """Close; with a word if the client stands between messages and expects one."""
        if self._ended:
            return
        if (self._link is None or self._link.may_be_told) and self.transport is not None and not self.requests.leaving:
            self.transport.write(farewell)
            self.account.told(farewell)
        self.close()

    def refuse(self, message: bytes, why: str) -> None:
        """Say no and close."""
        if self._ended:
            return
        self._gate.refuses(client=self.address, instance=self.instance, why=why, told=b"" if self.kept else message)
        if self.kept:
            self.account.told(message)
        if self.transport is not None:
            self.transport.write(message)
        self.close()

    def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._seat.leave()
        if self.lease is not None:
            self.lease.withdraw()
        if self.sharing is not None:
            _ = self.sharing.withdraw()
        self._table.unbind(self)
        _ = self.waiting.end()
        if self._link is not None:
            drop(self._link)
        if self.transport is not None:
            self._linger = close_soon(self.transport) if self.requests.leaving else part_with(self.transport)

    def _settle(self) -> None:
        """Both sides are gone."""
        if self not in self._gate.guests:
            return
        self._ended = True
        self.asking.end()
        if self._linger is not None:
            self._linger.cancel()
        self._table.unbind(self)
        if self.sharing is not None:
            self._table.unshare(self)
        self._gate.gone(self)
        self.requests.release()
        if self.statements is not None:
            self.statements.release()
        self.told.ended()

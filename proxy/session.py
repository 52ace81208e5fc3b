"""One authenticated client: the relay of whole buffers both ways, and what becomes of it when its server goes.

A session *at rest* (every request answered, no transaction) outlives its server: it keeps the client, lets the server
go, and looks for the next one (`attaching`), which is made to carry what the former did (`carried`) before anything of
the client reaches it. One that is not at rest ends with its server, by error 57P01: what was under way may have been
done, and nothing is ever sent twice.

During a switchover the fence is *paused*: who is at rest begins nothing new, what its client sends is held here, and
the server is asked what the session carries while it can still say. After a crash it cannot, so a session that may
have changed something is asked beforehand, when its client has been silent for a moment.
"""

from __future__ import annotations

import asyncio

from core.log import EventLog
from core.routes import Endpoint
from proxy.attaching import Departure, attach
from proxy.gate import Gate
from proxy.keys import Key
from proxy.postgres import refusals
from proxy.postgres.authentication import AUTHENTICATION_OK
from proxy.postgres.carried import NOTHING, Inquiry, Step, steps_of
from proxy.postgres.login import PROTOCOL_3_0, LoggedIn, is_ordinary, spoken
from proxy.postgres.messages import READY_IDLE, Garbled, backend_key, parameter_status
from proxy.postgres.requests import Requests
from proxy.postgres.scram import Login
from proxy.postgres.startup import Startup
from proxy.postgres.statements import mutes
from proxy.server import ServerLink
from proxy.sockets import LINGER_S, part_with
from proxy.table import Fence
from proxy.waiting import Waiting

log = EventLog("proxy.session")
NO = frozenset({"", "0", "f", "false", "n", "no", "of", "off"})
INQUIRY_S = 5.0  # a server that does not answer the proxy's question for so long is lost
SETTLED_S = 0.05  # a client is silent so long before its server is asked what its session carries


class Session(asyncio.Protocol):
    """The client's side; the server's side is `ServerLink`. Takes over the transport of a `Reception`."""

    def __init__(
        self,
        gate: Gate,
        transport: asyncio.Transport,
        startup: Startup,
        login: Login,
        *,
        instance: str,
        read_only: bool,
        tls: bool,
    ) -> None:
        self.instance = instance
        self.read_only = read_only
        self.endpoint: Endpoint | None = None
        self.fence: Fence | None = None
        self.transport: asyncio.Transport | None = transport
        self.address = client_address(transport)
        self.login = login
        self.parameters = tuple(pair for pair in startup.parameters.items() if is_ordinary(*pair))
        self.requests = Requests(gate.statements)
        self.requests.muted = any(mutes(*pair) for pair in startup.parameters.items())
        self.waiting = Waiting(self, gate)
        self.kept = False
        self.departure: Departure | None = None
        self.dialing: asyncio.Timeout | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        # What a replication connection is in the middle of cannot be told from its messages.
        self.requests.unclear = startup.parameters.get("replication", "off").lower() not in NO
        self._gate = gate
        self._table = gate.table
        self._now = gate.clock.now
        self._startup = startup
        self._tls = tls
        self._began = self._now()
        self._left_at = self._began  # when it began to look for its present or next server
        self._link: ServerLink | None = None
        self._key: Key | None = None  # of cancel requests, once the client has a server
        self._carried = NOTHING
        self._told: dict[str, str] = {}  # parameters as the last server had them
        self._holding = False  # there is a server, but nothing goes to it
        self._parked = False  # paused, and all is known that is needed to go elsewhere
        self._asking: asyncio.Task[None] | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._full = False  # the client does not keep up
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    def begin(self, early: bytes) -> None:
        """Look for a server. `early`: what the client sent behind its login."""
        self._look_for_server()
        self.waiting.begin()
        if early:
            self.waiting.hold(early)

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
        return not (self._parked if paused else self.requests.resting)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        link = self._link
        if link is None or self._holding:
            if not self._ended:
                self.waiting.hold(data)
            return
        # The fence: nothing that a client sends reaches a primary past the end of its route, also when this process
        # was frozen and thaws late.
        fence = self.fence
        if fence is not None and self._now() >= fence.until_s:
            self.cut()
            if not self._ended:
                self.waiting.hold(data)
            return
        self.bytes_in += len(data)
        self.requests.feed(data)
        if self.requests.muted and fence is not None and fence.strict:
            self._end_with(refusals.MUTED)
            return
        link.write(data)

    def _release(self) -> None:
        """There is a server that may be written to: nothing is held back any more."""
        held = self.waiting.end()
        if held:
            self.data_received(held)
        self.waiting.read_on()

    def read_client(self, go: bool) -> None:
        self.waiting.read_client(go)

    def eof_received(self) -> bool:
        """A client that only stopped sending still gets its answers: the server, told the same way, ends the session.
        TLS cannot be half closed."""
        link = self._link
        if link is None or self._tls or self._ended or self.waiting.holds:
            return False
        if self.requests.leaving:  # the server ends by itself after a goodbye, unless it hangs
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._close)
        else:
            self.requests.leaving = True
            link.half_close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        _ = self.waiting.end()
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
        link = self._link
        if link is None or link.lost:
            self._settle()
        elif exc is None and not self._ended:
            link.release()
        else:
            link.abort()

    def pause_writing(self) -> None:
        self._full = True
        if self._link is not None:
            self._link.client_is_full(True)

    def resume_writing(self) -> None:
        self._full = False
        if self._link is not None:
            self._link.client_is_full(False)

    # --- finding a server -----------------------------------------------------------------------------------------

    def _look_for_server(self) -> None:
        self._left_at = self._now()
        self._task = self._gate.tasks.spawn(attach(self, self._gate), f"client {self.address}", failed=self._close)

    def steps(self) -> list[Step]:
        """By which a new server comes to carry what the former did."""
        requests = self.requests
        return steps_of(self._carried, requests.prepared, requests.unnamed, requests.unconfirmed)

    def relay(self, link: ServerLink, answer: LoggedIn) -> None:
        """The link is logged in and carries what it should."""
        assert self.endpoint is not None, "bound before it was dialled"
        assert self.transport is not None, "its way ends with it"
        parameters = {name: value for name, value in link.parameters.items() if self._told.get(name) != value}
        told = b"".join(parameter_status(name, value) for name, value in parameters.items())
        if not self.kept:
            self._key = self._gate.cancels.issue(self, answer.pid, long=spoken(self._startup.packet) > PROTOCOL_3_0)
            told = AUTHENTICATION_OK + told + answer.notices + backend_key(*self._key) + READY_IDLE
        self._log_relay(self.endpoint)
        self._told |= parameters
        self._link, self._task, self.kept, self.departure = link, None, True, None
        self._holding = self._parked = False
        self.bytes_out += len(told)
        self.transport.write(told)
        link.client_is_full(self._full)
        link.begin_relay()
        if self._link is not link:
            return
        self.look()
        if not self._holding:
            self._release()
        elif not self.waiting.holds:
            _ = self.waiting.end()

    def _log_relay(self, endpoint: Endpoint) -> None:
        waited_ms = round((self._now() - self._left_at) * 1000)
        log.info(
            "session_moved" if self.kept else "client_connected",
            client=self.address,
            user=self._startup.user,
            database=self._startup.database,
            instance=self.instance,
            server=endpoint.member,
            read_only=self.read_only,
            tls=self._tls,
            waited_ms=waited_ms,
        )

    def present_server(self) -> tuple[Endpoint, int, bytes] | None:
        """Where a cancel request must go, and with which key."""
        return self._link.cancel_key if self._link is not None else None

    # --- what it carries ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """The fence is paused, or is no longer; or there is a new one."""
        if self.fence is not None and self.fence.paused:
            self.rested()
        elif self._asking is None:
            self._holding = self._parked = False
            if self._link is not None:
                self._release()

    def rested(self) -> None:
        """The session may be at rest, and either its fence is paused or something may have changed."""
        if not self._may_be_asked() or self._asking is not None:
            return
        if self.fence is not None and self.fence.paused:
            self._holding = True
            if self.requests.touched:
                self._begin_asking()
            else:
                self._parked = True
        elif self.requests.changed and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLED_S, self._settled, self.bytes_in)

    def _settled(self, bytes_in: int) -> None:
        self._settling = None
        if self.bytes_in == bytes_in and self._may_be_asked() and self._asking is None:
            self._begin_asking()
        else:
            self.rested()

    def _may_be_asked(self) -> bool:
        """Whole messages in both directions, none of which is owed an answer."""
        return self._link is not None and self.requests.resting and self._link.quiet

    def _begin_asking(self) -> None:
        self._asking = self._gate.tasks.spawn(self._ask(), f"inquiry {self.address}", failed=self._close)

    async def _ask(self) -> None:
        """Ask the server what the session carries; hold the client meanwhile."""
        link, asked = self._link, False
        try:
            async with self._gate.inquiries(self.instance):
                if link is None or self._link is not link or not self._may_be_asked():
                    return
                if self.fence is not None and self._now() >= self.fence.until_s:
                    self.cut()
                    return
                self._holding = asked = True
                inquiry = Inquiry(self.login.user, self.requests.names, texts=self.requests.doubtful)
                async with asyncio.timeout(INQUIRY_S):
                    await link.ask(inquiry)
                if self._link is link:
                    self._take_answer(inquiry)
        except TimeoutError:
            log.warning("inquiry_timed_out", client=self.address, instance=self.instance)
            if self._link is link and link is not None:
                self._part_from_server(link, refusals.server_lost)
        except OSError:
            pass  # the link is lost, and the session knows
        except Garbled as error:
            self._end_with(refusals.server_lost(f"its server was not understood: {error}"))
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None
                if not self._ended and link is self._link:
                    self._asked(asked=asked)

    def _asked(self, *, asked: bool) -> None:
        """An answer that does not come a second time either would keep a switchover waiting for nothing."""
        if self.fence is not None and self.fence.paused:
            self._parked = self._holding and asked
        else:
            self._holding = False
            self._release()

    def _take_answer(self, inquiry: Inquiry) -> None:
        if inquiry.failed:
            log.info("inquiry_failed", client=self.address, instance=self.instance, error=inquiry.failed)
            return
        self._carried = inquiry.answer()
        _ = self.requests.confirm(inquiry.statements())

    def _obstacle(self) -> str | None:
        """Why the session cannot go to another server: None when it can, empty when its client knows best."""
        requests, link = self.requests, self._link
        if link is None or not requests.resting or requests.leaving or self.transport is None or not link.may_be_told:
            return ""
        if self._table.route(self.instance) is None or self._gate.stopping:
            return ""
        if self._carried.obstacles:
            return f"The session {' and '.join(self._carried.obstacles)}, which cannot be moved."
        return requests.obstacle

    # --- the end --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The fence falls. A client that is only on its way to that server looks for another one."""
        if self._link is not None:
            self._part_from_server(self._link, refusals.failover)
        elif self.dialing is not None and not self.dialing.expired():
            self.dialing.reschedule(asyncio.get_running_loop().time())

    def server_lost(self, link: ServerLink) -> None:
        if link is self._link:
            if link.dismissal and self.endpoint is not None and not self._parked:
                self.departure = Departure(link.dismissal, self.endpoint, self.fence)
            self._part_from_server(link, refusals.server_lost)
        if self.transport is None:
            self._settle()

    def _part_from_server(self, link: ServerLink, farewell: refusals.Farewell) -> None:
        """Let the server go and keep the client, if that can be; else end it."""
        if self._ended:
            return
        obstacle = self._obstacle()
        if obstacle is not None:
            if obstacle:
                log.info("session_not_moved", client=self.address, instance=self.instance, why=obstacle)
            self._end_with(farewell(obstacle))
            return
        self._table.unbind(self)
        self._link, self._parked, self._holding = None, False, False
        self.fence = None
        asking, self._asking = self._asking, None
        if asking is not None and asking is not asyncio.current_task():
            asking.cancel()
        link.abort()
        self._look_for_server()

    def shut_down(self) -> None:
        if self._link is None:
            self.refuse(refusals.STOPPING, "stopping")
        else:
            self._end_with(refusals.SHUTDOWN)

    def _end_with(self, farewell: bytes) -> None:
        """Close; with a word if the client stands between messages and expects one."""
        if self._ended:
            return
        link = self._link
        told = link is None or link.may_be_told
        if told and self.transport is not None and not self.requests.leaving:
            self.transport.write(farewell)
        self._close()

    def refuse(self, message: bytes, why: str) -> None:
        """Say no and close."""
        if self._ended:
            return
        self._gate.refuses(client=self.address, instance=self.instance, why=why)
        if self.transport is not None:
            self.transport.write(message)
        self._close()

    def _close(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._table.unbind(self)
        _ = self.waiting.end()
        if self._link is not None:
            self._link.abort()
        if self.transport is not None:
            self._linger = part_with(self.transport)

    def _settle(self) -> None:
        """Both sides are gone."""
        if self not in self._gate.guests:
            return
        self._ended = True
        for timer in (self._linger, self._settling):
            if timer is not None:
                timer.cancel()
        self._table.unbind(self)
        self._gate.cancels.withdraw(self._key)
        self._gate.gone(self)
        self.requests.release()
        if not self.kept:
            return
        log.info(
            "client_disconnected",
            client=self.address,
            instance=self.instance,
            server=self.endpoint.member if self.endpoint else "",
            lasted_s=round(self._now() - self._began, 3),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )


def client_address(transport: asyncio.Transport) -> str:
    """Empty when the client has gone before it was asked."""
    return str((transport.get_extra_info("peername") or ("",))[0])

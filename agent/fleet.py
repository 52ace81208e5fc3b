"""The proxy of this node: some processes that share its ports, seen by the rest of the agent as one.

A loop looks at what lives (pid files), asks `agent.generations.plan` what remains to be done, and does it. Nothing is
remembered that cannot be seen: an agent that comes up in the middle of a restart adopts all processes of all
generations and finishes it. Every living process is told routes and verifiers, those that take no new clients as well,
for their sessions must be fenced like any other.

A restart of the proxy is begun by an operator (`moorage-agent restart-proxy`, SIGHUP to the agent), or by the agent
itself when what runs is of another release or has other settings than it would start now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from agent.config import AgentConfig
from agent.generations import Place, Seen, plan
from agent.proxies import ProxyProcess, found
from agent.pushing import Pusher
from agent.verifiers import Desk
from core.backoff import Backoff
from core.errors import MoorageError, UnavailableError, words
from core.figures import sums_of
from core.log import EventLog
from core.routes import ProxyReport, Route, SessionCounts

log = EventLog("agent.fleet")
LOOK_EVERY_S = 1.0  # for a wish of the operator's, and for processes that ended unseen
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0


class Fleet:
    """One an agent. `run()` keeps it as it should be; `changed()` has the routes looked at at once."""

    def __init__(self, config: AgentConfig, routes: Callable[[], tuple[Route, ...] | None], desk: Desk) -> None:
        self._config = config
        self._routes = routes
        self._desk = desk
        self._processes: dict[Place, ProxyProcess] = {}
        self._pushers: dict[Place, Pusher] = {}
        self._starting: dict[Place, ProxyProcess] = {}
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, uniform=lambda _low, high: high)
        self._look = asyncio.Event()
        self._some = asyncio.Event()  # there is somebody to talk to
        self._ended: ProxyReport | None = None  # sums of the processes that are no more

    # --- for the rest of the agent --------------------------------------------------------------------------------

    def changed(self) -> None:
        for pusher in self._pushers.values():
            pusher.changed()

    def pids(self) -> dict[Place, int]:
        """Of those that live."""
        known = {**found(self._config), **self._starting, **self._processes}
        return {place: pid for place, process in sorted(known.items()) if (pid := process.pid()) is not None}

    @property
    def report(self) -> ProxyReport | None:
        """What all have told last, as one. Counters are those of this agent's time and only grow."""
        reports = [pusher.report for _, pusher in sorted(self._pushers.items()) if pusher.report is not None]
        return merged([*reports, *([self._ended] if self._ended is not None else [])]) if reports else None

    async def settled(self, timeout_s: float) -> ProxyReport:
        """The report by which every process acknowledges the routes of this moment. UnavailableError when one of them
        does not within the time, or when this agent does not know its routes yet."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    reports = await self._settled_by_all()
                    if reports:
                        return merged(reports)
                    await self._some.wait()
        except TimeoutError as error:
            raise UnavailableError(f"the proxy did not take its routes within {timeout_s} s", object="proxy") from error

    async def _settled_by_all(self) -> list[ProxyReport]:
        """One that was just started is waited for only when there is no other. Nothing when all have ended."""
        pushers = [pusher for _, pusher in sorted(self._pushers.items())]
        asked = [pusher for pusher in pushers if pusher.may_have_clients] or pushers
        answers = await asyncio.gather(*(pusher.settled() for pusher in asked), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, ProxyReport)]

    def restart(self) -> None:
        """Put a new generation in charge; nobody is cut."""
        log.info("proxy_restart_asked", generation=ask_restart(self._config))
        self._look.set()

    # --- keeping it so --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._look.clear()
                try:
                    self._make_so(group)
                except OSError as error:
                    log.warning("proxy_unreachable", error=words(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._look.wait()

    def _make_so(self, group: asyncio.TaskGroup) -> None:
        self._find()
        for place, process in self._processes.items():
            if place not in self._pushers and place not in self._starting:
                self._pushers[place] = pusher = Pusher(process, self._routes, self._desk, self._heard)
                self._some.set()
                group.create_task(self._follow(place, pusher), name=f"proxy {process.name}")
        todo = plan(
            (self._seen(place) for place in self._processes | self._starting),
            processes=self._config.proxy_process_count,
            at_least=wanted_generation(self._config),
        )
        for place in todo.start:
            self._starting[place] = process = ProxyProcess(self._config, place)
            group.create_task(self._start(process), name=f"start proxy {process.name}")
        for place in todo.leave:
            if place in self._pushers:  # else it is only on its way, and is told when it has come
                self._pushers[place].drain(self._config.proxy_drain_s)

    def _find(self) -> None:
        """Who lives. What dead ones have left is removed, once nobody talks to them any more."""
        for place, process in {**found(self._config), **self._processes}.items():
            if place in self._starting:
                continue
            if process.pid() is not None:
                self._processes[place] = process
            elif place not in self._pushers:
                self._processes.pop(place, None)
                process.clear()

    def _seen(self, place: Place) -> Seen:
        """One that is on its way counts as there."""
        if place in self._starting:
            return Seen(place=place, ready=False)
        report = self._pushers[place].report
        return Seen(
            place=place,
            fits=self._processes[place].fits(),
            ready=report is not None and not report.unopened,
            draining=report is not None and report.draining,
        )

    def _heard(self) -> None:
        """Only while generations follow on each other does a report change what is to be done."""
        if len({place.generation for place in self._pushers}) > 1:
            self._look.set()

    async def _start(self, process: ProxyProcess) -> None:
        try:
            await process.start()
            self._processes[process.place] = process
            self._backoff.reset()
        except (OSError, MoorageError) as error:
            log.warning("proxy_unreachable", process=process.name, error=words(error))
            await asyncio.sleep(self._backoff.next_delay())
        finally:
            self._look.set()
        del self._starting[process.place]

    async def _follow(self, place: Place, pusher: Pusher) -> None:
        """Until the process has ended."""
        await pusher.run()
        del self._pushers[place]
        if not self._pushers:
            self._some.clear()
        log.info("proxy_ended", process=pusher.process.name)
        if pusher.report is not None:
            last = replace(pusher.report, sessions={}, busy={}, unopened=0)
            self._ended = merged([last, *([self._ended] if self._ended is not None else [])])
        self._look.set()


# --- one out of many ------------------------------------------------------------------------------------------------


def merged(reports: Iterable[ProxyReport]) -> ProxyReport:
    """What several processes report, as if they were one: sums; release and generation are those of the newest, and it
    is draining when all are. At least one is needed."""
    reports = list(reports)
    newest = max(reports, key=lambda report: report.generation)
    sessions: dict[str, SessionCounts] = {}
    busy: Counter[str] = Counter()
    for report in reports:
        busy.update(report.busy)
        for instance, counts in report.sessions.items():
            sessions[instance] = _sum(sessions.get(instance, SessionCounts()), counts)
    return replace(
        newest,
        seq=max(report.seq for report in reports),
        sessions=sessions,
        busy=dict(busy),
        bytes_in=sum(report.bytes_in for report in reports),
        bytes_out=sum(report.bytes_out for report in reports),
        refused=sum(report.refused for report in reports),
        figures=sums_of(report.figures for report in reports),
        draining=all(report.draining for report in reports),
        unopened=sum(report.unopened for report in reports),
    )


def _sum(one: SessionCounts, other: SessionCounts) -> SessionCounts:
    return SessionCounts(
        read_write=one.read_write + other.read_write,
        read_only=one.read_only + other.read_only,
        waiting=one.waiting + other.waiting,
    )


# --- what an operator may ask ---------------------------------------------------------------------------------------


def wanted_generation(config: AgentConfig) -> int:
    """The oldest that may be in charge."""
    with contextlib.suppress(OSError, ValueError):
        return int(_wish(config).read_text())
    return 1


def ask_restart(config: AgentConfig) -> int:
    """Have the running agent, or the next one, put a new generation in charge: its number."""
    newest = max((place.generation for place in found(config)), default=0)
    wanted = max(newest, wanted_generation(config) - 1) + 1
    config.proxy_dir.mkdir(parents=True, exist_ok=True)
    unready = _wish(config).with_suffix(".new")
    unready.write_text(f"{wanted}\n")
    os.replace(unready, _wish(config))
    return wanted


def _wish(config: AgentConfig) -> Path:
    return config.proxy_dir / "generation"


async def halt(config: AgentConfig, within_s: float) -> None:
    """End all processes in an orderly way, by force when they do not within the time. No agent must be running."""
    processes = found(config).values()
    await asyncio.gather(*(process.halt(within_s) for process in processes))
    for process in processes:
        if process.pid() is None:
            process.clear()

"""The members of this node: one keeper each, as the last pulled state wants them.

A keeper that fails unexpectedly ends the agent: its supervisor starts it anew, engines and proxy live on meanwhile, and
a leadership that nobody keeps runs out by its lease. A half-working agent would be worse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.context import NodeContext
from agent.engines.base import Engine as EngineDriver
from agent.ha.keeper import Keeper
from agent.peer import Answerer
from core.errors import MoorageError
from core.ids import InstanceRef, MemberName, MemberRef
from core.log import EventLog
from core.records import InstanceView, MemberDesired, MemberSecrets, NodeState, ObservedMember
from core.routes import Route
from core.status import MemberState
from protos.v1 import agent_pb2 as pb

log = EventLog("agent.members")
DriverFactory = Callable[[MemberRef, MemberDesired, MemberSecrets], EngineDriver]


def _failed(desired: MemberDesired, error: MoorageError) -> ObservedMember:
    """A member this node cannot even begin."""
    gone = desired.desired == "absent"  # nothing was ever made of it here
    return ObservedMember(
        project=desired.project,
        instance=desired.instance,
        member=desired.member,
        node=desired.node,
        state=MemberState.DELETED if gone else MemberState.FAILED,
        reason="CannotBegin",
        message=str(error),
    )


class Members:
    """`apply()` takes a desired state at any time; `run()` keeps one keeper a member."""

    def __init__(self, node: NodeContext, make_driver: DriverFactory) -> None:
        self._node = node
        self._make_driver = make_driver
        self._wanted: NodeState | None = None
        self._changed = asyncio.Event()
        self.keepers: dict[MemberRef, Keeper] = {}

    def apply(self, state: NodeState, store_id: str) -> None:
        self._node.store_id = store_id
        self._wanted = state
        self._changed.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self._wanted is not None:
                    self._reconcile(self._wanted, group)

    def _reconcile(self, state: NodeState, group: asyncio.TaskGroup) -> None:
        views = {InstanceRef(view.project, view.instance): view for view in state.views}
        wanted = {
            MemberRef(InstanceRef(desired.project, desired.instance), MemberName(desired.member)): desired
            for desired in state.members
        }
        for ref, desired in wanted.items():
            secrets = state.secrets.get(ref.key, MemberSecrets())
            keeper = self.keepers.get(ref)
            if keeper is not None and keeper.deleted and desired.desired != "absent":
                keeper.unwanted.set()  # deleted and created again between two polls
                del self.keepers[ref]
                keeper = None
            if keeper is None:
                self._begin(ref, desired, secrets, views.get(ref.instance), group)
            else:
                keeper.update(desired, secrets, views.get(ref.instance))
        for ref, known in self.keepers.items():
            if ref not in wanted:
                known.no_longer_wanted()
                self._node.reporter.forget(ref)

    def _begin(
        self,
        ref: MemberRef,
        desired: MemberDesired,
        secrets: MemberSecrets,
        view: InstanceView | None,
        group: asyncio.TaskGroup,
    ) -> None:
        try:
            driver = self._make_driver(ref, desired, secrets)
        except MoorageError as error:
            self._node.reporter.state(ref, _failed(desired, error))
            return
        keeper = Keeper(self._node, driver, ref=ref, desired=desired, secrets=secrets, view=view)
        self.keepers[ref] = keeper
        group.create_task(self._keep(ref, keeper), name=f"keeper {ref}")
        log.info("member_taken_up", member=str(ref), generation=desired.generation)

    async def _keep(self, ref: MemberRef, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            # A deleted member stays known until the hub takes it off the list, so that it is not begun again.
            if not keeper.deleted:
                self._drop(ref, keeper)
        await keeper.unwanted.wait()
        self._drop(ref, keeper)

    def _drop(self, ref: MemberRef, keeper: Keeper) -> None:
        if self.keepers.get(ref) is keeper:
            del self.keepers[ref]

    def routes(self) -> tuple[Route, ...] | None:
        """Of all instances with a member here, by name. None while this agent is too young to know: what its
        predecessor told the proxy is better then, and ends by itself."""
        node = self._node
        young = node.clock.now() - node.started_at < node.lease.ttl_s
        heard = node.hub_seen_at > 0 and all(keeper.observed for keeper in self.keepers.values())
        if young and not heard:
            return None
        routes = [keeper.route() for keeper in self.keepers.values() if not keeper.deleted]
        return tuple(sorted(routes, key=lambda route: route.instance))

    def answerer(self, ref: MemberRef) -> Answerer | None:
        """Who answers the other members' agents for the member; None when it is not here."""
        keeper = self.keepers.get(ref)
        return keeper.answers if keeper is not None else None

    def samples(self) -> list[pb.MemberSample]:
        return [keeper.sample() for keeper in self.keepers.values() if not keeper.deleted]

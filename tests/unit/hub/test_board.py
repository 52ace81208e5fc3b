"""The board answers at once what is new, holds what is not, and wakes exactly whom a change concerns."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.errors import MoorageError
from core.ids import InstanceRef
from core.records import MemberSecrets
from hub import board as board_module
from hub.board import SLICE_NODES, Answer, Board, Outcome
from tests.support.contents import ORDERS, Touch, World

BILLS = InstanceRef("demo", "bills")


def top_of_range(_low: float, high: float) -> float:
    """Dice that always show the most."""
    return high


def board_of(world: World, hold_s: float = 60.0, secrets_of=lambda _member: MemberSecrets()) -> Board:
    return Board(world, secrets_of, hold_s=(hold_s, hold_s), uniform=top_of_range)


@pytest.fixture
def world() -> World:
    """orders on n1 and n2, bills on n3, nothing on n4."""
    world = World()
    for name in ("n1", "n2", "n3", "n4"):
        world.node(name)
    world.member("n1", "m1")
    world.member("n2", "m2")
    world.member("n3", "m1", BILLS)
    world.ha_record()
    world.ha_record(BILLS)
    return world


class Agents:
    """One waiting poll a node; leaving the context cancels what still waits."""

    def __init__(self, board: Board, world: World) -> None:
        self.board = board
        self.world = world
        self.polls: dict[str, asyncio.Task[Answer]] = {}

    async def __aenter__(self) -> Agents:
        for node in self.world.nodes:
            await self.wait_on(node)
        return self

    async def __aexit__(self, *_: object) -> None:
        for poll in self.polls.values():
            poll.cancel()
        await asyncio.gather(*self.polls.values(), return_exceptions=True)

    async def wait_on(self, node: str) -> None:
        first = await self.board.poll(node, store_id="", known_revision=0)
        assert first.outcome is Outcome.FULL
        held = self.board.poll(node, store_id=first.store_id, known_revision=first.revision)
        self.polls[node] = asyncio.create_task(held)
        await settle()

    def answered(self) -> set[str]:
        return {node for node, poll in self.polls.items() if poll.done()}


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_agent_that_knows_nothing_is_answered_at_once_with_the_whole_state(world):
    answer = await board_of(world).poll("n1", store_id="", known_revision=0)
    assert answer.outcome is Outcome.FULL
    assert [member["member"] for member in json.loads(answer.state_json)["members"]] == ["m1"]


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_mark_that_differs_is_answered_at_once_whether_higher_or_lower(world, off):
    board = board_of(world)
    known = await board.poll("n1", store_id="", known_revision=0)
    answer = await board.poll("n1", store_id=known.store_id, known_revision=known.revision + off)
    assert (answer.outcome, answer.revision) == (Outcome.FULL, known.revision)


async def test_another_life_of_etcd_is_answered_at_once(world):
    board = board_of(world)
    known = await board.poll("n1", store_id="", known_revision=0)
    answer = await board.poll("n1", store_id="former life", known_revision=known.revision)
    assert answer.outcome is Outcome.FULL


async def test_a_poll_with_nothing_new_is_held_and_then_answered_unchanged(world):
    board = board_of(world, hold_s=0.05)
    known = await board.poll("n1", store_id="", known_revision=0)
    answer = await board.poll("n1", store_id=known.store_id, known_revision=known.revision)
    assert answer == Answer(Outcome.UNCHANGED, "life-1", known.revision)
    assert board.waiting == 0


async def test_an_agent_may_ask_for_a_shorter_hold(world):
    board = board_of(world)
    known = await board.poll("n1", store_id="", known_revision=0)
    answer = await board.poll("n1", store_id=known.store_id, known_revision=known.revision, max_hold_s=0.05)
    assert answer.outcome is Outcome.UNCHANGED


@pytest.mark.parametrize(
    ("change", "woken"),
    [
        (lambda w: w.lead("n2", "m2", 1), {"n1", "n2"}),
        (lambda w: w.ha_record(BILLS, term=7), {"n3"}),
        (lambda w: w.mark_silent("n1"), {"n1", "n2"}),
        (lambda w: w.node("n2", address="10.9.9.9"), {"n1", "n2"}),
        (lambda w: w.node("n2", price_per_hour=3.0), set()),
        (lambda w: w.member("n4", "m3"), {"n1", "n2", "n4"}),
        (lambda w: w.remove_member("n2", "m2"), {"n1", "n2"}),
        (lambda w: w.node("n5"), set()),
    ],
    ids=["leader", "ha", "silent", "address", "price", "new member", "member gone", "new node"],
)
async def test_a_change_wakes_exactly_the_concerned_nodes(world, change, woken):
    board = board_of(world)
    async with Agents(board, world) as agents:
        board.changed(change(world))
        await settle()
        assert agents.answered() == woken
        assert all(agents.polls[node].result().outcome is Outcome.FULL for node in woken)


async def test_a_member_that_left_is_not_in_the_answer_that_its_going_causes(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        board.changed(world.remove_member("n2", "m2"))
        await settle()
        assert json.loads(agents.polls["n2"].result().state_json) == {"members": [], "secrets": {}, "views": []}


async def test_several_changes_before_the_next_poll_collapse_into_one_answer(world):
    board = board_of(world)
    known = await board.poll("n1", store_id="", known_revision=0)
    board.changed(world.lead("n1", "m1", 1))
    board.changed(world.ha_record(term=1, leader="m1"))
    answer = await board.poll("n1", store_id=known.store_id, known_revision=known.revision)
    view = json.loads(answer.state_json)["views"][0]
    assert (view["leader"]["term"], view["ha"]["term"]) == (1, 1)


async def test_a_newer_poll_of_the_same_node_answers_the_older_one_superseded(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        older = agents.polls["n1"]
        known = await asyncio.shield(board.poll("n1", store_id="", known_revision=0))
        await settle()
        assert older.result().outcome is Outcome.SUPERSEDED
        assert known.outcome is Outcome.FULL
        assert board.waiting == 3


async def test_a_poll_that_the_agent_gave_up_leaves_nothing_behind(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        agents.polls["n1"].cancel()
        await settle()
        assert board.waiting == 3
        board.changed(world.lead("n1", "m1", 1))
        await settle()
        assert agents.polls["n2"].result().outcome is Outcome.FULL


async def test_a_relist_wakes_only_those_whose_state_differs(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        world.lead("n3", "m1", 1, BILLS)
        board.changed(Touch(everything=True))
        await settle()
        assert agents.answered() == {"n3"}


async def test_a_new_life_of_etcd_wakes_everybody_even_with_an_equal_state(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        world.store_id = "life-2"
        board.changed(Touch(everything=True))
        await settle()
        assert agents.answered() == {"n1", "n2", "n3", "n4"}


async def test_a_node_that_is_removed_is_answered_so_that_it_asks_again(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        del world.nodes["n4"]
        board.changed(Touch(nodes={"n4"}))
        await settle()
        assert agents.polls["n4"].result().outcome is Outcome.UNCHANGED


async def test_a_change_of_the_whole_fleet_is_worked_off_in_slices_and_a_failover_overtakes_it():
    world = World()
    for number in range(2 * SLICE_NODES):
        world.node(f"n{number}")
        world.member(f"n{number}", "m1", InstanceRef("demo", f"i{number}"))
        world.ha_record(InstanceRef("demo", f"i{number}"))
    board = board_of(world)
    async with Agents(board, world) as agents:
        world.store_id = "life-2"
        board.changed(Touch(everything=True))
        await settle()
        first = agents.answered()
        assert len(first) == SLICE_NODES
        late = next(node for node in world.nodes if node not in first)
        board.changed(world.lead(late, "m1", 1, InstanceRef("demo", f"i{late[1:]}")))
        await settle()
        assert agents.answered() == {*first, late}
        await asyncio.wait(agents.polls.values(), timeout=5)
        assert agents.answered() == world.nodes.keys()


async def test_drain_answers_every_held_poll_and_every_later_one_with_a_spread_delay(world):
    board = board_of(world)
    async with Agents(board, world) as agents:
        await board.drain()
        answers = [await poll for poll in agents.polls.values()]
        assert board.waiting == 0
        answers.append(await board.poll("n1", store_id="", known_revision=0))
        assert all(a.draining and a.retry_after_s == board_module.DRAIN_SPREAD_S for a in answers)
        assert all(a.outcome is Outcome.UNCHANGED for a in answers)


async def test_a_state_that_cannot_be_assembled_fails_the_poll_and_leaves_held_ones_alone(world):
    broken = False

    def secrets_of(_member) -> MemberSecrets:
        if broken:
            raise MoorageError("cannot be opened", object="secrets/demo.orders/app")
        return MemberSecrets()

    board = board_of(world, secrets_of=secrets_of)
    async with Agents(board, world) as agents:
        broken = True
        board.changed(world.ha_record(term=3))
        await settle()
        assert agents.answered() == set()
        with pytest.raises(MoorageError, match="cannot be opened"):
            await board.poll("n1", store_id="life-1", known_revision=1)
        broken = False
        board.changed(Touch(instances={ORDERS}))
        await settle()
        assert agents.polls["n2"].result().outcome is Outcome.FULL


async def test_a_state_is_assembled_once_for_many_polls(world):
    opened = []
    board = board_of(world, secrets_of=lambda member: opened.append(member.member) or MemberSecrets())
    for _ in range(3):
        await board.poll("n1", store_id="", known_revision=0)
    assert opened == ["m1"]
    board.changed(world.ha_record(BILLS, term=9))
    await board.poll("n1", store_id="", known_revision=0)
    assert opened == ["m1"]

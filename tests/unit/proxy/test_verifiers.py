"""By what the proxy checks passwords: what was told, what is asked for, and what serves when nobody answers."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import UnavailableError
from core.routes import Declared, Passwords, VerifierAnswer, VerifierAsk
from core.scram import Verifier, make_verifier
from proxy.failures import FAILURES_MAX, PAIRS_MAX, WINDOW_S, Failures
from proxy.verifiers import ASKS_MAX, FRESH_S, REMEMBERED_MAX, UnusableError, Verifiers
from tests.support.clocks import ManualClock

OLD, NEW = make_verifier("old"), make_verifier("new")
SHOP = "demo/shop"


class Agent:
    """The far end: what the engine keeps, and how often it was asked."""

    def __init__(self, verifiers: Verifiers) -> None:
        self.kept: dict[str, str | None] = {}
        self.found = True
        self.asked: list[VerifierAsk] = []
        self.silent = False
        self._verifiers = verifiers
        verifiers.ask = self._ask

    def _ask(self, ask: VerifierAsk) -> bool:
        self.asked.append(ask)
        if not self.silent:
            asyncio.get_running_loop().call_soon(self.answer, ask)
        return True

    def answer(self, ask: VerifierAsk) -> None:
        verifier = self.kept.get(ask.user) if self.found else None
        self._verifiers.answered(
            VerifierAnswer(instance=ask.instance, user=ask.user, found=self.found, verifier=verifier)
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def verifiers(clock: ManualClock) -> Verifiers:
    return Verifiers(clock)


@pytest.fixture
def agent(verifiers: Verifiers) -> Agent:
    return Agent(verifiers)


def declare(verifiers: Verifiers, **users: str) -> None:
    verifiers.declare(Declared(passwords={SHOP: Passwords(mock_secret="ab" * 32, verifiers=users)}))


async def test_a_declared_user_is_known_without_asking_and_without_an_agent(verifiers):
    declare(verifiers, app=OLD)
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD)


async def test_a_declared_user_of_another_instance_is_another_user(verifiers, agent):
    declare(verifiers, app=OLD)
    assert await verifiers.find("demo/other", "app") is None
    assert agent.asked == [VerifierAsk(instance="demo/other", user="app")]


async def test_any_other_role_is_asked_for_and_remembered_for_a_moment(verifiers, agent, clock):
    agent.kept["made"] = OLD
    for _ in range(3):
        assert await verifiers.find(SHOP, "made") == Verifier.parse(OLD)
    assert len(agent.asked) == 1
    agent.kept["made"] = NEW
    clock.advance(FRESH_S)
    assert await verifiers.find(SHOP, "made") == Verifier.parse(NEW)


async def test_a_role_that_is_made_after_it_was_asked_for_is_found_a_moment_later(verifiers, agent, clock):
    assert await verifiers.find(SHOP, "made") is None
    agent.kept["made"] = OLD
    assert await verifiers.find(SHOP, "made") is None
    clock.advance(FRESH_S)
    assert await verifiers.find(SHOP, "made") == Verifier.parse(OLD)


async def test_many_logins_of_one_user_ask_once(verifiers, agent):
    agent.kept["made"] = OLD
    found = await asyncio.gather(*(verifiers.find(SHOP, "made") for _ in range(50)))
    assert set(found) == {Verifier.parse(OLD)}
    assert len(agent.asked) == 1


async def test_what_did_not_fit_is_asked_for_anew(verifiers, agent):
    agent.kept["made"] = OLD
    await verifiers.find(SHOP, "made")
    agent.kept["made"] = NEW
    verifiers.doubt(SHOP, "made")
    assert await verifiers.find(SHOP, "made") == Verifier.parse(NEW)


async def test_a_declared_user_whose_password_was_changed_by_sql_is_checked_by_what_the_engine_keeps(
    verifiers, agent, clock
):
    declare(verifiers, app=OLD)
    agent.kept["app"] = NEW
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD)
    verifiers.doubt(SHOP, "app")
    for _ in range(2):
        assert await verifiers.find(SHOP, "app") == Verifier.parse(NEW)
        clock.advance(FRESH_S)
    agent.kept["app"] = OLD  # as declared again
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD)
    asked = len(agent.asked)
    clock.advance(FRESH_S)
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD)
    assert len(agent.asked) == asked


async def test_a_new_declaration_takes_the_place_of_what_was_known(verifiers, agent):
    declare(verifiers, app=OLD)
    agent.kept["app"] = OLD
    verifiers.doubt(SHOP, "app")
    await verifiers.find(SHOP, "app")
    declare(verifiers, app=NEW)
    assert await verifiers.find(SHOP, "app") == Verifier.parse(NEW)
    declare(verifiers)
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD), "no more declared: as the engine says"


async def test_without_an_agent_what_is_known_serves_and_what_is_not_known_is_said_so(verifiers, agent, clock):
    agent.kept["made"] = OLD
    await verifiers.find(SHOP, "made")
    await verifiers.find(SHOP, "nobody")
    declare(verifiers, app=OLD)
    agent.found = False
    clock.advance(3600)
    assert await verifiers.find(SHOP, "made") == Verifier.parse(OLD)
    verifiers.doubt(SHOP, "app")
    assert await verifiers.find(SHOP, "app") == Verifier.parse(OLD)
    for user in ("nobody", "stranger"):
        with pytest.raises(UnavailableError, match="cannot check passwords"):
            await verifiers.find(SHOP, user)


async def test_a_silent_agent_is_waited_for_no_longer_than_the_limit(clock):
    verifiers = Verifiers(clock, ask_timeout_s=0.02)
    agent = Agent(verifiers)
    agent.silent = True
    with pytest.raises(UnavailableError):
        await verifiers.find(SHOP, "made")
    with pytest.raises(UnavailableError):  # asked again, but not waited for
        async with asyncio.timeout(0):
            await verifiers.find(SHOP, "made")
    assert len(agent.asked) == 2
    agent.kept["made"] = OLD
    agent.answer(agent.asked[0])
    assert await verifiers.find(SHOP, "made") == Verifier.parse(OLD), "a late answer is one all the same"


async def test_an_agent_that_goes_away_lets_go_who_waits_for_it(verifiers, agent):
    agent.silent = True
    waiting = asyncio.ensure_future(verifiers.find(SHOP, "made"))
    await asyncio.sleep(0)
    verifiers.agent_gone()
    with pytest.raises(UnavailableError):
        await waiting


async def test_one_login_that_is_given_up_does_not_take_the_answer_from_another(verifiers, agent):
    agent.silent = True
    agent.kept["made"] = OLD
    first, second = (asyncio.ensure_future(verifiers.find(SHOP, "made")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    agent.answer(agent.asked[0])
    assert await second == Verifier.parse(OLD)


async def test_questions_on_their_way_are_bounded(verifiers, agent):
    agent.silent = True
    waiting = [asyncio.ensure_future(verifiers.find(SHOP, f"u{number}")) for number in range(ASKS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await verifiers.find(SHOP, "one more")
    verifiers.agent_gone()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(agent.asked) == ASKS_MAX


async def test_what_is_remembered_is_bounded(verifiers):
    for number in range(REMEMBERED_MAX + 10):
        verifiers.answered(VerifierAnswer(instance=SHOP, user=f"u{number}", found=True))
    assert len(verifiers._known) == REMEMBERED_MAX


async def test_a_password_kept_otherwise_is_said_so(verifiers, agent):
    agent.kept["old"] = "md5c3ab8ff13720e8ad9047dd39466b3c89"
    with pytest.raises(UnusableError, match="not kept as SCRAM-SHA-256"):
        await verifiers.find(SHOP, "old")


async def test_a_name_that_no_role_can_have_is_not_asked_for(verifiers, agent):
    assert await verifiers.find(SHOP, "x" * 2000) is None
    assert agent.asked == []


def test_the_secret_of_mock_questions_is_the_instances(verifiers):
    own = verifiers.mock_secret(SHOP)
    declare(verifiers, app=OLD)
    assert verifiers.mock_secret(SHOP) == b"\xab" * 32 != own
    assert len(own) == 32


# --- failures -------------------------------------------------------------------------------------------------------


def test_who_fails_too_often_is_not_asked_for_a_while(clock):
    failures = Failures(clock)
    for _ in range(FAILURES_MAX):
        assert failures.wait_s("10.0.0.9", SHOP, "app") == 0
        failures.note("10.0.0.9", SHOP, "app")
        clock.advance(0.1)
    assert 0 < failures.wait_s("10.0.0.9", SHOP, "app") <= WINDOW_S
    assert failures.wait_s("10.0.0.9", SHOP, "other") == 0
    assert failures.wait_s("10.0.0.8", SHOP, "app") == 0
    clock.advance(WINDOW_S - 0.9)
    assert failures.wait_s("10.0.0.9", SHOP, "app") == 0, "the first failures are long ago"


def test_failures_that_are_remembered_are_bounded(clock):
    failures = Failures(clock)
    for number in range(PAIRS_MAX + 10):
        failures.note("10.0.0.9", SHOP, f"u{number}")
    assert len(failures._failed) == PAIRS_MAX

"""What has happened to others with systems of this kind, as far as it can happen in the simulated world.

Each test is named after the wound and says where it was told. Wounds of engines and proxies are in the tests of those.
"""

from __future__ import annotations

import dataclasses

import pytest

from agent.ha.actions import Reason
from agent.ha.election import TURN_S, WINDOW_S
from core.records import HaRecord, LeadershipChange, SyncRecord
from hub.etcd import keys, txns
from tests.sim import faults
from tests.sim.etcd_model import Change
from tests.sim.hub_model import parse
from tests.sim.scenario import Node, Scenario, Shape
from tests.sim.test_stories import ASYNC, MODES, QUORUM, SYNC, TTL_S, created, decided, finish, gap_s, primary

LOOKS_S = 0.25


def replicas(s: Scenario) -> list[Node]:
    leader = primary(s)
    return [node for node in s.nodes.values() if node is not leader]


def run_until_led_by_another(s: Scenario, old: Node, *, within_s: float) -> float:
    """When somebody else led, as true time."""
    limit = s.world.now + within_s
    while s.leader() in (None, old):
        assert s.world.now < limit, f"nobody else leads within {within_s} s: {[decided(n) for n in s.nodes.values()]}"
        s.world.run(s.world.now + LOOKS_S)
    return s.world.now


# --- elections --------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("seed", range(3))
def test_an_election_ends_though_the_members_see_each_other_late_and_differently(replication, seed: int) -> None:
    """patroni #1894: replicas contradicted each other on who is healthiest for an hour."""
    s = created(replication, seed=seed, members=4)
    s.hubs[0].lag_s, s.hubs[1].lag_s = 0.0, 2.5
    old = primary(s)
    old.crash()
    run_until_led_by_another(s, old, within_s=TTL_S + WINDOW_S + 2 * TURN_S + 4.0)
    s.hubs[1].lag_s = 0.0
    old.boot()
    finish(s)


@MODES
def test_an_elected_member_that_does_not_act_is_followed_by_the_next_or_named(replication) -> None:
    """pg_auto_failover #1014 and others: a member was assigned a state that it had no way to. Here the one that was
    elected may have taken the leadership the moment it froze; then the others cannot know what it acknowledged."""
    s = created(replication, members=4)
    old = primary(s)
    old.crash()
    while not any(decided(node) is Reason.TAKES_OVER for node in s.nodes.values()):
        s.world.run(s.world.now + 0.01)
        assert s.world.now < 60.0, "somebody is elected"
    winner = next(node for node in s.nodes.values() if decided(node) is Reason.TAKES_OVER)
    winner.freeze()
    s.world.run(s.world.now + WINDOW_S + 2 * TURN_S + TTL_S + 4.0)
    if s.leader() is None:
        others = [node.agent.decision for node in s.nodes.values() if node not in (old, winner)]
        named = (Reason.ELECTION_STUCK, Reason.LOST_TOUCH)
        stuck = [decision for decision in others if decision and decision.reason in named]
        assert stuck, others
        assert all(winner.member in decision.detail for decision in stuck)
    winner.thaw()
    old.boot()
    finish(s)


@pytest.mark.parametrize("replication", [SYNC, QUORUM], ids=["sync", "k1"])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5])
def test_a_new_leader_that_dies_before_its_first_sync_set_is_followed_by_those_who_could_have_led(
    replication, after_s: float
) -> None:
    """As long as it has acknowledged nothing, the election covers what the former leaders acknowledged."""
    s = created(replication)
    old = primary(s)
    old.engine.end(crashed=True)
    run_until_led_by_another(s, old, within_s=5.0)
    winner = primary(s)
    s.world.run(s.world.now + after_s)
    winner.crash()
    run_until_led_by_another(s, winner, within_s=2 * TTL_S + 2.0)
    winner.boot()
    finish(s)


@MODES
@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 1.5, 3.0])
def test_a_failover_that_was_decided_is_carried_through_whoever_dies_meanwhile(replication, after_s: float) -> None:
    """cloudnative-pg #11346, #6091: decided, silently taken back, and its marker never left."""
    s = created(replication)
    old = primary(s)
    old.engine.end(crashed=True)
    s.world.run(s.world.now + after_s)
    old.agent.process.kill()
    s.world.run(s.world.now + 1.0)
    old.start_agent()
    s.world.run(s.world.now + 25.0)
    assert s.leader() is not None
    finish(s)


def test_the_lease_alone_decides_when_a_lost_node_is_given_up() -> None:
    """cloudnative-pg #6154, #6168: another component's timer made it forty seconds."""
    s = created(SYNC)
    old, since = primary(s), s.world.now
    old.crash()
    at = run_until_led_by_another(s, old, within_s=TTL_S + 3.0)
    assert keys.silent(old.host.name) not in s.etcd.store.entries
    assert at - since < TTL_S + 3.0
    old.boot()
    finish(s)


# --- old primaries ----------------------------------------------------------------------------------------------------


@MODES
def test_replicas_that_are_still_connected_to_the_old_primary_are_no_evidence_of_its_life(replication) -> None:
    """cloudnative-pg #10591: WAL senders of a dying node kept the replicas from taking over for 45 minutes."""
    s = created(replication)
    old, since = primary(s), s.world.now
    old.agent.process.pause()
    assert all(node.engine.observe().streaming for node in replicas(s))
    run_until_led_by_another(s, old, within_s=TTL_S + 3.0)
    s.world.run(since + 15.0)
    assert gap_s(s, since) < TTL_S + 3.0
    old.agent.process.resume()
    finish(s)


@MODES
def test_an_engine_that_does_not_answer_is_not_waited_for(replication) -> None:
    """cloudnative-pg #11348: the demotion waited for a checkpoint of an engine that hung."""
    s = created(replication)
    old, since = primary(s), s.world.now
    old.engine.process.pause()
    run_until_led_by_another(s, old, within_s=TTL_S + 4.0)
    s.world.run(since + 15.0)
    assert gap_s(s, since) < TTL_S + 4.0
    old.engine.process.resume()
    finish(s)


@MODES
def test_hubs_that_stop_drop_no_lease(replication) -> None:
    """patroni #2070: the clean stop of the coordinating agent dropped the lease while the old primary went on."""
    s = created(replication)
    since, terms = s.world.now, len(s.checkers.terms)
    for hub in s.hubs:
        hub.process.kill()
        s.world.run(s.world.now + 2.0)
        hub.start()
    s.world.run(since + 12.0)
    assert len(s.checkers.terms) == terms
    assert gap_s(s, since) < 1.5


@pytest.mark.parametrize("lasts_s", [2.0, 4.0, 8.0, 20.0])
def test_keepalives_of_an_etcd_leader_that_hangs_keep_nobody_primary(lasts_s: float) -> None:
    """etcd #15247: they were confirmed, and the successor did not honour them."""
    s = created(SYNC)
    since = s.world.now
    s.etcd.change_leader(hung=True)
    s.world.run(since + lasts_s)
    s.etcd.hung_leader = False
    finish(s)


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2])
def test_all_members_go_down_and_come_back_in_any_order(order: int) -> None:
    """cloudnative-pg #1688, patroni #2676: an out-of-date member came back first and took everything with it."""
    s = created(QUORUM)
    first = list(s.nodes.values())[order]
    for node in s.nodes.values():
        node.crash()
        s.world.run(s.world.now + 1.5)
    first.boot()
    s.world.run(s.world.now + 15.0)
    for node in s.nodes.values():
        node.boot()
    finish(s)


STEPS = range(1, 9)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("replication", [SYNC, QUORUM, dataclasses.replace(QUORUM, k=2)], ids=["sync", "k1", "k2"])
def test_the_leader_dies_between_any_two_steps_of_a_change_of_the_sync_set(replication, step: int) -> None:
    """Between record and setting, either way round, the record must hold for what was acknowledged."""
    s = created(replication, members=4)
    leader = primary(s)
    standby = next(node for node in replicas(s) if node.member in leader.engine.setting.names)
    taken, counting = 0, True

    def one_more() -> None:
        nonlocal taken
        taken += 1
        if taken == step and counting:
            s.world.at(0.0, leader.crash)

    def changed(changes: list[Change]) -> None:
        if any(change.key == keys.ha(s.group.ref) for change in changes):
            one_more()

    apply_sync = leader.engine.apply_sync

    def applied(sync: SyncRecord) -> None:
        apply_sync(sync)
        one_more()

    s.etcd.on_change.append(changed)
    leader.engine.apply_sync = applied  # type: ignore[method-assign]
    standby.crash()
    s.world.run(s.world.now + 8.0)
    standby.boot()
    s.world.run(s.world.now + 8.0)
    counting = False
    leader.crash()
    s.world.run(s.world.now + TTL_S + 4.0)
    leader.boot()
    finish(s)


# --- without the store ------------------------------------------------------------------------------------------------


def test_a_new_member_without_data_leads_nothing_while_the_leader_is_down() -> None:
    """A scenario of Patroni's failsafe mode."""
    s = Scenario(7, Shape(2, ASYNC, TTL_S, spare=True))
    s.create()
    for node in s.nodes.values():
        node.crash()
    s.control.add_member(s.group, "n3")
    s.world.run(s.world.now + 20.0)
    assert s.leader() is None
    for node in s.nodes.values():
        node.boot()
    finish(s)


@MODES
def test_a_replica_leads_when_the_store_is_back_and_the_primary_is_not(replication) -> None:
    s = created(replication)
    old = primary(s)
    s.etcd.stop()
    s.world.run(s.world.now + 5.0)
    old.crash()
    s.world.run(s.world.now + 15.0)
    s.etcd.start()
    run_until_led_by_another(s, old, within_s=2 * TTL_S + 5.0)
    old.boot()
    finish(s)


@MODES
def test_members_that_were_restarted_without_the_store_find_together_when_it_is_back(replication) -> None:
    s = created(replication)
    s.etcd.stop()
    for node in s.nodes.values():
        s.world.run(s.world.now + 1.0)
        node.agent.process.kill()
        node.engine.end(crashed=True)
    for node in s.nodes.values():
        node.start_agent()
    s.world.run(s.world.now + 20.0)
    s.etcd.start()
    finish(s)


@MODES
def test_a_leader_that_lives_by_promises_and_is_restarted_leads_on_when_etcd_is_back(replication) -> None:
    """Its lease has outlived the outage, since etcd gives every lease its full time again: it must count again."""
    s = created(replication)
    leader, terms = primary(s), len(s.checkers.terms)
    bring_back = faults.etcd_freezes(s)
    s.world.run(s.world.now + TTL_S)
    leader.agent.process.kill()
    s.world.run(s.world.now + 0.5)
    leader.start_agent()
    s.world.run(s.world.now + 0.5)
    s.etcd.change_leader()
    bring_back()
    s.world.run(s.world.now + 5.0)
    assert primary(s) is leader
    assert leader.agent.writable()
    assert len(s.checkers.terms) == terms
    finish(s)


# --- neighbours -------------------------------------------------------------------------------------------------------


def test_an_instance_that_fails_over_takes_no_other_with_it() -> None:
    """Two instances whose leaders hang on one node's lease."""
    s = Scenario(11, Shape(3, SYNC, TTL_S, second=SYNC))
    s.create()
    one, other = s.groups
    for _ in range(6):
        faults.ask_switchover(s, "m2", one)
        faults.ask_switchover(s, "m2", other)
        s.world.run(s.world.now + 6.0)
        if all(group.leader() is group.node("m2") for group in s.groups):
            break
    shared = one.node("m2")
    assert shared is not None
    assert one.leader() is shared
    assert other.leader() is other.node("m2")
    terms = len(other.checkers.terms)
    shared.engine.end(crashed=True)
    s.world.run(s.world.now + 10.0)
    assert one.leader() is not shared
    assert len(other.checkers.terms) == terms
    finish(s)


# --- requests that are under way --------------------------------------------------------------------------------------


def test_a_term_that_is_given_up_is_not_led_again_by_a_restarted_agent() -> None:
    """The Release lies in a hub that hangs, and takes effect when it goes on."""
    s = created(SYNC)
    leader = primary(s)
    shell = leader.machine.shell
    faults.ask_switchover(s, replicas(s)[0].member)
    while leader.engine.process.alive:
        s.world.run(s.world.now + 0.002)
    shell.hub.process.pause()
    s.world.run(s.world.now + 0.3)
    leader.agent.process.kill()
    leader.start_agent()
    shell._hub = next(number for number, hub in enumerate(s.hubs) if not hub.process.paused)
    s.world.run(s.world.now + 0.7)
    heal = faults.cut(s, "it is alone", frozenset({leader.host.name}), faults.hub_hosts(s) | frozenset(s.nodes))
    for hub in s.hubs:
        hub.process.resume()
    s.world.run(s.world.now + 10.0)
    heal()
    finish(s)


def test_an_order_to_force_somebody_ends_a_leadership_that_lives_by_promises() -> None:
    s = created(ASYNC)
    old = primary(s)
    target = replicas(s)[0]
    heal = faults.cut(s, "the primary cannot reach the hubs", frozenset({old.host.name}), faults.hub_hosts(s))
    s.world.run(s.world.now + 2 * TTL_S)
    assert s.leader() is None
    assert old.agent.writable()
    faults.ask_force(s, target.member)
    s.world.run(s.world.now + 2 * TTL_S)
    assert s.leader() is target
    heal()
    s.until_whole(40.0, "is not whole again")


def test_a_lease_that_only_another_instance_hangs_on_keeps_no_leadership() -> None:
    """A node's members share its lease, but a leader key may hang on an older one of it."""
    for alone_after_s in (3.8, 4.2, 4.6, 5.0, 5.4):
        another_lease_is_renewed_until(alone_after_s)


def another_lease_is_renewed_until(alone_after_s: float) -> None:
    s = Scenario(11, Shape(3, SYNC, TTL_S, second=SYNC))
    s.create()
    one, other = s.groups
    leader = primary(s)
    beside = next(node for node in leader.machine.nodes if node is not leader)
    if other.leader() is beside:
        faults.ask_switchover(s, next(m for m in other.desired if m != beside.member), other)
        s.world.run(s.world.now + 6.0)
    # As when an Acquire for the other instance has brought the node a lease of its own.
    leader.machine.shell.take(s.etcd.grant(TTL_S))
    since = s.world.now
    faults.ask_switchover(s, beside.member, other)
    s.world.run(since + alone_after_s)
    assert other.leader() is beside
    assert one.leader() is leader
    heal = faults.cut(s, "it is alone", frozenset({leader.host.name}), faults.hub_hosts(s) | frozenset(s.nodes))
    s.world.run(since + 3 * TTL_S)
    heal()
    finish(s)


def test_who_saw_an_earlier_term_does_not_lead() -> None:
    """The transaction compares it, whatever the hub's mirror showed."""
    assert not acquires(led=False)


def test_who_did_not_see_that_another_leads_does_not_lead() -> None:
    assert not acquires(led=True)


def acquires(*, led: bool) -> bool:
    """Whether etcd lets m3 lead on the word of an old mirror: nobody `led` there, or the term was another."""
    s = created(SYNC)
    old = primary(s)
    store = s.etcd.store
    ha = store.entries[keys.ha(s.group.ref)]
    if not led:
        old.engine.end(crashed=True)
        run_until_led_by_another(s, old, within_s=5.0)
        del store.entries[keys.leader(s.group.ref)]
    txn = txns.acquire(
        s.group.ref,
        ha=parse(HaRecord, ha.value),
        ha_revision=ha.mod_revision,
        member="m3",
        node="n3",
        lease_id=0,
        change=LeadershipChange(term=0, member="m3", reason=""),
        node_revision=store.entries[keys.node("n3")].mod_revision,
    )
    return store.commit(txn)[0]


def test_who_lacks_the_last_commits_is_not_handed_the_leadership() -> None:
    """Its engine hangs when the old primary stops, which leads on then."""
    s = created(SYNC, members=4)
    old = primary(s)
    from_here = [node for node in replicas(s) if node.engine.upstream == old.member]
    target = next(node for node in from_here if node.member not in old.engine.setting.names)
    terms = len(s.checkers.terms)
    target.engine.process.pause()
    for number in range(20):
        old.proxy.write(f"last-{number}")
    s.world.run(s.world.now + 0.1)
    faults.ask_switchover(s, target.member)
    s.world.run(s.world.now + 1.5)
    target.engine.process.resume()
    s.world.run(s.world.now + 4.0)
    assert len(s.checkers.terms) <= terms + 1
    finish(s)

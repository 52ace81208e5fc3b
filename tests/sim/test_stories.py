"""The stories operators know, told in the simulator with their times: what happens, and within how long it is over.

A gap is the longest time in which no client got an answer. The clients write all the time, from the first second on.
"""

from __future__ import annotations

import itertools

import pytest

from agent.ha.actions import Reason
from core.records import HaRecord, Replication, SyncRecord
from hub.etcd import keys
from tests.sim import faults
from tests.sim.engine_model import ENTRY_BYTES
from tests.sim.hub_model import REF, parse
from tests.sim.scenario import Node, Scenario, Shape

TTL_S = 6.0
ASYNC = Replication(max_failover_lag_bytes=20 * ENTRY_BYTES)
SYNC = Replication(mode="sync")
QUORUM = Replication(mode="quorum", k=1)
RELAXED = Replication(mode="sync", strict=False)
MODES = pytest.mark.parametrize("replication", [ASYNC, SYNC, QUORUM], ids=lambda r: r.mode)


def created(replication: Replication, *, seed: int = 7, members: int = 3, cascade: bool = False) -> Scenario:
    s = Scenario(seed, Shape(members, replication, TTL_S, cascade=cascade))
    s.create()
    s.world.run(s.world.now + 5.0)
    return s


def primary(s: Scenario) -> Node:
    leader = s.leader()
    assert leader is not None, "somebody leads"
    return leader


def gap_s(s: Scenario, since: float) -> float:
    times = [since, *sorted(at for at, _ in s.checkers.acked.values() if at > since), s.world.now]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def finish(s: Scenario) -> None:
    s.until_whole(40.0, "is not whole again", for_s=4.0)
    s.look_at_the_end()


def finish_apart_from_loss(s: Scenario) -> None:
    """Whole again; what an operator's order has lost is not counted."""
    s.until_whole(40.0, "is not whole again", for_s=4.0)


def decided(node: Node) -> Reason | None:
    return node.agent.decision.reason if node.agent.decision is not None else None


def ha_of(s: Scenario) -> HaRecord:
    return parse(HaRecord, s.etcd.store.entries[keys.ha(REF)].value)


@MODES
def test_a_crashed_engine_is_followed_by_a_replica_within_three_seconds(replication: Replication) -> None:
    s = created(replication)
    old, since = primary(s), s.world.now
    old.engine.end(crashed=True)
    s.world.run(since + 10.0)
    assert primary(s) is not old
    assert gap_s(s, since) < 3.0
    finish(s)


@MODES
def test_a_lost_node_is_followed_within_the_lease_and_three_seconds(replication: Replication) -> None:
    s = created(replication)
    old, since = primary(s), s.world.now
    old.crash()
    s.world.run(since + 15.0)
    assert primary(s) is not old
    assert gap_s(s, since) < TTL_S + 3.0
    old.boot()
    finish(s)


@MODES
def test_a_frozen_node_that_thaws_after_another_leads_serves_nobody_and_rejoins(replication: Replication) -> None:
    s = created(replication)
    old, since = primary(s), s.world.now
    old.freeze()
    s.world.run(since + 12.0)
    assert primary(s) is not old
    assert gap_s(s, since) < TTL_S + 3.0
    old.thaw()
    finish(s)
    assert not old.engine.is_primary


@MODES
def test_clients_notice_nothing_of_half_a_minute_without_any_hub(replication: Replication) -> None:
    s = created(replication)
    since, terms = s.world.now, len(s.checkers.terms)
    bring_back = faults.all_hubs_down(s)
    s.world.run(since + 30.0)
    bring_back()
    finish(s)
    assert gap_s(s, since) < 1.5
    assert len(s.checkers.terms) <= terms + 1
    assert len({member for _, _, member in s.checkers.terms}) == 1


@MODES
def test_clients_notice_nothing_of_half_a_minute_without_etcd(replication: Replication) -> None:
    s = created(replication)
    since = s.world.now
    s.etcd.stop()
    s.world.run(since + 30.0)
    s.etcd.start()
    finish(s)
    assert gap_s(s, since) < 1.5


def test_without_hub_and_without_one_member_the_primary_stops() -> None:
    s = created(ASYNC)
    bring_back = faults.all_hubs_down(s)
    replica = next(node for node in s.nodes.values() if node is not primary(s))
    leader, since = primary(s), s.world.now
    replica.crash()
    s.world.run(since + TTL_S)
    assert not leader.engine.is_primary
    bring_back()
    replica.boot()
    finish(s)


@MODES
def test_a_switchover_takes_a_second_and_loses_nothing(replication: Replication) -> None:
    s = created(replication)
    old, since = primary(s), s.world.now
    target = next(node for node in s.nodes.values() if node is not old)
    faults.ask_switchover(s, target.member)
    s.world.run(since + 8.0)
    assert primary(s) is target
    assert gap_s(s, since) < 2.0
    finish(s)


# --- through another replica ------------------------------------------------------------------------------------------


@MODES
def test_a_member_that_streams_from_a_replica_survives_the_loss_of_either(replication: Replication) -> None:
    s = created(replication, members=4, cascade=True)
    leader, middle, last = primary(s), s.group.node("m3"), s.group.node("m4")
    assert middle is not None
    assert last is not None
    assert last.engine.upstream == "m3"
    assert "m4" not in leader.engine.setting.names
    middle.crash()
    s.world.run(s.world.now + 6.0)
    assert last.engine.upstream == leader.member
    middle.boot()
    finish(s)
    s.world.run(s.world.now + 35.0)
    assert last.engine.upstream == "m3"
    leader.crash()
    s.world.run(s.world.now + 12.0)
    leader.boot()
    finish(s)


# --- an operator decides ----------------------------------------------------------------------------------------------


@MODES
def test_a_forced_failover_leaves_a_leader_that_cannot_be_moved_otherwise(replication: Replication) -> None:
    s = created(replication)
    old, since = primary(s), s.world.now
    target = next(node for node in s.nodes.values() if node is not old)
    faults.ask_force(s, target.member)
    s.world.run(since + 5.0)
    assert primary(s) is target
    assert gap_s(s, since) < 4.0
    assert ha_of(s).forced is None
    finish_apart_from_loss(s)


@MODES
def test_a_forced_failover_of_a_primary_that_is_well_loses_nothing(replication: Replication) -> None:
    """It hands over to the forced one, as in a switchover, before it would be fenced."""
    s = created(replication)
    target = next(node for node in s.nodes.values() if node is not primary(s))
    acknowledged = set(s.checkers.acked)
    faults.ask_force(s, target.member)
    s.world.run(s.world.now + 5.0)
    assert primary(s) is target
    assert target.engine.data is not None
    acknowledged |= {w for w, (_, term) in s.checkers.acked.items() if term < s.checkers.terms[-1][1]}
    assert acknowledged <= set(target.engine.data.wal)
    assert s.checkers.terms[-1][1] in s.checkers.handed
    finish_apart_from_loss(s)


def test_a_forced_failover_ends_an_election_that_is_stuck() -> None:
    """Everybody whom the record names has gone for good: an operator accepts what may be lost by that."""
    s = created(SYNC)
    leader = primary(s)
    standby = next(n for n in s.nodes.values() if n.member in leader.engine.setting.names)
    outdated = next(n for n in s.nodes.values() if n not in (leader, standby))
    leader.crash()
    standby.crash()
    s.world.run(s.world.now + 40.0)
    assert s.leader() is None
    assert decided(outdated) is Reason.ELECTION_STUCK
    faults.ask_force(s, outdated.member)
    s.world.run(s.world.now + 3.0)
    assert primary(s) is outdated
    leader.boot()
    standby.boot()
    finish_apart_from_loss(s)


def test_an_order_to_force_somebody_who_is_gone_holds_up_the_others_for_half_a_minute_only() -> None:
    s = created(QUORUM)
    leader = primary(s)
    target = next(node for node in s.nodes.values() if node is not leader)
    target.crash()
    s.world.run(s.world.now + 2.0)
    faults.ask_force(s, target.member)
    s.world.run(s.world.now + 20.0)
    assert s.leader() is None
    s.world.run(s.world.now + 20.0)
    assert s.leader() is not None
    target.boot()
    finish(s)


@MODES
def test_while_paused_a_crashed_primary_is_started_in_place_on_its_timeline(replication: Replication) -> None:
    s = created(replication)
    leader, since, terms = primary(s), s.world.now, len(s.checkers.terms)
    timeline = leader.engine.observe().position.timeline
    resume = faults.pause(s)
    s.world.run(since + 1.0)
    leader.engine.end(crashed=True)
    s.world.run(since + 8.0)
    assert primary(s) is leader
    assert leader.engine.is_primary
    assert leader.engine.observe().position.timeline == timeline
    assert len(s.checkers.terms) == terms
    resume()
    finish(s)


@MODES
def test_while_paused_nobody_takes_over_and_the_last_leader_leads_again(replication: Replication) -> None:
    s = created(replication)
    leader, since = primary(s), s.world.now
    resume = faults.pause(s)
    s.world.run(since + 1.0)
    leader.crash()
    s.world.run(since + 30.0)
    assert s.leader() is None
    assert {decided(node) for node in s.nodes.values() if node is not leader} == {Reason.PAUSED}
    leader.boot()
    s.world.run(s.world.now + 10.0)
    assert primary(s) is leader
    resume()
    finish(s)


def test_an_operator_may_move_the_primary_while_paused() -> None:
    s = created(SYNC)
    old, since = primary(s), s.world.now
    resume = faults.pause(s)
    target = next(node for node in s.nodes.values() if node is not old)
    faults.ask_switchover(s, target.member)
    s.world.run(since + 8.0)
    assert primary(s) is target
    resume()
    finish(s)


# --- few members ------------------------------------------------------------------------------------------------------


def test_a_single_member_is_always_started_in_place() -> None:
    s = created(ASYNC, members=1)
    leader, terms = primary(s), len(s.checkers.terms)
    leader.engine.end(crashed=True)
    s.world.run(s.world.now + 6.0)
    assert leader.engine.is_primary
    assert len(s.checkers.terms) == terms
    leader.crash()
    s.world.run(s.world.now + 5.0)
    leader.boot()
    finish(s)


def test_a_single_member_goes_on_without_any_hub() -> None:
    s = created(ASYNC, members=1)
    leader, since = primary(s), s.world.now
    bring_back = faults.all_hubs_down(s)
    s.world.run(since + 30.0)
    assert leader.engine.is_primary
    assert gap_s(s, since) < 1.5
    bring_back()
    finish(s)


def test_of_two_members_the_sync_standby_takes_over_alone() -> None:
    s = created(RELAXED, members=2)
    old, since = primary(s), s.world.now
    old.crash()
    s.world.run(since + 15.0)
    assert primary(s) is not old
    assert gap_s(s, since) < TTL_S + 3.0
    old.boot()
    finish(s)


def test_of_two_members_one_that_is_not_on_record_does_not_take_over() -> None:
    s = created(RELAXED, members=2)
    leader = primary(s)
    other = next(node for node in s.nodes.values() if node is not leader)
    other.crash()
    s.world.run(s.world.now + 8.0)
    leader.crash()
    s.world.run(s.world.now + 2.0)
    other.boot()
    s.world.run(s.world.now + 20.0)
    assert s.leader() is None
    assert decided(other) is Reason.ELECTION_STUCK
    leader.boot()
    finish(s)


def test_an_async_leader_that_dies_before_anybody_has_followed_it_is_waited_for_or_forced_around() -> None:
    """How much it had acknowledged nobody knows, so nobody is elected by itself; what to do is said."""
    s = created(ASYNC)
    first = primary(s)
    first.engine.end(crashed=True)
    second = None
    while second is None:
        s.world.run(s.world.now + 0.01)
        second = next(
            (n for n in s.nodes.values() if n is not first and n.engine.is_primary and n.agent.writable()), None
        )
    s.world.run(s.world.now + 0.03)  # its report of the new timeline gets out, nobody has followed yet
    second.crash()
    s.world.run(s.world.now + 30.0)
    rest = [node for node in s.nodes.values() if node is not second]
    if s.leader() is None:
        details = [node.agent.decision.detail for node in rest if node.agent.decision is not None]
        assert any("bring" in detail and "failover --force" in detail for detail in details), details
        faults.ask_force(s, rest[0].member)
        s.world.run(s.world.now + 5.0)
    assert s.leader() is not None
    second.boot()
    finish_apart_from_loss(s)


def test_a_restarted_agent_costs_nobody_anything() -> None:
    s = created(SYNC)
    leader, since, terms = primary(s), s.world.now, len(s.checkers.terms)
    leader.agent.process.kill()
    s.world.run(since + 1.5)
    leader.start_agent()
    s.world.run(since + 10.0)
    assert gap_s(s, since) < 1.0
    assert len(s.checkers.terms) == terms
    finish(s)


def test_an_out_of_date_member_that_comes_back_first_waits_for_the_others() -> None:
    """cloudnative-pg #1688: all members go down, the one without the last commits starts first."""
    s = created(SYNC)
    leader = primary(s)
    standby = next(n for n in s.nodes.values() if n.member in leader.engine.setting.names)
    outdated = next(n for n in s.nodes.values() if n not in (leader, standby))
    outdated.crash()
    s.world.run(s.world.now + 3.0)
    leader.crash()
    standby.crash()
    s.world.run(s.world.now + 10.0)
    outdated.boot()
    s.world.run(s.world.now + 20.0)
    assert s.leader() is None
    assert outdated.agent.decision is not None
    assert outdated.agent.decision.reason is Reason.ELECTION_STUCK
    assert f"missing: {standby.member}" in outdated.agent.decision.detail
    standby.boot()
    s.world.run(s.world.now + 15.0)
    assert s.leader() is standby
    leader.boot()
    finish(s)


def test_the_last_leader_comes_back_from_a_loss_of_power_everywhere() -> None:
    s = created(QUORUM)
    for node in s.nodes.values():
        node.crash()
    s.world.run(s.world.now + 10.0)
    for node in s.nodes.values():
        node.boot()
    finish(s)


def test_a_relaxed_instance_goes_on_without_its_standbys_and_only_its_leader_may_lead_then() -> None:
    s = created(RELAXED)
    leader = primary(s)
    others = [node for node in s.nodes.values() if node is not leader]
    since = s.world.now
    for node in others:
        node.crash()
    s.world.run(since + 6.0)
    assert gap_s(s, since) < 4.0
    assert leader.agent.instance is not None
    assert leader.agent.instance.ha.sync == SyncRecord(mode="sync", seq=leader.agent.instance.ha.sync.seq)
    leader.crash()
    s.world.run(s.world.now + 10.0)
    for node in others:
        node.boot()
    s.world.run(s.world.now + 20.0)
    assert s.leader() is None
    leader.boot()
    finish(s)


def test_an_etcd_leader_that_hangs_does_not_keep_an_old_primary() -> None:
    """etcd #15247: keepalives are confirmed, and not honoured by the successor."""
    s = created(ASYNC)
    old, since = primary(s), s.world.now
    s.network.cut("members", frozenset({old.host.name}), frozenset(s.nodes) - {old.host.name})
    s.etcd.change_leader(hung=True)
    s.world.run(since + 20.0)
    s.etcd.hung_leader = False
    s.network.heal("members")
    finish(s)
    assert primary(s) is not old

"""Liveness remembers last signs of life by the hub's monotonic clock, and forgives the hub's own absence."""

from __future__ import annotations

from hub.leases import LeaseBook
from hub.liveness import Liveness, NodeSample
from hub.pulse import Pulse
from tests.support.clocks import ManualClock


def sample(at: float) -> NodeSample:
    return NodeSample(
        at=at,
        boot_id="b",
        seq=1,
        cpu_used=0.1,
        memory_used_bytes=1,
        disk_used_bytes=1,
        applied_revision=0,
        members=(),
    )


def test_only_nodes_heard_within_the_window_are_listed():
    clock = ManualClock(100.0)
    liveness = Liveness(clock)
    liveness.heard("n1", 100.0)
    liveness.sampled("n2", sample(105.0))
    clock.advance(12.0)
    assert liveness.heard_within(12.0) == {"n1", "n2"}
    clock.advance(0.1)
    assert liveness.heard_within(12.0) == {"n2"}
    assert liveness.last_heard("n1") == 100.0
    assert liveness.last_heard("n3") is None


def test_a_node_that_leaves_is_forgotten_with_its_facts():
    liveness = Liveness(ManualClock(0.0))
    liveness.sampled("n1", sample(0.0))
    liveness.sampled("n2", sample(0.0))
    liveness.forget("n1")
    liveness.forget_all_but(frozenset({"n1"}))
    assert liveness.samples == {}
    assert liveness.heard_within(1.0) == set()


def test_a_hub_that_stood_still_blames_nobody_for_that_time():
    clock = ManualClock(0.0)
    liveness = Liveness(clock)
    liveness.heard("alive", 0.0)
    liveness.heard("long gone", -100.0)
    clock.advance(30.0)
    liveness.forgive(30.0)
    assert liveness.heard_within(12.0) == {"alive"}


def test_under_overload_idle_nodes_beat_less_often_but_within_the_silence_window():
    clock = ManualClock(0.0)
    liveness = Liveness(clock)
    pulse = Pulse(clock, liveness, LeaseBook(None, clock, ttl_s=6))
    assert pulse.idle_beat_s(5.0, 12.0) == 5.0
    pulse.late_s = 0.3
    assert pulse.idle_beat_s(5.0, 12.0) == 9.0
    assert pulse.idle_beat_s(2.0, 12.0) == 4.0
    assert pulse.idle_beat_s(5.0, 10.0) == 7.5

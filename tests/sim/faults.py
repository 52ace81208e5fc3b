"""What goes wrong in a run: a random list of troubles, each of which ends by itself.

Every trouble is a name, so that the diary of a failing seed reads like an operator's notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from core.records import HaRecord, SwitchoverRequest, to_json
from hub.etcd import keys, txns
from tests.sim.hub_model import REF, parse

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario


def crash_engine(s: Scenario) -> Callable[[], None]:
    engine = s.any_engine()
    s.world.note(f"* engine of {engine.member} crashes")
    engine.end(crashed=True)
    return lambda: None


def kill_agent(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* agent of {node.member} is killed")
    node.agent.process.kill()
    return node.start_agent


def crash_node(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* node of {node.member} loses power")
    node.crash()
    return node.boot


def freeze_node(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* node of {node.member} freezes")
    node.freeze()
    return node.thaw


def freeze_agent(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* agent of {node.member} freezes")
    node.agent.process.pause()
    return node.agent.process.resume


def freeze_engine(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* engine of {node.member} freezes")
    node.engine.process.pause()
    return node.engine.process.resume


def kill_agent_and_engine(s: Scenario) -> Callable[[], None]:
    node = s.any_node()
    s.world.note(f"* agent and engine of {node.member} are killed")
    node.agent.process.kill()
    node.engine.end(crashed=True)
    return node.start_agent


def cut_from_hubs(s: Scenario) -> Callable[[], None]:
    nodes = s.some_nodes()
    name = f"cut {s.world.rng.random()}"
    s.world.note(f"* {', '.join(nodes)} cannot reach the hubs")
    s.network.cut(name, frozenset(nodes), frozenset(hub.process.host.name for hub in s.hubs))
    return lambda: s.network.heal(name)


def cut_from_members(s: Scenario) -> Callable[[], None]:
    nodes = s.some_nodes()
    name = f"cut {s.world.rng.random()}"
    s.world.note(f"* {', '.join(nodes)} cannot reach the other members")
    s.network.cut(name, frozenset(nodes), frozenset(s.nodes) - frozenset(nodes))
    return lambda: s.network.heal(name)


def isolate(s: Scenario) -> Callable[[], None]:
    node = s.any_node().host.name
    name = f"cut {s.world.rng.random()}"
    s.world.note(f"* {node} can reach nobody")
    everybody = frozenset(s.nodes) | {hub.process.host.name for hub in s.hubs}
    s.network.cut(name, frozenset({node}), everybody - {node})
    return lambda: s.network.heal(name)


def hub_crash(s: Scenario) -> Callable[[], None]:
    hub = s.world.rng.choice(s.hubs)
    s.world.note(f"* {hub.process.name} crashes")
    hub.process.kill()
    return hub.start


def hub_freeze(s: Scenario) -> Callable[[], None]:
    hub = s.world.rng.choice(s.hubs)
    s.world.note(f"* {hub.process.name} freezes, with what it has been asked")
    hub.process.pause()
    return hub.process.resume


def hub_lags(s: Scenario) -> Callable[[], None]:
    hub = s.world.rng.choice(s.hubs)
    hub.lag_s = s.world.rng.uniform(0.2, 5.0)
    s.world.note(f"* the watch of {hub.process.name} is {hub.lag_s:.1f} s behind")

    def end() -> None:
        hub.lag_s = 0.0

    return end


def all_hubs_down(s: Scenario) -> Callable[[], None]:
    s.world.note("* all hubs are down")
    for hub in s.hubs:
        hub.process.kill()

    def end() -> None:
        for hub in s.hubs:
            hub.start()

    return end


def etcd_down(s: Scenario) -> Callable[[], None]:
    s.world.note("* etcd is down")
    s.etcd.stop()
    return s.etcd.start


def etcd_hangs(s: Scenario) -> Callable[[], None]:
    s.world.note("* the etcd leader hangs and goes on answering keepalives")
    s.etcd.change_leader(hung=True)

    def end() -> None:
        s.etcd.hung_leader = False

    return end


def lossy_network(s: Scenario) -> Callable[[], None]:
    s.network.loss = s.world.rng.uniform(0.02, 0.25)
    s.world.note(f"* {s.network.loss:.0%} of the messages are lost")

    def end() -> None:
        s.network.loss = 0.0

    return end


def slow_network(s: Scenario) -> Callable[[], None]:
    s.network.slow = s.world.rng.uniform(0.02, 0.2)
    s.world.note(f"* {s.network.slow:.0%} of the messages are held up")

    def end() -> None:
        s.network.slow = 0.0

    return end


def switchover(s: Scenario) -> Callable[[], None]:
    ask_switchover(s, s.world.rng.choice(["", *(node.member for node in s.nodes.values())]))
    return lambda: None


def ask_switchover(s: Scenario, target: str) -> None:
    s.world.note(f"* switchover to {target or 'anybody'} is asked for")
    request = SwitchoverRequest(id=f"s{s.world.rng.random()}", target=target)
    write_ha(s, lambda ha: replace(ha, switchover=request))


def pause(s: Scenario) -> Callable[[], None]:
    s.world.note("* automatic failover is paused")
    write_ha(s, lambda ha: replace(ha, paused=True))
    return lambda: write_ha(s, lambda ha: replace(ha, paused=False))


def write_ha(s: Scenario, change: Callable[[HaRecord], HaRecord]) -> None:
    """As an operator's request does it; etcd may be away, then nothing is written."""
    entry = s.etcd.store.entries[keys.ha(REF)]
    next_ha = change(parse(HaRecord, entry.value))
    s.etcd.commit(txns.request_on_ha(REF, ha_revision=entry.mod_revision, next_ha=next_ha))
    assert to_json(next_ha) == s.etcd.store.entries[keys.ha(REF)].value, "nobody else writes in between"


ALL = ( crash_engine, crash_engine, kill_agent, crash_node, crash_node, freeze_node, freeze_node, freeze_agent,
freeze_engine, kill_agent_and_engine, cut_from_hubs, cut_from_hubs, cut_from_members, isolate, isolate, hub_crash,
hub_freeze, hub_lags, all_hubs_down, etcd_down, etcd_hangs, lossy_network, slow_network, switchover, switchover, pause,
)  # fmt: skip

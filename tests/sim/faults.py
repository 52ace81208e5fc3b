"""What goes wrong in a run: a random list of troubles, each of which ends by itself.

Each makes its trouble and returns what ends it, or None when it has no place in the present state. Every trouble is a
line in the diary of a failing seed, which so reads like an operator's notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from core.records import ForcedFailover, HaRecord, SwitchoverRequest
from hub.etcd import keys
from tests.sim.hub_model import parse

if TYPE_CHECKING:
    from tests.sim.group import Group
    from tests.sim.scenario import Scenario

End = Callable[[], None]
Fault = Callable[["Scenario"], End | None]


def nothing() -> None:
    """What is over at once."""


# --- processes and nodes ----------------------------------------------------------------------------------------------


def crash_engine(s: Scenario) -> End:
    engine = s.any_node().engine
    s.world.note(f"* engine of {engine.member} crashes")
    engine.end(crashed=True)
    return nothing


def kill_agent(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* agent of {node.host.name} is killed")
    node.agent.process.kill()
    return node.start_agent


def kill_proxy(s: Scenario) -> End:
    machine = s.any_node().machine
    s.world.note(f"* proxy of {machine.host.name} is killed")
    machine.proxy_process.kill()
    return machine.start_proxy


def crash_node(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* {node.host.name} loses power")
    node.crash()
    return node.boot


def crash_all_nodes(s: Scenario) -> End:
    """They come back one after the other, in any order."""
    s.world.note("* all nodes lose power")
    machines = list(s.machines)
    for machine in machines:
        machine.crash()

    def end() -> None:
        s.world.rng.shuffle(machines)
        for machine in machines:
            s.world.at(s.world.rng.uniform(0.0, 6.0), machine.boot)

    return end


def freeze_node(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* {node.host.name} freezes")
    node.freeze()
    return node.thaw


def freeze_agent(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* agent of {node.host.name} freezes")
    node.agent.process.pause()
    return node.agent.process.resume


def freeze_engine(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* engine of {node.member} freezes")
    node.engine.process.pause()
    return node.engine.process.resume


def freeze_proxy(s: Scenario) -> End:
    machine = s.any_node().machine
    s.world.note(f"* proxy of {machine.host.name} freezes")
    machine.proxy_process.pause()
    return machine.proxy_process.resume


def kill_agent_and_engine(s: Scenario) -> End:
    node = s.any_node()
    s.world.note(f"* agent and engine of {node.member} are killed")
    node.agent.process.kill()
    node.engine.end(crashed=True)
    return node.start_agent


def lose_disk(s: Scenario) -> End | None:
    """Once a run, and only where a copy of every acknowledged commit is left: of a replica, or of a leader whose record
    says that its standbys have everything."""
    group = s.any_group()
    node = s.world.rng.choice(list(group.nodes.values()))
    entry = s.etcd.store.entries[keys.ha(group.ref)]
    ha = parse(HaRecord, entry.value)
    led = keys.leader(group.ref) in s.etcd.store.entries
    kept = node.member != ha.leader or (led and ha.sync.mode != "async" and ha.sync.k > 0 and group.replication.strict)
    before = s.fault_counts["lose_disk"] + s.fault_counts["change_replication"] + s.fault_counts["remove_member"]
    if before or s.fault_counts["force"] or not ha.system_id or not kept:
        return None
    s.world.note(f"* the disk of {node.member} is lost")
    node.agent.lose_disk()
    return nothing


# --- network ----------------------------------------------------------------------------------------------------------


def cut(s: Scenario, text: str, one: frozenset[str], other: frozenset[str], *, one_way: bool = False) -> End:
    name = f"cut {s.world.rng.random()}"
    s.world.note(f"* {text}")
    s.network.cut(name, one, other, one_way=one_way)
    return lambda: s.network.heal(name)


def hub_hosts(s: Scenario) -> frozenset[str]:
    return frozenset(hub.process.host.name for hub in s.hubs)


def cut_from_hubs(s: Scenario) -> End:
    nodes = s.some_nodes()
    return cut(s, f"{', '.join(nodes)} cannot reach the hubs", frozenset(nodes), hub_hosts(s))


def cut_from_members(s: Scenario) -> End:
    nodes = s.some_nodes()
    others = frozenset(s.nodes) - frozenset(nodes)
    return cut(s, f"{', '.join(nodes)} cannot reach the other members", frozenset(nodes), others)


def isolate(s: Scenario) -> End:
    node = s.any_node().host.name
    everybody = frozenset(s.nodes) | hub_hosts(s)
    return cut(s, f"{node} can reach nobody", frozenset({node}), everybody - {node})


def cut_one_way(s: Scenario) -> End:
    """From one node to all, or from all to it; hubs, members, or both."""
    node = frozenset({s.any_node().host.name})
    others = s.world.rng.choice([frozenset(s.nodes), hub_hosts(s), frozenset(s.nodes) | hub_hosts(s)]) - node
    pair = [node, others]
    s.world.rng.shuffle(pair)
    text = f"nothing passes from {', '.join(sorted(pair[0]))} to {', '.join(sorted(pair[1]))}"
    return cut(s, text, pair[0], pair[1], one_way=True)


def cut_hub_from_etcd(s: Scenario) -> End:
    hub = s.world.rng.choice(s.hubs).process.host.name
    one_way = s.world.rng.random() < 0.5
    text = f"{hub} cannot reach etcd" + (", or hear it" if not one_way else "")
    return cut(s, text, frozenset({hub}), frozenset({"etcd"}), one_way=one_way)


def lossy_network(s: Scenario) -> End:
    s.network.loss = s.world.rng.uniform(0.02, 0.25)
    s.world.note(f"* {s.network.loss:.0%} of the messages are lost")
    return lambda: setattr(s.network, "loss", 0.0)


def slow_network(s: Scenario) -> End:
    s.network.slow = s.world.rng.uniform(0.02, 0.2)
    s.world.note(f"* {s.network.slow:.0%} of the messages are held up")
    return lambda: setattr(s.network, "slow", 0.0)


def doubled_requests(s: Scenario) -> End:
    s.network.twice = s.world.rng.uniform(0.1, 0.6)
    s.world.note(f"* {s.network.twice:.0%} of the requests are carried out twice")
    return lambda: setattr(s.network, "twice", 0.0)


# --- hubs and etcd ----------------------------------------------------------------------------------------------------


def hub_crash(s: Scenario) -> End:
    hub = s.world.rng.choice(s.hubs)
    s.world.note(f"* {hub.process.name} crashes")
    hub.process.kill()
    return hub.start


def hub_freeze(s: Scenario) -> End:
    hub = s.world.rng.choice(s.hubs)
    s.world.note(f"* {hub.process.name} freezes, with what it has been asked")
    hub.process.pause()
    return hub.process.resume


def hub_lags(s: Scenario) -> End:
    hub = s.world.rng.choice(s.hubs)
    hub.lag_s = s.world.rng.uniform(0.2, 5.0)
    s.world.note(f"* the watch of {hub.process.name} is {hub.lag_s:.1f} s behind")
    return lambda: setattr(hub, "lag_s", 0.0)


def all_hubs_down(s: Scenario) -> End:
    s.world.note("* all hubs are down")
    for hub in s.hubs:
        hub.process.kill()

    def end() -> None:
        for hub in s.hubs:
            hub.start()

    return end


def etcd_down(s: Scenario) -> End:
    s.world.note("* etcd is down")
    s.etcd.stop()
    return s.etcd.start


def etcd_freezes(s: Scenario) -> End:
    s.world.note("* etcd freezes, with what it has been asked")
    s.etcd.process.pause()
    return s.etcd.process.resume


def etcd_hangs(s: Scenario) -> End:
    s.world.note("* the etcd leader hangs and goes on answering keepalives")
    s.etcd.change_leader(hung=True)
    return lambda: setattr(s.etcd, "hung_leader", False)


def etcd_changes_leader(s: Scenario) -> End:
    s.world.note("* etcd has a new leader: all leases have their full time again")
    s.etcd.change_leader()
    return nothing


# --- operators --------------------------------------------------------------------------------------------------------


def switchover(s: Scenario) -> End:
    group = s.any_group()
    ask_switchover(s, s.world.rng.choice(["", *(node.member for node in group.nodes.values())]), group)
    return nothing


def ask_switchover(s: Scenario, target: str, group: Group | None = None) -> None:
    s.world.note(f"* switchover to {target or 'anybody'} is asked for")
    request = SwitchoverRequest(id=f"s{s.world.rng.random()}", target=target)
    s.control.write_ha(group or s.group, lambda ha: replace(ha, switchover=request))


def force(s: Scenario) -> End:
    """Somebody is in a hurry: another than the last leader is to lead, whatever is lost by it."""
    group, rng = s.any_group(), s.world.rng
    ask_force(s, rng.choice(list(group.nodes.values())).member, group)
    return nothing


def ask_force(s: Scenario, target: str, group: Group | None = None) -> None:
    s.world.note(f"* {target} is forced to lead")

    def order(ha: HaRecord) -> HaRecord:
        return replace(ha, forced=ForcedFailover(id=f"f{s.world.rng.random()}", target=target, after_term=ha.term))

    s.control.write_ha(group or s.group, order)


def pause(s: Scenario) -> End:
    group = s.any_group()
    s.world.note("* automatic failover is paused")
    s.control.write_ha(group, lambda ha: replace(ha, paused=True))
    return lambda: s.control.write_ha(group, lambda ha: replace(ha, paused=False))


def change_replication(s: Scenario) -> End:
    """Another mode, another k, strict or not."""
    group, rng = s.any_group(), s.world.rng
    now = group.replication
    k = rng.randint(1, max(1, min(2, s.control.standbys(group))))
    wanted = replace(now, mode=rng.choice(["async", "sync", "quorum"]), k=k, strict=rng.random() < 0.75)
    s.world.note(f"* wanted from now on: {wanted.mode}, k {wanted.k}, {'strict' if wanted.strict else 'not strict'}")
    s.control.replicate(group, wanted)
    return nothing


def add_member(s: Scenario) -> End | None:
    group = s.any_group()
    free = [m.host.name for m in s.machines if m.host.name not in group.nodes]
    if not free or s.fault_counts["add_member"]:
        return None
    s.world.note(f"* a member is to join on {free[0]}")
    s.control.add_member(group, free[0])
    return nothing


def remove_member(s: Scenario) -> End | None:
    """Never so many that the mode could not be kept."""
    group = s.any_group()
    node = s.world.rng.choice(list(group.nodes.values()))
    if s.control.standbys(group) <= max(1, group.replication.k) or s.fault_counts["lose_disk"]:
        return None
    s.world.note(f"* {node.member} is to leave")
    s.control.remove_member(group, node.member)
    return nothing


ALL: tuple[Fault, ...] = (
    crash_engine, crash_engine, crash_node, crash_node, crash_all_nodes, kill_agent, kill_agent_and_engine, kill_proxy,
    freeze_node, freeze_node, freeze_agent, freeze_agent, freeze_engine, freeze_proxy, lose_disk,
    cut_from_hubs, cut_from_hubs, cut_from_members, isolate, isolate, cut_one_way, cut_one_way, cut_hub_from_etcd,
    lossy_network, slow_network, slow_network, doubled_requests,
    hub_crash, hub_freeze, hub_lags, all_hubs_down, etcd_down, etcd_freezes, etcd_hangs, etcd_changes_leader,
    switchover, switchover, force, pause, change_replication, add_member, remove_member,
)  # fmt: skip

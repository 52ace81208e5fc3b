"""Cables that are cut, one way or both, or bad."""

from __future__ import annotations

from tests.faults.cable import bad_cable
from tests.faults.machines import drop, separate
from tests.faults.scene import NO_GAP_S, NODE_LOSS_S, Fault, Scene, cut, hold
from tests.faults.site import Site

CUT_S = 15.0
LONG_CUT_S = 20.0


class Partition(Fault):
    name = "partition"
    proves = f"the primary's node is cut off from everyone, its clients too, for {CUT_S:g} s"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        async with cut(separate, [node], scene.site.others(node)):
            await hold(CUT_S)


class PartitionFromHubs(Fault):
    name = "partition_from_hubs"
    proves = f"the primary's node hears neither hubs nor etcd for {LONG_CUT_S:g} s, but its peers: it goes on"
    bound_s = NO_GAP_S
    no_errors = True
    pairs = True

    async def play(self, scene: Scene) -> None:
        site = scene.site
        async with cut(separate, [await site.primary()], [*site.hubs, *site.etcds]):
            await hold(LONG_CUT_S)


class PartitionFromPeers(Fault):
    name = "partition_from_peers"
    proves = f"the primary's node hears no other node for {LONG_CUT_S:g} s, but hubs and clients: others can commit"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        site = scene.site
        node = await site.primary()
        async with cut(separate, [node], [peer for peer in site.nodes.values() if peer is not node]):
            await hold(LONG_CUT_S)


class OneWayOut(Fault):
    name = "one_way_out"
    proves = f"nothing that the primary's node sends arrives anywhere, for {CUT_S:g} s"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        async with cut(drop, [node], scene.site.others(node)):
            await hold(CUT_S)


class OneWayIn(Fault):
    name = "one_way_in"
    proves = f"nothing arrives at the primary's node, for {CUT_S:g} s; what it sends does"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        async with cut(drop, scene.site.others(node), [node]):
            await hold(CUT_S)


class ReplicationCut(Fault):
    name = "replication_cut"
    proves = f"only the stream of the replica that confirms commits is cut, for {CUT_S:g} s: the other takes its part"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        site = scene.site
        replica, primary = await site.sync_replica(), await site.primary()
        port = await engine_port(site)
        # The receiver's packets, by the user who runs engines: proxies on that node go on reaching the primary.
        rule = f"ip daddr {primary.address} tcp dport {port} meta skuid postgres drop"
        async with cut(replica.filter, [rule], "out"):
            await hold(CUT_S)


class ReplicaPartition(Fault):
    name = "replica_partition"
    proves = f"the node of the replica that confirms commits is cut off from everyone for {CUT_S:g} s"
    bound_s = NODE_LOSS_S
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.sync_replica()
        async with cut(separate, [node], scene.site.others(node)):
            await hold(CUT_S)


class SlowNetwork(Fault):
    name = "slow_network"
    proves = "the primary's cable takes 20 to 30 ms each way and loses 2 % of all frames for 15 s: slow, no failover"
    bound_s = 3.0
    pairs = True

    async def play(self, scene: Scene) -> None:
        node = await scene.site.primary()
        async with bad_cable(node, delay_s=0.02, jitter_s=0.01, loss=0.02):
            await hold(CUT_S)


async def engine_port(site: Site) -> int:
    port: int = (await site.page())["endpoints"]["engine_port"]
    return port


ALL: tuple[type[Fault], ...] = (
    Partition,
    PartitionFromHubs,
    PartitionFromPeers,
    OneWayOut,
    OneWayIn,
    ReplicationCut,
    ReplicaPartition,
    SlowNetwork,
)

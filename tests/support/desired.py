"""Instances written straight into etcd, for tests of the hub that need no controllers."""

from __future__ import annotations

from typing import Any

from core.ids import InstanceRef
from core.records import HaRecord, MemberDesired, to_json
from hub.etcd import keys, txns
from hub.etcd.client import EtcdClient
from tests.support.contents import member_ref


def desired(ref: InstanceRef, member: str, node: str, **wishes: Any) -> MemberDesired:
    told = {"engine_port": 15000, "rw_port": 15001, "ro_port": 15002, **wishes}
    return MemberDesired(project=ref.project, instance=ref.instance, member=member, node=node, **told)


async def place(client: EtcdClient, ref: InstanceRef, **nodes: str) -> None:
    """Members of an instance on nodes (`m1="n1"`), with a fresh ha record."""
    puts = [
        txns.Put(keys.member(node, member_ref(ref, member)), to_json(desired(ref, member, node)))
        for member, node in nodes.items()
    ]
    await write(client, *puts, txns.Put(keys.ha(ref), to_json(HaRecord())))


async def write(client: EtcdClient, *ops: txns.Op) -> None:
    """As they are, comparing nothing."""
    assert (await client.commit(txns.all_of([], list(ops)))).succeeded

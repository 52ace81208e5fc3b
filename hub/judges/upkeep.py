"""Steps that are not about one living instance: the marks of silent nodes, and what was left of instances long gone.

Pure, like `hub.judges.steps`.
"""

from __future__ import annotations

import json

from core.ids import InstanceRef
from hub.etcd import keys
from hub.etcd.txns import CreatedIs, Delete, ModIs, Put
from hub.judges.notices import event
from hub.judges.situation import Contents
from hub.judges.steps import Step, residue


def orphans(contents: Contents) -> frozenset[InstanceRef]:
    """Instances of which something is left, but neither a record nor a member."""
    left = {*contents.status, *contents.ha, *contents.leaders, *contents.secrets}
    left |= {member.instance for _, member in contents.observed}
    left |= {InstanceRef.from_key(owner) for owner in contents.ports.values()}
    alive = {*contents.instances, *(member.instance for _, member in contents.members)}
    return frozenset(left - alive)


def sweep(contents: Contents, ref: InstanceRef) -> Step:
    """Remove what is left of an instance that is among the `orphans`."""
    return Step(compares=(ModIs(keys.instance(ref), 0),), ops=residue(contents, ref))


# --- nodes ------------------------------------------------------------------------------------------------------------


def node_silent(contents: Contents, node: str, now: float) -> Step:
    """Mark a node that no hub hears of."""
    held = sorted(str(member) for where, member in contents.members if where == node)
    what = f"it holds {', '.join(held)}" if held else "it holds no member"
    message = f"no hub hears of the node; {what}; check the machine, its network and its agent"
    return Step(
        compares=(CreatedIs(keys.node(node), contents.nodes[node].create_revision), ModIs(keys.silent(node), 0)),
        ops=(Put(keys.silent(node), json.dumps({"since": now}).encode()),),
        events=(event(now, "node_silent", f"node/{node}", message, "warning" if held else "info"),),
    )


def node_heard(contents: Contents, node: str, now: float) -> Step:
    """Unmark a node that is heard of again, or is no more."""
    told = event(now, "node_heard", f"node/{node}", "a hub hears of the node again")
    return Step(compares=(), ops=(Delete(keys.silent(node)),), events=(told,) if node in contents.nodes else ())

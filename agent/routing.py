"""Pure: from what is known of an instance to the route its clients take.

A primary on this node is routed to while its own lease lasts; one on another node while the hub, or the primary itself
over the peer port, vouches for it. Either way the route carries the time at which it ends, and the proxy holds to it
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.records import REMOTE, InstanceView, MemberDesired, PeerMember
from core.routes import Endpoint, Route
from core.status import MemberState, Role

CLIENT_MARGIN_S = 0.5  # a route ends this much before the leader's lease may: what is in the pipe must still arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderTrust:
    """Until when (monotonic seconds) writes may go to `member`, which leads since `term` or an earlier one."""

    term: int = 0
    member: str = ""
    until: float = 0.0


def route_of(
    desired: MemberDesired,
    view: InstanceView | None,
    *,
    writable_here: bool,
    trust: LeaderTrust,
    paused: bool = False,
) -> Route:
    """The route of one instance. `writable_here`: this node's member is the running primary and holds the lease;
    `trust` is then its own fence time, else what others vouch for. `paused`: clients are held for a switchover."""
    leader = _leader(desired, view, trust, writable_here=writable_here) if view else None
    return Route(
        instance=f"{desired.project}/{desired.instance}",
        rw_port=desired.rw_port,
        ro_port=desired.ro_port,
        term=trust.term if leader else 0,
        primary=_endpoint(leader) if leader else None,
        expires_at_s=trust.until,
        replicas=_readers(view) if view else (),
        hold_s=desired.hold_s,
        paused=paused,
        client_tls=desired.client_tls,
        allow=desired.allow,
        strict=desired.replication.mode != "async" and desired.replication.strict,
        pooling=desired.clients.pooling,
        pools=desired.clients.pools,
        clients_max=desired.clients.clients_max,
        clients_per_user_max=desired.clients.clients_per_user_max,
        client_idle_s=desired.clients.client_idle_s,
        idle_transaction_s=desired.clients.idle_transaction_s,
        client_unread_s=desired.clients.client_unread_s,
        slow_query_ms=desired.clients.slow_query_ms,
        observers=desired.clients.observers,
        follows=str(desired.standby) if desired.standby and view and view.ha.standby else "",
        splits=desired.clients.splits,
        split_functions=desired.clients.split_functions,
    )


def _leader(
    desired: MemberDesired, view: InstanceView, trust: LeaderTrust, *, writable_here: bool
) -> PeerMember | None:
    """The member that writes go to. For the one on this node its own lease is enough, whatever the view still says."""
    if writable_here:
        return next((m for m in view.members if m.member == desired.member), None)
    if trust.member == desired.member or not _is_led_by(view, trust):
        return None
    leader = next((m for m in view.members if m.member == trust.member), None)
    ready = leader is not None and leader.role is Role.PRIMARY and leader.state is MemberState.RUNNING
    return leader if ready else None


def _is_led_by(view: InstanceView, trust: LeaderTrust) -> bool:
    """By its key in etcd, in the trusted term or one it took since; or, when only the key has lapsed (the hub was away
    longer than the lease), by the word of the members that still follow it."""
    if view.leader is not None:
        return view.leader.member == trust.member and view.leader.term >= trust.term
    return view.ha.leader == trust.member and view.ha.term >= trust.term and view.ha.released_term != view.ha.term


def _readers(view: InstanceView) -> tuple[Endpoint, ...]:
    """Where reads go: those that are marked to be spared only while no other replica serves."""
    serving = [member for member in view.members if _serves_reads(member, view)]
    free = [member for member in serving if not member.no_load_balance]
    return tuple(_endpoint(member) for member in free or serving)


def _serves_reads(member: PeerMember, view: InstanceView) -> bool:
    """A running replica on a node that is heard of, and not too far behind by its own agent's word. While nobody leads
    it may still serve what it has."""
    if view.ha.standby and member.alive and member.role is Role.REPLICA and member.state is MemberState.LAGGING:
        return view.leader is not None and view.leader.member == member.member  # without the remote primary it reads on
    follows = view.leader is None or member.streaming_from in ("", view.leader.member, member.upstream, REMOTE)
    running = member.role is Role.REPLICA and member.state is MemberState.RUNNING
    return member.alive and running and follows and not member.late


def is_late(lag_bytes: int, max_bytes: int | None, *, was: bool) -> bool:
    """Whether a replica is too far behind to take reads. One that `was` has to come well within the bound first: reads
    would come and go with every burst of writes."""
    if max_bytes is None:
        return False
    return lag_bytes > (max_bytes // 2 if was else max_bytes)


def _endpoint(member: PeerMember) -> Endpoint:
    return Endpoint(
        member=member.member,
        host=member.address,
        port=member.engine_port,
        tls=member.engine_tls,
        node=member.node,
        weight=member.read_weight,
    )

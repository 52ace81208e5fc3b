"""What is right and wrong with an instance, in words an on-call engineer can act on: pure.

The findings of `hub.judges.findings` are sorted into conditions, and the facts for the phase are drawn from the same
findings. All conditions are always told, in one order, so that a missing one is never mistaken for a good one; only
while an instance is being deleted is it enough to tell what that waits for. EngineTls, PendingRestart, EnginesHealthy
and AutomaticFailover are information: they degrade nothing, but for what `findings.GRAVE` names, which is a finding as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.clock import moment
from core.status import Condition, ConditionType
from hub.judges.findings import CHECK_NODE, GRAVE, Finding, about_leaving, find
from hub.judges.lifecycle import Facts
from hub.judges.placement import Unplaceable
from hub.judges.situation import Situation

SHOWN_MAX = 5  # findings named in one message; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All findings, and what follows for the phase."""

    findings: tuple[Finding, ...]
    conditions: tuple[Condition, ...]
    facts: Facts

    def of(self, type_: ConditionType) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type is type_), None)

    @property
    def worst(self) -> Finding | None:
        """The broken finding to be told first."""
        broken = [finding for finding in self.findings if finding.broken]
        return min(broken, key=lambda finding: _WORST_FIRST.index(finding.type), default=None)


_WORST_FIRST = (
    ConditionType.PRIMARY_AVAILABLE,
    ConditionType.NODES_REACHABLE,
    ConditionType.REPLICAS_AVAILABLE,
    ConditionType.REPLICATING,
    ConditionType.ENGINES_HEALTHY,
    ConditionType.PLACED,
    ConditionType.CONVERGED,
)


def judge(s: Situation, *, unplaceable: Unplaceable | None = None, now: float) -> Judgement:
    """`unplaceable` is why missing members could not be placed. `now` is wall seconds, for the `since` of conditions
    whose status has changed."""
    found = tuple(find(s, unplaceable=unplaceable, now=now))
    before = {condition.type: condition for condition in s.status.conditions} if s.status is not None else {}
    told = _deletion_conditions(s) if s.record.deleting else _conditions(s, found)
    broken = any(finding.broken for finding in found)
    return Judgement(
        findings=found,
        conditions=tuple(_with_since(condition, before.get(condition.type), now) for condition in told),
        facts=Facts(
            deleting=s.record.deleting,
            members=len(s.members),
            ready=bool(s.staying) and s.leader is not None and not found,
            broken=broken,
        ),
    )


def _with_since(condition: Condition, before: Condition | None, now: float) -> Condition:
    since = before.since if before is not None and before.status == condition.status else now
    return replace(condition, since=since)


def _conditions(s: Situation, found: Sequence[Finding]) -> list[Condition]:
    return [
        _placed(s, found),
        _primary_available(s, found),
        _replicas_available(s, found),
        _replicating(s, found),
        _nodes_reachable(s, found),
        _converged(s, found),
        _engines_healthy(s),
        _pending_restart(s),
        _engine_tls(s),
        _automatic_failover(s),
    ]


def _condition(type_: ConditionType, found: Sequence[Finding], good: tuple[str, str]) -> Condition:
    """False with the findings' words when there are any, else true with `good` (reason and message)."""
    if not found:
        return Condition(type=type_, status=True, reason=good[0], message=good[1])
    first = next((finding for finding in found if finding.broken), found[0])
    shown = "; ".join(finding.message for finding in found[:SHOWN_MAX])
    more = f"; and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
    return Condition(type=type_, status=False, reason=first.reason, message=shown + more)


def _only(found: Sequence[Finding], *types: ConditionType) -> list[Finding]:
    return [finding for finding in found if finding.type in types]


def _placed(s: Situation, found: Sequence[Finding]) -> Condition:
    places = ", ".join(current.place for current in s.staying)
    return _condition(ConditionType.PLACED, _only(found, ConditionType.PLACED), ("Placed", places))


def _primary_available(s: Situation, found: Sequence[Finding]) -> Condition:
    type_ = ConditionType.PRIMARY_AVAILABLE
    if s.leader is None and not s.members:
        return Condition(type=type_, status=False, reason="NotPlaced", message="no member has a node yet")
    about_leader = [f for f in found if f.type is type_ or (f.member == s.leader_name and f.broken and f.member)]
    leads = f"{s.leader.member} on {s.leader.node} leads in term {s.leader.term}" if s.leader is not None else ""
    if s.ha is not None and s.ha.standby:
        remote = ", ".join(s.spec.standby.hosts) if s.spec is not None and s.spec.standby is not None else "its remote"
        return _condition(type_, about_leader, ("Standby", f"{leads} and follows {remote}; no member accepts writes"))
    return _condition(type_, about_leader, ("PrimaryRunning", leads))


def _replicas_available(s: Situation, found: Sequence[Finding]) -> Condition:
    type_ = ConditionType.REPLICAS_AVAILABLE
    if s.wanted <= 1:
        return Condition(type=type_, status=True, reason="NoneWanted", message="the spec asks for no replica")
    if not s.staying:
        return Condition(type=type_, status=False, reason="NotPlaced", message="no member has a node yet")
    down = [f for f in found if f.type is type_ or (f.type is ConditionType.NODES_REACHABLE and not _is_leader(s, f))]
    if not down and s.missing:
        text = f"{s.missing} of {s.wanted} members have no node, see Placed"
        return Condition(type=type_, status=False, reason="NotPlaced", message=text)
    return _condition(type_, down, ("ReplicasRunning", f"{len(s.staying) - 1} replica(s) run"))


def _replicating(s: Situation, found: Sequence[Finding]) -> Condition:
    type_ = ConditionType.REPLICATING
    if s.wanted <= 1 and s.leader is not None and s.ha is not None and s.ha.standby:
        good = ("Streaming", f"{s.leader_name} streams from the remote primary")
        return _condition(type_, _only(found, type_), good)
    if s.wanted <= 1:
        return Condition(type=type_, status=True, reason="NoneWanted", message="the spec asks for no replica")
    if s.leader is None:
        return Condition(type=type_, status=False, reason="NoPrimary", message="nobody leads, see PrimaryAvailable")
    bad = _only(found, type_)
    down = {f.member for f in found if f.type in (ConditionType.REPLICAS_AVAILABLE, ConditionType.NODES_REACHABLE)}
    replicas = [current for current in s.staying if current.name != s.leader_name]
    up = [current.name for current in replicas if current.name not in down]
    if not up:
        return Condition(type=type_, status=False, reason="NoReplica", message="no replica runs, see ReplicasAvailable")
    return _condition(type_, bad, ("Streaming", f"{', '.join(up)} stream(s) from {s.leader_name}"))


def _is_leader(s: Situation, finding: Finding) -> bool:
    return finding.member != "" and finding.member == s.leader_name


def _nodes_reachable(s: Situation, found: Sequence[Finding]) -> Condition:
    nodes = ", ".join(sorted({current.node for current in s.staying})) or "no node is in use yet"
    type_ = ConditionType.NODES_REACHABLE
    return _condition(type_, _only(found, type_), ("NodesHeard", nodes))


def _converged(s: Situation, found: Sequence[Finding]) -> Condition:
    """Anything that is not yet as the spec says; what is placed nowhere or does not run cannot have converged."""
    type_ = ConditionType.CONVERGED
    own = _only(found, type_)
    if not s.staying and not own:
        return Condition(type=type_, status=False, reason="NotPlaced", message="no member has a node yet")
    if found and not own:
        others = ", ".join(dict.fromkeys(finding.type.value for finding in found))
        return Condition(type=type_, status=False, reason="NotReady", message=f"see {others}")
    return _condition(type_, own, ("Converged", f"all members are at generation {s.record.generation}"))


def _engines_healthy(s: Situation) -> Condition:
    """Everything that agents noticed of engines that are not down for it: a filling disk, a slot that holds log."""
    type_ = ConditionType.ENGINES_HEALTHY
    noticed = [(current, notice) for current in s.staying for notice in current.notices]
    if not noticed:
        return Condition(
            type=type_, status=True, reason="NothingNoticed", message="no engine has anything to complain of"
        )
    noticed.sort(key=lambda pair: pair[1].reason not in GRAVE)
    shown = "; ".join(f"{current.place}: {notice.message or notice.reason}" for current, notice in noticed[:SHOWN_MAX])
    more = f"; and {len(noticed) - SHOWN_MAX} more" if len(noticed) > SHOWN_MAX else ""
    return Condition(type=type_, status=False, reason=noticed[0][1].reason, message=shown + more)


def _pending_restart(s: Situation) -> Condition:
    waiting = {
        current.name: ", ".join(sorted(current.observed.pending_restart))
        for current in s.staying
        if current.observed is not None and current.observed.pending_restart
    }
    type_ = ConditionType.PENDING_RESTART
    if not waiting:
        return Condition(type=type_, status=False, reason="NothingPending", message="no parameter waits for a restart")
    text = "; ".join(f"{name}: {parameters}" for name, parameters in waiting.items())
    message = f"parameters wait for a restart ({text}); run `moorctl instance restart {s.ref}`"
    return Condition(type=type_, status=True, reason="ParametersWait", message=message)


def _engine_tls(s: Situation) -> Condition:
    type_ = ConditionType.ENGINE_TLS
    seen = [current for current in s.staying if current.observed is not None and current.observed.engine_version]
    without = ", ".join(current.place for current in seen if not (current.observed and current.observed.engine_tls))
    if not seen:
        return Condition(type=type_, status=False, reason="NotKnown", message="no engine has been seen yet")
    if without:
        message = (
            f"the engine of {without} is built without TLS: replication is not encrypted on the data network; "
            "clients get TLS from the proxy all the same"
        )
        return Condition(type=type_, status=False, reason="EngineWithoutTls", message=message)
    return Condition(type=type_, status=True, reason="EnginesWithTls", message="engines replicate over TLS")


def _deletion_conditions(s: Situation) -> list[Condition]:
    """While an instance goes, only what it still waits for is of interest."""
    waiting = [finding for finding in (about_leaving(s, current) for current in s.members) if finding is not None]
    nodes = ", ".join(sorted(s.silent))
    silent = Finding(
        type=ConditionType.NODES_REACHABLE,
        reason="NodeSilent",
        message=f"deletion waits for silent node(s) {nodes}; {CHECK_NODE}, or remove the node",
        broken=True,
    )
    good = ("NodesHeard", "every node that is needed is heard of")
    return [
        _condition(ConditionType.NODES_REACHABLE, [silent] if nodes else [], good),
        _condition(ConditionType.CONVERGED, waiting, ("Deleted", "no member is left")),
    ]


def _automatic_failover(s: Situation) -> Condition:
    type_ = ConditionType.AUTOMATIC_FAILOVER
    ha = s.ha
    if ha is not None and ha.paused:
        since = f" since {moment(ha.paused_at)}" if ha.paused_at else ""
        why = f" ({ha.pause_reason})" if ha.pause_reason else ""
        text = f"automatic failover is paused by {ha.paused_by or 'an operator'}{since}{why}"
        end = f"{text}; end it with `moorctl instance resume {s.ref}`"
        return Condition(type=type_, status=False, reason="Paused", message=end)
    if s.wanted <= 1:
        return Condition(type=type_, status=True, reason="NoneWanted", message="the spec asks for no replica")
    barred = [current.name for current in s.staying if current.desired.no_failover]
    text = f"any member but {', '.join(barred)} may take over" if barred else "any member may take over"
    return Condition(type=type_, status=True, reason="On", message=text)

"""The vocabulary of states: phases, conditions, roles, engine states.

An instance's phase is coarse and changed only by `hub.judges.lifecycle`; everything finer is a condition with a type, a
status, a reason and a sentence, as in Kubernetes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where an instance is in its life: Pending, Creating, Running <-> Modifying or Degraded; any -> Deleting."""

    PENDING = "Pending"  # accepted, not placed yet
    CREATING = "Creating"  # placed, members are being made
    RUNNING = "Running"  # every member does its work at the desired generation
    MODIFYING = "Modifying"  # healthy, but some member has not converged to the desired generation
    DEGRADED = "Degraded"  # the conditions say what is missing
    DELETING = "Deleting"  # members are being removed
    DELETED = "Deleted"  # nothing is left; the record goes next


class Role(StrEnum):
    """What a member is to its instance at the moment."""

    PRIMARY = "primary"
    REPLICA = "replica"
    UNKNOWN = "unknown"


class MemberState(StrEnum):
    """What a member's engine is doing, as its agent sees it."""

    ABSENT = "absent"  # no data directory
    CREATING = "creating"  # initdb or clone under way
    REJOINING = "rejoining"  # rewind or re-clone under way
    STARTING = "starting"  # process is there, not accepting connections yet
    RUNNING = "running"  # accepts connections in its role; a replica also streams
    LAGGING = "lagging"  # a running replica that does not stream from the leader, or is too far behind
    STOPPED = "stopped"  # cleanly stopped on purpose
    CRASHED = "crashed"  # ended unexpectedly
    FAILED = "failed"  # the agent cannot make it so; the reason says why and what to do
    DELETED = "deleted"  # everything of the member is gone from the node


class ConditionType(StrEnum):
    """What is being told about an instance."""

    PLACED = "Placed"
    PRIMARY_AVAILABLE = "PrimaryAvailable"
    REPLICAS_AVAILABLE = "ReplicasAvailable"
    REPLICATING = "Replicating"
    NODES_REACHABLE = "NodesReachable"
    CONVERGED = "Converged"
    PENDING_RESTART = "PendingRestart"
    ENGINE_TLS = "EngineTls"
    ENGINES_HEALTHY = "EnginesHealthy"
    AUTOMATIC_FAILOVER = "AutomaticFailover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One fact about an instance. `since` is wall seconds of the last change of `status`, for display only."""

    type: ConditionType
    status: bool
    reason: str  # CamelCase, stable, for programs
    message: str  # one sentence for people: what, which object, what next
    since: float = 0.0

"""What can go wrong between the hub and etcd."""

from __future__ import annotations

from core.errors import ConflictError, MoorageError, UnavailableError


class EtcdUnavailable(UnavailableError):
    """No member of etcd answered in time; the request may or may not have taken effect."""


class LeaseGone(ConflictError):
    """The lease has expired or was revoked; what hung on it is gone."""


class Compacted(MoorageError):
    """The history that a watch should resume from was compacted: list again."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history up to revision {revision} was compacted", object="etcd")
        self.revision = revision


class WatchCanceled(MoorageError):
    """Etcd ended the watch for a reason that trying again does not cure."""

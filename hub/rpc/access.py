"""Who may call what on the operator port: a bearer token, three roles, one table.

viewer reads; operator also changes instances and sees their passwords; admin also changes who takes part: projects,
nodes, join tokens, operators. `REQUIRED` names the least role for each method, and a method that is not in it cannot
be called. Where one method does several things (`Apply`, `Delete`), the table has a line for each kind of object, and
the service asks once more with `may`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from core.clock import Clock
from core.errors import DeniedError, UnauthenticatedError
from core.log import EventLog
from hub.authority import Authority, Operator, OperatorRole
from hub.rpc.errors import Context
from hub.rpc.limits import TokenBucket

RANK: Final[dict[OperatorRole, int]] = {"viewer": 0, "operator": 1, "admin": 2}

REQUIRED: Final[dict[str, OperatorRole]] = {
    "Get": "viewer",
    "List": "viewer",
    "GetStatus": "viewer",
    "WatchEvents": "viewer",
    "Explain": "viewer",
    "Apply": "operator",
    "Apply Instance": "operator",
    "Apply Project": "admin",
    "Apply Node": "admin",
    "Delete": "operator",
    "Delete Instance": "operator",
    "Delete Project": "admin",
    "Delete Node": "admin",
    "PlanFailover": "viewer",
    "GetHistory": "viewer",
    "Switchover": "operator",
    "CancelSwitchover": "operator",
    "Failover": "operator",
    "PauseFailover": "operator",
    "ResumeFailover": "operator",
    "RestartInstance": "operator",
    "PromoteInstance": "operator",
    "GetCredentials": "operator",
    "CordonNode": "admin",
    "CreateJoinToken": "admin",
    "CreateOperatorToken": "admin",
    "ListOperatorTokens": "admin",
    "RevokeOperatorToken": "admin",
    "ListAudit": "admin",
}
assert all(role in RANK for role in REQUIRED.values())

HEADER = "authorization"
_SCHEME = "bearer "

log = EventLog("hub.access")


def may(operator: Operator, verb: str) -> None:
    """DeniedError unless the operator's role suffices for the verb, a key of `REQUIRED`."""
    needed = REQUIRED[verb]
    if RANK[operator.role] < RANK[needed]:
        raise DeniedError(
            f"{verb} needs the role {needed}, and operator {operator.name!r} is {operator.role}",
            hint="Ask an admin to do it, or for a token of that role.",
        )


class Gate:
    """Lets callers in. Refusals are logged at a bounded rate, so that a flood of bad tokens does not fill the disk."""

    def __init__(self, authority: Authority, clock: Clock) -> None:
        self._authority = authority
        self._clock = clock
        self._loggable = TokenBucket(burst=20, per_s=1)

    def admit(self, context: Context, verb: str) -> Operator:
        """The caller, who has proved itself and may do this. UnauthenticatedError or DeniedError otherwise."""
        try:
            operator = self._authority.verify(_bearer(context))
            may(operator, verb)
        except DeniedError as error:
            if self._loggable.take(self._clock.now()):
                log.warning("call_refused", verb=verb, peer=context.peer(), code=error.code)
            raise
        return replace(operator, verb=verb, peer=context.peer())


def _bearer(context: Context) -> str:
    """The token in the metadata; UnauthenticatedError when there is none."""
    for key, value in context.invocation_metadata() or ():
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if key == HEADER and text.lower().startswith(_SCHEME):
            return text[len(_SCHEME) :]
    raise UnauthenticatedError(
        "no token was sent", hint="Send the metadata `authorization: Bearer mo1...`; `moorctl context` sets it."
    )

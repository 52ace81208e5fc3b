"""One tree of errors, each with what happened, to which object, and what to do next.

`code` is stable and meant for programs; `what` and `hint` are for people. The table below is the only place that knows
exit codes, gRPC status names and SQLSTATEs; edges translate with it once (`raise ... from`).
"""

from __future__ import annotations

from typing import ClassVar


class MoorageError(Exception):
    """Base of all expected failures. Carries `code`, `what`, `object` and `hint`."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"
    sqlstate: ClassVar[str] = "XX000"

    def __init__(self, what: str, *, object: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.object = object
        self.hint = hint

    def __str__(self) -> str:
        head = f"{self.object}: {self.what}" if self.object else self.what
        return f"{head}. {self.hint}" if self.hint else head


class UserError(MoorageError):
    """The request itself is wrong; the same request will fail again. `object` holds the field's path."""

    code = "bad-request"
    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"
    sqlstate = "08P01"


class NotFoundError(MoorageError):
    """The named object does not exist."""

    code = "not-found"
    exit_code = 3
    grpc_status = "NOT_FOUND"
    sqlstate = "3D000"


class ConflictError(MoorageError):
    """The object changed meanwhile, or is in a state that forbids the request."""

    code = "conflict"
    exit_code = 4
    grpc_status = "FAILED_PRECONDITION"
    sqlstate = "55000"


class UnavailableError(MoorageError):
    """A part that is needed does not answer; try again later."""

    code = "unavailable"
    retryable = True
    exit_code = 5
    grpc_status = "UNAVAILABLE"
    sqlstate = "57P03"


class DeniedError(MoorageError):
    """Who asks may not do this, or has not proved who it is."""

    code = "denied"
    exit_code = 6
    grpc_status = "PERMISSION_DENIED"
    sqlstate = "28000"


class UnauthenticatedError(DeniedError):
    """Who asks has not proved who it is: no token, or none that is good."""

    code = "unauthenticated"
    grpc_status = "UNAUTHENTICATED"


class ExistsError(ConflictError):
    """The object is there already, and the request wanted to make it."""

    code = "exists"
    grpc_status = "ALREADY_EXISTS"


class OverloadedError(UnavailableError):
    """Too many requests of this kind at the moment; try again after a pause."""

    code = "overloaded"
    grpc_status = "RESOURCE_EXHAUSTED"
    sqlstate = "53300"


class TimedOutError(MoorageError):
    """It did not happen in the time allowed; it may still happen."""

    code = "timed-out"
    retryable = True
    exit_code = 7
    grpc_status = "DEADLINE_EXCEEDED"
    sqlstate = "57P05"


class EngineError(MoorageError):
    """A database program failed. `what` ends with the tail of what it printed."""

    code = "engine"
    exit_code = 8
    grpc_status = "INTERNAL"
    sqlstate = "58000"


ERRORS: tuple[type[MoorageError], ...] = (
    MoorageError, UserError, NotFoundError, ConflictError, ExistsError, UnavailableError, OverloadedError, DeniedError,
    UnauthenticatedError, TimedOutError, EngineError,
)  # fmt: skip
BY_CODE: dict[str, type[MoorageError]] = {error.code: error for error in ERRORS}


def words(error: BaseException) -> str:
    """What the error says, or what it is when it says nothing (TimeoutError)."""
    return str(error) or repr(error)

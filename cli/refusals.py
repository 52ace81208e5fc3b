"""What a hub's refusal, or its silence, means: gRPC's errors as ours.

A hub marks its own errors, so a refusal is told from a call that was lost on the way. For what was lost the question is
whether it can have been carried out, and what is wrong with the connection, in words.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio

from core.errors import BY_CODE, ERRORS, MoorageError, UnavailableError

ERROR_KEY = "moorage-error-bin"  # JSON of code, what, object, hint
_BY_STATUS: dict[str, type[MoorageError]] = {error.grpc_status: error for error in reversed(ERRORS)}


def translate(error: grpc.aio.AioRpcError) -> MoorageError:
    """The hub's refusal as the error it was there."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            parts = parsed(value)
            if isinstance(parts, dict):
                kind = BY_CODE.get(str(parts.get("code")), MoorageError)
                texts = {name: str(parts.get(name, "")) for name in ("what", "object", "hint")}
                return kind(texts["what"], object=texts["object"], hint=texts["hint"])
        if key == "moorage-code" and value in BY_CODE:
            return BY_CODE[str(value)](error.details() or str(value))
    kind = _BY_STATUS.get(error.code().name, MoorageError)
    hint = "Hub and moorctl may be of different versions." if error.code() is grpc.StatusCode.UNIMPLEMENTED else ""
    return kind(error.details() or error.code().name.lower(), object="hub", hint=hint)


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """No answer came, as opposed to a refusal: the hub marks its own errors."""
    if any(key in {ERROR_KEY, "moorage-code"} for key, _ in error.trailing_metadata() or ()):
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # never by ourselves: what an overloaded gRPC server does
    }


def never_sent(error: grpc.aio.AioRpcError) -> bool:
    details = (error.details() or "").lower()
    return any(mark in details for mark in ("failed to connect", "dns resolution", "errors resolving"))


def tls_problem(error: grpc.aio.AioRpcError) -> str:
    """What is wrong with the secure connection, in words; empty when nothing is."""
    details = error.details() or ""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "its certificate is not from the CA of this context"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS"
    return ""


def words(error: grpc.aio.AioRpcError) -> str:
    """The reason without gRPC's wrapping."""
    details = error.details() or error.code().name.lower()
    for mark, told in (
        ("Connection refused", "connection refused"),
        ("No route to host", "no route to host"),
        ("Network is unreachable", "network is unreachable"),
        ("DNS resolution failed", "the name cannot be resolved"),
        ("errors resolving", "the name cannot be resolved"),
        ("Timeout occurred", "no connection within 3 s"),
        ("Connection reset", "connection reset"),
        ("Socket closed", "the connection was closed"),
    ):
        if mark in details:
            return told
    return details


def parsed(text: str | bytes) -> Any:
    """JSON of the hub; UnavailableError when it is none (another program answers there)."""
    try:
        return json.loads(text or "null")
    except ValueError as error:
        raise UnavailableError("the answer is not JSON", object="hub", hint="Is this a Moorage hub?") from error

"""Where expected failures become gRPC statuses, once, at the edge.

A servicer method raises `MoorageError`s and knows nothing of statuses; `@translated` (unary) and `@translated_stream`
turn them into the status of the table in `core.errors`. The status text is for people; programs read the same error
taken apart from the trailing metadata `moorage-error-bin`: JSON with `code`, `what`, `object` and `hint`.

What nobody expected is logged here with its traceback and answered by INTERNAL without a word about the inside.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from core.errors import MoorageError
from core.log import EventLog

ERROR_METADATA_KEY = "moorage-error-bin"
# Metadata travels in one HTTP/2 header list of at most 8 KiB by default: longer messages are cut, not refused.
MAX_TEXT = 1500

Context = grpc.aio.ServicerContext[Any, Any]
Self = TypeVar("Self")
Request = TypeVar("Request")
Response = TypeVar("Response")
Unary = Callable[[Self, Request, Context], Awaitable[Response]]
Stream = Callable[[Self, Request, Context], AsyncGenerator[Response, None]]

log = EventLog("hub.rpc")


def translated(method: Unary[Self, Request, Response]) -> Unary[Self, Request, Response]:
    """A unary aio method whose MoorageErrors become statuses."""

    @functools.wraps(method)
    async def call(self: Self, request: Request, context: Context) -> Response:
        try:
            return await method(self, request, context)
        except Exception as error:
            await abort(context, error, method=method.__qualname__)

    return call


def translated_stream(method: Stream[Self, Request, Response]) -> Stream[Self, Request, Response]:
    """A server-streaming aio method whose MoorageErrors become statuses."""

    @functools.wraps(method)
    async def call(self: Self, request: Request, context: Context) -> AsyncGenerator[Response, None]:
        try:
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await abort(context, error, method=method.__qualname__)

    return call


async def abort(context: Context, error: Exception, *, method: str = "") -> NoReturn:
    """End the call with the status that fits the error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, MoorageError):
        log.exception("call_failed", error, method=method)  # noqa: LOG004, PLE1205 - EventLog takes the error itself
        error = MoorageError("the hub failed in an unexpected way", hint="See the hub's log for `call_failed`.")
    status = grpc.StatusCode[error.grpc_status]
    await context.abort(status, _cut(str(error)), ((ERROR_METADATA_KEY, _detail(error)),))


def _detail(error: MoorageError) -> bytes:
    parts = {"code": error.code, "what": error.what, "object": error.object, "hint": error.hint}
    return json.dumps({name: _cut(text) for name, text in parts.items()}).encode()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

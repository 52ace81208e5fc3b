"""Where expected failures become gRPC statuses, once, at the edge.

A servicer method raises `MoorageError`s and knows nothing of statuses; `@translated` (unary) and `@translated_stream`
turn them into the status of the table in `core.errors`. The status text is for people; programs read the trailing
metadata: `moorage-code` has the error's code, and `moorage-error-bin` the error taken apart, JSON with `code`, `what`,
`object` and `hint`.

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

CODE_METADATA_KEY = "moorage-code"
ERROR_METADATA_KEY = "moorage-error-bin"
# Text and metadata travel in one HTTP/2 header list, of which gRPC takes 8 KiB: what is longer is cut, or the client
# would see an error of gRPC's own. The text's bytes may be tripled by percent-encoding, the detail's grow by a third.
TEXT_MAX_BYTES = 1200
DETAIL_MAX_BYTES = 2400
assert 3 * TEXT_MAX_BYTES + DETAIL_MAX_BYTES * 4 // 3 < 7 << 10

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
        log.unexpected("call_failed", error, method=method)
        error = MoorageError("the hub failed in an unexpected way", hint="See the hub's log for `call_failed`.")
    status = grpc.StatusCode[error.grpc_status]
    metadata = ((CODE_METADATA_KEY, error.code), (ERROR_METADATA_KEY, _detail(error)))
    await context.abort(status, _cut(str(error), TEXT_MAX_BYTES), metadata)


def _detail(error: MoorageError) -> bytes:
    parts = {"code": error.code, "what": error.what, "object": error.object, "hint": error.hint}
    limit = TEXT_MAX_BYTES
    while True:
        cut = {name: _cut(text, limit) for name, text in parts.items()}
        detail = json.dumps(cut, ensure_ascii=False).encode()
        if len(detail) <= DETAIL_MAX_BYTES:
            return detail
        limit //= 2


def _cut(text: str, max_bytes: int) -> str:
    """The text in at most so many bytes of UTF-8; half surrogates, which UTF-8 cannot carry, become question marks."""
    raw = text.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode(errors="ignore") + "…"

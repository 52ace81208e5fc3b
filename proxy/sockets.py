"""TCP as the proxy wants it: peers that vanish without a word are noticed, small messages are not held back.

No TCP_USER_TIMEOUT: it also ends connections to a peer that is alive and just does not read for a while, such as a
client that thinks about its result, or a COPY that waits for a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

KEEPALIVE_IDLE_S = 30  # with the two below: a vanished peer of an idle session is noticed within a minute
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
BACKLOG = 1024
IP_BIND_ADDRESS_NO_PORT = 24  # Linux; the name came with Python 3.12
LINGER_S = 3.0  # for a closed connection to take what was still written to it
LAST_WORD_S = 2.0  # for a client to read why it is closed


def listener(address: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bound, not listening yet. Accepted sockets inherit its options. OSError when the port is taken; `shared`: when it
    is taken by others than those that let us in."""
    sock = _new(address)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            let_others_in(sock)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def let_others_in(listening: socket.socket) -> None:
    """From now on processes of the same user may listen on its port beside it. Linux takes this also from a socket that
    listens already."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def outgoing(local_address: str) -> socket.socket:
    """Bound to the address alone: the port is chosen at connect, so that ports run out per server, not in all."""
    sock = _new(local_address)
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((local_address, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _new(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def close_soon(transport: asyncio.Transport) -> asyncio.TimerHandle:
    """Close once what was written has gone out, by force when the peer does not take it."""
    transport.close()
    return asyncio.get_running_loop().call_later(LINGER_S, transport.abort)


def part_with(transport: asyncio.Transport) -> asyncio.TimerHandle:
    """Close a client that has been told why: what it still sends is read, for its protocol to ignore, until it closes.
    A connection closed with bytes unread is reset, which may take the last word from the client before it is read."""
    if not transport.is_closing():
        transport.write_eof()
        transport.resume_reading()
    return asyncio.get_running_loop().call_later(LAST_WORD_S, transport.abort)


def read_on(transport: asyncio.Transport | None, go: bool) -> None:
    """Read, or leave it to the peer's kernel. Does nothing to a connection that is closing."""
    if transport is None or transport.is_closing():
        return
    with contextlib.suppress(RuntimeError):  # uvloop's word for a handle that has closed meanwhile
        if go:
            transport.resume_reading()
        else:
            transport.pause_reading()


def client_address(transport: asyncio.Transport) -> str:
    """Empty when the client has gone before it was asked."""
    return str((transport.get_extra_info("peername") or ("",))[0])

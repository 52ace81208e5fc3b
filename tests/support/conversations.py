"""Conversations of clients that share server connections, at random: what each sees must be what it would see on a
server of its own. The server is a model, or a real one."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from proxy.postgres import refusals
from proxy.postgres.answering import answers
from proxy.postgres.frames import Boundary
from proxy.postgres.messages import SYNC, close, error_fields, message, parse
from proxy.postgres.prepared import Held, Library, Statements
from proxy.postgres.renaming import translate
from proxy.postgres.requests import Requests

FLUSH = message(b"H")
EXECUTE = message(b"E", b"\0\0\0\0\0")
DESCRIBE_PORTAL = message(b"D", b"P\0")


def bind(name: bytes, value: bytes | None = None) -> bytes:
    values = struct.pack("!HH", 0, 0) if value is None else struct.pack("!HHI", 0, 1, len(value)) + value
    return message(b"B", b"\0" + name + b"\0" + values + b"\0\0")


def describe(name: bytes) -> bytes:
    return message(b"D", b"S" + name + b"\0")


def query(text: bytes) -> bytes:
    return message(b"Q", text + b"\0")


def split(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Whole messages, and the rest."""
    found = []
    at = 0
    while at + 5 <= len(data):
        end = at + 1 + struct.unpack_from("!I", data, at + 1)[0]
        if end > len(data):
            break
        found.append((data[at : at + 1], data[at + 5 : end]))
        at = end
    return found, data[at:]


class Backend(Protocol):
    """One session of a server."""

    def feed(self, data: bytes) -> bytes:
        """What it says to that, or has said meanwhile."""
        ...


class ModelError(Exception):
    """SQLSTATE, and what the message shows of the statement."""


class ModelServer:
    """What PostgreSQL does with these messages; `test_shared_statements` compares it with the real one."""

    def __init__(self) -> None:
        self.statements: dict[bytes, bytes] = {}
        self.unnamed: bytes | None = None
        self.portal: tuple[bytes, bytes] | None = None
        self.skipping = False
        self.state = b"I"
        self._part = b""
        self._unsaid = b""  # until the client asks for it

    def feed(self, data: bytes) -> bytes:
        messages, self._part = split(self._part + data)
        said = b""
        for kind, body in messages:
            self._unsaid += self._answer(kind, body)
            if kind in (b"S", b"Q", b"H"):
                said, self._unsaid = said + self._unsaid, b""
        return said

    def _answer(self, kind: bytes, body: bytes) -> bytes:
        if self.skipping and kind != b"S":
            return b""
        if kind == b"S":
            self.skipping = False
            return message(b"Z", self.state)
        if kind == b"Q":
            self.unnamed = None
            try:
                answer = self._run(body[:-1], b"")
            except ModelError as error:
                answer = self._fail(str(error))
            return answer + message(b"Z", self.state)
        try:
            return self._step(kind, body)
        except ModelError as error:
            self.skipping = True
            return self._fail(str(error))

    def _fail(self, code: str) -> bytes:
        if self.state == b"T":
            self.state = b"E"
        code, _, near = code.partition(" ")
        return refusals.error(code, f"no {near}", severity="ERROR")

    def _step(self, kind: bytes, body: bytes) -> bytes:
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            return self._parse(name, text)
        if kind == b"B":
            _, name, rest = body.split(b"\0", 2)
            self._may(self._find(name))
            self.portal = self._find(name), rest[8:-2]
            return message(b"2")
        if kind == b"D":
            if body[:1] == b"S":
                text = self._find(body[1:-1])
                self._may(text)
                return message(b"t", text) + message(b"n")
            return message(b"n")
        if kind == b"E":
            if self.portal is None:
                raise ModelError("34000")
            return self._run(*self.portal)
        if kind == b"C":
            if body[1:-1]:
                self.statements.pop(body[1:-1], None)
            else:
                self.unnamed = None
            return message(b"3")
        assert kind == b"H", kind
        return b""

    def _find(self, name: bytes) -> bytes:
        text = self.statements.get(name) if name else self.unnamed
        if text is None:
            raise ModelError("26000")
        return text

    def _may(self, text: bytes) -> None:
        if self.state == b"E" and text not in (b"COMMIT", b""):
            raise ModelError("25P02")

    def _parse(self, name: bytes, text: bytes) -> bytes:
        if not name:
            self.unnamed = None
        if text == b"moorage_refused" or text.startswith(b"bad"):
            raise ModelError("42601 " + text.decode())
        self._may(text)
        if name in self.statements:
            raise ModelError("42P05")
        if name:
            self.statements[name] = text
        else:
            self.unnamed = text
        return message(b"1")

    def _run(self, text: bytes, value: bytes) -> bytes:
        self._may(text)
        if text.startswith(b"bad"):
            raise ModelError("42601")
        if text.startswith(b"fail"):
            raise ModelError("22012")
        if text == b"BEGIN":
            self.state = b"T" if self.state == b"I" else self.state
        if text == b"COMMIT":
            self.state = b"I"
        tag = text.split(b" ")[0]
        if text == b"DEALLOCATE ALL":
            self.statements.clear()
            tag = text
        elif text.startswith(b"DEALLOCATE ") and self.statements.pop(text[11:], None) is None:
            raise ModelError("26000")
        row = message(b"D", text + value) if text.startswith(b"ok") else b""
        return row + message(b"C", tag + b"\0")


@dataclass
class Link:
    held: Held
    server: Backend
    boundary: Boundary = field(default_factory=Boundary)
    to_server: bytes = b""
    to_client: bytes = b""


class Client:
    """The part of the proxy that is needed to try it."""

    def __init__(self, library: Library, stream: bytes) -> None:
        self.statements = Statements(library)
        self.requests = Requests()
        self.stream = stream
        self.sent = 0
        self.got = b""
        self.link: Link | None = None

    def send(self, size: int) -> None:
        assert self.link is not None
        data = self.stream[self.sent : self.sent + size]
        self.sent += len(data)
        out = translate(self.statements, self.link.held, data, self.requests)
        self.requests.feed(data)
        self.link.to_server += out
        assert not self.statements.lost

    def receive(self, size: int) -> None:
        link, requests, statements = self.link, self.requests, self.statements
        assert link is not None
        data, link.to_client = link.to_client[:size], link.to_client[size:]
        data = answers(statements, link.held, data, link.boundary)
        link.boundary.feed(data)
        self.got += data
        if link.boundary.readies:
            requests.ready(link.boundary.readies, link.boundary.state)
        if statements.may_go_on:
            link.to_server += translate(statements, link.held, b"", requests)
        assert not statements.lost
        if requests.resting and link.boundary.between and not link.to_client and not link.to_server:
            assert statements.all_answered
            assert not statements.waits
            self.link = None


TEXTS = (b"ok1", b"ok2", b"ok3", b"fail", b"bad")
NAMES = (b"a", b"b", b"c")
STEPS_MAX = 200_000


class Writer:
    """A client's words at random. What is left out: simple queries behind extended ones without a Sync, the use of an
    unnamed statement of which a failed batch left open whether it is there, and DEALLOCATE of a name by a statement
    that is run later."""

    def __init__(self, dice: random.Random, texts: tuple[bytes, ...] = TEXTS) -> None:
        self.dice = dice
        self.texts = texts
        self.unnamed_known = True
        self.count = 0

    def batch(self) -> bytes:
        dice = self.dice
        if dice.random() < 0.2:
            self.unnamed_known = True
            texts = [*self.texts, b"BEGIN", b"COMMIT", b"COMMIT", b"DEALLOCATE ALL", b"DEALLOCATE a", b"DEALLOCATE b"]
            return query(dice.choice(texts))
        out, sure = b"", True
        for number in range(dice.randint(1, 5)):
            name = dice.choice([*NAMES, *NAMES, b""])
            kind = dice.choice("PPBBBDCXA")
            if kind == "P":
                out += parse(name, dice.choice(self.texts))
                if not name:
                    sure, self.unnamed_known = number == 0, True
            elif kind == "B" and (name or self.unnamed_known):
                self.count += 1
                out += bind(name, b"%d" % self.count) + dice.choice([b"", DESCRIBE_PORTAL]) + EXECUTE
            elif kind == "D" and (name or self.unnamed_known):
                out += describe(name)
            elif kind == "C":
                out += close(name)
            elif kind == "A" and dice.random() < 0.4:
                out += (
                    parse(b"", dice.choice([b"DEALLOCATE ALL", b"DEALLOCATE a", b"DEALLOCATE b"])) + bind(b"") + EXECUTE
                )
                self.unnamed_known = False
            elif dice.random() < 0.3:
                out += FLUSH
        self.unnamed_known = self.unnamed_known and sure
        return out + SYNC


def shown(data: bytes) -> list[tuple[bytes, bytes]]:
    """For comparison; of errors the SQLSTATE only."""
    messages, rest = split(data)
    assert not rest
    return [(kind, error_fields(body)["C"].encode() if kind == b"E" else body) for kind, body in messages]


def converse(seed: int, begin: Callable[[], Backend] = ModelServer, texts: tuple[bytes, ...] = TEXTS) -> None:
    """`begin`: a new session at the server."""
    dice = random.Random(seed)
    library = Library()
    clients = []
    for _ in range(dice.randint(1, 3)):
        writer = Writer(dice, texts)
        clients.append(Client(library, b"".join(writer.batch() for _ in range(dice.randint(1, 10))) + query(b"COMMIT")))
    links = [Link(Held(dice.randint(1, 4)), begin()) for _ in range(2)]
    patience = dice.choice([0.0, 0.5, 1.0])  # how much a client waits for answers
    chunk = dice.choice([3, 30, 1000])
    for _ in range(STEPS_MAX):
        client = dice.choice(clients)
        if client.link is not None:
            step(client, client.link, dice, patience, chunk)
        elif client.sent < len(client.stream):
            free = [one for one in links if all(other.link is not one for other in clients)]
            client.link = dice.choice(free) if free else None
        elif all(one.link is None and one.sent == len(one.stream) for one in clients):
            break
    else:
        raise AssertionError(f"it never ends: {seed}")
    for client in clients:
        expected, seen = alone(begin(), client.stream), shown(client.got)
        assert seen == expected, (seed, split(client.stream)[0])
    check_ends(clients, links, library)


def step(client: Client, link: Link, dice: random.Random, patience: float, chunk: int) -> None:
    """Something is sent, carried out or heard."""
    turn = dice.random()
    if turn < 0.3 and client.sent < len(client.stream):
        if not client.statements.waits and (dice.random() >= patience or not client.requests.outstanding):
            client.send(dice.randint(1, chunk))
    elif turn < 0.6:
        size = dice.randint(1, chunk)
        link.to_client += link.server.feed(link.to_server[:size])
        link.to_server = link.to_server[size:]
    elif link.to_client:
        client.receive(dice.randint(1, chunk))


def alone(server: Backend, stream: bytes) -> list[tuple[bytes, bytes]]:
    """What a server of its own answers."""
    owed = sum(kind in (b"S", b"Q") for kind, _ in split(stream)[0])
    heard = server.feed(stream)
    for _ in range(STEPS_MAX):
        messages, rest = split(heard)
        if not rest and sum(kind == b"Z" for kind, _ in messages) == owed:
            return shown(heard)
        heard += server.feed(b"")
    raise AssertionError("it does not answer")


def check_ends(clients: list[Client], links: list[Link], library: Library) -> None:
    """What is thought to be at the server is there, within its bound, and nothing is kept for ever."""
    for link in links:
        if isinstance(link.server, ModelServer):
            there = {name for name in link.server.statements if re.fullmatch(rb"moorage_\d+", name)}
            assert {one.name for one in link.held.names} == there
        assert len(link.held.names) <= link.held.limit + 5  # a batch may need more
        link.held.clear()
    for client in clients:
        assert not client.statements.pending
        client.statements.release()
    assert library.pool.bytes == 0

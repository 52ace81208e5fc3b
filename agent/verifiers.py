"""Answers the proxy's question by what a user's password is checked.

Declared users are told ahead, of all instances with a member here. For any other role the engine beside is asked, once
for all questions that came meanwhile: a storm of logins costs one query at a time.

An engine beside that is away (cloned anew, say), and a replica that does not know a role, which may not have come to it
yet, have the leader's agent asked as well.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

from core.errors import MoorageError, words
from core.ids import InstanceRef, MemberRef
from core.log import EventLog
from core.records import InstanceView, MemberSecrets, PeerMember
from core.routes import Declared, Passwords, VerifierAnswer, VerifierAsk

log = EventLog("agent.verifiers")
BATCH_MAX = 1000  # users in one query
PEER_ANSWER_S = 0.8  # with the engine's own second less than the proxy waits
MOCK_CONTEXT = b"moorage mock verifiers\0"


class Kept(Protocol):
    """A member of this node, as far as passwords go."""

    ref: MemberRef
    secrets: MemberSecrets
    instance: InstanceView | None
    deleted: bool

    async def verifiers(self, users: list[str]) -> dict[str, str | None]:
        """Of its engine; MoorageError when it does not answer."""


class Peers(Protocol):
    """The way to other members' agents."""

    async def verifiers(
        self, ref: InstanceRef, peer: PeerMember, users: list[str], *, timeout_s: float
    ) -> dict[str, str | None]:
        """Of the peer's engine; UnavailableError when it does not answer."""


class Desk:
    """One an agent."""

    def __init__(self, members: Mapping[MemberRef, Kept], peers: Peers) -> None:
        self._members = members
        self._peers = peers

    def declared(self) -> Declared:
        return Declared(
            passwords={
                str(member.ref.instance): Passwords(
                    mock_secret=mock_secret(member.secrets), verifiers=_declared(member)
                )
                for member in self._members.values()
                if not member.deleted
            }
        )

    def conversation(self, group: asyncio.TaskGroup, say: Callable[[VerifierAnswer], None]) -> Conversation:
        """With one proxy, as long as the group lives."""
        return Conversation(self, group, say)

    async def look(self, instance: str, users: list[str]) -> list[VerifierAnswer]:
        """An answer for each user; if nobody could say, that it was not found out."""
        member = self._member(instance)
        found: dict[str, str | None] = {user: None for user in users if not _is_text(user)}
        asked = [user for user in users if user not in found]
        if member is not None and asked:
            found |= await self._of(member, asked)
            missing = [user for user in asked if found.get(user) is None]
            if missing:
                found |= await self._of_leader(member, missing)
        return [
            VerifierAnswer(instance=instance, user=user, found=user in found, verifier=found.get(user))
            for user in users
        ]

    async def _of(self, member: Kept, users: list[str]) -> dict[str, str | None]:
        """Of the engine beside; nothing when it does not answer."""
        try:
            return await member.verifiers(users)
        except (MoorageError, OSError) as error:
            log.info("verifiers_not_found_out", member=str(member.ref), users=len(users), error=words(error))
            return {}

    async def _of_leader(self, member: Kept, users: list[str]) -> dict[str, str | None]:
        """Of the leader, when it is on another node; nothing when it does not answer."""
        view, ref = member.instance, member.ref
        name = view.leader.member if view is not None and view.leader is not None else ref.member
        leader = next((peer for peer in view.members if peer.member == name), None) if view is not None else None
        if leader is None or leader.member == ref.member:
            return {}
        try:
            return await self._peers.verifiers(ref.instance, leader, users, timeout_s=PEER_ANSWER_S)
        except MoorageError as error:
            log.info("verifiers_not_found_out", member=f"{ref.instance}/{name}", users=len(users), error=words(error))
            return {}

    def _member(self, instance: str) -> Kept | None:
        try:
            ref = InstanceRef.parse(instance)
        except ValueError:
            return None
        return next((one for one in self._members.values() if one.ref.instance == ref and not one.deleted), None)


class Conversation:
    """What one proxy asks, by instance; at most one query an instance is under way."""

    def __init__(self, desk: Desk, group: asyncio.TaskGroup, say: Callable[[VerifierAnswer], None]) -> None:
        self._desk = desk
        self._group = group
        self._say = say
        self._waiting: dict[str, dict[str, None]] = {}  # users, in order, each once; bounded by what the proxy asks
        self._busy: set[str] = set()

    def asked(self, ask: VerifierAsk) -> None:
        self._waiting.setdefault(ask.instance, {})[ask.user] = None
        if ask.instance not in self._busy:
            self._busy.add(ask.instance)
            self._group.create_task(self._work_off(ask.instance), name=f"verifiers of {ask.instance}")

    async def _work_off(self, instance: str) -> None:
        try:
            while users := list(self._waiting.pop(instance, ())):
                for at in range(0, len(users), BATCH_MAX):
                    for answer in await self._desk.look(instance, users[at : at + BATCH_MAX]):
                        self._say(answer)
        finally:
            self._busy.discard(instance)


def _declared(member: Kept) -> dict[str, str]:
    """The roles of a standby instance have the passwords that they have at its remote primary: its engine is asked."""
    standby = member.instance is not None and member.instance.ha.standby
    return {} if standby else dict(member.secrets.verifiers)


def _is_text(user: str) -> bool:
    """A name whose bytes are no UTF-8 is nobody's."""
    try:
        return bool(user.encode())
    except UnicodeEncodeError:
        return False


def mock_secret(secrets: MemberSecrets) -> str:
    """The same on all nodes of an instance, and nothing a client could know."""
    return hashlib.sha256(MOCK_CONTEXT + secrets.replication_password.encode()).hexdigest()

"""By what passwords are checked: the verifier of each user, as the agent told it or its engine keeps it.

Those of declared users are told ahead, so that they log in also while the agent is away. Of any other role the agent is
asked, which asks the engine beside it; an answer serves for a second, so that a role that was made or changed by SQL
can log in as soon as that. Whoever turns out not to fit (a wrong password, an engine that keeps another verifier) is
`doubt`ed, and asked for anew at the next login.

When the agent cannot say, what is known serves on; that a user does not exist is believed only when it was just told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from core.clock import Clock
from core.errors import UnavailableError
from core.log import EventLog
from core.routes import Declared, VerifierAnswer, VerifierAsk
from core.scram import Verifier

log = EventLog("proxy.verifiers")
FRESH_S = 1.0  # an answer serves so long without asking again
ASK_TIMEOUT_S = 2.0  # the agent, and through it the engine
SILENT_S = 5.0  # an agent that did not answer in time is not waited for so long, though asked
ASKS_MAX = 256  # on their way at once; more logins than that of different users wait for nothing
REMEMBERED_MAX = 10_000  # answers kept, for when the agent is away
NAME_BYTES_MAX = 1024  # of a user; the engine's names are shorter, and longer ones are nobody's
Key = tuple[str, str]  # instance, user
Answer = Verifier | None | UnavailableError


class UnusableError(Exception):
    """The role has a password that the proxy cannot check."""


@dataclass(slots=True)
class Known:
    """What the engine was last known to keep; `text` is None when there was no password."""

    text: str | None = field(repr=False)
    at_s: float
    doubted: bool = False


class Verifiers:
    """One a process; `ask` is the way to the agent, and says whether there is one."""

    def __init__(self, clock: Clock, *, ask_timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._now = clock.now
        self._ask_timeout_s = ask_timeout_s
        self._declared: dict[Key, str] = {}
        self._mock_secrets: dict[str, bytes] = {}
        self._own_secret = secrets.token_bytes(32)  # for an instance of which nothing was told yet
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self._asked: dict[Key, asyncio.Future[bool]] = {}
        self._silent_until_s = 0.0
        self.ask: Callable[[VerifierAsk], bool] = lambda _ask: False

    # --- for sessions -------------------------------------------------------------------------------------------------

    async def find(self, instance: str, user: str) -> Verifier | None:
        """None when the user has no password or does not exist. UnavailableError when that cannot be known just now,
        UnusableError when the password is kept in a form that cannot be checked here."""
        if not self.knows(instance, user):
            return await self._asked_for(instance, user)
        return self.at_once(instance, user)

    def knows(self, instance: str, user: str) -> bool:
        """Whether `find` need not ask."""
        key = (instance, user)
        known, declared = self._known.get(key), self._declared.get(key)
        if known is not None and not known.doubted and self._now() < known.at_s + FRESH_S:
            return True
        if declared is not None and (known is None or (known.text == declared and not known.doubted)):
            return True
        return len(user.encode(errors="surrogateescape")) > NAME_BYTES_MAX

    def at_once(self, instance: str, user: str) -> Verifier | None:
        """What `find` says where it need not ask."""
        key = (instance, user)
        known = self._known.get(key)
        text = known.text if known is not None else self._declared.get(key)
        return _usable(text, user)

    async def _asked_for(self, instance: str, user: str) -> Verifier | None:
        key = (instance, user)
        declared = self._declared.get(key)
        if await self._ask(key):
            return _usable(self._known[key].text, user)
        known = self._known.get(key)
        text = declared if known is None or known.text is None else known.text
        if text is None:
            raise UnavailableError(
                "this proxy cannot check passwords of roles made by SQL just now: the node's agent or engine is away",
                object=instance,
                hint="Try again, or connect to another node's proxy.",
            )
        return _usable(text, user)

    def doubt(self, instance: str, user: str) -> None:
        """What `find` said did not fit: ask before it is believed again."""
        key = (instance, user)
        known = self._known.get(key)
        if known is not None:
            known.doubted = True
        elif (declared := self._declared.get(key)) is not None:
            self._remember(key, Known(declared, self._now(), doubted=True))

    def mock_secret(self, instance: str) -> bytes:
        """For questions to users that do not exist."""
        return self._mock_secrets.get(instance, self._own_secret)

    # --- for the agent's side -----------------------------------------------------------------------------------------

    def declare(self, declared: Declared) -> None:
        """Replaces all that was declared before."""
        verifiers = {
            (instance, user): text
            for instance, passwords in declared.passwords.items()
            for user, text in passwords.verifiers.items()
        }
        mock_secrets = {name: bytes.fromhex(one.mock_secret) for name, one in declared.passwords.items()}
        for key in verifiers.keys() | self._declared.keys():
            if verifiers.get(key) != self._declared.get(key):
                self._known.pop(key, None)
        self._declared, self._mock_secrets = verifiers, mock_secrets

    def answered(self, answer: VerifierAnswer) -> None:
        """Answers that nobody waits for any more are good to know as well."""
        key = (answer.instance, answer.user)
        if answer.found:
            self._remember(key, Known(answer.verifier, self._now()))
        self._silent_until_s = 0.0
        waiting = self._asked.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.found)

    def agent_gone(self) -> None:
        """Nobody will answer what was asked."""
        asked, self._asked, self._silent_until_s = self._asked, {}, 0.0
        for waiting in asked.values():
            if not waiting.done():
                waiting.set_result(False)

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _ask(self, key: Key) -> bool:
        """Whether the agent has answered; logins of one user ask once together."""
        waiting = self._asked.get(key)
        if waiting is None:
            if len(self._asked) >= ASKS_MAX or not self.ask(VerifierAsk(instance=key[0], user=key[1])):
                return False
            waiting = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._now() < self._silent_until_s:
            return False
        await asyncio.wait({waiting}, timeout=self._ask_timeout_s)
        if waiting.done():
            return waiting.result() and key in self._known
        if self._asked.get(key) is waiting:
            del self._asked[key]
        self._silent_until_s = self._now() + SILENT_S
        log.info("verifier_not_answered", instance=key[0])
        return False

    def _remember(self, key: Key, known: Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


def _usable(text: str | None, user: str) -> Verifier | None:
    if text is None:
        return None
    try:
        return Verifier.parse(text)
    except ValueError as error:
        raise UnusableError(
            f'the password of user "{user}" is not kept as SCRAM-SHA-256: set it anew, with password_encryption ='
            " 'scram-sha-256'"
        ) from error

"""How long this member may rely on its leadership, counted on this host's monotonic clock from what was *sent*.

A lease of etcd lasts `ttl` from some moment after the agent sent the request that renewed it, so the agent's own
deadline `sent + ttl - margin(ttl)` is over before etcd's is. Only the rates of clocks matter, never what they show. A
promise of the peers (failsafe) is counted just so: from when they were asked. The later of both is `fence_at`.

Two things never come back:
- a lease that is *gone* is not renewed by a heartbeat, even if the node has meanwhile another one for other instances;
- a term that was *released* is spent, whatever became of the request: it may still be on its way to etcd, and would
  then take the leadership from under a primary that has started again. `spent` is kept on disk for the same reason.
"""

from __future__ import annotations

from agent.ha.view import Lease

# Every fraction is of the TTL (6 s by default, at least 3 s), so that all relations hold for every TTL.
RENEW = 1 / 3  # heartbeats of a node that leads; two of them may be lost before the fence
ASK_AFTER = 1 / 2  # without a renewal for so long the peers are asked
ASK_EVERY = 1 / 6  # and again, so that one lost answer does not fence
MARGIN = 1 / 4  # covers DRIFT between two clocks and FENCING
DRIFT = 0.10  # largest difference of rates between two hosts; chrony slews by at most 8.3 %
FENCING = 1 / 6  # from the deadline to the last write of the engine: stop at once takes 0.1-0.3 s, a kill 0.5 s

ASK_TIMEOUT_S = 1.0  # the peers' answers count for so long after they were asked
ASKS_KEPT_MAX = 16  # a primary asks every TTL/6, a promise lasts a TTL
ROUNDING_S = 0.001  # of a deadline that went through a file

assert 2 * RENEW < 1 - MARGIN, "one lost renewal must leave time for another"
assert ASK_AFTER + ASK_EVERY < 1 - MARGIN, "the peers must be asked twice before the fence"
assert (1 - MARGIN) * (1 + DRIFT) + FENCING <= 1, "the fence must be done before etcd may give the leadership away"


def margin_s(ttl_s: float) -> float:
    """Seconds before the end of a lease or promise by which the engine is being fenced."""
    return ttl_s * MARGIN


class LeaseClock:
    """The leadership of one member. Times are monotonic; `term` 0 = none."""

    def __init__(self) -> None:
        self._term = 0
        self._renewed_at = 0.0
        self._held_until = 0.0  # by the lease; 0 = no lease carries the leadership (any more)
        self._granted_until = 0.0  # by the promises of all peers
        self.spent = 0  # no term up to this one is ever used again

    @staticmethod
    def restored(*, term: int, renewed_at: float, fence_at: float, ttl_s: float, spent: int = 0) -> LeaseClock:
        """As it was when the former agent of this host's boot ended. A deadline that the last renewal does not explain
        was promised by peers: then only `acquired` makes the lease count again, not a renewal of some lease."""
        clock = LeaseClock()
        clock._term, clock._renewed_at, clock.spent = term, renewed_at, spent
        if fence_at <= renewed_at + ttl_s - margin_s(ttl_s) + ROUNDING_S:
            clock._held_until = fence_at
        else:
            clock._granted_until = fence_at
        return clock

    @property
    def term(self) -> int:
        return self._term

    def lease(self) -> Lease:
        return Lease(term=self._term, renewed_at=self._renewed_at, fence_at=max(self._held_until, self._granted_until))

    def acquired(self, term: int, sent_at: float, ttl_s: float) -> None:
        """The leadership of `term` is held on a lease that had its whole TTL when a request sent at `sent_at` came in:
        an Acquire, or a heartbeat whose answer confirmed the very lease that this member's leader key hangs on."""
        if term <= self.spent or term < self._term:
            return
        if term > self._term:
            self._granted_until = 0.0  # was promised to the former term
            self._held_until = self._renewed_at = 0.0
        self._term = term
        self._extend(sent_at, ttl_s)

    def renewed(self, sent_at: float, ttl_s: float) -> None:
        """The hub confirmed the lease in answer to a heartbeat sent at `sent_at`; answers may come out of order."""
        if self._term and self._held_until:
            self._extend(sent_at, ttl_s)

    def gone(self) -> None:
        """The lease does not exist any more. What the peers have promised still holds."""
        self._held_until = 0.0
        if not self._granted_until:
            self._spend()

    def granted(self, asked_at: float, promise_s: float) -> None:
        """Every other member, asked at `asked_at`, has promised not to stand for `promise_s`."""
        if self._term:
            self._granted_until = max(self._granted_until, asked_at + promise_s - margin_s(promise_s))

    def released(self) -> None:
        """Call *before* a Release is sent: from now on this term is led no more, even if the hub never learns."""
        self._spend()

    def _spend(self) -> None:
        self.spent = max(self.spent, self._term)
        self._term = 0
        self._renewed_at = self._held_until = self._granted_until = 0.0

    def _extend(self, sent_at: float, ttl_s: float) -> None:
        self._renewed_at = max(self._renewed_at, sent_at)
        self._held_until = max(self._held_until, sent_at + ttl_s - margin_s(ttl_s))


class Vouching:
    """Until when this node's proxy may send clients to another member's primary that goes on by promises alone.

    One promise given says nothing about the others: only when the primary tells that *everybody* granted one of its
    questions, it goes on, until that question's time plus the promise, less the margin. The question was asked at most
    `ASK_TIMEOUT_S` before this member granted it, for a later answer would not have counted. So a question that lay in
    the socket of a frozen agent for a while vouches for nothing.
    """

    def __init__(self) -> None:
        self._of: tuple[str, int] = ("", 0)
        self._granted: dict[int, float] = {}  # the primary's number of a question -> when it was granted here
        self.until = 0.0

    @property
    def member(self) -> str:
        return self._of[0]

    @property
    def term(self) -> int:
        return self._of[1]

    def granted(self, member: str, term: int, *, ask: int, all_granted: int, promise_s: float, now: float) -> None:
        """This member grants question `ask` of `member`; `all_granted` is its last that everybody granted, 0 = none."""
        if self._of != (member, term):
            self._of, self._granted, self.until = (member, term), {}, 0.0
        self._granted[ask] = now
        while len(self._granted) > ASKS_KEPT_MAX:
            del self._granted[next(iter(self._granted))]
        at = self._granted.get(all_granted)
        if at is not None:
            self.until = max(self.until, at - ASK_TIMEOUT_S + promise_s - margin_s(promise_s))

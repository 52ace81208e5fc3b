"""Positions in a replication stream as ordered values.

PostgreSQL prints an LSN as two hexadecimal halves, `16/B374D848`; inside it is one 64-bit byte offset. A position on
one timeline is comparable with a position on another only by timeline first: the higher timeline has seen a later
promotion.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Lsn:
    """A byte offset in the write-ahead log; 0 = unknown or nothing yet."""

    value: int = 0

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __sub__(self, other: Lsn) -> int:
        """Bytes between the two; negative when the other is ahead."""
        return self.value - other.value

    @staticmethod
    def parse(text: str) -> Lsn:
        """From PostgreSQL's `X/Y`; ValueError when it is not of that form."""
        high, slash, low = text.partition("/")
        if not slash:
            raise ValueError(f"LSN {text!r} is not of the form X/Y")
        return Lsn((int(high, 16) << 32) + int(low, 16))


@dataclass(frozen=True, slots=True, order=True)
class WalPosition:
    """How far a member is: timeline first, then LSN."""

    timeline: int = 0
    lsn: Lsn = Lsn()

    def __str__(self) -> str:
        return f"{self.lsn} on timeline {self.timeline}"

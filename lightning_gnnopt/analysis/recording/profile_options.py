"""What a profile records of which steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["plain", "timed", "memory", "detail"]

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the unit interval evenly, and never come back


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What is recorded of which steps.

    Attributes:
        skip_batches: Steps at the beginning that are not timed: they compile and warm up.
        memory_every: After those, of every so many steps one is recorded for its memory, and not timed; 0 records none.
            It is the first of the first ones, and then moves among them, so that the length of an epoch does not
            decide which batches are recorded.
        detail_batches: Of so many of those each tensor is followed.
        max_batches: Steps that are recorded at all.
        trace_batches: Of so many timed steps each stretch is kept.

    Raises:
        ValueError: If a number is negative, or `max_batches` not above `skip_batches`.
    """

    skip_batches: int = 3
    memory_every: int = 10
    detail_batches: int = 2
    max_batches: int = 1000
    trace_batches: int = 0

    def __post_init__(self) -> None:
        for name in ("skip_batches", "memory_every", "detail_batches", "trace_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, but got {getattr(self, name)}.")
        if self.max_batches <= self.skip_batches:
            raise ValueError(
                f"`max_batches` must be above `skip_batches`, but is {self.max_batches} and {self.skip_batches}."
                " HINT: steps that are skipped count among them."
            )

    def mode(self, step: int) -> Mode:
        """Say what is recorded of a step."""
        place = step - self.skip_batches
        if place < 0:
            return "plain"
        if self.memory_every == 0:
            return "timed"
        stretch, place = divmod(place, self.memory_every)
        if place != int(stretch * _GOLDEN % 1 * self.memory_every):
            return "timed"
        return "detail" if stretch < self.detail_batches else "memory"

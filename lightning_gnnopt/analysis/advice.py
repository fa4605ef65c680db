"""Rules that turn a profile's numbers into advice."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gnnopt.analysis.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a rule has to say.

    Attributes:
        rule: Name of the rule, such as ``"waits_for_batches"``.
        finding: What was found, one sentence with its numbers.
        remedy: What to do about it, one sentence with what it would bring; ``""`` if there is nothing to do.
        speedup: Bound of what it would bring, as time before over time after; 1 if it does not save time.
    """

    rule: str
    finding: str
    remedy: str
    speedup: float = 1.0


def advise(facts: Facts) -> list[Advice]:
    """Apply all rules, those that save most first, then those on memory, then those that only explain."""
    raise NotImplementedError


def verdict(facts: Facts) -> str:
    """Say in one sentence what the bottleneck is."""
    raise NotImplementedError

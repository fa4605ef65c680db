"""What a rule says."""

from __future__ import annotations

from dataclasses import dataclass


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

"""The thesis that the studies repeat: its models, and its claims beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = ("gcn", "ggnn", "gat", "gaan")
"""The models of the thesis: vertex and edge computation low and low, high and low, low and high, high and high."""


@dataclass(frozen=True)
class Finding:
    """A claim of the thesis, and what was measured.

    Attributes:
        name: Short name.
        claim: What the thesis says.
        measured: What was measured, one sentence with its numbers.
        agrees: Whether it agrees; None if it was not measured.
    """

    name: str
    claim: str
    measured: str
    agrees: bool | None

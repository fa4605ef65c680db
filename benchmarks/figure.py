"""One number of a benchmark, and what it has to reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.rounds import median

Sense = Literal[">=", "<="]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number.

    Attributes:
        name: What was measured.
        value: The number; for figures made by :meth:`of_runs` the median of `runs`.
        unit: Its unit: ``"s"``, ``"edges/s"``, ``"x"`` for a ratio, ``"share"`` for a part of 1.
        runs: The number in each round; empty where it was not measured by rounds.
        reach: What it has to reach, or None if it is only reported.
        sense: On which side of `reach` it must lie; None exactly where `reach` is.

    Raises:
        ValueError: If one of `reach` and `sense` is given without the other, `sense` is unknown, or a number is not
            finite.

    Examples:
        >>> Figure(name="speed-up", value=1.9, unit="x", reach=1.85, sense=">=").met
        True
    """

    name: str
    value: float
    unit: str
    runs: tuple[float, ...] = ()
    reach: float | None = None
    sense: Sense | None = None

    def __post_init__(self) -> None:
        if (self.reach is None) != (self.sense is None) or self.sense not in (None, ">=", "<="):
            raise ValueError(
                f"`reach` and `sense` of figure {self.name!r} must be a number with '>=' or '<=', or both None, but got"
                f" {self.reach} and {self.sense!r}. HINT: leave both out for a figure that is only reported."
            )
        numbers = (self.value, *self.runs, 0.0 if self.reach is None else self.reach)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(
                f"`value`, `runs` and `reach` of figure {self.name!r} must be finite, but got {self.value},"
                f" {list(self.runs)} and {self.reach}. HINT: leave out a figure that could not be measured, and say"
                " why in a row."
            )

    @classmethod
    def of_runs(
        cls, name: str, runs: Sequence[float], *, unit: str, reach: float | None = None, sense: Sense | None = None
    ) -> Figure:
        """Make the figure that is the median of its runs.

        Args:
            name: What was measured.
            runs: The number in each round.
            unit: Its unit.
            reach: What it has to reach, or None if it is only reported.
            sense: On which side of `reach` it must lie.

        Raises:
            ValueError: If there is no run, or the constructor refuses an argument.
        """
        return cls(name=name, value=median(runs), unit=unit, runs=tuple(runs), reach=reach, sense=sense)

    @property
    def met(self) -> bool | None:
        """Whether the value reaches what it has to; None if the figure is only reported."""
        if self.reach is None:
            return None
        return self.value >= self.reach if self.sense == ">=" else self.value <= self.reach

    def as_dict(self) -> dict[str, Any]:
        """Lay the figure out as in the JSON file."""
        return {
            "name": self.name,
            "value": self.value,
            "reach": self.reach,
            "sense": self.sense,
            "unit": self.unit,
            "runs": list(self.runs),
        }

"""A profile as a person wants to read it: a sentence, tables, figures, a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from lightning_gnnopt.analysis.advice import Advice
from lightning_gnnopt.analysis.facts import Facts
from lightning_gnnopt.analysis.records import Records


class BottleneckReport:
    """Where the time and the memory of a run went, and what can be done about it.

    Args:
        records: What was recorded.
        title: Heading of the page; by default the model, the dataset and the device.

    Attributes:
        records: What was recorded.
        facts: The numbers that its conclusions rest on.
        advice: What follows from them, most useful first.
        verdict: The bottleneck in one sentence.
    """

    def __init__(self, records: Records, *, title: str | None = None) -> None:
        self.records = records
        self.facts: Facts
        self.advice: Sequence[Advice]
        self.verdict: str
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path | str) -> BottleneckReport:
        """Read the records that :meth:`save` wrote."""
        raise NotImplementedError

    def to_frame(self, table: str = "times") -> Any:
        """One table of the records as a `pandas.DataFrame`; see `Records.to_frame`."""
        return self.records.to_frame(table)

    def plot(self, kind: str = "phases", ax: Any = None) -> tuple[Any, Any]:
        """Draw one figure; see `plots.KINDS`."""
        raise NotImplementedError

    def save(self, folder: Path | str) -> list[Path]:
        """Write `report.html`, `records/` and `figures/`."""
        raise NotImplementedError

    def __rich__(self) -> Group:
        raise NotImplementedError

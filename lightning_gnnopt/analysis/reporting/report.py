"""A profile as a person wants to read it: a sentence, tables, figures, a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Group

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.advising import advise, verdict
from lightning_gnnopt.analysis.conclusions.breakdown import Breakdown
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.folders import not_writable
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.analysis.reporting.page import inline_svg, render_page
from lightning_gnnopt.analysis.reporting.plots import KINDS
from lightning_gnnopt.analysis.reporting.terminal import render_report

_FORMATS: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
_NO_FIGURES = "Figures are not drawn: matplotlib is not installed. HINT: pip install 'lightning-gnnopt[plots]'."


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
        breakdown: The records, added up by phase, layer and part.
        title: Heading of the page.
    """

    def __init__(self, records: Records, *, title: str | None = None) -> None:
        self.records = records
        self.facts = Facts.from_records(records)
        self.advice: Sequence[Advice] = advise(self.facts)
        self.verdict = verdict(self.facts)
        self.breakdown: Breakdown = Breakdown(records)
        self.title = title or _title(records)

    @classmethod
    def load(cls, folder: Path | str) -> BottleneckReport:
        """Read the records that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no report in the folder.
        """
        path = Path(folder) / "records"
        if not (path / "info.json").is_file():
            raise FileNotFoundError(
                f"`{folder}` must hold the report of a profile, but has no `records/info.json`."
                " HINT: give the folder that `BottleneckReport.save` wrote; `Records.load` reads records alone."
            )
        return cls(Records.load(path))

    @property
    def available(self) -> tuple[str, ...]:
        """Kinds of figures that there is data for; see `plots.KINDS`."""
        return tuple(kind for kind, drawing in KINDS.items() if drawing.has_data(self))

    def to_frame(self, table: str = "times") -> Any:
        """One table of the records as a `pandas.DataFrame`; see `Records.to_frame`."""
        return self.records.to_frame(table)

    def plot(self, kind: str = "phases", ax: Any = None) -> tuple[Any, Any]:
        """Draw one figure.

        Args:
            kind: What to draw; see `plots.KINDS`.
            ax: Matplotlib axes to draw on (`sampling_sweep`: two, `graph_sweep`: three for each sweep); a new figure by
                default.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If there is no such kind, or no data for it.
        """
        if kind not in KINDS:
            hint = f"HINT: there is data for {', '.join(self.available) or 'none of them'}."
            raise ValueError(f"{unknown_name('kind of figure', kind, KINDS)} {hint}")
        return KINDS[kind](self, ax)

    def save(self, folder: Path | str) -> list[Path]:
        """Write `report.html`, `records/` and `figures/`, a PNG and an SVG for each kind that there is data for.

        Files of an earlier report in the folder are replaced, or removed. Without matplotlib there are no figures.

        Returns:
            The files.

        Raises:
            OSError: If the folder cannot be written to.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = self.records.save(folder / "records")
            missing = _no_figures()
            written += self._save_figures(folder / "figures", [] if missing else self.available)
            svgs = {} if missing else {kind: inline_svg(self, kind) for kind in self.available}
            _write(folder / "report.html", render_page(self, svgs, missing))
        except OSError as error:
            raise not_writable(folder, error) from error
        if missing:
            rank_zero_warn(missing)
        return [folder / "report.html", *written]

    def _save_figures(self, folder: Path, kinds: Sequence[str]) -> list[Path]:
        written = []
        for kind in KINDS:
            for suffix in _FORMATS:
                (folder / f"{kind}.{suffix}").unlink(missing_ok=True)  # of an earlier report
        for kind in kinds:
            figure, _ = self.plot(kind)
            for suffix, options in _FORMATS.items():
                written.append(folder / f"{kind}.{suffix}")
                save_figure(figure, written[-1], **options)
        return written

    def __rich__(self) -> Group:
        return render_report(self)


def _title(records: Records) -> str:
    info = records.info
    model, dataset, device = (str(info[name]) if info.get(name) else "" for name in ("model", "dataset", "device"))
    title = f"{model or 'A model'} on {dataset}" if dataset else model
    return ", ".join(part for part in (title, device) if part) or "Bottleneck report"


def _no_figures() -> str:
    """A sentence if figures cannot be drawn."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ModuleNotFoundError:
        return _NO_FIGURES
    return ""


def _write(path: Path, text: str) -> None:
    """Write a file at once: whoever reads it meanwhile finds the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

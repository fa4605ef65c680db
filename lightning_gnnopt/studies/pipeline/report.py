"""The study as a whole: tables and figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.studies.cells import Cell, load_cells
from lightning_gnnopt.studies.pipeline.plots import FIGURES
from lightning_gnnopt.studies.pipeline.tables import (
    THESIS_SLOWER,
    Row,
    Summary,
    cells_markdown,
    rows_of,
    summarize,
    summary_markdown,
    to_csv,
)


class PipelineReport:
    """The tables and figures of the study.

    Args:
        cells: Its cells.

    Attributes:
        rows: A row for each side of each cell; of a cell that failed, one with its error.
        summaries: What was found by side and sampler.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.rows: list[Row] = rows_of(cells)
        self.summaries: list[Summary] = summarize(self.rows)

    @classmethod
    def load(cls, folder: Path | str) -> PipelineReport:
        """Read the cells in a folder.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If a file is no cell.
        """
        return cls(load_cells(folder))

    @property
    def failed(self) -> list[Row]:
        """The cells without numbers."""
        return [row for row in self.rows if row.error]

    @property
    def num_cells(self) -> int:
        """The cells, those that failed included."""
        return len({row.setting for row in self.rows})

    def plot(self, name: str, ax: Any = None) -> tuple[Any, Any]:
        """Draw one figure.

        Args:
            name: ``"theory"``, ``"cells"`` or ``"effect"``.
            ax: Axes to draw on, as many as the figure has; a new figure by default.

        Returns:
            The figure, and an array of its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If there is no such figure, or no cell it could show.
        """
        if name not in FIGURES:
            raise ValueError(unknown_name("figure of the study", name, FIGURES))
        if not self.summaries:
            raise ValueError(f"`{name}` has nothing to show: no cell has numbers. HINT: `error` of the rows says why.")
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                "Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.",
                name="matplotlib",
            )
        return FIGURES[name](self.rows, ax)

    def markdown(self) -> str:
        """Write all tables for people."""
        slower, cells = THESIS_SLOWER
        return (
            "### Speed-up of an epoch in a steady state\n\n"
            f"{summary_markdown(self.summaries)}\n"
            f"In the thesis, prefetching made {slower} of {cells} cells with neighbour sampling slower. `theory` is the"
            " median of the largest speed-ups possible, `effect` that of the parts of them that were measured; `whole"
            " fit` has the validation process's start-up in it.\n\n"
            "### All cells\n\n"
            "Beside each measured speed-up, the largest one possible.\n\n"
            f"{cells_markdown(self.rows)}"
        )

    def save(self, folder: Path | str) -> list[Path]:
        """Write `tables.md`, `cells.csv`, `summary.csv` and, with matplotlib, `figures/`.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The files.

        Raises:
            OSError: If the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "tables.md": self.markdown(),
            "cells.csv": to_csv(self.rows),
            "summary.csv": to_csv(self.summaries),
        }
        written = [folder / name for name in texts]
        for path in written:
            path.write_text(texts[path.name], encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is None or not self.summaries:
            return written
        for name in FIGURES:
            for ending in ("png", "svg"):
                figure, _ = self.plot(name)
                path = folder / "figures" / f"{name}.{ending}"
                save_figure(figure, path, dpi=150)
                written.append(path)
        return written

"""A study as a whole: tables, findings, figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.studies.bottleneck.findings import findings, findings_markdown
from lightning_gnnopt.studies.bottleneck.folder import Cell, load_cells
from lightning_gnnopt.studies.bottleneck.plots import FIGURES, has_data
from lightning_gnnopt.studies.bottleneck.tables import tables_of
from lightning_gnnopt.studies.tables import StudyTable, to_csv
from lightning_gnnopt.studies.thesis import Finding


class StudyReport:
    """The tables and figures of a study, and what they say beside the thesis.

    Args:
        cells: Its profiles.

    Attributes:
        cells: Its profiles.
        tables: Tables by name; see `tables_of`.
        findings: Claims of the thesis, and what was measured.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = list(cells)
        self.tables: dict[str, StudyTable] = tables_of(self.cells)
        self.findings: list[Finding] = findings(self.tables)

    @classmethod
    def load(cls, folder: Path | str) -> StudyReport:
        """Read the profiles in a folder.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If a file was written by another version.
        """
        return cls(load_cells(folder))

    def plot(self, name: str, ax: Any = None) -> tuple[Any, Any]:
        """Draw one figure.

        Args:
            name: One of `study_plots.FIGURES`.
            ax: Axes to draw on, as many as the figure has; a new figure by default.

        Returns:
            The figure, and an array of its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If there is no such figure, or no profile it could show.
        """
        if name not in FIGURES:
            raise ValueError(unknown_name("figure of the study", name, FIGURES))
        if not has_data(name, self.tables):
            raise ValueError(
                f"`{name}` has nothing to show: no profile of the study tells. HINT: run more settings of it."
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                "Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.",
                name="matplotlib",
            )
        drawn: tuple[Any, Any] = FIGURES[name](self.cells, self.tables, ax)
        return drawn

    def markdown(self) -> str:
        """Write findings and tables for people."""
        tables = "\n".join(table.markdown() for table in self.tables.values() if table.rows)
        return f"### Findings\n\n{findings_markdown(self.findings)}\n{tables}"

    def save(self, folder: Path | str) -> list[Path]:
        """Write `tables.md`, `tables.csv` and, with matplotlib, `figures/`.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The files.

        Raises:
            OSError: If the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "tables.md", folder / "tables.csv"]
        written[0].write_text(self.markdown(), encoding="utf-8")
        written[1].write_text(to_csv(self.tables.values()), encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is None:
            return written
        for name in FIGURES:
            if not has_data(name, self.tables):
                continue
            for ending in ("png", "svg"):
                figure, _ = self.plot(name)
                path = folder / "figures" / f"{name}.{ending}"
                save_figure(figure, path, dpi=150)
                written.append(path)
        return written

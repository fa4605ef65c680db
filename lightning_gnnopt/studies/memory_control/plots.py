"""The figures of the study: small multiples, a row of panels for each graph, a column for each model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gnnopt.analysis.reporting.plots_style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes,
    byte_unit,
    ink,
    plain,
    tidy,
)
from lightning_gnnopt.studies.cells import Cell
from lightning_gnnopt.studies.memory_control.accuracy import SPLIT, WHOLE
from lightning_gnnopt.studies.memory_control.tables import data_of, model_of, ordered

Drawn = tuple[Any, Any]

_NAMES = {"gcn": "GCN", "ggnn": "GGNN", "gat": "GAT", "gaan": "GaAN"}
_KINDS = {
    "forest": (ORANGE, "s"),
    "boosting": (PURPLE, "v"),
    "linear": (SKY, "^"),
    "max_affine": (GREEN, "D"),
    "analytic": (BLUE, "."),
}
_SCORES = {"random": (GREY, "o"), "degree": (BLUE, "s"), "pagerank": (GREEN, "^")}
_OTHER = (DARK, "x")


def draw_predictions(cells: Sequence[Cell], ax: Any = None) -> Drawn:
    """Draw predicted against measured bytes of the unseen batches, a colour for each predictor."""
    panels = _panels(cells, "predictors", ax)
    for one, mine in panels.cells():
        most = max((max(cell.result["measured"]) for cell in mine), default=0.0)
        unit, name = byte_unit(most)
        ends: list[float] = []
        for cell in mine:
            measured = np.asarray(cell.result["measured"], float) / unit
            ends += [float(measured.min()), float(measured.max())]
            for kind, found in _by_name(cell.result["kinds"], _KINDS).items():
                color, marker = _KINDS.get(kind, _OTHER)
                if "predicted" in found:
                    predicted = np.asarray(found["predicted"], float) / unit
                    one.plot(measured, predicted, marker, color=color, markersize=3, alpha=0.6, label=kind)
        if ends:
            one.plot([min(ends), max(ends)], [min(ends), max(ends)], color=ink(), linewidth=0.8, label="exact")
            one.set_title(f"[{name}]", loc="right", fontsize="x-small")
        tidy(one, "both")
    return panels.finish(xlabel="measured growth of a step", ylabel="predicted")


def draw_accuracy(cells: Sequence[Cell], ax: Any = None) -> Drawn:
    """Draw the accuracy on the test nodes against the share of edges cut, a line for each score."""
    panels = _panels(cells, "accuracy", ax)
    for one, mine in panels.cells():
        sides = {str(cell.config["variant"]): cell.result["points"] for cell in mine}
        start = list(sides.get(WHOLE, []))
        for side, points in _by_name(sides, _SCORES).items():
            if side in (WHOLE, SPLIT):
                continue
            color, marker = _SCORES.get(side, _OTHER)
            _line(one, [*start, *points], color=color, marker=marker, label=side)
        for points, color, style, label in (
            (start, ink(), ":", "no edge cut"),
            (sides.get(SPLIT, []), VERMILION, "--", "in parts, no edge cut"),
        ):
            for point in points:
                level = 100 * statistics.fmean(point["accuracies"])
                one.axhline(level, color=color, linestyle=style, linewidth=1.0, label=label)
        tidy(one, "both")
    return panels.finish(xlabel="edges cut in training [%]", ylabel="accuracy [%]")


def draw_peaks(cells: Sequence[Cell], ax: Any = None) -> Drawn:
    """Draw the peaks of all steps in order of size over the limit, without and with control, for each policy."""
    panels = _panels(cells, "limit", ax)
    colors = (BLUE, GREEN, ORANGE, PURPLE, SKY)
    policies = list(dict.fromkeys(_policy(cell) for cell in panels.all))
    for one, mine in panels.cells():
        for cell in mine:
            limit = cell.result["limit_bytes"]
            style = "-" if cell.config["settings"]["sampler"] == "neighbor" else "--"
            shares = np.linspace(0, 100, len(cell.result["before"]))
            one.plot(shares, 100 * np.sort(cell.result["before"]) / limit, style, color=GREY, label="without control")
            after = 100 * np.sort(cell.result["after"]) / limit
            color = colors[policies.index(_policy(cell)) % len(colors)]
            one.plot(np.linspace(0, 100, len(after)), after, style, color=color, label=_policy(cell))
        one.axhline(100, color=VERMILION, linewidth=1.0, label="the limit")
        tidy(one, "both")
    return panels.finish(xlabel="steps, smallest first [%] (dashed: clusters)", ylabel="peak / limit [%]")


FIGURES: Mapping[str, Callable[..., Drawn]] = MappingProxyType(
    {"predictions": draw_predictions, "accuracy": draw_accuracy, "peaks": draw_peaks}
)
"""Figures by name; each is called with the cells and, optionally, axes."""
_PART_OF = {"predictions": "predictors", "accuracy": "accuracy", "peaks": "limit"}


def has_data(name: str, cells: Iterable[Cell]) -> bool:
    """Whether a figure would show anything."""
    return any(cell.config["part"] == _PART_OF[name] and not cell.error for cell in cells)


class _Grid:
    """Panels for graphs and models."""

    def __init__(self, cells: Sequence[Cell], ax: Any) -> None:
        self.all = [cell for cell in cells if not cell.error]
        self._data = list(dict.fromkeys(data_of(cell) for cell in cells))
        self._models = list(dict.fromkeys(model_of(cell) for cell in cells))
        count = len(self._data) * len(self._models)
        size = (1.4 + 2.4 * len(self._models), 1.2 + 1.9 * len(self._data))
        self._axes = np.atleast_1d(axes(ax, count, columns=len(self._models), size=size))

    def cells(self) -> Iterable[tuple[Any, list[Cell]]]:
        """Each panel, and what belongs into it."""
        pairs = [(data, model) for data in self._data for model in self._models]
        for one, pair in zip(self._axes, pairs, strict=True):
            mine = [cell for cell in self.all if (data_of(cell), model_of(cell)) == pair]
            if not mine:
                one.text(0.5, 0.5, "no result", ha="center", transform=one.transAxes, style="italic", fontsize="small")
            yield one, mine

    def finish(self, *, xlabel: str, ylabel: str) -> Drawn:
        """Write models above the columns, graphs beside the rows, and one legend for all."""
        entries: dict[str, Any] = {}
        for place, one in enumerate(self._axes):
            row, column = divmod(place, len(self._models))
            if row == 0:
                one.set_title(_NAMES.get(self._models[column], self._models[column]), fontsize="medium")
            if column == 0:
                one.set_ylabel(plain(self._data[row]), fontsize="small")
            one.tick_params(labelsize="x-small")
            for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        figure = self._axes[0].figure
        figure.supxlabel(xlabel, fontsize="medium")
        figure.supylabel(ylabel, fontsize="medium")
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=1 + len(self._models),
            frameon=False, fontsize="small",
        )  # fmt: skip
        return figure, self._axes


def _panels(cells: Sequence[Cell], part: str, ax: Any) -> _Grid:
    return _Grid([cell for cell in ordered(cells) if cell.config["part"] == part], ax)


def _line(ax: Any, points: Sequence[Mapping[str, Any]], **look: Any) -> None:
    shares = [100 * point["share"] for point in points]
    means = [100 * statistics.fmean(point["accuracies"]) for point in points]
    spreads = [100 * statistics.pstdev(point["accuracies"]) for point in points]
    ax.errorbar(shares, means, spreads, capsize=2, linewidth=1.2, markersize=4, **look)


def _by_name(found: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Known names in their order, then the others."""
    names = [name for name in known if name in found]
    return {name: found[name] for name in [*names, *(name for name in found if name not in names)]}


def _policy(cell: Cell) -> str:
    return ", ".join(cell.config["settings"]["on_exceed"])

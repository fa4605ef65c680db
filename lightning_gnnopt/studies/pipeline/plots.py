"""The figures of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gnnopt.analysis.reporting.plots_style import BLUE, GREEN, ORANGE, VERMILION, axes, ink, plain, tidy
from lightning_gnnopt.studies.pipeline.tables import COMPARED, Row, values

Drawn = tuple[Any, Any]

_NAMES = {"prefetch": "prefetching", "async": "validation beside training", "both": "both"}
_COLORS = {"prefetch": BLUE, "async": ORANGE, "both": GREEN}
_MARKERS = {"neighbor": "o", "cluster": "^"}
_OTHER_MARKER = "s"


def draw_theory(rows: Sequence[Row], ax: Any = None) -> Drawn:
    """Draw measured against theoretical speed-ups, a panel for each side and a point for each cell."""
    panels = np.atleast_1d(axes(ax, len(COMPARED), size=(11, 3.9)))
    for side, one in zip(COMPARED, panels, strict=True):
        _points(one, _of(rows, side), "theory", "speedup")
        ends = [*values(_of(rows, side), "theory"), *values(_of(rows, side), "speedup"), 1.0]
        low, high = min(ends) - 0.05, max(ends) + 0.05
        one.plot([low, high], [low, high], color=ink(), linewidth=0.8, linestyle="--")
        one.axhline(1.0, color=VERMILION, linewidth=0.8)
        one.set(title=_NAMES[side], xlim=(low, high), ylim=(low, high), xlabel="theoretical speed-up")
        tidy(one, "both")
    panels[0].set_ylabel("measured speed-up")
    panels[0].legend(frameon=False, fontsize="small")
    return panels[0].figure, panels


def draw_cells(rows: Sequence[Row], ax: Any = None) -> Drawn:
    """Draw the speed-ups of each cell as bars, its theoretical ones as ticks; a panel for each sampler."""
    rows = [row for row in rows if row.side]
    samplers = list(dict.fromkeys(row.sampler for row in rows))
    settings = {name: list(dict.fromkeys(row.setting for row in rows if row.sampler == name)) for name in samplers}
    most = max(len(found) for found in settings.values())
    panels = np.atleast_1d(axes(ax, len(samplers), size=(1.5 + 4.5 * len(samplers), 1.4 + 0.42 * most)))
    height = 0.8 / len(COMPARED)
    for sampler, one in zip(samplers, panels, strict=True):
        for place, side in enumerate(COMPARED):
            mine = {row.setting: row for row in _of(rows, side)}
            found = [mine[setting] for setting in settings[sampler]]
            y = np.arange(len(found)) + (place - 1) * height
            one.barh(y, values(found, "speedup"), height, color=_COLORS[side], label=_NAMES[side])
            one.plot(values(found, "theory"), y, "|", color=ink(), markersize=5, label="theory" if not place else None)
        one.axvline(1.0, color=VERMILION, linewidth=0.8)
        one.set_yticks(range(len(settings[sampler])), [_label(setting) for setting in settings[sampler]])
        one.set_ylim(len(settings[sampler]) - 0.5, -0.5)
        one.tick_params(axis="y", labelsize="x-small")
        one.set(title=sampler, xlabel="speed-up of an epoch")
        tidy(one, "x")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    return panels[0].figure, panels


def draw_effect(rows: Sequence[Row], ax: Any = None) -> Drawn:
    """Draw the part of the theoretical speed-up that was measured, against what the baseline takes for a pass."""
    panels = np.atleast_1d(axes(ax, len(COMPARED), size=(11, 3.6)))
    for side, one in zip(COMPARED, panels, strict=True):
        _points(one, _of(rows, side), "pass_s", "effect")
        one.axhline(1.0, color=ink(), linewidth=0.8, linestyle="--")
        one.set(title=_NAMES[side], xscale="log", xlabel="the baseline's time for one pass [s]")
        tidy(one, "both")
    panels[0].set_ylabel("measured / theoretical speed-up")
    panels[0].legend(frameon=False, fontsize="small")
    return panels[0].figure, panels


FIGURES: Mapping[str, Callable[..., Drawn]] = MappingProxyType(
    {"theory": draw_theory, "cells": draw_cells, "effect": draw_effect}
)
"""Figures by name; each is called with the rows and, optionally, axes."""


def _of(rows: Sequence[Row], side: str) -> list[Row]:
    return [row for row in rows if row.side == side]


def _points(ax: Any, rows: Sequence[Row], x: str, y: str) -> None:
    for sampler in dict.fromkeys(row.sampler for row in rows):
        mine = [row for row in rows if row.sampler == sampler]
        ax.plot(
            values(mine, x), values(mine, y), _MARKERS.get(sampler, _OTHER_MARKER), color=_COLORS[mine[0].side],
            label=sampler, markersize=5, alpha=0.7, fillstyle="full" if sampler == "neighbor" else "none",
        )  # fmt: skip


def _label(setting: tuple[str, str, str, int, int]) -> str:
    data, model, _, batch_size, hidden = setting
    return f"{plain(data)} {model}, {batch_size}/{hidden}"

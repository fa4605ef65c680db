"""The figures of the study: small multiples over models and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lightning_gnnopt.analysis.conclusions.breakdown import Breakdown
from lightning_gnnopt.analysis.reporting.plots_style import (
    BLUE,
    GREEN,
    KIND_COLORS,
    ORANGE,
    PART_COLORS,
    PURPLE,
    SKY,
    STAGE_COLORS,
    VERMILION,
    axes,
    byte_unit,
    ink,
    paper,
    plain,
    tidy,
    time_unit,
)
from lightning_gnnopt.studies.bottleneck.findings import THESIS_EXPANSION
from lightning_gnnopt.studies.bottleneck.folder import Cell
from lightning_gnnopt.studies.bottleneck.settings import EFFECTS
from lightning_gnnopt.studies.tables import StudyRow, StudyTable

Tables = Mapping[str, StudyTable]
Drawn = tuple[Any, Any]

_NAMES = {"gcn": "GCN", "ggnn": "GGNN", "gat": "GAT", "gaan": "GaAN"}
_LOOKS = {"gcn": (BLUE, "o"), "ggnn": (GREEN, "s"), "gat": (ORANGE, "^"), "gaan": (VERMILION, "D")}
_OTHER_LOOK = (PURPLE, "v")
_VISIBLE = 0.002  # share of a bar from which on it can be seen
_EFFECT_AXES = {"hidden": "hidden size", "heads": "heads", "layers": "layers"}


def draw_vertex_edge(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw how the forward and backward pass divides into vertex and edge computation, a panel for each model."""
    series = {
        "vertex": ("vertex", KIND_COLORS["vertex"]),
        "edge": ("edge", KIND_COLORS["edge"]),
        "outside": ("outside the layers", KIND_COLORS[""]),
    }
    return _stacked_by_model(tables["vertex_edge"], series, "share of forward and backward [%]", ax)


def draw_edge_steps(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw how the edge computation divides into its steps, a panel for each model."""
    rows = tables["edge_steps"].rows
    series = {
        column: (column.replace("_", " "), PART_COLORS["" if column == "between" else column])
        for column, unit in tables["edge_steps"].columns.items()
        if unit == "%" and any((row.values.get(column) or 0.0) >= _VISIBLE for row in rows)
    }
    return _stacked_by_model(tables["edge_steps"], series, "share of the edge computation [%]", ax)


def draw_effects_time(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw how the time of a step grows with hidden size, heads and depth; a row of panels for each graph."""
    return _effects(tables, "step", "a step", time_unit, ax)


def draw_effects_memory(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw how the peak of a step grows with hidden size, heads and depth; a row of panels for each graph."""
    return _effects(tables, "peak", "peak, with the batch", byte_unit, ax)


def draw_expansion(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw peaks over bytes loaded by graph, a line for each model; full batches, and the sampled one with most."""
    rows = tables["expansion"].rows
    data, models = _names(rows, "data"), _names(rows, "model")
    pair = axes(ax, 2, size=(11, 4.2))
    for one, title, is_full in zip(
        pair, ("full batches", "sampled batches, the setting with most"), (True, False), strict=True
    ):
        for model in models:
            color, marker = _LOOKS.get(model, _OTHER_LOOK)
            points: dict[str, float] = {}
            for row in rows:
                ratio = row.values.get("expansion")
                if row.model == model and (row.setting == "full") == is_full and ratio is not None:
                    points[row.data] = max(ratio, points.get(row.data, 0.0))
            places = [place for place, name in enumerate(data) if name in points]
            one.plot(
                places, [points[data[place]] for place in places], marker, color=color, label=_NAMES.get(model, model)
            )
            if is_full and model in THESIS_EXPANSION:
                one.axhline(
                    THESIS_EXPANSION[model], color=color, linestyle="--", linewidth=1.0,
                    label=f"most in the thesis, {_NAMES[model]}",
                )  # fmt: skip
        one.set_xticks(range(len(data)), [plain(name) for name in data], rotation=30, ha="right")
        one.set(title=title, ylabel="peak / bytes of the batch", xlim=(-0.5, len(data) - 0.5))
        _plain_log(one)
        tidy(one, "y")
    _legend(pair[0].figure, [pair[0]])
    return pair[0].figure, pair


def draw_sampling(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw where the time of sampled batches goes: rows of panels for graphs, columns for models."""
    grid, data, models, rows = _grid(tables["sampling"], ax)
    for (row_name, model), one in zip([(d, m) for d in data for m in models], grid, strict=True):
        mine = [row for row in rows if (row.data, row.model) == (row_name, model)]
        totals_s = [
            sum(row.values.get(name) or 0.0 for name in ("sample", "slice", "transfer", "compute")) for row in mine
        ]
        _stack(
            one,
            [_short(row.setting) for row in mine],
            {
                stage: (
                    color,
                    [
                        100 * (row.values.get("compute" if stage == "step" else stage) or 0.0) / total if total else 0.0
                        for row, total in zip(mine, totals_s, strict=True)
                    ],
                )
                for stage, color in STAGE_COLORS.items()
            },
        )
        for place, (row, total_s) in enumerate(zip(mine, totals_s, strict=True)):
            unit, name = time_unit(total_s)
            if row.error:
                _say_failed(one, place, row.error)
            elif total_s:
                one.text(102, place, _number(total_s / unit) + f" {name}", va="center", fontsize="x-small")
        one.set(xlim=(0, 130), xticks=range(0, 101, 50))
    _frame(grid, data, models, xlabel="share of a batch's time [%]")
    _legend(grid[0].figure, grid)
    return grid[0].figure, grid


def draw_batches(cells: Sequence[Cell], tables: Tables, ax: Any = None) -> Drawn:
    """Draw box plots of the batches' peaks: rows of panels for graphs, columns for models."""
    grid, data, models, rows = _grid(tables["batches"], ax)
    peaks = {
        (cell.data, cell.model, cell.setting): [
            p for found in Breakdown(cell.records).peaks_bytes.values() for p in found
        ]
        for cell in cells
    }
    for (row_name, model), one in zip([(d, m) for d in data for m in models], grid, strict=True):
        mine = [row for row in rows if (row.data, row.model) == (row_name, model)]
        found = [peaks.get((row.data, row.model, row.setting), []) for row in mine]
        unit, name = byte_unit(max((p for group in found for p in group), default=0.0))
        places = [place for place, group in enumerate(found) if group]
        if places:
            one.boxplot(
                [np.asarray(found[place], float) / unit for place in places],
                positions=places,
                orientation="horizontal",
                widths=0.6,
                patch_artist=True,
                boxprops={"facecolor": SKY, "edgecolor": ink()},
                medianprops={"color": ink(), "linewidth": 1.6},
                flierprops={"marker": ".", "markersize": 3},
                manage_ticks=False,
            )
            one.set_xlim(left=0)
        for place, row in enumerate(mine):
            if row.error:
                _say_failed(one, place, row.error, relative=True)
        _set_names(one, [_short(row.setting) for row in mine])
        tidy(one, "x")
        one.set_xlabel(f"[{name}]", fontsize="small")
    _frame(grid, data, models, xlabel="")
    grid[0].figure.supxlabel("peak of a step, with its batch", fontsize="medium")
    return grid[0].figure, grid


FIGURES: Mapping[str, Callable[..., Drawn]] = MappingProxyType(
    {
        "vertex_edge": draw_vertex_edge,
        "edge_steps": draw_edge_steps,
        "effects_time": draw_effects_time,
        "effects_memory": draw_effects_memory,
        "expansion": draw_expansion,
        "sampling": draw_sampling,
        "batches": draw_batches,
    }
)
"""Figures by name; each is called with the profiles, the tables and, optionally, axes."""


def has_data(name: str, tables: Tables) -> bool:
    """Whether a figure would show anything."""
    of = {"effects_time": EFFECTS, "effects_memory": EFFECTS}.get(name, (name,))
    return any(
        value is not None
        for table in of
        for row in tables[table].rows
        for column, value in row.values.items()
        if column not in ("value", "measured")  # which say nothing of a profile
    )


def _stacked_by_model(table: StudyTable, series: Mapping[str, tuple[str, str]], xlabel: str, ax: Any) -> Drawn:
    data, models = _names(table.rows, "data"), _names(table.rows, "model")
    found = {(row.data, row.model): row for row in table.rows}
    panels = np.atleast_1d(axes(ax, len(models), size=(2.2 + 2.5 * len(models), 1.6 + 0.34 * len(data))))
    for model, one in zip(models, panels, strict=True):
        rows = [found.get((name, model)) for name in data]
        _stack(
            one,
            data,
            {
                label: (color, [100 * ((row.values.get(column) if row else None) or 0.0) for row in rows])
                for column, (label, color) in series.items()
            },
        )
        for place, row in enumerate(rows):
            if row is None or row.error:
                _say_failed(one, place, row.error if row else "not run")
        one.set(title=_NAMES.get(model, model), xlim=(0, 100), xlabel=xlabel if len(models) == 1 else "")
        one.tick_params(labelleft=one is panels[0])
    if len(models) > 1:
        panels[0].figure.supxlabel(xlabel, fontsize="medium")
    _legend(panels[0].figure, panels)
    return panels[0].figure, panels


def _effects(tables: Tables, column: str, what: str, unit_of: Any, ax: Any) -> Drawn:
    effects = [effect for effect in EFFECTS if any(row.values for row in tables[effect].rows)]
    data = list(dict.fromkeys(row.data for effect in effects for row in tables[effect].rows))
    grid = np.atleast_1d(
        axes(ax, len(data) * len(effects), columns=len(effects), size=(1 + 3.3 * len(effects), 0.8 + 2.6 * len(data)))
    )
    for place, one in enumerate(grid):
        name, effect = data[place // len(effects)], effects[place % len(effects)]
        rows = [row for row in tables[effect].rows if row.data == name and row.values.get(column) is not None]
        unit, unit_name = unit_of(max((row.values[column] or 0.0 for row in rows), default=0.0))
        for model in _names(rows, "model"):
            color, marker = _LOOKS.get(model, _OTHER_LOOK)
            mine = [row for row in rows if row.model == model]
            x, y = [row.values["value"] for row in mine], [(row.values[column] or 0.0) / unit for row in mine]
            one.plot(x, y, marker=marker, color=color, label=_NAMES.get(model, model))
        ticks = sorted({row.values["value"] or 0.0 for row in rows})
        one.set(
            title=plain(name),
            xlabel=_EFFECT_AXES[effect],
            ylabel=f"{what} [{unit_name}]",
            xscale="log" if rows else "linear",
        )
        one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        _plain_log(one)
        one.minorticks_off()
        tidy(one, "both")
    _legend(grid[0].figure, grid)
    return grid[0].figure, grid


def _grid(table: StudyTable, ax: Any) -> tuple[Any, list[str], list[str], Sequence[StudyRow]]:
    rows = table.rows
    data, models = _names(rows, "data"), _names(rows, "model")
    bars = max(sum((row.data, row.model) == (d, m) for row in rows) for d in data for m in models)
    size = (1.4 + 2.7 * len(models), 1.2 + (0.75 + 0.2 * bars) * len(data))
    return np.atleast_1d(axes(ax, len(data) * len(models), columns=len(models), size=size)), data, models, rows


def _frame(grid: Any, data: Sequence[str], models: Sequence[str], *, xlabel: str) -> None:
    """Write models above the columns and graphs beside the rows."""
    for place, one in enumerate(grid):
        row, column = divmod(place, len(models))
        if row == 0:
            one.set_title(_NAMES.get(models[column], models[column]))
        if column == 0:
            one.set_ylabel(plain(data[row]), fontsize="small")
        if row == len(data) - 1 and xlabel:
            one.set_xlabel(xlabel, fontsize="small")
        one.tick_params(labelsize="x-small", labelleft=column == 0)


def _stack(ax: Any, names: Sequence[str], series: Mapping[str, tuple[str, Sequence[float]]]) -> None:
    left = np.zeros(len(names))
    for label, (color, values) in series.items():
        ax.barh(
            np.arange(len(names)), values, 0.72, left=left, color=color, edgecolor=paper(), linewidth=0.6, label=label
        )
        left = left + np.asarray(values, float)
    _set_names(ax, names)
    tidy(ax, "x")


def _set_names(ax: Any, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)


def _say_failed(ax: Any, place: int, error: str, *, relative: bool = False) -> None:
    text = "out of memory" if error.startswith("Out of memory") else "not run" if error == "not run" else "not possible"
    transform = ax.get_yaxis_transform() if relative else ax.transData
    ax.text(0.03 if relative else 2, place, text, va="center", fontsize="x-small", style="italic", transform=transform)


def _legend(figure: Any, panels: Iterable[Any]) -> None:
    entries: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=min(len(entries), 8), frameon=False,
        fontsize="small", handlelength=1.4,
    )  # fmt: skip


def _plain_log(ax: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not any(value > 0 for line in ax.lines for value in line.get_ydata()):  # nothing that could be drawn so
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _names(rows: Iterable[StudyRow], key: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, key) for row in rows))


def _short(setting: str) -> str:
    return setting.removeprefix("sampler=").replace("-", ", ", 1)

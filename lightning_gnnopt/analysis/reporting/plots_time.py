"""Figures of where the time goes: phases of a step, layers, parts of edge computations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_gnnopt.analysis.conclusions.breakdown import OUTSIDE, LayerTime, largest_layers, part_names
from lightning_gnnopt.analysis.reporting.plots_style import (
    HATCH,
    KIND_COLORS,
    PART_COLORS,
    PHASE_COLORS,
    STAGE_COLORS,
    Drawing,
    Series,
    axes,
    bar_height,
    legend,
    paper,
    plain,
    stack,
    text_color,
    tidy,
    time_unit,
)

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

_MOST = 16  # layers that are drawn one by one
_DWARFS = 1.5  # times the longest bar of a single layer
_WRITTEN = 0.055  # of the axis: a segment that is shorter has no room for its share
_NO_STEPS = (
    "`{kind}` needs timed steps, but there are none. HINT: train more than `GNNProfiler(skip_batches=...)` steps."
)
_NO_LAYERS = (
    "`{kind}` needs the times of layers, but none was timed. HINT: profile a model with PyG's `MessagePassing`"
    " layers that is neither compiled nor scripted, for more than `GNNProfiler(skip_batches=...)` steps."
)


def _phases(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    phases = report.breakdown.phase_s
    beside = beside_stages(report)
    total_s = sum(phases.values())
    longest_s = max(total_s, sum(beside.values()))
    unit, name = time_unit(longest_s)
    ax = axes(ax, size=(9, 1.1 + 0.24 * (len(phases) + len(beside))))
    bars = [(0, phase, seconds, PHASE_COLORS.get(phase, "#b0b0b0")) for phase, seconds in phases.items()]
    bars += [(1, stage, seconds, STAGE_COLORS[stage]) for stage, seconds in beside.items()]
    left = [0.0, 0.0]
    for row, label, seconds, color in bars:
        share = f", {100 * seconds / total_s:.1f} %" if row == 0 else ", in the loader"
        text = f"{label}: {_time(seconds)}{share}"
        ax.barh(row, seconds / unit, 0.62, left=left[row] / unit, color=color, edgecolor=paper(), label=plain(text, 60))
        if seconds > _WRITTEN * longest_s:
            written = f"{100 * seconds / total_s:.0f} %" if row == 0 else label
            middle = (left[row] + seconds / 2) / unit
            ax.text(middle, row, written, ha="center", va="center", fontsize="small", color=text_color(color))
        left[row] += seconds
    rows = ["a step", "the loader,\nbeside it"][: 2 if beside else 1]
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=f"time [{name}]", ylim=(len(rows) - 0.5, -0.5))
    tidy(ax, "x")
    legend(ax)
    return ax.figure, ax


def beside_stages(report: BottleneckReport) -> dict[str, float]:
    """Mean seconds of what the loader does for a batch beside training, by stage; empty if it does not."""
    facts = report.facts
    if not facts.beside:
        return {}
    stages = {"sample": facts.sample_s, "slice": facts.slice_s, "transfer": facts.transfer_s}
    if report.breakdown.phase_s.get("transfer"):  # the training loop does it itself
        del stages["transfer"]
    return {stage: seconds for stage, seconds in stages.items() if seconds}


def _describe_phases(report: BottleneckReport) -> str:
    return f"A bar of a training step: {_shares(report.breakdown.phase_s)}."


def _shares(seconds: Mapping[str, float]) -> str:
    total_s = sum(seconds.values())
    return ", ".join(f"{name} {100 * s / total_s:.1f} %" for name, s in seconds.items())


def _layers(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    rows = shown_layers(report)
    kinds = [
        (kind, phase)
        for kind in ("vertex", "edge", "")
        for phase in ("forward", "backward")
        if any(row.kind_s.get((kind, phase), 0.0) > 0 for row in rows)
    ]
    unit, name = time_unit(max(row.total_s for row in rows if row.layers == 1))
    ax = axes(ax, size=(9, bar_height(len(rows), len(kinds))))
    series = [
        Series(
            f"{kind or 'other'}, {phase}",
            [row.kind_s.get((kind, phase), 0.0) / unit for row in rows],
            KIND_COLORS[kind],
            HATCH if phase == "backward" else "",
            0.55 if phase == "backward" else 1.0,
        )
        for kind, phase in kinds
    ]
    stack(ax, [row.layer for row in rows], series)
    _cut(ax, rows, [row.total_s for row in rows], unit)
    ax.set_xlabel(f"time in a step [{name}]")
    return ax.figure, ax


def shown_layers(report: BottleneckReport, most: int = _MOST) -> list[LayerTime]:
    """The layers that took most time, the others as one, and what lies outside them."""
    rows = report.breakdown.layer_times
    outside = [row for row in rows if row.layer == OUTSIDE]
    return largest_layers((row for row in rows if row.layer != OUTSIDE), most) + outside


def _describe_layers(report: BottleneckReport) -> str:
    rows = report.breakdown.layer_times
    total_s = sum(row.total_s for row in rows)
    largest = max(rows, key=lambda row: row.total_s)
    return (
        f"Bars of {len(rows)} layers' vertex and edge computations, forward and backward."
        f" The longest is {largest.layer} with {100 * largest.total_s / total_s:.1f} %."
    )


def _edge_parts(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    rows = shown_edges(report)
    parts = part_names(rows)
    unit, name = time_unit(max(row.edge_s for row in rows if row.layers == 1))
    ax = axes(ax, size=(9, bar_height(len(rows), len(parts))))
    series = [
        Series(
            part or "between them",
            [row.part_s.get(part, 0.0) / unit for row in rows],
            PART_COLORS.get(part, PART_COLORS[""]),
        )
        for part in parts
    ]
    stack(ax, [row.layer for row in rows], series)
    _cut(ax, rows, [row.edge_s for row in rows], unit)
    ax.set_xlabel(f"time of edge computations in a step [{name}]")
    return ax.figure, ax


def shown_edges(report: BottleneckReport, most: int = _MOST) -> list[LayerTime]:
    """Layers with edge computations; those that took most time, and the others as one."""
    return largest_layers((row for row in report.breakdown.layer_times if row.edge_s > 0), most)


def _describe_parts(report: BottleneckReport) -> str:
    rows = report.breakdown.layer_times
    sums = {part or "between them": sum(row.part_s.get(part, 0.0) for row in rows) for part in part_names(rows)}
    return f"Bars of the layers' edge computations: {_shares(sums)}."


def _time(seconds: float) -> str:
    unit, name = time_unit(seconds)
    value = seconds / unit
    return f"{value:,.3g} {name}" if value < 1000 else f"{value:,.0f} {name}"


def _cut(ax: Any, rows: list[LayerTime], totals_s: list[float], unit: float) -> None:
    """Let the bar of all other layers run out of the axes, with its length beside it, if it would dwarf the layers'."""
    largest_s = max(total_s for row, total_s in zip(rows, totals_s, strict=True) if row.layers == 1)
    for place, (row, total_s) in enumerate(zip(rows, totals_s, strict=True)):
        if row.layers > 1 and total_s > _DWARFS * largest_s:
            ax.set_xlim(0, _DWARFS * largest_s / unit)
            ax.annotate(
                f"{_time(total_s)} \u2192", (1.0, place), xycoords=("axes fraction", "data"), xytext=(-4, 0),
                textcoords="offset points", ha="right", va="center", fontsize="small",
                bbox={"facecolor": paper(), "edgecolor": "none", "pad": 2},
            )  # fmt: skip


def _has_phases(report: BottleneckReport) -> bool:
    return bool(report.breakdown.phase_s)


PHASES = Drawing(
    title="A training step, phase by phase",
    draw=_phases,
    has_data=_has_phases,
    missing=_NO_STEPS.format(kind="phases"),
    describe=_describe_phases,
)
LAYERS = Drawing(
    title="Vertex and edge computations of the layers",
    draw=_layers,
    has_data=lambda report: report.breakdown.has_layers,
    missing=_NO_LAYERS.format(kind="layers"),
    describe=_describe_layers,
)
EDGE_PARTS = Drawing(
    title="Edge computations, step by step",
    draw=_edge_parts,
    has_data=lambda report: bool(shown_edges(report)),
    missing=_NO_LAYERS.format(kind="edge_parts"),
    describe=_describe_parts,
)

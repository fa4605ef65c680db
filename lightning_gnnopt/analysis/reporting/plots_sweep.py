"""Figures of sweeps over batch sizes and graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.conclusions.breakdown import preparing_share
from lightning_gnnopt.analysis.records import SweepRecord
from lightning_gnnopt.analysis.reporting.plots_style import (
    BLUE,
    GREEN,
    PURPLE,
    STAGE_COLORS,
    VERMILION,
    Drawing,
    Series,
    axes,
    bar_height,
    byte_unit,
    ink,
    plain,
    stack,
    tidy,
    time_unit,
)

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

GRAPH_SWEEPS = {"num_nodes": "nodes of the graph", "avg_degree": "mean degree of the graph"}
"""Sweeps over graphs, and what they vary."""

_MARGIN = 1.7  # above and below: a range of its square holds a 1, 2 or 5 times a power of ten
_COLORS, _MARKERS = (BLUE, VERMILION, GREEN, PURPLE), "osD^"


def point_name(point: SweepRecord) -> str:
    """What was run at a point of a sweep over batch sizes."""
    return f"full, {point.value:,.0f}" if point.sampler == "full" else f"{point.sampler}, {point.value:,.0f}"


def peak_of(point: SweepRecord) -> float | None:
    """Peak of a point's steps, the batch included."""
    return None if point.peak_bytes is None else point.peak_bytes + point.loaded_bytes


def _sampling_sweep(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    points = report.breakdown.sweep("batch_size")
    pair = axes(ax, 2, size=(11, bar_height(len(points), 5)))
    _draw_split(pair[0], points)
    _draw_peaks(pair[1], points)
    return pair[0].figure, pair


def _draw_split(ax: Any, points: Sequence[SweepRecord]) -> None:
    stages = {stage: [getattr(point, f"{stage}_s") * (not point.error) for point in points] for stage in STAGE_COLORS}
    totals_s = [sum(column) for column in zip(*stages.values(), strict=True)]
    shares = [
        Series(stage, [100 * s / total if total else 0.0 for s, total in zip(values, totals_s, strict=True)], color)
        for (stage, values), color in zip(stages.items(), STAGE_COLORS.values(), strict=True)
    ]
    stack(ax, [point_name(point) for point in points], shares)
    for place, (point, total_s) in enumerate(zip(points, totals_s, strict=True)):
        unit, name = time_unit(total_s)
        text = "failed" if point.error else f"{total_s / unit:,.3g} {name}"
        ax.text(101, place, text, va="center", fontsize="small")
    ax.set(xlabel="share of a batch's time [%]", ylabel="sampler, seeds", xlim=(0, 122), xticks=range(0, 101, 20))
    ax.get_legend().remove()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize="small", handlelength=1.2)


def _draw_peaks(ax: Any, points: Sequence[SweepRecord]) -> None:
    measured = {point: peak for point in points if (peak := peak_of(point)) is not None}
    unit, name = byte_unit(max(measured.values(), default=0.0))
    sampled = [point for point in measured if point.sampler != "full"]
    for place, sampler in enumerate(dict.fromkeys(point.sampler for point in sampled)):
        mine = [point for point in sampled if point.sampler == sampler]
        values, peaks = [point.value for point in mine], [measured[point] / unit for point in mine]
        marker, color = _MARKERS[place % 4], _COLORS[place % 4]
        ax.plot(values, peaks, marker=marker, color=color, label=plain(sampler, 18))
    for point in measured:
        if point.sampler == "full":
            ax.axhline(measured[point] / unit, color=ink(), linestyle="--", label="full batch")
    _log(ax, [point.value for point in sampled], [peak / unit for peak in measured.values()])
    ax.set(xlabel="seeds of a batch", ylabel=f"peak, with the batch [{name}]")
    tidy(ax, "both")
    if measured:
        ax.legend(loc="best", frameon=False, fontsize="small")


def _describe_sampling(report: BottleneckReport) -> str:
    parts = []
    for point in report.breakdown.sweep("batch_size"):
        share, peak = preparing_share(point), peak_of(point)
        if point.error:
            parts.append(f"{point_name(point)} failed.")
            continue
        of_time = "" if share is None else f" {100 * share:.0f} % of the time before the step"
        parts.append(f"{point_name(point)}:{of_time}{'' if peak is None else f', peak {format_bytes(peak)}'}.")
    return "Bars of a batch's time and lines of its peak, by sampler and seeds. " + " ".join(parts)


def _graph_sweep(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    sweeps = [name for name in GRAPH_SWEEPS if report.breakdown.sweep(name)]
    grid = axes(ax, 3 * len(sweeps), columns=3, size=(11, 3.0 * len(sweeps)))
    for row, sweep in enumerate(sweeps):
        _draw_graph_sweep(grid[3 * row : 3 * row + 3], report.breakdown.sweep(sweep), GRAPH_SWEEPS[sweep])
    return grid[0].figure, grid


def _draw_graph_sweep(trio: Any, points: Sequence[SweepRecord], varied: str) -> None:
    run = [point for point in points if not point.error]
    time_name = _draw_lines(trio[1], run, lambda point: point.step_s, time_unit)
    byte_name = _draw_lines(trio[2], run, peak_of, byte_unit)
    _draw_lines(trio[0], run, preparing_share, lambda _: (0.01, "%"))
    for ax, label in zip(
        trio, ("sampling and transfer [%]", f"training step [{time_name}]", f"peak, with the batch [{byte_name}]"),
        strict=True,
    ):  # fmt: skip
        ax.set(xlabel=varied, ylabel=label)
        tidy(ax, "both")
    trio[0].set(yscale="linear", ylim=(0, 100))
    if trio[0].lines:
        trio[0].legend(loc="best", frameon=False, fontsize="small")


def _draw_lines(ax: Any, points: Sequence[SweepRecord], read: Any, unit_of: Any) -> str:
    """Draw a line for each sampler; returns the unit's name."""
    values = {point: value for point in points if (value := read(point)) is not None}
    unit, name = unit_of(max(values.values(), default=0.0))
    for place, sampler in enumerate(dict.fromkeys(point.sampler for point in values)):
        mine = [point for point in values if point.sampler == sampler]
        marker, color = _MARKERS[place % 4], _COLORS[place % 4]
        x, y = [point.value for point in mine], [values[point] / unit for point in mine]
        ax.plot(x, y, marker=marker, color=color, label=plain(sampler, 18))
    _log(ax, [point.value for point in values], [value / unit for value in values.values()])
    return str(name)


def _log(ax: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Make the axes logarithmic where all that is drawn is above zero, with plain numbers at its ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    if x and min(x) > 0:
        ax.set_xscale("log")
        ticks = sorted(set(x))
        ticks = ticks[:: -(-len(ticks) // 6)]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    if y and min(y) > 0:
        ax.set_yscale("log")
        low, high = min(y) / _MARGIN, max(y) * _MARGIN
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
        )


def short_number(value: float) -> str:
    """Write a number in few characters.

    Examples:
        >>> short_number(512), short_number(16384), short_number(2_500_000)
        ('512', '16k', '2.5M')
    """
    if 1e3 <= value < 1e4:
        return f"{value:,.0f}"
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.2g}{suffix}" if value < 99.5 * unit else f"{value / unit:.0f}{suffix}"
    return f"{value:g}"


def _describe_graphs(report: BottleneckReport) -> str:
    parts = []
    for sweep, varied in GRAPH_SWEEPS.items():
        points = [point for point in report.breakdown.sweep(sweep) if not point.error]
        for sampler in dict.fromkeys(point.sampler for point in points):
            mine = [point for point in points if point.sampler == sampler]
            first, last = preparing_share(mine[0]), preparing_share(mine[-1])
            if first is not None and last is not None:
                parts.append(
                    f"{sampler}, {varied} {mine[0].value:,.0f} to {mine[-1].value:,.0f}: sampling and transfer"
                    f" {100 * first:.0f} % to {100 * last:.0f} % of the time."
                )
    return "Lines of the share of sampling and transfer, the step's time and its peak. " + " ".join(parts)


_HINT = "HINT: `python -m lightning_gnnopt.analyze` runs sweeps."
SAMPLING_SWEEP = Drawing(
    title="Batch sizes against the full batch",
    draw=_sampling_sweep,
    has_data=lambda report: bool(report.breakdown.sweep("batch_size")),
    missing=f"`sampling_sweep` needs a sweep over 'batch_size', but there is none. {_HINT}",
    describe=_describe_sampling,
)
GRAPH_SWEEP = Drawing(
    title="Growing graphs",
    draw=_graph_sweep,
    has_data=lambda report: any(report.breakdown.sweep(name) for name in GRAPH_SWEEPS),
    missing=f"`graph_sweep` needs a sweep over 'num_nodes' or 'avg_degree', but there is none. {_HINT}",
    describe=_describe_graphs,
)

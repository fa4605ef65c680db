"""Figures of where the memory goes: places, batches, tensors."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.conclusions.breakdown import PlaceMemory
from lightning_gnnopt.analysis.records import TensorRecord
from lightning_gnnopt.analysis.reporting.plots_style import (
    BLUE,
    GREY,
    KIND_COLORS,
    ORANGE,
    SKY,
    VERMILION,
    Drawing,
    axes,
    bar_height,
    byte_unit,
    ink,
    legend,
    paper,
    plain,
    tidy,
)

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

_MOST = 20  # bars
_MOST_TENSORS = 12
_FAR = 3  # times the largest peak: a limit that is higher would flatten the boxes
_WHISKERS = (5, 95)  # percentiles
_NO_PEAKS = (
    "`{kind}` needs steps whose peak memory was measured, but there are none. HINT: `GNNProfiler(memory_every=...)`"
    " measures every so many steps, on the CPU and on CUDA."
)


def _memory(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    rows, left_out = shown_places(report, _MOST)
    names = [row.name for row in rows]
    unit, name = byte_unit(max(max(row.peak_bytes, abs(row.live_bytes)) for row in rows))
    ax = axes(ax, size=(9, bar_height(len(rows), 2)))
    places = np.arange(len(rows))
    peaks = [row.peak_bytes / unit for row in rows]
    lives = [row.live_bytes / unit for row in rows]
    ax.barh(places - 0.2, peaks, 0.38, color=BLUE, edgecolor=paper(), label="held at most within it")
    ax.barh(places + 0.2, lives, 0.38, color=ORANGE, edgecolor=paper(), label="growth of what is held")
    ax.axvline(0, color=ink(), linewidth=0.8)
    ax.set_yticks(places, [plain(name) for name in names])
    more = f" ({left_out} more places held less)" if left_out else ""
    ax.set(xlabel=f"bytes beyond those before the step [{name}]{more}", ylim=(len(rows) - 0.5, -0.5))
    tidy(ax, "x")
    legend(ax)
    return ax.figure, ax


def shown_places(report: BottleneckReport, most: int) -> tuple[list[PlaceMemory], int]:
    """Places of the step that held most, in the order of the step, and how many others there are."""
    rows = report.breakdown.place_memory
    kept = sorted(range(len(rows)), key=lambda place: -rows[place].peak_bytes)[:most]
    return [rows[place] for place in sorted(kept)], max(len(rows) - most, 0)


def _describe_memory(report: BottleneckReport) -> str:
    largest = max(report.breakdown.place_memory, key=lambda row: row.peak_bytes)
    return f"Bars of memory by phase and layer. Most is held in {largest.name}: {format_bytes(largest.peak_bytes)}."


def _expansion(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    ratios = report.breakdown.expansions
    mean = sum(ratios.values()) / len(ratios)
    ax = axes(ax, size=(9, 2.8))
    ax.plot(list(ratios), list(ratios.values()), "o", color=BLUE, alpha=0.6, markersize=5, label="a step")
    ax.axhline(mean, color=VERMILION, linestyle="--", label=f"mean: {mean:,.2f}")
    ax.set(xlabel="step", ylabel="peak / bytes of the batch", ylim=(0, 1.08 * max(ratios.values())))
    ax.xaxis.get_major_locator().set_params(integer=True)
    tidy(ax, "y")
    legend(ax)
    return ax.figure, ax


def _describe_expansion(report: BottleneckReport) -> str:
    ratios = list(report.breakdown.expansions.values())
    return (
        f"Points of {len(ratios)} steps' peaks over the bytes of their batches: from {min(ratios):,.2f} to"
        f" {max(ratios):,.2f}, on average {sum(ratios) / len(ratios):,.2f}."
    )


def _peaks(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    groups = report.breakdown.peaks_bytes
    limit_bytes = limit_of_steps(report)
    largest = max(max(peaks) for peaks in groups.values())
    if limit_bytes is not None and limit_bytes > _FAR * largest:
        far, limit_bytes = _limit_label(report).replace("\n", " ") + ": far above", None
    else:
        far = ""
    unit, name = byte_unit(max(largest, limit_bytes or 0))
    ax = axes(ax, size=(max(6.0, 2.5 + 1.1 * len(groups)), 3.6))
    line = {"color": ink(), "linewidth": 1.0}
    ax.boxplot(
        [np.asarray(peaks, float) / unit for peaks in groups.values()],
        whis=_WHISKERS,
        widths=0.5,
        patch_artist=True,
        boxprops={"facecolor": SKY, "edgecolor": ink()},
        medianprops={"color": ink(), "linewidth": 2.0},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 6, "markerfacecolor": ink(), "markeredgecolor": "none", "alpha": 0.5},
    )
    labels = [
        f"{plain(sampler, 18)}\n{size:,} seeds\n{len(peaks):,} steps" for (sampler, size), peaks in groups.items()
    ]
    ax.set_xticks(range(1, len(groups) + 1), labels)
    if limit_bytes is not None:
        ax.axhline(limit_bytes / unit, color=VERMILION, linestyle="--", label=_limit_label(report))
        legend(ax)
    ax.set(ylabel=f"peak of a step, with its batch [{name}]")
    ax.set_ylim(bottom=0)
    ax.set_title(far, loc="left", fontsize="small")
    tidy(ax, "y")
    return ax.figure, ax


def limit_of_steps(report: BottleneckReport) -> int | None:
    """Bytes that a step may take with its batch: the limit less what is held in any case; None without a limit."""
    facts = report.facts
    return None if facts.limit_bytes is None else max(facts.limit_bytes - facts.fixed_bytes, 0)


def _limit_label(report: BottleneckReport) -> str:
    facts = report.facts
    limit = f"limit: {format_bytes(facts.limit_bytes or 0)}"
    if not facts.fixed_bytes:
        return limit
    return f"{limit},\nless {format_bytes(facts.fixed_bytes)}\nof the model{' and more' if facts.beside_bytes else ''}"


def _describe_peaks(report: BottleneckReport) -> str:
    parts = []
    for (sampler, size), peaks in report.breakdown.peaks_bytes.items():
        median, largest = format_bytes(statistics.median(peaks)), format_bytes(max(peaks))
        parts.append(f"{sampler}, {size:,} seeds: median {median}, largest {largest}.")
    return "Box plots of the steps' peaks. " + " ".join(parts)


def _tensors(report: BottleneckReport, ax: Any) -> tuple[Any, Any]:
    rows = report.breakdown.tensors[:_MOST_TENSORS]
    unit, name = byte_unit(rows[0].nbytes)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    ax = axes(ax, size=(9, bar_height(len(rows), len(kinds))))
    places = np.arange(len(rows))
    for kind in kinds:
        mine = [place for place, row in enumerate(rows) if row.kind == kind]
        ax.barh(
            np.asarray(mine), [rows[place].nbytes / unit for place in mine], 0.72, color=KIND_COLORS.get(kind, GREY),
            edgecolor=paper(), label=f"{kind} computation" if kind else "other",
        )  # fmt: skip
    ax.set_yticks(places, [plain(tensor_label(row), 48) for row in rows])
    ax.set(xlabel=f"size at the peak [{name}]", ylim=(len(rows) - 0.5, -0.5))
    tidy(ax, "x")
    legend(ax)
    return ax.figure, ax


def tensor_label(row: TensorRecord) -> str:
    """Where a tensor was made, and its shape, in a few words."""
    place = " ".join(word for word in (row.layer, row.part or row.kind) if word) or row.phase
    return f"{place}: {row.shape.replace('x', ' x ')}"


def _describe_tensors(report: BottleneckReport) -> str:
    rows = report.breakdown.tensors
    largest = rows[0]
    return (
        f"Bars of the largest tensors at the peak, the first {format_bytes(largest.nbytes)}: {tensor_label(largest)}."
    )


MEMORY = Drawing(
    title="Memory of a step, place by place",
    draw=_memory,
    has_data=lambda report: bool(report.breakdown.place_memory),
    missing=_NO_PEAKS.format(kind="memory"),
    describe=_describe_memory,
)
EXPANSION = Drawing(
    title="Memory expansion of the steps",
    draw=_expansion,
    has_data=lambda report: bool(report.breakdown.expansions),
    missing=_NO_PEAKS.format(kind="expansion"),
    describe=_describe_expansion,
)
PEAKS = Drawing(
    title="Peak memory over the batches",
    draw=_peaks,
    has_data=lambda report: bool(report.breakdown.peaks_bytes),
    missing=_NO_PEAKS.format(kind="peaks"),
    describe=_describe_peaks,
)
TENSORS = Drawing(
    title="The largest tensors at the peak",
    draw=_tensors,
    has_data=lambda report: bool(report.breakdown.tensors),
    missing="`tensors` needs the tensors of a step's peak, but none were recorded."
    " HINT: `GNNProfiler(detail_batches=...)` records them for so many steps.",
    describe=_describe_tensors,
)

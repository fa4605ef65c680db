"""Show what memory control did: a table, two plots, and what a peak is made of."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.prober import STEP

if TYPE_CHECKING:
    from lightning_gnnopt.memory.control import MemoryControl

_MOST = 20  # tensors that are listed


def control_table(control: MemoryControl) -> Table:
    """Render a run's memory control as a table for a terminal."""
    table = Table(title="Memory control", show_header=False, title_justify="left", min_width=60)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in control_rows(control).items():
        table.add_row(name, value)
    return table


def control_rows(control: MemoryControl) -> dict[str, str]:
    """Say what was done, by row of the table."""
    tally, budget_bytes = control.tally, control.budget_bytes
    if budget_bytes is None:
        return {"Budget": f"{control.budget} (no run yet)"}
    rows = {"Budget": f"{format_bytes(budget_bytes)} ({control.budget})"}
    rows["Over the budget as drawn"] = f"{tally.over:,} of {tally.batches:,} batches"
    if tally.measured:
        largest = format_bytes(tally.largest_bytes)
        rows["Over the budget as run"] = (
            f"{tally.measured_over:,} of {tally.measured:,} measured steps, the largest {largest}"
        )
        exact, error = tally.exact / tally.measured, tally.error / tally.measured
        rows["Predictions"] = (
            f"{exact:.1%} exact to the byte, mean error {error:.3%}, {max(tally.worst_under, 0.0):.3%} under at worst"
        )
    fitted = [
        predictor.margin.stated_coverage()
        for learned in ([] if control.controller is None else control.controller.learned.values())
        for predictor in learned.footprint.predictors.values()
        if not learned.tapes
    ]
    if fitted:
        rows["Coverage"] = (
            f"{min(fitted):.1%} can be stated with the samples there are, of {control.coverage:.1%} asked for"
        )
    if tally.touched:
        rows["Budget used"] = (
            f"{tally.used / tally.touched:.1%} by the {tally.touched:,} measured batches that were changed"
        )
    if tally.resamples:
        rows["Drawn anew"] = f"{tally.resamples:,} times"
    if tally.pruned:
        lost = tally.pruned_edges / tally.edges if tally.edges else 0.0
        rows["Edges lost"] = f"{lost:.2%} ({tally.pruned_edges:,} edges of {tally.pruned:,} batches)"
    if tally.splits:
        rows["Run in parts"] = f"{tally.splits:,} batches, in {tally.parts / tally.splits:.1f} parts on average"
    if tally.shrunk:
        rows["Came later"] = f"{tally.returned_seeds:,} seeds of {tally.shrunk:,} batches"
    if tally.late:
        rows["Too large at their step"] = f"{tally.late:,} batches, as the step had changed"
    if tally.out_of_memory:
        rows["Ran out of memory"] = f"{tally.out_of_memory:,} steps"
    rows["Time"] = (
        f"{tally.worker_s:.2f} s in the loader's threads, {tally.inline_s:.2f} s between steps"
        f" ({tally.probe_s:.2f} s of it for probes)"
    )
    return rows


def plot_peaks(pairs: Sequence[tuple[float, float]], budget_bytes: int | None, ax: Any = None) -> tuple[Any, Any]:
    """Draw predicted against measured peaks, and how the measured ones are distributed.

    Args:
        pairs: Predicted and measured bytes of some steps.
        budget_bytes: Where to draw the budget; None draws none.
        ax: Two matplotlib axes; a new figure by default.

    Returns:
        The figure and its two axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    else:
        axes = np.asarray(ax, dtype=object).ravel()
        figure = axes[0].figure
    table = np.array(list(pairs), np.float64).reshape(-1, 2)
    unit, name = _unit(max(table.max(initial=0.0), float(budget_bytes or 0)))
    predicted, measured = table.T / unit
    scatter, histogram = axes[0], axes[1]
    scatter.plot(predicted, measured, ".", alpha=0.5, label="steps")
    if len(table):
        ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
        scatter.plot(ends, ends, "-", color="grey", linewidth=1, zorder=0, label="exact")
    scatter.set(xlabel=f"predicted peak [{name}]", ylabel=f"measured peak [{name}]")
    histogram.hist(measured, bins=40)
    histogram.set(xlabel=f"measured peak [{name}]", ylabel="steps")
    if budget_bytes is not None:
        scatter.axhline(budget_bytes / unit, color="tab:red", linestyle="--", label="budget")
        histogram.axvline(budget_bytes / unit, color="tab:red", linestyle="--", label="budget")
        histogram.legend()
    scatter.legend()
    return figure, axes


def explain(learned: Learned, batch: Any) -> str:
    """Say which tensors make up the peak of a step on a batch.

    Raises:
        ValueError: If there is no allocation tape.
    """
    tape = learned.tapes.get(STEP)
    if tape is None:
        raise ValueError(
            f"The step has no allocation tape to explain its peak with, because {learned.reason}."
            " HINT: `predictor='analytic'` solves one where that can be done."
        )
    footprint = learned.footprint
    features = footprint.features(batch)
    values = dict(zip(footprint.reader.names, features, strict=True))
    full = np.array([values.get(name, 0.0) for name in tape.names])
    blocks = tape.explain(full, learned.labels if len(learned.labels) == len(tape.events) else None)
    growth, batch_bytes = sum(nbytes for _, nbytes in blocks), footprint.batch_bytes(features)
    ahead = footprint.ahead.nbytes(batch_bytes)
    table = Table(title="At the peak", title_justify="left")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what", overflow="fold")
    rows = [
        (float(footprint.held_bytes), "the model, its gradients and its optimizer"),
        (batch_bytes, "the batch"),
        (ahead, "batches that are ready"),
        *((float(nbytes), label) for label, nbytes in blocks[:_MOST]),
        (float(sum(nbytes for _, nbytes in blocks[_MOST:])), f"{max(0, len(blocks) - _MOST)} smaller tensors"),
    ]
    total = footprint.held_bytes + batch_bytes + ahead + growth
    for nbytes, what in rows:
        if nbytes:
            table.add_row(f"{nbytes:,.0f}", f"{nbytes / total:.1%}", what)
    table.add_row(f"{total:,.0f}", "100.0%", "together", style="bold")
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def _unit(nbytes: float) -> tuple[float, str]:
    for unit, name in ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if nbytes >= unit:
            return unit, name
    return 1.0, "B"

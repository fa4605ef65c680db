"""Batches over a memory limit, without and with control."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_gnnopt.studies.memory_control.setup import Setup
from lightning_gnnopt.studies.memory_control.watched import watched_fit


def unlimited_peaks(setup: Setup, *, steps: int, **datamodule: Any) -> list[float]:
    """Train without a limit, once in a job, and sum up the bytes at the peak of each step.

    Args:
        setup: The graph and the model.
        steps: How many.
        **datamodule: Arguments of `Setup.datamodule`.
    """

    def measure() -> list[float]:
        run = watched_fit(
            setup.module(),
            setup.datamodule(**datamodule),
            on_exceed="watch",
            trainer={"max_epochs": -1, "max_steps": steps},
        )
        return [step.bytes for step in run.steps]

    return setup.once(("peaks", steps, repr(sorted(datamodule.items()))), measure)


def measure_limit(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    """Set a limit at a quantile of what the steps take without one, and train on the same seeds under it.

    Args:
        setup: The graph and the model.
        options: `sampler`; `quantile`; `steps`; `on_exceed`, what control tries with a batch that is too large.

    Returns:
        ``limit_bytes``; ``before`` and ``after``, bytes at each step's peak; the shares of the steps ``over_before``
        and ``over_after``; ``touched``, ``resampled``, ``pruned`` and ``split``, shares of the batches; the
        ``edges_pruned`` of all edges; ``used``, the mean share of the limit that changed batches take; ``largest``, the
        largest peak over the limit.

    Raises:
        MemoryBudgetError: If nothing that may be tried makes a batch fit.
    """
    steps = int(options["steps"])
    before = unlimited_peaks(setup, steps=steps, sampler=options["sampler"])
    limit_bytes = int(np.quantile(before, options["quantile"]))
    run = watched_fit(
        setup.module(),
        setup.datamodule(options["sampler"]),
        budget=limit_bytes,
        on_exceed=list(options["on_exceed"]),
        trainer={"max_epochs": -1, "max_steps": steps},
    )
    after = [step.bytes for step in run.steps]
    used = [step.bytes / limit_bytes for step in run.steps if step.touched]
    tally = run.control.tally
    batches = max(tally.batches, 1)
    return {
        "limit_bytes": limit_bytes,
        "before": before,
        "after": after,
        "over_before": _share_over(before, limit_bytes),
        "over_after": _share_over(after, limit_bytes),
        "touched": tally.over / batches,
        "resampled": (tally.over - tally.pruned - tally.splits - tally.shrunk) / batches,
        "pruned": tally.pruned / batches,
        "split": tally.splits / batches,
        "edges_pruned": tally.pruned_edges / tally.edges if tally.edges else 0.0,
        "used": statistics.fmean(used) if used else None,
        "largest": max(after) / limit_bytes,
    }


def _share_over(peaks: Sequence[float], limit_bytes: float) -> float:
    return sum(peak > limit_bytes for peak in peaks) / len(peaks)

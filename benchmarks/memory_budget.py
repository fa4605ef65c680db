"""Runs under budgets below what they would take: is a step ever over, and is the budget used?

A run that is only watched gives the largest peak; budgets are shares of that. Should a share be less than the seeds of
a batch take without any edge, which nothing but fewer seeds can mend, the budget is raised to that, and a row says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Cell, Figure, Measured
from benchmarks.memory_runs import Run, load_graph, make_datamodule, make_model, narrowed, watched_fit
from benchmarks.memory_scale import SAMPLINGS, MemoryScale
from lightning_gnnopt.memory import MemoryBudgetError
from lightning_gnnopt.studies.quiet import quiet

POLICIES = (("resample", "prune"), ("prune",), ("split",), ("shrink",))
USED = 0.95
_FEATURES = 64
_ROOM = 1.02
"""Over what the seeds alone take: an edge or two must fit too."""
_TRAIN_SHARE = 0.75
"""Of the steps of a run; the others are of validation."""


@dataclass(kw_only=True)
class _Counted:
    """What runs under budgets came to."""

    steps: int = 0
    over: int = 0
    refused: int = 0
    worst_over: float = 0.0
    used: dict[tuple[str, ...], list[float]] = field(default_factory=dict)


def measure_budget(scale: MemoryScale) -> Measured:
    """Train under budgets, with each policy.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per graph, model, sampling, budget and policy.
    """
    settings = [
        (name, model, sampling)
        for name in scale.budget_graphs
        for model in scale.budget_models
        for sampling in SAMPLINGS
    ]
    num_runs = len(scale.budget_shares) * sum(len(_policies(sampling)) for _, _, sampling in settings)
    per_run = math.ceil(scale.budget_batches / num_runs)
    counted = _Counted()
    rows: list[Mapping[str, Cell]] = []
    for setting in settings:
        watched = _run(setting, scale, per_run, on_exceed="watch")
        largest = max(step.bytes for step in watched.steps)
        bare = max(step.seeds_bytes for step in watched.steps)
        for share in scale.budget_shares:
            budget = max(share * largest, _ROOM * bare)
            for policy in _policies(setting[2]):
                row: dict[str, Cell] = {
                    "part": "budget",
                    "case": " ".join(setting),
                    "share": share,
                    "policy": " ".join(policy),
                }
                note = load_graph(setting[0], scale.stand_in_nodes).note
                notes = [note] if note else []
                if budget > share * largest:
                    notes.append(f"the seeds alone take {bare / largest:.2f} of the largest peak")
                try:
                    run = _run(setting, scale, per_run, on_exceed=policy, budget=int(budget))
                except MemoryBudgetError as error:
                    counted.refused += 1
                    notes.append(f"refused: {str(error).split(' HINT')[0]}")
                    rows.append({**row, "note": "; ".join(notes)})
                    continue
                rows.append({**row, **_count(run, int(budget), policy, counted), "note": "; ".join(notes)})
    return _figures(counted), rows


def _policies(sampling: str) -> Sequence[tuple[str, ...]]:
    """Batches that are whole clusters cannot give seeds back."""
    return [policy for policy in POLICIES if policy != ("shrink",) or sampling != "cluster"]


def _run(
    setting: tuple[str, str, str],
    scale: MemoryScale,
    num_steps: int,
    *,
    on_exceed: str | Sequence[str],
    budget: int | None = None,
) -> Run:
    name, model, sampling = setting
    graph = narrowed(load_graph(name, scale.stand_in_nodes), _FEATURES)
    datamodule = make_datamodule(graph, sampling, scale)
    module = make_model(model, datamodule, hidden_channels=scale.hidden)
    num_train = math.ceil(_TRAIN_SHARE * num_steps)
    datamodule.setup("fit")
    per_epoch = len(datamodule.train_dataloader())
    epochs = math.ceil(num_train / per_epoch)
    options: dict[str, Any] = {
        "trainer_limit_train_batches": min(num_train, per_epoch),
        "trainer_limit_val_batches": math.ceil((num_steps - num_train) / epochs),
    }
    if budget is not None:
        options["budget"] = budget
    with quiet():
        return watched_fit(module, datamodule, epochs=epochs, on_exceed=on_exceed, **options)


def _count(run: Run, budget: int, policy: tuple[str, ...], counted: _Counted) -> Mapping[str, Cell]:
    over = [step.bytes / budget for step in run.steps if step.bytes > budget]
    used = [step.bytes / budget for step in run.steps if step.touched]
    counted.steps += len(run.steps)
    counted.over += len(over)
    counted.worst_over = max(counted.worst_over, *over, 0.0) if over else counted.worst_over
    counted.used.setdefault(policy, []).extend(used)
    tally = run.control.tally
    return {
        "batches": len(run.steps),
        "over": len(over),
        "touched": len(used),
        "used": sum(used) / len(used) if used else None,
        "edges_lost": tally.pruned_edges / tally.edges if tally.edges else None,
        "resamples": tally.resamples,
        "seeds_later": tally.returned_seeds,
        "parts": tally.parts / tally.splits if tally.splits else None,
    }


def _figures(counted: _Counted) -> list[Figure]:
    used = [share for of_policy in counted.used.values() for share in of_policy]
    figures = [
        Figure(name="steps over the budget", value=float(counted.over), unit="steps", reach=0.0, sense="<="),
        Figure(name="steps under budgets", value=float(counted.steps), unit="steps"),
        Figure(name="runs that were refused as nothing fits", value=float(counted.refused), unit="runs"),
    ]
    if used:
        mean = sum(used) / len(used)
        figures.append(
            Figure(name="budget used by touched batches, mean", value=mean, unit="share", reach=USED, sense=">=")
        )
    for policy, of_policy in counted.used.items():
        if of_policy:
            name = f"budget used, {' then '.join(policy)}"
            figures.append(Figure(name=name, value=sum(of_policy) / len(of_policy), unit="share"))
    return figures

"""What `GNNProfiler` costs: steps with it and without it in turn, and what it says itself of its cost.

The steps of a single layer on 100,000 edges with a loss, a backward pass and Adam are profiled in a loop of their own
(`GNNProfiler.watch`); the steps of a sampled fit under Lightning (`Trainer(profiler=...)`). A step lasts until the next
one begins, so that what the profiler does between steps counts. What is compared are its timed steps, with hooks in
every layer; those that it records for their memory, each tenth, are in rows of their own and in the means of all steps.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv
from typing_extensions import override

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from benchmarks.quiet import quiet
from lightning_gnnopt import GNNProfiler, GraphDataModule, NodeClassifier
from lightning_gnnopt.datasets import load_dataset

REACH = 1.05
NODES, EDGES, WIDTH = 10_000, 100_000, 64
SKIPPED = 3  # steps that compile and warm up
LAYERS: Mapping[str, Callable[[int, int], nn.Module]] = {"GCNConv": GCNConv, "GATConv": GATConv}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of one side.

    Attributes:
        step_s: Seconds of a step that is timed, the median.
        mean_s: Seconds of a step, the mean of all but the first.
        memory_s: Seconds of a step whose memory is recorded, the median; None without a profiler.
        stated: The profiler's own share of its timed steps, as its report states it; None without a profiler.
    """

    step_s: float
    mean_s: float
    memory_s: float | None = None
    stated: float | None = None


def measure(quick: bool) -> Measured:
    """Measure steps of single layers, and of a fit.

    Args:
        quick: Whether to take fewer steps and rounds.
    """
    rounds, steps = (2, 12) if quick else (12, 60)  # twelve rounds: each side is in each place twice
    sides: dict[str, Callable[[], Steps]] = {}
    for name, layer in LAYERS.items():
        sides[f"{name}, without"] = partial(_loop, layer, steps, is_profiled=False)
        sides[f"{name}, profiled"] = partial(_loop, layer, steps, is_profiled=True)
    datamodule = GraphDataModule(
        load_dataset("dcsbm", num_nodes=4_000 if quick else 20_000, avg_degree=20.0),
        num_neighbors=[15, 10],
        batch_size=256,
        num_workers=1,
    )
    sides["fit, without"] = partial(_fit, datamodule, is_profiled=False)
    sides["fit, profiled"] = partial(_fit, datamodule, is_profiled=True)
    with quiet():
        runs = alternate(sides, rounds=rounds)
    return figures_of(runs)


def figures_of(runs: Mapping[str, Sequence[Steps]]) -> Measured:
    """Compare the sides round by round.

    Args:
        runs: Each side's runs, as ``"<what>, without"`` and ``"<what>, profiled"``.
    """
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for what in dict.fromkeys(name.rpartition(", ")[0] for name in runs):
        without, profiled = runs[f"{what}, without"], runs[f"{what}, profiled"]
        costs = ratios([run.step_s for run in profiled], [run.step_s for run in without])
        figures.append(
            Figure.of_runs(f"timed steps beside plain ones, {what}", costs, unit="x", reach=REACH, sense="<=")
        )
        means = ratios([run.mean_s for run in profiled], [run.mean_s for run in without])
        figures.append(Figure.of_runs(f"all steps beside plain ones, {what}", means, unit="x"))
        stated = [run.stated for run in profiled if run.stated is not None]
        figures.append(Figure.of_runs(f"own share as the report states it, {what}", stated, unit="share"))
        memory = [run.memory_s for run in profiled if run.memory_s is not None]
        plain_s = median([run.step_s for run in without])
        rows.append(
            {
                "steps of": what,
                "plain ms": round(1e3 * plain_s, 2),
                "timed ms": round(1e3 * median([run.step_s for run in profiled]), 2),
                "with memory ms": round(1e3 * median(memory), 2) if memory else None,
            }
        )
    return figures, rows


def _loop(layer: Callable[[int, int], nn.Module], steps: int, *, is_profiled: bool) -> Steps:
    torch.manual_seed(0)
    model = layer(WIDTH, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())
    x, edge_index = torch.randn(NODES, WIDTH), torch.randint(NODES, (2, EDGES))
    began_s: list[float] = []

    def run() -> None:
        began_s.append(time.perf_counter())
        out: Tensor = model(x, edge_index)
        optimizer.zero_grad()
        out.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if not is_profiled:
        for _ in range(steps):
            run()
        return _plain(_between([*began_s, time.perf_counter()]))
    profiler = _make_profiler()
    with profiler.watch(model):
        for _ in profiler.steps(range(steps)):
            run()
        began_s.append(time.perf_counter())
    return _profiled(profiler, _between(began_s))


class _StepClock(Callback):
    """Takes the time at the start of each step.

    Attributes:
        epochs: Those times, by epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[list[float]] = [[]]

    @property
    def step_s(self) -> list[float]:
        """Seconds of each step until the next one begins; of an epoch's last one not a number."""
        return [took_s for times_s in self.epochs if times_s for took_s in (*_between(times_s), math.nan)]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.epochs[-1].append(time.perf_counter())

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append([])


def _fit(datamodule: GraphDataModule, *, is_profiled: bool) -> Steps:
    torch.manual_seed(0)
    clock = _StepClock()
    model = NodeClassifier(
        "gcn", in_channels=datamodule.num_features, out_channels=datamodule.num_classes, hidden_channels=WIDTH
    )
    profiler = _make_profiler() if is_profiled else None
    trainer = L.Trainer(
        profiler=profiler,
        callbacks=[clock],
        max_epochs=2,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule)
    return _plain(clock.step_s) if profiler is None else _profiled(profiler, clock.step_s)


def _make_profiler() -> GNNProfiler:
    return GNNProfiler(skip_batches=SKIPPED, memory_every=10, detail_batches=0)


def _between(times_s: Sequence[float]) -> list[float]:
    return [end - start for start, end in pairwise(times_s)]


def _counted(took_s: Sequence[float]) -> list[float]:
    return [took for took in took_s[SKIPPED:] if not math.isnan(took)]


def _plain(took_s: Sequence[float]) -> Steps:
    counted = _counted(took_s)
    return Steps(step_s=median(counted), mean_s=fmean(counted))


def _profiled(profiler: GNNProfiler, took_s: Sequence[float]) -> Steps:
    records = profiler.records
    timed = {record.batch for record in records.batches if record.timed}
    recorded = {record.batch for record in records.batches if record.peak_bytes is not None}
    by_kind = [
        [took for number, took in enumerate(took_s) if number in steps and not math.isnan(took)]
        for steps in (timed, recorded)
    ]
    step_s = sum(record.step_s for record in records.batches if record.timed)
    return Steps(
        step_s=median(by_kind[0]),
        mean_s=fmean(_counted(took_s)),
        memory_s=median(by_kind[1]) if by_kind[1] else None,
        stated=records.info["overhead_s"] / step_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("profiler", measure, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

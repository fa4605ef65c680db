"""What `GNNProfiler` costs: steps with it and without it in turn, and what it says itself of its cost.

The steps of a single layer on 100,000 edges with a loss, a backward pass and Adam are profiled in a loop of their own
(`GNNProfiler.watch`); the steps of a sampled fit under Lightning (`Trainer(profiler=...)`). What is compared are the
profiler's timed steps, with hooks in every layer; those that it records for their memory stand in rows of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
LAYERS: Mapping[str, Callable[[int, int], nn.Module]] = {"GCNConv": GCNConv, "GATConv": GATConv}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of one side.

    Attributes:
        step_s: Seconds of a step, the median.
        memory_s: Seconds of a step whose memory is recorded, the median; None without a profiler.
        stated: The profiler's own share of its timed steps, as its report states it; None without a profiler.
    """

    step_s: float
    memory_s: float | None = None
    stated: float | None = None


def measure(quick: bool) -> Measured:
    """Measure steps of single layers, and of a fit.

    Args:
        quick: Whether to take fewer steps and rounds.
    """
    rounds, steps = (2, 12) if quick else (9, 60)
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
    took_s: list[float] = []

    def run(number: int) -> None:
        began_s = time.perf_counter()
        out: Tensor = model(x, edge_index)
        optimizer.zero_grad()
        out.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        took_s.append(time.perf_counter() - began_s)

    if not is_profiled:
        for number in range(steps):
            run(number)
        return Steps(step_s=median(took_s[3:]))
    profiler = GNNProfiler(skip_batches=3, memory_every=10, detail_batches=0)
    with profiler.watch(model):
        for number in profiler.steps(range(steps)):
            run(number)
    return _of(profiler, took_s)


class _StepClock(Callback):
    """Times what lies between the starts of two steps of an epoch, without the epoch's first and last ones."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self._mark: float | None = None

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.took_s.append(float("nan") if self._mark is None else now - self._mark)
        self._mark = now

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = None


def _fit(datamodule: GraphDataModule, *, is_profiled: bool) -> Steps:
    torch.manual_seed(0)
    clock = _StepClock()
    model = NodeClassifier(
        "gcn", in_channels=datamodule.num_features, out_channels=datamodule.num_classes, hidden_channels=WIDTH
    )
    profiler = GNNProfiler(skip_batches=3, memory_every=10, detail_batches=0) if is_profiled else None
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
    # what is noted at the start of a step is the time of the step before it
    took_s = [*clock.took_s[1:], float("nan")]
    if profiler is None:
        return Steps(step_s=median([took for took in took_s[3:] if took == took]))
    return _of(profiler, took_s)


def _of(profiler: GNNProfiler, took_s: Sequence[float]) -> Steps:
    records = profiler.records
    timed = {record.batch for record in records.batches if record.timed}
    recorded = {record.batch for record in records.batches if record.peak_bytes is not None}
    by_kind = [
        [took for number, took in enumerate(took_s) if number in steps and took == took] for steps in (timed, recorded)
    ]
    step_s = sum(record.step_s for record in records.batches if record.timed)
    return Steps(
        step_s=median(by_kind[0]),
        memory_s=median(by_kind[1]) if by_kind[1] else None,
        stated=records.info["overhead_s"] / step_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("profiler", measure, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

"""What `GNNProfiler` costs: steps with it and without it in turn, and what it says itself of its cost.

The steps of a single layer on 100,000 edges with a loss, a backward pass and Adam are profiled in a loop of their own
(`GNNProfiler.watch`); the steps of a sampled fit under Lightning (`Trainer(profiler=...)`). A step lasts until the next
one begins, so that what the profiler does between steps counts. What is compared are its timed steps, with hooks in
every layer; those that it records for their memory, each tenth, are in rows of their own and in the means of all steps.
Runs are short and many, as the cost to be found is less than what a machine drifts by within seconds; the cores'
seconds are told as well, which other jobs stretch less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv
from typing_extensions import override

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from lightning_gnnopt import GNNProfiler, GraphDataModule, NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.studies.quiet import quiet

REACH = 1.05
NODES, EDGES, WIDTH = 10_000, 100_000, 64
SKIPPED = 3  # steps that compile and warm up
LAYERS: Mapping[str, Callable[[int, int], nn.Module]] = {"GCNConv": GCNConv, "GATConv": GATConv}


class _Stamp(NamedTuple):
    """A time, or a difference of two."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of one side.

    Attributes:
        step_s: Seconds of a step that is timed, the median.
        cpu_s: Seconds that all cores together spent in it, the median.
        mean_s: Seconds of a step, the mean of all but the first.
        memory_s: Seconds of a step whose memory is recorded, the median; None without a profiler.
        stated: The profiler's own share of its timed steps, as its report states it; None without a profiler.
    """

    step_s: float
    cpu_s: float
    mean_s: float
    memory_s: float | None = None
    stated: float | None = None


def measure(quick: bool) -> Measured:
    """Measure steps of single layers, and of a fit.

    Args:
        quick: Whether to take fewer steps and rounds.
    """
    rounds, steps = (4, 15) if quick else (30, 24)
    datamodule = GraphDataModule(
        load_dataset("dcsbm", num_nodes=5_000 if quick else 10_000, avg_degree=20.0),
        num_neighbors=[15, 10],
        batch_size=256,
        num_workers=1,
    )
    works: dict[str, Callable[..., Steps]] = {name: partial(_loop, layer, steps) for name, layer in LAYERS.items()}
    works["fit"] = partial(_fit, datamodule)
    runs: dict[str, list[Steps]] = {}
    with quiet():
        for name, work in works.items():
            # by themselves, so that the two runs of a round are neighbours
            runs |= alternate(
                {
                    f"{name}, without": partial(work, is_profiled=False),
                    f"{name}, profiled": partial(work, is_profiled=True),
                },
                rounds=rounds,
            )
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
        cores = ratios([run.cpu_s for run in profiled], [run.cpu_s for run in without])
        figures.append(Figure.of_runs(f"cores' seconds of timed steps beside plain ones, {what}", cores, unit="x"))
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
    stamps: list[_Stamp] = []

    def run() -> None:
        stamps.append(_now())
        out: Tensor = model(x, edge_index)
        optimizer.zero_grad()
        out.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if not is_profiled:
        for _ in range(steps):
            run()
        return _plain(_between([*stamps, _now()]))
    profiler = _make_profiler()
    with profiler.watch(model):
        for _ in profiler.steps(range(steps)):
            run()
        stamps.append(_now())
    return _profiled(profiler, _between(stamps))


class _StepClock(Callback):
    """Takes the time at the start of each step.

    Attributes:
        epochs: Those times, by epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[list[_Stamp]] = [[]]

    @property
    def took(self) -> list[_Stamp | None]:
        """What each step took until the next one began; None for an epoch's last one."""
        return [took for stamps in self.epochs if stamps for took in (*_between(stamps), None)]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.epochs[-1].append(_now())

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
    return _plain(clock.took) if profiler is None else _profiled(profiler, clock.took)


def _make_profiler() -> GNNProfiler:
    return GNNProfiler(skip_batches=SKIPPED, memory_every=10, detail_batches=0)


def _now() -> _Stamp:
    return _Stamp(time.perf_counter(), time.process_time())


def _between(stamps: Sequence[_Stamp]) -> list[_Stamp]:
    return [_Stamp(end.wall_s - start.wall_s, end.cpu_s - start.cpu_s) for start, end in pairwise(stamps)]


def _plain(took: Sequence[_Stamp | None]) -> Steps:
    return _steps(took, range(SKIPPED, len(took)))


def _profiled(profiler: GNNProfiler, took: Sequence[_Stamp | None]) -> Steps:
    records = profiler.records
    timed = [record for record in records.batches if record.timed]
    recorded = [record.batch for record in records.batches if record.peak_bytes is not None]
    memory_s = [step.wall_s for number in recorded if (step := took[number]) is not None]
    return replace(
        _steps(took, [record.batch for record in timed]),
        memory_s=median(memory_s) if memory_s else None,
        stated=records.info["overhead_s"] / sum(record.step_s for record in timed),
    )


def _steps(took: Sequence[_Stamp | None], timed: Iterable[int]) -> Steps:
    compared = [step for number in timed if (step := took[number]) is not None]
    return Steps(
        step_s=median([step.wall_s for step in compared]),
        cpu_s=median([step.cpu_s for step in compared]),
        mean_s=fmean(step.wall_s for step in took[SKIPPED:] if step is not None),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("profiler", measure, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

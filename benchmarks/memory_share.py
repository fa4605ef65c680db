"""Control's share of an epoch: in the loader's threads, and between the steps of PyG's loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch_geometric.loader import NodeLoader
from typing_extensions import override

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios
from benchmarks.memory_runs import PLENTY, make_model, make_trainer
from benchmarks.memory_scale import MemoryScale
from benchmarks.training import EpochClock
from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.studies.quiet import quiet

IN_WORKERS, INLINE = 0.01, 0.03
_FANOUTS = (15, 10)


def make_block_model_datamodule(scale: MemoryScale, **kwargs: Any) -> GraphDataModule:
    """Load a block model's graph, in 20 batches of two hops."""
    data = load_dataset("dcsbm", num_nodes=scale.share_nodes, avg_degree=30.0)
    batch_size = scale.share_nodes // 40  # half of the nodes are for training: 20 batches
    return GraphDataModule(data, **{"num_neighbors": list(_FANOUTS), "batch_size": batch_size, "seed": 0, **kwargs})


@dataclass(frozen=True, kw_only=True)
class ControlledEpochs:
    """What control took in the epochs that count.

    Attributes:
        epoch_s: Seconds of an epoch, the median.
        cpu_s: Seconds of all cores that an epoch took, the median: other jobs on the machine stretch them little.
        inline_share: Share of the run's epochs that control took between steps, by its own clock, without probes.
        worker_share: The same of the seconds in the loader's threads, over the epochs' wall time.
        touched: Share of the batches that were over the budget as they were drawn.
        resamples: Further draws per batch.
    """

    epoch_s: float
    cpu_s: float
    inline_share: float = 0.0
    worker_share: float = 0.0
    touched: float = 0.0
    resamples: float = 0.0


class CpuClock(EpochClock):
    """Times epochs, and the seconds of all cores that they take."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: list[float] = []
        self._cpu_start_s = 0.0

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._cpu_start_s = time.process_time()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.cpu_s.append(time.process_time() - self._cpu_start_s)


def measure_share(scale: MemoryScale) -> Measured:
    """Train with and without control, in turn: in a `GraphDataModule`'s threads, and beside PyG's `NodeLoader`.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per side.
    """
    datamodule = make_block_model_datamodule(scale, num_workers=2)
    datamodule.setup("fit")
    sides: dict[str, Callable[[], ControlledEpochs]] = {}
    cutting: dict[str, Callable[[], ControlledEpochs]] = {}  # trains on less, so its time is compared with nothing
    for kind in ("workers", "inline"):
        fit = partial(_fit, scale, datamodule, is_inline=kind == "inline")
        largest = _largest_peak(datamodule, is_inline=kind == "inline")  # batches that wait in threads count
        sides[f"{kind}, without"] = partial(fit, None)
        sides[f"{kind}, none touched"] = partial(fit, 2 * largest)
        cutting[f"{kind}, at 70 %"] = partial(fit, int(0.7 * largest))
    with quiet():
        # Each run's first epoch is not counted, nor what is compiled when something is cut first.
        runs = alternate(sides, rounds=scale.share_rounds, warmup=0) | alternate(cutting, rounds=1, warmup=1)
    figures: list[Figure] = []
    for kind, reach in (("workers", IN_WORKERS), ("inline", INLINE)):
        goal: dict[str, Any] = {"unit": "share", "reach": reach, "sense": "<="}
        without, controlled = runs[f"{kind}, without"], runs[f"{kind}, none touched"]
        by_clock = _shares([run.epoch_s for run in controlled], [run.epoch_s for run in without])
        by_cores = _shares([run.cpu_s for run in controlled], [run.cpu_s for run in without])
        figures.append(Figure.of_runs(f"epoch's time that is control's, {kind}", by_clock, **goal))
        figures.append(Figure.of_runs(f"cores' seconds that are control's, {kind}", by_cores, unit="share"))
        for budget in ("none touched", "at 70 %"):
            of_side = runs[f"{kind}, {budget}"]
            counted = [run.inline_share for run in of_side]
            figures.append(Figure.of_runs(f"control between steps, {kind}, {budget}", counted, **goal))
            if kind == "workers":
                in_threads = [run.worker_share for run in of_side]
                name = f"control's seconds in threads over the epoch's, {budget}"
                figures.append(Figure.of_runs(name, in_threads, unit="share"))
    return figures, [_row(name, of_side, scale) for name, of_side in runs.items()]


def _shares(with_control: Sequence[float], without: Sequence[float]) -> list[float]:
    """By round, the part of the time with control that the time without it does not explain."""
    return [1 - 1 / ratio for ratio in ratios(with_control, without)]


def _fit(scale: MemoryScale, datamodule: GraphDataModule, budget: int | None, *, is_inline: bool) -> ControlledEpochs:
    clock = CpuClock()
    control = None if budget is None else MemoryControl(budget, verbose=False)
    callbacks: list[Callback] = [clock] if control is None else [control, clock]
    _train(datamodule, callbacks, epochs=1 + scale.share_epochs, is_inline=is_inline)
    epoch_s, cpu_s = clock.counted().epoch_s, median(clock.cpu_s[1:])
    if control is None:
        return ControlledEpochs(epoch_s=epoch_s, cpu_s=cpu_s)
    tally, all_s = control.tally, sum(clock.epoch_s)
    return ControlledEpochs(
        epoch_s=epoch_s,
        cpu_s=cpu_s,
        inline_share=(tally.inline_s - tally.probe_s) / all_s,
        worker_share=tally.worker_s / all_s,
        touched=tally.over / max(tally.batches, 1),
        resamples=tally.resamples / max(tally.batches, 1),
    )


def _largest_peak(datamodule: GraphDataModule, *, is_inline: bool) -> int:
    control = MemoryControl(PLENTY, on_exceed="watch", measure_every=1, verbose=False)
    with quiet():
        _train(datamodule, [control], epochs=1, is_inline=is_inline)
    assert control.controller is not None
    return int(max(measured for _, measured in control.controller.pairs))


def _train(datamodule: GraphDataModule, callbacks: Sequence[Callback], *, epochs: int, is_inline: bool) -> None:
    L.seed_everything(0, verbose=False)
    module = make_model("sage", datamodule, hidden_channels=256)
    trainer = make_trainer(*callbacks, max_epochs=epochs, limit_val_batches=0)
    if not is_inline:
        trainer.fit(module, datamodule=datamodule)
        return
    data = datamodule.data
    loader = NodeLoader(
        data,
        node_sampler=datamodule.sampler,
        input_nodes=data.train_mask,
        batch_size=datamodule.batch_size,
        shuffle=True,
    )
    trainer.fit(module, train_dataloaders=loader)


def _row(name: str, runs: Sequence[ControlledEpochs], scale: MemoryScale) -> Mapping[str, Cell]:
    return {
        "part": "share",
        "side": name,
        "epoch_s": median([run.epoch_s for run in runs]),
        "cpu_s": median([run.cpu_s for run in runs]),
        "inline_share": median([run.inline_share for run in runs]),
        "worker_share": median([run.worker_share for run in runs]),
        "touched": median([run.touched for run in runs]),
        "resamples": median([run.resamples for run in runs]),
        "note": f"{scale.share_epochs} epochs",
    }

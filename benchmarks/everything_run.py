"""One side of `benchmarks.everything`: ``python -m benchmarks.everything_run SIDE FOLDER [OVERRIDE ...]``."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig
from typing_extensions import override

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.studies.pipeline.loaders import PygBatches, for_pyg, pyg_samples_with
from lightning_gnnopt.studies.quiet import quiet
from lightning_gnnopt.train import build, build_members

OVERRIDES = (
    "experiment=everything",
    "trainer=cpu",
    "logger=none",
    "~callbacks.progress_bar",
    "trainer.enable_progress_bar=false",
    "trainer.profiler=null",  # it is no part of what is compared
    "callbacks.memory_control.verbose=false",
)
_WORKERS, _TRIED = (0, 1, 2), 30


class _Clock(Callback):
    """When epochs begin and end, validation within, and what a step holds at most beyond what was there before."""

    def __init__(self) -> None:
        self.began_s: list[float] = []
        self.ended_s = 0.0
        self.step_peak_bytes = 0
        self._meter: PeakMeter | None = None

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began_s.append(time.perf_counter())

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step % 50 == 25:
            self._meter = PeakMeter("cpu").__enter__()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.__exit__(None, None, None)
            self.step_peak_bytes = max(self.step_peak_bytes, meter.peak.allocated_bytes)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ended_s = time.perf_counter()


def run(side: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train on one side, and test its best weights.

    Args:
        side: ``"everything"`` or ``"plain"``.
        folder: For checkpoints.
        overrides: Of the recipe's config.

    Returns:
        What was measured, by name.
    """
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose("train", overrides=[*OVERRIDES, f"output_dir={folder}", *overrides])
    L.seed_everything(config.seed, workers=True, verbose=False)
    ours, model = build(config)
    clock = _Clock()
    name: str
    datamodule: L.LightningDataModule
    if side == "everything":
        name, datamodule, callbacks = side, ours, build_members(config.callbacks)
    else:
        name, datamodule = _plain(ours, config)
        callbacks = [ModelCheckpoint(folder, monitor="val/acc", mode="max")]
    trainer: L.Trainer = instantiate(config.trainer, callbacks=[*callbacks, clock], logger=False, _convert_="all")
    began_s = time.perf_counter()
    trainer.fit(model, datamodule=datamodule)
    fit_s = time.perf_counter() - began_s
    best: Any = trainer.checkpoint_callback
    # the same nodes with the same draws on both sides
    trainer.test(model, datamodule=ours, ckpt_path=best.best_model_path, weights_only=True, verbose=False)
    times_s = [*clock.began_s, clock.ended_s]
    epochs_s = [end - start for start, end in pairwise(times_s)]
    return {
        "name": name,
        "epochs": len(epochs_s),
        "epoch_s": sum(epochs_s[1:]) / len(epochs_s[1:]),  # the first one compiles
        "fit_s": fit_s,
        "step_peak_bytes": clock.step_peak_bytes,
        "val_acc": float(best.best_model_score),
        "test_acc": float(trainer.callback_metrics["test/acc"]),
    }


def _plain(ours: GraphDataModule, config: DictConfig) -> tuple[str, L.LightningDataModule]:
    peer = pyg_samples_with()
    if peer is None:
        config.data.num_workers = 0
        return "plain, our loader without workers", build(config)[0]
    data = for_pyg(ours.data)

    def make(num_workers: int) -> PygBatches:
        fanouts = list(config.sampler.num_neighbors)
        return PygBatches(data, passes=1, batch_size=config.data.batch_size, fanouts=fanouts, num_workers=num_workers)

    seconds = {workers: _seconds(make(workers)) for workers in _WORKERS}
    best = min(seconds, key=lambda workers: seconds[workers])
    return f"plain, PyG's loader with {peer}, {best} workers", make(best)


def _seconds(datamodule: PygBatches) -> float:
    batches = iter(datamodule.train_dataloader())
    next(batches)  # starts the workers
    began_s = time.perf_counter()
    for _ in zip(range(_TRIED), batches, strict=False):
        pass
    return time.perf_counter() - began_s


def main() -> None:
    """Run one side, and write what was measured to ``FOLDER/result.json``."""
    side, folder, *overrides = sys.argv[1:]
    torch.set_float32_matmul_precision("highest")
    with quiet():
        found = run(side, Path(folder), overrides)
    (Path(folder) / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

"""LoaderMonitor: what loading cost, in the logs of the run."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_gnnopt.analysis.summary import loader_stats
from lightning_gnnopt.loading import LoaderStats


class LoaderMonitor(Callback):
    """Logs what each stage of loading took in training, through the Trainer's loggers.

    Logged every ``trainer.log_every_n_steps`` batches and at the end of an epoch, as means per batch since the last
    time:

    * ``loader/wait_s``: seconds the training loop waited. If this is near zero, faster loading saves nothing.
    * ``loader/sample_s``, ``loader/slice_s``: seconds of a worker for sampling (transforms included) and for slicing.
    * ``loader/transfer_s``, ``loader/moved_bytes``: seconds and bytes of the copy to the device, if there is one.
    * ``loader/queue_depth``: batches that were ready when one was asked for. Near zero: the workers do not keep up.
    * ``loader/nodes``, ``loader/edges``: size of a batch.
    * ``loader/cache_hit_rate``: share of the feature rows that were on the device already, if some are kept there.

    Works with `PrefetchLoader`; with any other loader it says once that it has nothing to log.

    Examples:
        >>> trainer = L.Trainer(callbacks=[LoaderMonitor()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._before: LoaderStats | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if loader_stats(trainer) is None:
            rank_zero_warn(
                f"`LoaderMonitor` has nothing to log with {type(trainer.train_dataloader).__name__}, which does not"
                " count. HINT: load with `GraphDataModule` or `PrefetchLoader`, or leave the callback out."
            )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._before is None:  # resumed within an epoch: Lightning does not start it again
            self._start(trainer)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer)

    def _start(self, trainer: L.Trainer) -> None:
        stats = loader_stats(trainer)
        self._before = None if stats is None else stats.copy()

    def _log(self, trainer: L.Trainer) -> None:
        stats = loader_stats(trainer)
        if stats is None or self._before is None:
            return
        metrics = means(stats - self._before)
        self._before = stats.copy()
        if metrics:
            # Where Lightning's own logs of this batch stand, as in its `DeviceStatsMonitor`.
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)


def means(stats: LoaderStats) -> dict[str, float]:
    """Turn what was counted over a stretch of a run into means per batch, by the names of the logs.

    Args:
        stats: The difference of two totals.

    Returns:
        The means; empty if no batch was delivered.

    Examples:
        >>> means(LoaderStats(batches=2, nodes=30, edges=50, wait_s=0.5))["loader/wait_s"]
        0.25
    """
    if not stats.batches:
        return {}
    names = ["wait_s", "sample_s", "slice_s", "nodes", "edges"]
    if stats.copies:
        names += ["transfer_s", "moved_bytes"]
    metrics = {f"loader/{name}": getattr(stats, name) / stats.batches for name in names}
    metrics["loader/queue_depth"] = stats.queue_depth
    if stats.cache_hit_rate is not None:
        metrics["loader/cache_hit_rate"] = stats.cache_hit_rate
    return metrics

"""Lightning's own validation, where the process for it has failed."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gnnopt.evaluation.copying import CopyPool
from lightning_gnnopt.evaluation.files import cannot_write
from lightning_gnnopt.evaluation.messages import Verdict
from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.schedule import Schedule
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder, of_steps
from lightning_gnnopt.evaluation.weights import load_weights, read_weights, weights_of


class BlockingValidation:
    """Decides in Lightning's place when training stops to validate: never, as long as it is not on.

    Once it is, at the same points as snapshots would have been taken, and the best weights are kept in the same way.

    Args:
        trainer: The Trainer; it asks this object until :meth:`close`.
        pl_module: Its module.
        folder: Where checkpoints go.
        ranking: Which are the best.
        schedule: When to validate.

    Attributes:
        is_on: Whether training stops to validate.
        unjudged: Snapshots that are to be judged first, on their own weights.
        is_owed: Whether validation is due at this batch, and the schedule has said so already.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        *,
        folder: SnapshotFolder,
        ranking: Ranking,
        schedule: Schedule,
    ) -> None:
        self._trainer: Any = trainer
        self._module = pl_module
        self._folder, self._ranking, self._schedule = folder, ranking, schedule
        self.is_on = False
        self.unjudged: list[Snapshot] = []
        self.is_owed = False
        self._judged_now: Snapshot | None = None
        vars(self._epoch_loop)["_should_check_val_fx"] = self.is_due

    @property
    def _epoch_loop(self) -> Any:
        return self._trainer.fit_loop.epoch_loop

    def close(self) -> None:
        """Let Lightning decide itself again."""
        vars(self._epoch_loop).pop("_should_check_val_fx", None)

    def is_due(self, data_fetcher: Any) -> bool:
        """Stand in for Lightning's own question, after each batch, whether to validate."""
        if not self.is_on:
            return False
        self.judge_unjudged()
        is_owed, self.is_owed = self.is_owed, False
        if is_owed or self._schedule.due_at_step(self._trainer.global_step):
            return True
        return bool(self._epoch_loop.batch_progress.is_last_batch) and self._schedule.due_at_epoch(
            self._trainer.current_epoch
        )

    def judge_unjudged(self) -> None:
        """Validate the snapshots that the process left, on their own weights."""
        unjudged, self.unjudged = self.unjudged, []
        if self._trainer.world_size > 1:
            if unjudged:
                rank_zero_warn(f"{of_steps(unjudged)} stay without a verdict until the run is resumed.")
            return
        if not unjudged:
            return
        now = CopyPool().copy(weights_of(self._module))
        now.wait()
        try:
            for snapshot in unjudged:
                if snapshot.weights.exists():
                    self._judged_now = snapshot
                    load_weights(self._module, read_weights(snapshot.weights))
                    self._validate_now()
        finally:
            self._judged_now = None
            load_weights(self._module, now.value)

    def _validate_now(self) -> None:
        """Validate as Lightning's `TrainingEpochLoop` does between two batches."""
        connector = self._trainer._logger_connector
        self._trainer.validating, first = True, connector._first_loop_iter
        try:
            self._epoch_loop.val_loop.run()
        finally:
            self._trainer.training, connector._first_loop_iter = True, first

    def end_validation(self) -> None:
        """Rank weights that Lightning has validated."""
        if not self.is_on or self._trainer.sanity_checking:
            return
        trainer, snapshot, ended_s = self._trainer, self._judged_now, time.monotonic()
        found = trainer._logger_connector.metrics["callback"]  # of this validation; `callback_metrics` has others too
        metrics = {name: value.detach().cpu() for name, value in found.items()}
        verdict = Verdict(
            step=trainer.global_step if snapshot is None else snapshot.step,
            epoch=trainer.current_epoch if snapshot is None else snapshot.epoch,
            metrics=metrics,
            logged=dict(trainer.logged_metrics),
            shown={},
            started_s=ended_s,
            ended_s=ended_s,
        )
        verdict = trainer.strategy.broadcast(verdict)  # processes may have metrics of their own
        try:
            self._keep(verdict, snapshot)
        except OSError as error:
            if trainer.world_size > 1:  # the others are waiting for the file
                raise
            rank_zero_warn(f"What validation found at step {verdict.step:,} could not be kept: {error}")

    def _keep(self, verdict: Verdict, snapshot: Snapshot | None) -> None:
        trainer, path = self._trainer, ""
        try:
            if self._ranking.judge(verdict):
                if snapshot is None:
                    snapshot = self._folder.new(step=verdict.step, epoch=verdict.epoch, with_checkpoint=True)
                    self._save(snapshot)
                path = str(self._folder.promote(snapshot, verdict)) if trainer.is_global_zero else ""
                path = trainer.strategy.broadcast(path)
                for worse in self._ranking.enter(path, verdict):
                    if trainer.is_global_zero:
                        self._folder.remove(worse)
        finally:
            if snapshot is not None and trainer.is_global_zero:
                self._folder.drop(snapshot)
        if trainer.is_global_zero:
            lag = trainer.global_step - verdict.step
            self._folder.record(verdict, path=path, score=self._ranking.score(verdict), lag=lag)

    def _save(self, snapshot: Snapshot) -> None:
        assert snapshot.checkpoint is not None
        try:
            self._trainer.save_checkpoint(snapshot.checkpoint)
        except OSError as error:
            raise cannot_write(error, snapshot.checkpoint) from error

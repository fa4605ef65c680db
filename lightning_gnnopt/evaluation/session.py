"""One `fit` with validation beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_gnnopt.evaluation.backlog import Backlog
from lightning_gnnopt.evaluation.blocking import BlockingValidation
from lightning_gnnopt.evaluation.blueprint import Blueprint
from lightning_gnnopt.evaluation.child import ChildProcess
from lightning_gnnopt.evaluation.copying import CopyPool
from lightning_gnnopt.evaluation.delivery import Delivery
from lightning_gnnopt.evaluation.messages import ValidationFailed
from lightning_gnnopt.evaluation.options import Options
from lightning_gnnopt.evaluation.packing import pack
from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.resuming import take_up
from lightning_gnnopt.evaluation.schedule import Schedule
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder, of_steps
from lightning_gnnopt.evaluation.supervisor import Outcome, Supervisor
from lightning_gnnopt.evaluation.surroundings import averages_weights, check_checkpoints, spare_device
from lightning_gnnopt.evaluation.timeline import Timeline
from lightning_gnnopt.evaluation.weights import weights_of

_TOLD_EVERY_S = 10.0
_ARGUMENTS = (L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)


class Session:
    """Takes snapshots when they are due, and hands out verdicts when they have come.

    All processes of a run have one and call the same methods together; the first one's has the validation process.
    Lightning's own validation does not run until something fails that cannot be mended.

    Args:
        trainer: The Trainer, at `setup`.
        pl_module: Its module.
        options: What was asked for.
        folder: Where checkpoints go.
        filename: How they are called.

    Attributes:
        ranking: The best checkpoints.
        timeline: Who did what when.
        lags: Of each verdict, the steps between its snapshot and its arrival.
        num_skipped: Snapshots that a newer one took the place of.
        is_started: Whether :meth:`start` has been called.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        options: Options,
        *,
        folder: Path,
        filename: str,
    ) -> None:
        self._trainer: Any = trainer
        self._module = pl_module
        self._options = options
        self._device = spare_device(trainer, options.device)
        self._folder = SnapshotFolder(folder, filename=filename)
        self.ranking = Ranking(monitor=options.monitor, mode=options.mode, save_top_k=options.save_top_k)
        every_n_epochs = 1 if options.every_n_epochs is options.every_n_steps is None else options.every_n_epochs
        self._schedule = Schedule(every_n_epochs=every_n_epochs, every_n_steps=options.every_n_steps)
        self.timeline = Timeline()
        self.lags: list[int] = []
        self.num_skipped = 0
        self._delivery: Delivery | None = None
        self._supervisor: Supervisor | None = None
        self._pool = CopyPool()
        self._log_steps: dict[int, int] = {}
        self._epoch_started_s = 0.0
        self._resumes = False
        self._waiting: list[Snapshot] = []
        self.is_started = False
        self._blocking = BlockingValidation(
            trainer, pl_module, folder=self._folder, ranking=self.ranking, schedule=self._schedule
        )

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return self._folder.folder

    @property
    def is_blocking(self) -> bool:
        """Whether Lightning validates within training, because the process has failed."""
        return self._blocking.is_on

    @property
    def _epoch_loop(self) -> Any:
        return self._trainer.fit_loop.epoch_loop

    # The run

    def start(self, loaded: Mapping[str, Any]) -> None:
        """Start the validation process, which comes up while training goes on.

        Args:
            loaded: The state of the run that is resumed; nothing if there is none.
        """
        self.is_started, self._resumes = True, bool(loaded)
        if loaded:
            self._folder.run = loaded["run"]
            self.load_ranking(loaded)
            self._schedule.load_state_dict(loaded["schedule"])
        self._delivery = Delivery(self._trainer, monitor=self._options.monitor)
        error: Exception | None = None
        if self._trainer.is_global_zero:
            try:
                self._supervisor = self._start_supervisor(loaded)
            except Exception as cause:  # whatever the user's objects raise when they are pickled
                error = ValidationFailed("start", f"{type(cause).__name__}: {cause}")
                error.__cause__ = cause
        error = self._told_to_all(error)
        if error is not None:
            self._fail(error)

    def load_ranking(self, loaded: Mapping[str, Any]) -> None:
        """Know the best checkpoints of the run that is resumed, even if there is nothing left to train."""
        self.ranking.load_state_dict(loaded["ranking"])

    def start_epoch(self) -> None:
        """Begin an epoch: what was delivered in the one before is no news any more."""
        self._epoch_started_s = time.monotonic()
        if self._delivery is not None and not self.is_blocking:
            self._delivery.expire()

    def end_batch(self) -> None:
        """Hand out verdicts that have come, and take a snapshot if one is due."""
        if self.is_blocking:
            return
        step, is_last = self._trainer.global_step, bool(self._trainer.is_last_batch)
        is_due = self._schedule.due_at_step(step)
        if self._trainer.world_size == 1 or is_due or is_last:
            self._exchange()
        if self.is_blocking:
            self._blocking.is_owed = is_due
        elif is_due:
            self._take_snapshot(log_step=self._epoch_loop._batches_that_stepped)

    def end_epoch(self) -> None:
        """Take a snapshot if one is due."""
        epoch = self._trainer.current_epoch
        self.timeline.record("training", f"epoch {epoch}", self._epoch_started_s, time.monotonic())
        if not self.is_blocking and self._schedule.due_at_epoch(epoch):
            self._take_snapshot(log_step=self._epoch_loop._batches_that_stepped - 1)

    def end(self) -> None:
        """Wait for the verdicts that have not come yet."""
        if self._supervisor is not None and not self.is_blocking:
            is_done = self._supervisor.drain(self._options.timeout_s, while_waiting=_Waiting())
            if not is_done and not self._supervisor.has_failed:
                self._supervisor.stop()
                rank_zero_warn(
                    f"{of_steps(self._supervisor.waiting)} had no verdict: the next one did not come within"
                    f" {self._options.timeout_s:g} s. They stay in '{self._folder.folder}' and are judged when the run"
                    " is resumed. HINT: raise `timeout_s`."
                )
        if not self.is_blocking:
            self._exchange(is_over=True)
        if self.is_blocking:
            self._blocking.judge_unjudged()
        elif self._delivery is not None:
            self._delivery.settle()
        if self._resumes and self._supervisor is not None:  # those that were taken after the state was saved
            for path in self._folder.leftovers([*self._blocking.unjudged, *self._supervisor.waiting]):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the process and the threads, and leave the Trainer as it was; may be called again."""
        self._blocking.close()
        if self._supervisor is not None:
            self._supervisor.stop()
            self._folder.sweep()
            # What comes after training gets the memory of copies, and of what the process was sent.
            self._waiting, self._supervisor, self._pool = self._supervisor.waiting, None, CopyPool()
        if self._delivery is not None:
            self._delivery.close()

    def end_validation(self) -> None:
        """Rank weights that Lightning has validated, if it does."""
        self._blocking.end_validation()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know, as plain types."""
        waiting = self._waiting if self._supervisor is None else self._supervisor.waiting
        if self.is_blocking:
            waiting = self._blocking.unjudged
        with self._supervisor.lock if self._supervisor is not None else nullcontext():
            ranking = self.ranking.state_dict()
        return {
            "ranking": ranking,
            "schedule": self._schedule.state_dict(),
            "run": self._folder.run,
            "folder": str(self._folder.folder),
            "waiting": [
                {**snapshot.to_state(), "log_step": self._log_steps.get(snapshot.step, snapshot.step - 1)}
                for snapshot in waiting
            ],
        }

    # Snapshots

    def _take_snapshot(self, *, log_step: int) -> None:
        started_s = time.monotonic()
        trainer, step, epoch = self._trainer, self._trainer.global_step, self._trainer.current_epoch
        if trainer.world_size == 1 and self._supervisor is not None and self._supervisor.is_full:
            self.num_skipped += 1
            return
        checkpoint = None
        if self._options.save_top_k or averages_weights(trainer):
            # On all processes, since a part of its state may be gathered from them.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if self._supervisor is None:
            return
        # Those that the checkpoint has are judged: a callback may have put averages there.
        weights = weights_of(self._module, saved=None if checkpoint is None else checkpoint["state_dict"])
        checkpoint = checkpoint if self._options.save_top_k else None
        # Arguments of the module do not change, and may be large; all else is copied.
        arguments = {name: checkpoint.pop(name) for name in _ARGUMENTS if name in checkpoint} if checkpoint else {}
        copied = self._pool.copy({"weights": weights, "checkpoint": checkpoint})
        if checkpoint is not None:
            copied.value["checkpoint"].update(arguments)
        snapshot = self._folder.new(step=step, epoch=epoch, with_checkpoint=checkpoint is not None)
        self._log_steps[step] = log_step
        self.timeline.record("training", f"snapshot {step}", started_s, time.monotonic(), step=step)
        skipped = self._supervisor.submit(snapshot, copied)
        if skipped is not None:
            self.num_skipped += 1
            self._log_steps.pop(skipped.step, None)

    def _start_supervisor(self, loaded: Mapping[str, Any]) -> Supervisor:
        options = self._options
        blueprint = Blueprint.of(
            self._trainer,
            self._module,
            device=self._device,
            callbacks=list(options.callbacks),
            datamodule_factory=options.datamodule_factory,
            num_threads=options.num_threads or torch.get_num_threads(),
        )
        packed = pack(blueprint)
        supervisor = Supervisor(
            lambda: ChildProcess(packed),
            folder=self._folder,
            ranking=self.ranking,
            backlog=Backlog(options.max_pending, options.when_busy),
            timeout_s=options.timeout_s,
            timeline=self.timeline,
            step_now=lambda: int(self._trainer.global_step),
        )
        supervisor.start()
        self._pool.copy(weights_of(self._module)).release()  # the first write to fresh memory is slow
        if loaded:
            step_now = self._trainer.global_step
            for snapshot, log_step in take_up(loaded, self._folder, self.ranking, step_now=step_now):
                self._log_steps[snapshot.step] = log_step
                supervisor.submit(snapshot, None)
        return supervisor

    # Verdicts

    def _exchange(self, *, is_over: bool = False) -> None:
        """Hand out what has come, in all processes together."""
        outcomes = [] if self._supervisor is None else self._supervisor.collect()
        if self._trainer.world_size > 1:
            told = (outcomes, self.ranking.state_dict() if outcomes else None, self._log_steps if outcomes else None)
            outcomes, ranking, log_steps = self._trainer.strategy.broadcast(told)
            if ranking is not None and not self._trainer.is_global_zero:
                self.ranking.load_state_dict(ranking, must_exist=False)
                self._log_steps = log_steps
        for outcome in outcomes:
            self._hand_out(outcome, is_over)

    def _hand_out(self, outcome: Outcome, is_over: bool) -> None:
        assert self._delivery is not None
        if outcome.notice:
            rank_zero_warn(outcome.notice)
        if outcome.verdict is not None:
            verdict = outcome.verdict
            if not self.lags:
                check_checkpoints(self._trainer, verdict.metrics)
            self.lags.append(self._trainer.global_step - verdict.step)
            log_step = self._log_steps.pop(verdict.step, verdict.step - 1)
            self._delivery.deliver(verdict, log_step=log_step, is_over=is_over)
        if outcome.error is not None:
            self._fail(outcome.error)

    def _told_to_all(self, error: Exception | None) -> Exception | None:
        if self._trainer.world_size == 1:
            return error
        told: Exception | None = self._trainer.strategy.broadcast(error)
        return error if error is not None else told

    # Without the process

    def _fail(self, error: Exception) -> None:
        """Let Lightning validate from now on, or raise."""
        if not isinstance(error, ValidationFailed) or self._options.on_failure == "raise":
            raise error
        rank_zero_warn(
            f"Validation goes on within training, which waits for it: {error}"
            " HINT: `on_failure='raise'` ends the run instead."
        )
        self._blocking.is_on = True
        if self._supervisor is not None:
            self._blocking.unjudged = self._supervisor.waiting
            self._supervisor.stop()
        if self._delivery is not None:
            self._delivery.give_up()


class _Waiting:
    """Says from time to time that training is over and what is waited for."""

    def __init__(self) -> None:
        self._next_s = 1.0

    def __call__(self, waiting: Sequence[Snapshot], passed_s: float) -> None:
        if passed_s >= self._next_s:
            self._next_s = passed_s + _TOLD_EVERY_S
            rank_zero_info(
                f"Training has ended; waiting for validation: {of_steps(waiting)} ({passed_s:.0f} s so far)."
            )

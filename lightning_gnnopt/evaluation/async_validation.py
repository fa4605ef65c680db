"""AsyncValidation: validation beside training, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, tensor
from typing_extensions import override

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt.evaluation.backlog import WhenBusy
from lightning_gnnopt.evaluation.options import Mode, OnFailure, Options
from lightning_gnnopt.evaluation.session import Session
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder
from lightning_gnnopt.evaluation.surroundings import check, checkpoint_folder
from lightning_gnnopt.evaluation.timeline import Timeline


class AsyncValidation(Checkpoint):
    """Validates in a process of its own while training goes on, and keeps the weights that were best.

    When validation is due, the weights are copied, which takes some milliseconds, and training goes on. One spawned
    process, which lives as long as `fit`, runs the module's own `validation_step`, hooks and metrics on them through a
    `Trainer`, on the graph of this process: large tensors are shared, not copied. Its metrics equal those of a blocking
    ``trainer.validate`` of these weights. Any LightningModule and DataModule will do that can be pickled (with
    `cloudpickle`: classes of a notebook or an unguarded script, too).

    A verdict is logged at the step of the weights that were judged. It is in ``trainer.callback_metrics`` until the
    epoch in which it arrives ends. `EarlyStopping` looks at it when it arrives, and can end training in the middle of
    an epoch; `ReduceLROnPlateau` at the end of the epoch. The best weights are full checkpoints of the very weights
    that were judged: ``trainer.test(ckpt_path="best")`` finds them, so leave out `ModelCheckpoint` for this metric.
    Lightning's own validation does not run, except for the sanity check; with ``fast_dev_run`` it runs as usual.

    Logged with each verdict: ``async_val/lag_steps`` (steps between its snapshot and its arrival) and
    ``async_val/seconds`` (that validation took).

    Under DDP the first process has the validation process, which sees the whole validation set; all processes get the
    same verdicts at the same batch: at an epoch's last one, and whenever a snapshot is due.

    Args:
        every_n_epochs: Validate at the end of every so many epochs; 1 if `every_n_steps` is not given either.
        every_n_steps: Validate after every so many optimizer steps instead.
        monitor: The metric by which weights are the best; None keeps the latest.
        mode: Whether the best value is the largest (``"max"``) or the smallest (``"min"``).
        device: Where to validate: ``"cpu"``, ``"cuda:1"``; ``"auto"`` takes an accelerator of the Trainer's kind that
            the Trainer does not use, or else the CPU.
        save_top_k: How many checkpoints to keep: -1 all, 0 none.
        max_pending: How many snapshots may be without a verdict.
        when_busy: What happens when there are that many. ``"coalesce"``: the latest that waits gives way to the new
            one, so that training never waits and verdicts never get old. ``"queue"``: all are judged, however late.
            ``"wait"``: training waits.
        timeout_s: Seconds that one validation may take, and that the end of `fit` waits for the next verdict; None
            waits for ever.
        on_failure: What happens when the process has failed, was started again and has failed again. ``"block"``: a
            warning, and Lightning validates within training, the snapshots without a verdict first. ``"raise"``: the
            error.
        datamodule_factory: Makes the DataModule, or the loaders, in the validation process, instead of sending those
            of this one; it is pickled.
        callbacks: Callbacks of the validation process's Trainer, such as ``MemoryControl(budget="2GiB")`` where both
            processes use one accelerator.
        num_threads: Threads that torch uses there; by default as many as here. Sums of floats depend on it.
        dirpath: Folder for checkpoints; by default the logger's, as for `ModelCheckpoint`.
        filename: Their name, with ``{epoch}``, ``{step}`` and metrics such as ``{val/acc:.3f}`` filled in.
        figure: File to draw :meth:`plot` into when training ends, if matplotlib is installed.

    Raises:
        ValueError: If an argument is out of its range, or, when a run starts, the strategy shards the model, there is
            nothing to validate, or a `ModelCheckpoint` monitors the same metric; during the run, if a validation did
            not log `monitor`.
        ValidationFailed: With ``on_failure="raise"``, if validation cannot go on.

    Examples:
        >>> validation = AsyncValidation(monitor="val/loss", mode="min", save_top_k=3)
        >>> trainer = L.Trainer(callbacks=[validation], logger=False)
        >>> trainer.checkpoint_callback is validation
        True
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        monitor: str | None = "val/acc",
        mode: Mode = "max",
        device: str = "auto",
        save_top_k: int = 1,
        max_pending: int = 2,
        when_busy: WhenBusy = "coalesce",
        timeout_s: float | None = 600.0,
        on_failure: OnFailure = "block",
        datamodule_factory: Callable[[], Any] | None = None,
        callbacks: Sequence[Callback] = (),
        num_threads: int | None = None,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str = "epoch={epoch}-step={step}",
        figure: str | os.PathLike[str] | None = None,
    ) -> None:
        self.options = Options(
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            monitor=monitor,
            mode=mode,
            device=device,
            save_top_k=save_top_k,
            max_pending=max_pending,
            when_busy=when_busy,
            timeout_s=timeout_s,
            on_failure=on_failure,
            datamodule_factory=datamodule_factory,
            callbacks=callbacks,
            num_threads=num_threads,
        )
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.filename = SnapshotFolder("", filename=filename).filename  # which checks it
        self.figure = None if figure is None else Path(figure)
        self._session: Session | None = None
        self._state: dict[str, Any] = {}
        self._told_path = ""
        self._is_active = False

    # What a user asks for

    @property
    def monitor(self) -> str | None:
        """The metric by which weights are the best."""
        return self.options.monitor

    @property
    def mode(self) -> Mode:
        """Which end of it is the best."""
        return self.options.mode

    @property
    def best_model_path(self) -> str:
        """The best checkpoint; empty if there is none."""
        return self._told_path if self._session is None else self._session.ranking.best_path

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        # Lightning's launchers tell it to the process that has started the others.
        self._told_path = path

    @property
    def best_model_score(self) -> Tensor | None:
        """Its score; None if there is none, or nothing is monitored."""
        score = None if self._session is None else self._session.ranking.best_score
        return None if score is None else tensor(score)

    @property
    def best_k_models(self) -> dict[str, float]:
        """The checkpoints that are kept and their scores, best first."""
        return {} if self._session is None else self._session.ranking.kept

    @property
    def lags(self) -> list[int]:
        """Of each verdict so far, the steps between its snapshot and its arrival."""
        return [] if self._session is None else self._session.lags

    @property
    def num_skipped(self) -> int:
        """Snapshots that were not judged, since newer ones took their place."""
        return 0 if self._session is None else self._session.num_skipped

    @property
    def is_blocking(self) -> bool:
        """Whether Lightning validates within training, since the process failed."""
        return self._session is not None and self._session.is_blocking

    @property
    def timeline(self) -> Timeline:
        """Who did what when."""
        return Timeline() if self._session is None else self._session.timeline

    def plot(self, ax: Any = None) -> Any:
        """Draw the timeline of both processes; see :meth:`Timeline.plot`."""
        return self.timeline.plot(ax)

    # Hooks

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        before = self._session
        if before is not None:
            before.close()
        self._state = {}  # what is resumed is loaded after this
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._is_active = not is_trial and bool(trainer.limit_val_batches)
        if not self._is_active:
            if not is_trial:
                rank_zero_warn(
                    "`AsyncValidation` does nothing with `limit_val_batches=0`. HINT: leave one of the two out."
                )
            return
        check(trainer, pl_module, monitor=self.options.monitor)
        folder = trainer.strategy.broadcast(checkpoint_folder(trainer, self.dirpath))
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(datamodule, "share_graph") and self.options.datamodule_factory is None and trainer.world_size == 1:
            try:
                datamodule.share_graph()
            except OSError as error:
                rank_zero_warn(f"The graph could not be put into memory that processes share ({error}); it is copied.")
        self._session = Session(trainer, pl_module, self.options, folder=folder, filename=self.filename)
        if before is not None and before.folder == folder:  # another `fit`, of the same checkpoints
            self._session.ranking.load_state_dict(before.ranking.state_dict())
        first: Any = trainer.checkpoint_callback
        if first is not self:
            rank_zero_warn(
                "`ckpt_path='best'` will ask the first of the Trainer's checkpoint callbacks, which is"
                f" {type(first).__name__}. HINT: put `AsyncValidation` before it."
            )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._running is not None:
            self._start(self._running)
            self._running.start_epoch()

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._running is not None and not self._running.is_started:  # Lightning resumes in the middle of an epoch
            self._start(self._running)
            self._running.start_epoch()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._running is not None:
            self._running.end_batch()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._running is not None:
            self._running.end_epoch()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._running is not None:
            self._running.end_validation()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._running is None:
            return
        self._running.end()
        if self.figure is not None and trainer.is_global_zero:
            try:
                figure, _ = self.plot()
            except ModuleNotFoundError:
                rank_zero_warn(f"'{self.figure}' is not drawn: matplotlib is not installed.")
                return
            try:
                save_figure(figure, self.figure, dpi=150)
            except OSError as error:
                rank_zero_warn(f"'{self.figure}' could not be written: {error}")

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        running = self._running
        if running is not None and not running.is_started and self._state.get("waiting"):
            # The run that is resumed had ended but for the verdicts on its last snapshots.
            self._start(running)
            running.end()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._session.state_dict() if self._session is not None and self._session.is_started else self._state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict
        if self._running is not None:
            self._running.load_ranking(state_dict)

    @property
    def _running(self) -> Session | None:
        return self._session if self._is_active else None

    def _start(self, session: Session) -> None:
        if not session.is_started:  # when the module's own `on_train_start` is over
            session.start(self._state)

    def _close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._is_active = False

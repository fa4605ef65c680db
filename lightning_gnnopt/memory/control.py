"""MemoryControl: no batch is over the memory budget, and as few as possible are touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from typing_extensions import override

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.memory.controller import Controller
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.predictors import PREDICTORS
from lightning_gnnopt.memory.prober import Stage
from lightning_gnnopt.memory.report import control_table, explain, plot_peaks
from lightning_gnnopt.memory.tally import Tally


class MemoryControl(Callback):
    """Keeps the memory of every step within a budget.

    Before each batch's step its peak memory is predicted. A batch that would be over the budget is drawn anew, and if
    that does not help, edges are pruned, seeds come later, or the step is run in parts whose gradients add up. With
    `GraphDataModule` all of this happens in the loader's threads, before a byte of features is copied.

    The default predictor is exact and needs no training: at the start of each stage the step is run on about a dozen
    tiny batches, each allocation is logged, and its size is solved as an affine function of the numbers of nodes and
    edges of each hop. Parameters, optimizer, metrics, logs and random numbers are as before afterwards. A step of which
    that cannot be said (a compiled one; shapes that depend on values) is learned from measured batches instead, with a
    margin; a warning says so.

    Counted are the tensors on the device that trains: the model, its gradients and its optimizer's state, the batch,
    the batches the loader has ready, and what the step adds. On the CPU, memory of the interpreter, of the graph itself
    and of kernels that sort is beyond that.

    Logged every ``trainer.log_every_n_steps`` batches: ``memory/predicted_bytes`` and ``memory/peak_bytes`` (of the
    last measured step), and since the last time ``memory/pruned_edges_pct``, ``memory/resamples`` and
    ``memory/splits``.

    Args:
        budget: Bytes, as a number or with a unit (``"6GiB"``); a share of the device's memory (``0.9``); ``"auto"``:
            what is free when the run starts, less a reserve.
        predictor: ``"analytic"``, ``"linear"``, ``"forest"``, ``"boosting"`` or ``"max_affine"``. All but the first are
            fitted to measured steps.
        on_exceed: What is tried in training, in this order. ``"resample"``: draw other neighbours, up to
            `max_resamples` times. ``"prune"``: drop the least important edges. ``"split"``: run the step in parts; no
            edge is lost, and statistics over the batch (batch norm) are those of the parts. ``"shrink"``: seeds that do
            not fit come in further batches at the epoch's end (with `GraphDataModule` or `PrefetchLoader` only).
            ``"watch"``, alone: change nothing in any stage, and say in the end how many steps were over the budget.
        max_resamples: How often a batch is drawn anew.
        pruning: Which edges go first: those between nodes of high ``"degree"`` or ``"pagerank"``, those of low weight
            (``"inverse_weight"``, with `weight_attr`), or any (``"random"``). Except at random, each node loses about
            the same share of its in-edges.
        coverage: How sure a prediction's upper bound is, where predictions are not exact.
        exact: Whether validation, test and prediction run in parts instead of on pruned batches.
        keep_connected: Whether the best in-edge of each node is kept before any other.
        weight_attr: The attribute of edges that holds their weights.
        depth: Number of layers of the model, read where batches without hops (clusters) are split; by default the
            model's `num_layers`, or else all nodes that reach a part's seeds come along.
        loss_reduction: Whether the loss is a ``"mean"`` over the seeds or their ``"sum"``.
        measure_every: Measure the peak of every so many steps. By default each step on CUDA, where it costs nothing,
            and two of every 200 on the CPU (of every 50 where predictions are fitted).
        predictor_options: Arguments of the predictor.
        verbose: Whether to print a table when training ends.
        figure: File to draw :meth:`plot` into when training ends, if matplotlib is installed.

    Raises:
        ValueError: If an argument is out of its range or a name unknown, or, when a stage starts, the budget is below
            what the model itself takes or above the device's memory.
        MemoryBudgetError: In a run, if nothing that may be tried makes a batch fit.

    Examples:
        >>> control = MemoryControl(budget="6GiB", on_exceed=("resample", "split"))
        >>> trainer = L.Trainer(callbacks=[control], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        budget: str | float = "auto",
        *,
        predictor: str = "analytic",
        on_exceed: str | Sequence[str] = ("resample", "prune"),
        max_resamples: int = 10,
        pruning: str = "degree",
        coverage: float = 0.999,
        exact: bool = False,
        keep_connected: bool = False,
        weight_attr: str | None = None,
        depth: int | None = None,
        loss_reduction: str = "mean",
        measure_every: int | None = None,
        predictor_options: Mapping[str, Any] | None = None,
        verbose: bool = True,
        figure: str | os.PathLike[str] | None = None,
    ) -> None:
        if predictor not in PREDICTORS:
            raise ValueError(unknown_name("predictor", predictor, PREDICTORS))
        if not 0 < coverage < 1:
            raise ValueError(f"`coverage` must be above 0 and below 1, but got {coverage}. HINT: 0.999 is the default.")
        if measure_every is not None and (isinstance(measure_every, bool) or measure_every < 1):
            raise ValueError(
                f"`measure_every` must be at least 1, but got {measure_every}. HINT: 1 measures each step."
            )
        if pruning == "inverse_weight" and weight_attr is None:
            raise ValueError("`pruning='inverse_weight'` needs the weights of edges. HINT: pass `weight_attr`.")
        self.budget = budget
        self.predictor = predictor
        self.policy = Policy(
            on_exceed=(on_exceed,) if isinstance(on_exceed, str) else tuple(on_exceed),
            max_resamples=max_resamples,
            pruning=pruning,
            keep_connected=keep_connected,
            exact=exact,
            depth=depth,
            loss_reduction=loss_reduction,
        )
        self.coverage = coverage
        self.weight_attr = weight_attr
        self.measure_every = measure_every
        self.predictor_options = dict(predictor_options or {})
        self.verbose = verbose
        self.figure = figure
        self.controller: Controller | None = None
        """What the last run learned and did; None before one."""
        self._loaded: Mapping[str, Any] = {}
        self._logged = Tally()

    @property
    def tally(self) -> Tally:
        """What was done in the last run, in numbers."""
        return Tally() if self.controller is None else self.controller.tally

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes, known from the start of the first stage on."""
        return None if self.controller is None else self.controller.budget_bytes

    # Life of a run

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not pl_module.automatic_optimization and stage == "fit" and {"split", "shrink"} & set(self.policy.on_exceed):
            raise ValueError(
                f"`on_exceed={self.policy.on_exceed!r}` needs automatic optimization, but {type(pl_module).__name__}"
                " runs `backward` and its optimizers by itself. HINT: ('resample', 'prune')."
            )
        self._close()
        self._logged = Tally()
        self.controller = Controller(
            trainer,
            pl_module,
            budget=self.budget,
            policy=self.policy,
            predictor=self.predictor,
            predictor_options=self.predictor_options,
            coverage=self.coverage,
            weight_attr=self.weight_attr,
            measure_every=self.measure_every,
            loaded=self._loaded,
        )

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._controls.start("train", trainer.train_dataloader)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._controls.start("val", trainer.val_dataloaders)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._controls.start("test", trainer.test_dataloaders)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._controls.start("predict", trainer.predict_dataloaders)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._look_again(trainer)
        self._controls.start_step("train", batch)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        controls = self._controls
        if controls.end_step("train", batch) and controls.has_drifted("train"):
            controls.start("train", trainer.train_dataloader)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            self._log(trainer)

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._controls.start_step("val", batch, dataloader_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._controls.end_step("val", batch, dataloader_idx)

    @override
    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._controls.start_step("test", batch, dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._controls.end_step("test", batch, dataloader_idx)

    @override
    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._controls.start_step("predict", batch, dataloader_idx)

    @override
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._controls.end_step("predict", batch, dataloader_idx)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_again(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._log(trainer)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.verbose and trainer.is_global_zero:
            rich.print(self)
        if self.figure is not None and trainer.is_global_zero:
            drawn, _ = self.plot()
            save_figure(drawn, Path(self.figure))

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    # Checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        return dict(self._loaded) if self.controller is None else self.controller.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
        if self.controller is not None:
            self.controller.loaded = state_dict

    # What is shown

    def table(self) -> Table:
        """Render what was done as a table for a terminal."""
        return control_table(self)

    def __rich__(self) -> Table:
        return self.table()

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw predicted against measured peaks, and the distribution of the measured ones with the budget.

        Args:
            ax: Two matplotlib axes to draw on; a new figure by default.

        Returns:
            The figure and its two axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        controls = self._controls
        return plot_peaks(controls.pairs, controls.budget_bytes, ax)

    def explain(self, batch: Any, *, stage: Stage = "train") -> str:
        """Say which tensors make up the peak of a step on a batch.

        Args:
            batch: A subgraph or PyG batch, as the stage's loader yields it.
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``; it must have started.

        Returns:
            A table as text: the largest tensors at the peak, with the operator that made each.

        Raises:
            ValueError: If the stage has not started, or its step has no allocation tape.
        """
        learned = self._controls.learned.get((stage, 0))
        if learned is None:
            raise ValueError(
                f"`stage` must have started before its peak can be explained, but {stage!r} has not."
                " HINT: start the Trainer, with a loader that yields PyG batches."
            )
        return explain(learned, batch)

    @property
    def _controls(self) -> Controller:
        if self.controller is None:
            raise ValueError("`MemoryControl` has not been in a run yet. HINT: give it to a Trainer and call `fit`.")
        return self.controller

    def _look_again(self, trainer: L.Trainer) -> None:
        """Learn anew if a layer was unfrozen, say: by a callback before this one, or after it."""
        if self._controls.has_changed():
            self._controls.start("train", trainer.train_dataloader)

    def __getstate__(self) -> dict[str, Any]:
        # A Trainer, its threads' locks and its loaders are of this process.
        return {**self.__dict__, "controller": None, "_loaded": self.state_dict()}

    def _close(self) -> None:
        if self.controller is not None:
            self.controller.close()

    def _log(self, trainer: L.Trainer) -> None:
        controls = self._controls
        now = controls.tally.copy()
        done, self._logged = now - self._logged, now
        metrics = {"memory/resamples": float(done.resamples), "memory/splits": float(done.splits)}
        metrics["memory/pruned_edges_pct"] = 100 * done.pruned_edges / done.edges if done.edges else 0.0
        if controls.last is not None:
            metrics["memory/predicted_bytes"], metrics["memory/peak_bytes"] = controls.last
        # Where Lightning's own logs of this batch stand, as in its `DeviceStatsMonitor`.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

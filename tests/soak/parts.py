"""What a plan's fit is made of: graph, DataModule, module, callbacks, Trainer."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt import AsyncValidation, GNNProfiler, GraphDataModule, MemoryControl
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import SimulatedDevice
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.sampling import SAMPLERS

from .faults import InjectedError
from .plans import Plan, Recipe

_SAMPLER_OPTIONS: dict[str, dict[str, Any]] = {
    "neighbor": {"num_neighbors": [5, 3]},
    "labor": {"num_neighbors": [5, 3], "importance_iterations": 1},
    "fastgcn": {"layer_sizes": [200, 200]},
    "ladies": {"layer_sizes": [120, 120]},
    "shadow": {"num_neighbors": [4, 2]},
    "cluster": {"num_parts": 20, "clusters_per_batch": 5},
    "saint-node": {},
    "saint-edge": {},
    "saint-walk": {"walk_length": 2},
}
_GRAPH_OPTIONS: dict[str, dict[str, Any]] = {
    "digits-knn": {},
    "dcsbm": {"num_nodes": 1200, "avg_degree": 12.0, "num_classes": 5, "num_features": 32},
}


class SoakClassifier(NodeClassifier):
    """A `NodeClassifier` that fails where it is told to.

    Attributes:
        fails_in: ``"training_step"``, ``"backward"``, ``"optimizer"`` or ``"validation_step"``.
        fails_at: In which step, or in the first validation after it.
        orders: A file with what to do in the validation process, once each, with commas between.
        owner: The process that trains.
    """

    fails_in = ""
    fails_at = 0
    orders = ""
    owner = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._fail_in("training_step")
        loss = super().training_step(batch, batch_idx)
        if self.fails_in == "backward":
            loss.register_hook(lambda grad: self._fail_in("backward"))  # type: ignore[no-untyped-call]
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._fail_in("optimizer")
        super().optimizer_step(*args, **kwargs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if os.getpid() != self.owner and batch_idx == 0:
            self._obey()
        if self.fails_in == "validation_step" and self.trainer.global_step > self.fails_at:
            raise InjectedError("a fault in validation_step")
        super().validation_step(batch, batch_idx)

    def _fail_in(self, stage: str) -> None:
        # In a batch, that is: a probe before the first one only costs the control that it is for.
        if (
            self.fails_in == stage
            and self.trainer.global_step == self.fails_at == self.trainer.fit_loop.total_batch_idx
        ):
            raise InjectedError(f"a fault in {stage}")

    def _obey(self) -> None:
        path = Path(self.orders)
        if not self.orders or not path.exists():
            return
        order, _, rest = path.read_text().partition(",")
        path.write_text(rest)
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise InjectedError("a fault in the validation process")


class Recorder(Callback):
    """Keeps each step's loss and each validation's metrics, by the number of steps so far."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.verdicts: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = {name: float(trainer.callback_metrics[name]) for name in ("val/loss", "val/acc")}
            self.verdicts[trainer.global_step] = metrics


@dataclass
class Parts:
    """All of a fit.

    Attributes:
        plan: What it is made from.
        folder: Where its files go.
        datamodule: The data.
        module: The model.
        callbacks: Those of the plan; a fault may add some.
        recorder: Comes after them.
        device: Where batches go through, if they do.
        profiler: The profiler, if there is one.
        num_steps: How many steps the fit takes if all goes well.
        usual_s: How long that takes without anything else.
    """

    plan: Plan
    folder: Path
    datamodule: GraphDataModule
    module: SoakClassifier
    callbacks: list[Callback]
    device: Any
    profiler: GNNProfiler | None
    num_steps: int
    usual_s: float
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def step(self) -> int:
        """The step in which the fault comes."""
        return int(self.plan.when * self.num_steps)

    def trainer(self) -> L.Trainer:
        """A quiet Trainer of these parts."""
        has_checkpoints = any(isinstance(callback, ModelCheckpoint | AsyncValidation) for callback in self.callbacks)
        return L.Trainer(
            accelerator="cpu", devices=1, max_epochs=self.plan.recipe.epochs, logger=False, log_every_n_steps=1,
            callbacks=[*self.callbacks, self.recorder], profiler=self.profiler, default_root_dir=self.folder,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=has_checkpoints,
            num_sanity_val_steps=0,
        )  # fmt: skip


@cache
def graph(name: str) -> Data:
    """One of the graphs, made once."""
    data: Data = load_dataset(name, seed=1, **_GRAPH_OPTIONS[name])
    return data


def make_datamodule(recipe: Recipe, *, num_workers: int = 0, device: Any = None) -> GraphDataModule:
    """A DataModule with about five batches an epoch."""
    return GraphDataModule(
        graph(recipe.graph),
        sampler=partial(SAMPLERS[recipe.sampler], **_SAMPLER_OPTIONS[recipe.sampler]),
        batch_size=200,
        num_workers=num_workers,
        eval_mode="layerwise" if recipe.layerwise else "sampled",
        seed=recipe.seed,
        device=device,
    )


def make_parts(
    plan: Plan,
    folder: Path,
    *,
    budget_bytes: int = 0,
    num_steps: int = 0,
    usual_s: float = 0.0,
    checkpoints: bool = True,
) -> Parts:
    """Make what a plan says."""
    recipe = plan.recipe
    device = SimulatedDevice(host_computes=True) if plan.on_device else None
    datamodule = make_datamodule(recipe, num_workers=plan.num_workers, device=device)
    L.seed_everything(recipe.seed, verbose=False)
    module = SoakClassifier(
        recipe.net,
        in_channels=datamodule.num_features,
        out_channels=datamodule.num_classes,
        hidden_channels=16,
        dropout=recipe.dropout,
        scheduler={"name": "StepLR", "step_size": 1, "gamma": 0.5} if recipe.schedule else None,
    )
    module.owner, module.orders = os.getpid(), str(folder / "orders")
    callbacks: list[Callback] = []
    if plan.is_async:
        callbacks.append(AsyncValidation(when_busy="queue", save_top_k=-1, dirpath=folder / "judged", timeout_s=60.0))
    if plan.control is not None:
        callbacks.append(MemoryControl(budget_bytes, on_exceed=plan.control.on_exceed, measure_every=1, verbose=False))
    if checkpoints and plan.fault != "disk-full-for-snapshots":
        callbacks.append(
            ModelCheckpoint(folder / "saved", "{step}", every_n_train_steps=plan.save_every, save_top_k=-1)
        )
    profiler = None
    if plan.is_profiled:
        # Where each tensor is followed, autograd adds some gradients up in new memory: a control that measures that
        # step sees more than it predicted, and has a margin from then on.
        detail_batches = 0 if plan.control is not None and plan.control.share < 1 else 1
        profiler = GNNProfiler(
            folder, "profile", skip_batches=1, memory_every=3, detail_batches=detail_batches, trace_batches=2,
            report_dir=folder / "report" if plan.number % 10 == 0 else None,
        )  # fmt: skip
    return Parts(plan, folder, datamodule, module, callbacks, device, profiler, num_steps, usual_s)


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}

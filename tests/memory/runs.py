"""A graph with all that is awkward, LightningModules that know nothing of this package, and what watches their runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import GATConv, GCNConv, GINEConv, SAGEConv
from torchmetrics.classification import MulticlassAccuracy

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.memory import MemoryControl, PeakMeter

NODES, FEATURES, CLASSES = 240, 6, 4
PLENTY = 2**30  # bytes


def make_graph(*, seed: int = 0, multilabel: bool = False, dtype: torch.dtype = torch.float32) -> Data:
    """240 nodes: hubs, multi-edges, self loops, and 30 nodes without an edge, some of them to train on."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    lively = NODES - 30
    some = draw(lively, (2, 1500))
    hubs = torch.stack([draw(lively, (1500,)), draw(5, (1500,))])  # into nodes 0 to 4
    loops = draw(lively, (60,)).expand(2, -1)
    edge_index = torch.cat([some, hubs, hubs[:, :700].flip(0), loops], dim=1)
    edge_index = edge_index[:, torch.randperm(edge_index.shape[1], generator=generator)]
    y = torch.randint(2, (NODES, CLASSES), generator=generator) if multilabel else draw(CLASSES, (NODES,))
    data = Data(x=torch.randn(NODES, FEATURES, generator=generator).to(dtype), y=y, edge_index=edge_index)
    shuffled = torch.randperm(NODES, generator=generator)
    for name, places in (("train", slice(0, 128)), ("val", slice(128, 192)), ("test", slice(192, NODES))):
        mask = torch.zeros(NODES, dtype=torch.bool)
        mask[shuffled[places]] = True
        data[f"{name}_mask"] = mask
    return data


def make_datamodule(data: Data | None = None, **kwargs: Any) -> GraphDataModule:
    """Four batches of 32 seeds in each stage but validation and test, which have two."""
    defaults: dict[str, Any] = {"num_neighbors": [6, 4], "batch_size": 32, "num_workers": 0, "seed": 7}
    return GraphDataModule(make_graph() if data is None else data, **{**defaults, **kwargs})


def _gine(in_channels: int, out_channels: int) -> GINEConv:
    return GINEConv(nn.Linear(in_channels, out_channels), edge_dim=3)


CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "sage": SAGEConv,
    "gcn": GCNConv,
    "gat": partial(GATConv, heads=1),
    "gine": _gine,
}


class Net(L.LightningModule):
    """Two convolutions over a whole batch, scored on its seeds."""

    num_layers = 2

    def __init__(
        self,
        conv: str = "sage",
        *,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        hidden: int = 16,
        batch_norm: bool = False,
        dropout: float = 0.0,
        reduction: str = "mean",
        as_dict: bool = False,
        num_classes: int = CLASSES,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.convs = nn.ModuleList([CONVS[conv](FEATURES, hidden), CONVS[conv](hidden, num_classes)])
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.dropout, self.reduction, self.as_dict = dropout, reduction, as_dict
        self.make_optimizer = partial(torch.optim.Adam, lr=0.02) if optimizer is None else optimizer
        self.train_acc, self.val_acc = (MulticlassAccuracy(CLASSES, average="micro") for _ in range(2))

    def forward(self, batch: Data) -> Tensor:
        first, second = self.convs
        extra = (batch.edge_attr,) if isinstance(first, GINEConv) else ()
        x = self.norm(first(batch.x, batch.edge_index, *extra)).relu()
        x = F.dropout(x, self.dropout, training=self.training)
        return second(x, batch.edge_index, *extra)

    def loss(self, batch: Data, logits: Tensor) -> Tensor:
        y = batch.y[: len(logits)]
        if y.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))
        norms = batch.get("node_norm")
        if norms is None or not self.training:
            return F.cross_entropy(logits, y, reduction=self.reduction)
        norms = norms[: len(logits)].to(logits.dtype)
        return (norms * F.cross_entropy(logits, y, reduction="none")).sum() / norms.sum()

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        logits = self(batch)[: batch.batch_size]
        loss = self.loss(batch, logits)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=batch.batch_size)
        if batch.y.ndim == 1:
            self.train_acc(logits, batch.y[: batch.batch_size])
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, batch_size=batch.batch_size)
        return {"loss": loss, "logits": logits.detach()} if self.as_dict else loss

    def validation_step(self, batch: Data, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        logits = self(batch)[: batch.batch_size]
        self.log("val/loss", self.loss(batch, logits), batch_size=batch.batch_size, add_dataloader_idx=True)
        if batch.y.ndim == 1:
            self.val_acc(logits, batch.y[: batch.batch_size])
            self.log("val/acc", self.val_acc, batch_size=batch.batch_size)
        return logits

    def test_step(self, batch: Data, batch_idx: int) -> None:
        logits = self(batch)[: batch.batch_size]
        self.log("test/loss", self.loss(batch, logits), batch_size=batch.batch_size)

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"logits": self(batch)[: batch.batch_size], "n_id": batch.n_id[: batch.batch_size]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class Watch(Callback):
    """Counts the bytes at each step's peak by its own sums: what is held, the batch, and what the step adds.

    Stands behind `MemoryControl` in the list of callbacks. Of loaders without threads it counts all there is.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, list[int]] = {"train": [], "val": [], "test": [], "predict": []}
        self.all: list[int] = []
        self._meter = PeakMeter("cpu")
        self._held = 0

    def _start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        tensors += [p.grad for p in module.parameters() if p.grad is not None]
        for optimizer in trainer.optimizers:
            tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        tensors += [value for store in batch.stores for value in store.values() if isinstance(value, Tensor)]
        self._held = sum({t.data_ptr(): t.nbytes for t in tensors if t.nbytes}.values())
        self._meter.start()

    def _end(self, stage: str) -> None:
        self.all.append(self._held + self._meter.stop().allocated_bytes)
        self.peaks[stage].append(self.all[-1])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start(trainer, pl_module, batch)

    def on_train_batch_end(self, *args: Any) -> None:
        self._end("train")

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
        self._start(trainer, pl_module, batch)

    def on_validation_batch_end(self, *args: Any) -> None:
        self._end("val")

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
        self._start(trainer, pl_module, batch)

    def on_test_batch_end(self, *args: Any) -> None:
        self._end("test")

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
        self._start(trainer, pl_module, batch)

    def on_predict_batch_end(self, *args: Any) -> None:
        self._end("predict")


class Batches(Callback):
    """Keeps each training batch, its loss, and what was logged by then."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []
        self.outputs: list[Any] = []
        self.global_steps: list[int] = []
        self.epochs: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(copy.copy(batch))
        self.epochs.append(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) if outputs else 0.0)  # none: manual
        self.outputs.append(outputs)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.global_steps.append(trainer.global_step)


class Hooks(Callback):
    """Notes which hooks of a callback are called, in order, with the number of their batch."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("on_"):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, *(a for a in args if isinstance(a, int))))
            return value(*args, **kwargs)

        return called


def make_trainer(*callbacks: Callback, **kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **quiet, **kwargs},
    )


def fit(
    module: L.LightningModule, loader: Any, *callbacks: Callback, val_loader: Any = None, **kwargs: Any
) -> L.Trainer:
    """Fit from a fixed seed; kwargs are the Trainer's."""
    trainer = make_trainer(*callbacks, **kwargs)
    L.seed_everything(11, verbose=False)
    with no_warnings():
        if isinstance(loader, L.LightningDataModule):
            trainer.fit(module, datamodule=loader)
        else:
            trainer.fit(module, loader, val_loader)
    return trainer


def watched(budget: Any = PLENTY, **kwargs: Any) -> MemoryControl:
    """A control that measures each step and prints nothing."""
    return MemoryControl(budget, **{"measure_every": 1, "verbose": False, **kwargs})


def largest_peak(
    make_module: Callable[[], L.LightningModule], make_loader: Callable[[], Any], stage: str = "train", **kwargs: Any
) -> int:
    """The largest peak of the uncontrolled run's steps."""
    watch = Watch()
    fit(make_module(), make_loader(), watch, **kwargs)
    return max(watch.peaks[stage])


def is_subsequence(some: list[int], of: list[int]) -> bool:
    remaining = iter(of)
    return all(any(value == other for other in remaining) for value in some)


def inexact(control: MemoryControl) -> list[tuple[float, float]]:
    """The pairs of predicted and measured bytes that differ."""
    assert control.controller is not None
    assert len(control.controller.pairs) > 0
    return [(predicted, measured) for predicted, measured in control.controller.pairs if predicted != measured]


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence Lightning's hints at loaders without workers and the like."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches|on CPU).*")
        yield


def same_state(one: Any, other: Any) -> bool:
    """Whether two nested states are the same to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


class ManualNet(Net):
    """Two optimizers that take turns."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return Adam(self.convs[0].parameters(), lr=0.02), SGD(self.convs[1].parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch: Data, batch_idx: int) -> None:
        loss = self.loss(batch, self(batch)[: batch.batch_size])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def node_loader(data: Data | None = None, mask: str = "train_mask", **kwargs: Any) -> NodeLoader:
    """PyG's loader around our sampler."""
    data = make_graph() if data is None else data
    ours = make_datamodule(data, edge_id=True)
    ours.setup("fit")
    options: dict[str, Any] = {"batch_size": 32, "shuffle": mask == "train_mask", **kwargs}
    return NodeLoader(data, node_sampler=ours.sampler, input_nodes=data[mask], **options)

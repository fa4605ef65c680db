"""Graphs, and short training runs under `MemoryControl`, watched by sums of this file's own."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from benchmarks.memory_scale import MemoryScale
from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.memory import MemoryControl, PeakMeter
from lightning_gnnopt.sampling import ClusterSampler, Topology, partition_nodes

PLENTY = 0.95  # of the machine: more than any step takes


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryGraph:
    """A graph to run on.

    Attributes:
        name: Its name.
        data: The graph.
        note: What was put in its place; empty if it is the graph itself.
    """

    name: str
    data: Data
    note: str = ""


@lru_cache(maxsize=16)
def load_graph(name: str, stand_in_nodes: int) -> MemoryGraph:
    """Load a graph with a random split; make one of as many nodes as wanted where its files are missing."""
    try:
        data = load_dataset(name, split="random", features="dense", download=False)
    except (RuntimeError, OSError) as error:
        # Its words name a folder, which is no business of a report.
        note = f"{type(error).__name__}: its files are not where GNNOPT_DATA says; a dcsbm graph stands in"
        data = load_dataset("dcsbm", num_nodes=stand_in_nodes, avg_degree=30.0)
        return MemoryGraph(name=name, data=data, note=note)
    return MemoryGraph(name=name, data=data)


def narrowed(graph: MemoryGraph, num_features: int) -> MemoryGraph:
    """Keep a graph's first features: what a step costs is then its messages, and the step is short."""
    data = graph.data.clone()
    data.x = data.x[:, :num_features].contiguous()
    return replace(graph, data=data)


def make_datamodule(
    graph: MemoryGraph, sampling: str, scale: MemoryScale, *, clusters: int = 2, **kwargs: Any
) -> GraphDataModule:
    """Load neighbour or cluster batches; those of clusters are evaluated through neighbours.

    Args:
        graph: The graph.
        sampling: ``"neighbor"`` or ``"cluster"``.
        scale: The sizes of batches.
        clusters: Clusters per batch.
        **kwargs: Further arguments of the datamodule, which come before those of the scale.
    """
    options: dict[str, Any] = {
        "num_neighbors": list(scale.fanouts),
        "batch_size": scale.batch_size,
        "num_workers": 0,
        "seed": 0,
    }
    if sampling == "cluster":
        parts = _parts(graph.name, scale.parts, scale.stand_in_nodes)
        options["sampler"] = _Clusters(parts, clusters)
        options["eval_num_neighbors"] = options.pop("num_neighbors")
        options["eval_batch_size"] = scale.batch_size
    return GraphDataModule(graph.data, **{**options, **kwargs})


class _Clusters:
    """Builds the sampler of clusters that are known; finding them is not what is measured."""

    def __init__(self, parts: Any, per_batch: int) -> None:
        self._parts, self._per_batch = parts, per_batch

    def __call__(self, topology: Topology) -> ClusterSampler:
        return ClusterSampler(topology, parts=self._parts, clusters_per_batch=self._per_batch)


@lru_cache(maxsize=16)
def _parts(name: str, num_parts: int, stand_in_nodes: int) -> Any:
    data = load_graph(name, stand_in_nodes).data
    return partition_nodes(Topology.from_edge_index(data.edge_index, data.num_nodes), num_parts, seed=0)


def make_model(name: str, datamodule: GraphDataModule, **kwargs: Any) -> NodeClassifier:
    """Build one of the models for a graph."""
    return NodeClassifier(name, in_channels=datamodule.num_features, out_channels=datamodule.num_classes, **kwargs)


def make_trainer(*callbacks: Callback, **kwargs: Any) -> L.Trainer:
    """Make a Trainer that trains on the CPU and writes nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options: dict[str, Any] = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_model_summary": False, **quiet}
    return L.Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **{**options, **kwargs})


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was watched.

    Attributes:
        stage: ``"train"`` or ``"val"``.
        bytes: Bytes at its peak.
        predicted: The bytes that control had predicted for it; None for a step that it does not predict.
        touched: Whether control had changed its batch, or run it in parts.
        seeds_bytes: Bytes that its seeds would have taken without any edge, by control's prediction.
    """

    stage: str
    bytes: float
    predicted: float | None
    touched: bool
    seeds_bytes: float


class StepWatch(Callback):
    """Sums up the bytes at each step's peak: what is held when it begins, the batches, and what the step adds.

    Nothing of it comes from control but what it predicts. Stands behind `MemoryControl` in the list of callbacks.

    Args:
        control: What to compare with.

    Attributes:
        steps: The steps watched, in order.
    """

    def __init__(self, control: MemoryControl) -> None:
        self.steps: list[Step] = []
        self._control = control
        self._meter = PeakMeter("cpu")
        self._held = 0
        self._before = control.tally.copy()

    def _start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        held = [*module.parameters(), *module.buffers()]
        held += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        for optimizer in trainer.optimizers:
            held += [value for state in optimizer.state.values() for value in state.values()]
        batches = sum_bytes(batch.to_dict().values())
        learned = self._learned("train" if trainer.training else "val")
        if learned is not None:  # batches that wait behind it: taken to be as large
            batches += int(learned.footprint.ahead.nbytes(batches))
        self._held = sum_bytes(held) + batches
        self._meter.start()

    def _end(self, stage: str, batch: Any) -> None:
        growth = self._meter.stop().allocated_bytes
        tally, learned = self._control.tally.copy(), self._learned(stage)
        new, self._before = tally - self._before, tally
        predicted = None
        if new.measured and self._control.controller is not None and self._control.controller.last is not None:
            predicted = self._control.controller.last[0]
        seeds_bytes = 0.0
        if learned is not None:
            features, names = learned.footprint.features(batch), learned.footprint.reader.names
            bare = np.where([name == "nodes_0" for name in names], features, 0.0)
            seeds_bytes = learned.footprint.upper(bare)
        peak = float(self._held + growth)
        step = Step(stage=stage, bytes=peak, predicted=predicted, touched=bool(new.touched), seeds_bytes=seeds_bytes)
        self.steps.append(step)

    def _learned(self, stage: str) -> Any:
        controller: Any = self._control.controller
        return None if controller is None else controller.learned.get((stage, 0))

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start(trainer, pl_module, batch)

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end("train", batch)

    @override
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start(trainer, pl_module, batch)

    @override
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._end("val", batch)


def sum_bytes(values: Any) -> int:
    """Sum up the bytes of those values that are tensors, each storage once."""
    tensors = [value for value in values if isinstance(value, Tensor) and value.nbytes]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@dataclass(kw_only=True)
class Run:
    """A run that was watched.

    Attributes:
        steps: Its steps.
        control: The control.
        module: The module as it was in the end.
    """

    steps: Sequence[Step]
    control: MemoryControl
    module: L.LightningModule


def watched_fit(
    module: L.LightningModule,
    datamodule: GraphDataModule,
    *,
    budget: float = PLENTY,
    epochs: int = 1,
    callbacks: Sequence[Callback] = (),
    **kwargs: Any,
) -> Run:
    """Fit under control, each step measured twice: by control, and by this file.

    Args:
        module: The module.
        datamodule: Its batches.
        budget: Bytes, or a share of the machine.
        epochs: Epochs.
        callbacks: Further callbacks.
        **kwargs: The Trainer's where their names say so (``trainer_...``), else `MemoryControl`'s.
    """
    of_trainer = {key.removeprefix("trainer_"): kwargs.pop(key) for key in list(kwargs) if key.startswith("trainer_")}
    gc.collect()  # or an earlier run's tensors are released in the middle of a step, which then seems to take less
    control = MemoryControl(budget, measure_every=1, verbose=False, **kwargs)
    watch = StepWatch(control)
    make_trainer(control, watch, *callbacks, max_epochs=epochs, **of_trainer).fit(module, datamodule=datamodule)
    return Run(steps=watch.steps, control=control, module=module)

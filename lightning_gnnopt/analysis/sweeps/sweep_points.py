"""The points of a sweep: batches are drawn, trained on and measured, without a Trainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, median
from typing import Any

import lightning as L
import torch
from torch import nn
from torch_geometric.data import Data

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.records import PeakRecord, SweepRecord
from lightning_gnnopt.analysis.sweeps.plain_step import PlainStep
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.node_task import NodeTask
from lightning_gnnopt.loading.placement import DevicePlacement, HostPlacement, Placement
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.streams import streams_of
from lightning_gnnopt.loading.task import Surroundings
from lightning_gnnopt.memory.budget import read_budget
from lightning_gnnopt.memory.features import batch_bytes
from lightning_gnnopt.memory.meter import PeakMeter
from lightning_gnnopt.memory.oom import is_out_of_memory
from lightning_gnnopt.memory.peak_counters import allocator_of
from lightning_gnnopt.models import NodeClassifier

MakeModel = Callable[[GraphDataModule], nn.Module]

_WARM_UP = 2  # the first step makes the optimizer's state, the second is the first to find gradients
_FULL_STEPS = 3
_ERROR_LENGTH = 300


@dataclass(frozen=True)
class Bench:
    """What the points of one graph have in common.

    Attributes:
        task: The graph, its sampler and its features.
        make_step: Makes a model and its optimizer anew.
        device: Where it is trained.
        batches: Batches of each point.
        seed: Keys the order of the seeds and the draws.
        transforms: Applied to each subgraph.
        peaks: Peaks of the steps that were measured so far.
    """

    task: NodeTask
    make_step: Callable[[], PlainStep]
    device: torch.device
    batches: int
    seed: int
    transforms: tuple[Any, ...] = ()
    peaks: list[PeakRecord] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        datamodule: GraphDataModule,
        model: nn.Module | MakeModel,
        *,
        device: torch.device | str,
        batches: int,
        seed: int,
    ) -> Bench:
        """Prepare a graph and a model.

        Raises:
            TypeError: If the DataModule loads something else than nodes of one type.
            ValueError: If there are no training nodes, or the model does not fit.
        """
        task = datamodule._task
        if not isinstance(task, NodeTask):
            raise TypeError(
                "`data` must be a graph with one type of nodes and edges, and nodes to train on, but is loaded by a"
                f" {type(task).__name__}. HINT: profile a fit with `GNNProfiler`, which takes any graph."
            )
        if not task.has("train"):
            raise task.missing("train")
        device = torch.device(device)
        task = copy.copy(task)  # what is built into it for this model is not the DataModule's
        task.build(Surroundings(module=_lightning_module(model, datamodule)))
        return cls(
            task,
            lambda: PlainStep(_lightning_module(model, datamodule), device),
            device,
            batches,
            seed,
            tuple(datamodule.transforms),
        )

    @property
    def num_train_nodes(self) -> int:
        """Number of the nodes that are trained on."""
        return len(self.task.nodes("train"))

    @property
    def groups_seeds(self) -> bool:
        """Whether the sampler itself says which seeds stand in a batch."""
        return hasattr(self.task.sampler("train"), "seed_groups")

    def sampled(self, batch_size: int) -> SweepRecord:
        """Measure batches of so many seeds, drawn one after the other in the thread that trains.

        All are drawn twice, the same ones: to time steps, then to measure their memory, which slows them down.
        """
        name = type(self.task.sampler("train")).__name__
        return self._point(batch_size, name, lambda: self._run_sampled(batch_size, name))

    def full(self, before: SweepRecord | None = None) -> SweepRecord:
        """Measure the whole graph as one batch.

        Args:
            before: A point of the same model. On a CPU, where a process that asks for too much memory is ended and not
                told, what it took says whether this one is tried at all.
        """
        return self._point(self.num_train_nodes, "full", lambda: self._run_full(before))

    def _run_sampled(self, batch_size: int, name: str) -> SweepRecord:
        step, loader = self.make_step(), self._loader(batch_size)
        loader.warm_up()
        count, moved_s = self.batches, [0.0]
        for batch in self._drawn(loader, 1):
            for _ in range(_WARM_UP):
                step(batch)
        loader.set_epoch(0)
        before, seconds, sizes = loader.stats.copy(), [], []
        for batch in self._drawn(loader, count, moved_s):
            sizes.append(batch_bytes(batch))
            seconds.append(self._timed(lambda batch=batch: step(batch)))  # type: ignore[misc]
        _synchronize(self.device)  # so that all transfers have been counted
        took = loader.stats.copy() - before
        loader.set_epoch(0)
        peaks = self._peaks(step, self._drawn(loader, count))
        self.peaks.extend(PeakRecord(name, batch_size, *pair) for pair in zip(peaks, sizes, strict=False))
        return SweepRecord(
            sweep="batch_size",
            value=batch_size,
            sampler=name,
            graph_nodes=self.task.topology.num_nodes,
            graph_edges=self.task.topology.num_edges,
            batches=count,
            nodes=took.nodes / count,
            edges=took.edges / count,
            sample_s=took.sample_s / count,
            slice_s=took.slice_s / count,
            transfer_s=(took.transfer_s + moved_s[0]) / count,
            step_s=median(seconds),
            loaded_bytes=fmean(sizes),
            peak_bytes=max(peaks, default=None),
            error="",
        )

    def _run_full(self, before: SweepRecord | None) -> SweepRecord:
        topology = self.task.topology
        if self.device.type == "cpu":
            _refuse_hopeless(before, topology.num_nodes, topology.num_edges)
        step, batch = self.make_step(), _full_batch(self.task)
        count = min(self.batches, _FULL_STEPS)
        moved_s = self._timed(lambda: batch.to(self.device))
        for _ in range(_WARM_UP):
            step(batch)
        seconds = [self._timed(lambda: step(batch)) for _ in range(count)]
        peaks = self._peaks(step, [batch])
        self.peaks.extend(PeakRecord("full", self.num_train_nodes, peak, batch_bytes(batch)) for peak in peaks)
        return SweepRecord(
            sweep="batch_size",
            value=self.num_train_nodes,
            sampler="full",
            graph_nodes=topology.num_nodes,
            graph_edges=topology.num_edges,
            batches=count,
            nodes=float(topology.num_nodes),
            edges=float(topology.num_edges),
            sample_s=0.0,
            slice_s=0.0,
            transfer_s=0.0 if self.device.type == "cpu" else moved_s,
            step_s=median(seconds),
            loaded_bytes=float(batch_bytes(batch)),
            peak_bytes=max(peaks, default=None),
            error="",
        )

    def _point(self, value: int, sampler: str, run: Callable[[], SweepRecord]) -> SweepRecord:
        """Run a point; one that runs out of memory is recorded as such."""
        try:
            return run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = explain_memory(error)
        # The error is gone here, and with it what its traceback held.
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()
        topology = self.task.topology
        return failed("batch_size", value, sampler, topology.num_nodes, topology.num_edges, reason)

    def _loader(self, batch_size: int) -> PrefetchLoader:
        """A loader whose batches all have so many seeds."""
        order = self.task.order("train", batch_size, shuffle=True, drop_last=True, pad=True, seed=self.seed)
        streams = streams_of(self.device)
        placement: Placement = HostPlacement() if streams is None else DevicePlacement(streams)
        source = self.task.source("train")
        return PrefetchLoader(source, order, num_workers=0, transforms=self.transforms, placement=placement)

    def _drawn(self, loader: PrefetchLoader, count: int, moved_s: list[float] | None = None) -> Iterator[Any]:
        """Draw so many batches onto the device, of as many epochs as that takes."""
        moves = self.device.type != "cpu" and isinstance(loader.placement, HostPlacement)
        left = count
        while left:
            with closing(iter(loader)) as batches:
                for batch in islice(batches, left):
                    left -= 1
                    if moves:
                        spent_s = self._timed(lambda batch=batch: batch.to(self.device))  # type: ignore[misc]
                        if moved_s is not None:
                            moved_s[0] += spent_s
                    yield batch
                    del batch  # its memory is used for the next one

    def _timed(self, run: Callable[[], Any]) -> float:
        _synchronize(self.device)
        began_s = time.perf_counter()
        run()
        _synchronize(self.device)
        return time.perf_counter() - began_s

    def _peaks(self, step: PlainStep, batches: Iterable[Any]) -> list[int]:
        """Peak of a step on each batch; empty where nobody counts what is allocated."""
        if self.device.type != "cpu" and allocator_of(self.device) is None:
            return []
        peaks: list[int] = []
        meter = PeakMeter(self.device)
        for batch in batches:
            # The release of gradients is only seen where it was seen how they were made: in a step before.
            for _ in range(1 if peaks else _WARM_UP):
                with meter:
                    step(batch)
            peaks.append(meter.peak.growth_bytes)
        return peaks


def failed(sweep: str, value: float, sampler: str, nodes: int, edges: int, reason: str) -> SweepRecord:
    """Make the record of a point that could not be run."""
    return SweepRecord(sweep, value, sampler, nodes, edges, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, reason)


def explain_memory(error: Exception) -> str:
    """Say in one line that memory ran out."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"out of memory: {text}"[:_ERROR_LENGTH] if text else "out of memory"


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Draw weights and dropout from a seed, and leave the random state as it was."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    index = device.index if device.index is not None or module is None else module.current_device()
    devices = [] if module is None else [index]
    with torch.random.fork_rng(devices, device_type="cuda" if module is None else device.type):
        torch.manual_seed(seed)
        yield


def _lightning_module(model: nn.Module | MakeModel, datamodule: GraphDataModule) -> L.LightningModule:
    """A LightningModule of one's own: a copy, or what a function makes; a network is wrapped."""
    made = copy.deepcopy(model) if isinstance(model, nn.Module) else model(datamodule)
    if isinstance(made, L.LightningModule):
        return made
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"`model` must be a module or a function that makes one for a DataModule, but made a {type(made).__name__}."
            " HINT: lambda datamodule: NodeClassifier('gat', in_channels=datamodule.num_features,"
            " out_channels=datamodule.num_classes)."
        )
    return NodeClassifier(
        made,
        in_channels=datamodule.num_features,
        out_channels=datamodule.num_classes,
        multilabel=datamodule.multilabel,
    )


def _full_batch(task: NodeTask) -> Data:
    """The whole graph, with dense features and a mask of the nodes that are trained on."""
    data: Data = copy.copy(task.data)
    num_nodes = task.topology.num_nodes
    if "x" not in data or data.x.layout != torch.strided:
        data.x = task.store.rows(torch.arange(num_nodes))
    data.train_mask = torch.zeros(num_nodes, dtype=torch.bool)
    data.train_mask[torch.from_numpy(task.nodes("train"))] = True
    return data


def _refuse_hopeless(before: SweepRecord | None, nodes: int, edges: int) -> None:
    """Raise a `MemoryError` if a graph would need more memory than there is, by what a smaller batch took."""
    if before is None or not before.peak_bytes:
        return
    grows = max(nodes / max(before.nodes, 1.0), edges / max(before.edges, 1.0))
    needed_bytes = (before.peak_bytes + before.loaded_bytes) * grows
    try:
        free_bytes = read_budget("auto", "cpu")
    except ValueError:  # there is none to speak of
        free_bytes = 0
    if needed_bytes > free_bytes:
        raise MemoryError(
            f"not run, as about {format_bytes(needed_bytes)} would be needed and {format_bytes(free_bytes)} are free"
        )


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)

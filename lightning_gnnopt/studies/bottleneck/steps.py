"""Training steps of the study, full and sampled, under the profiler."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.analysis.profiler import GNNProfiler
from lightning_gnnopt.analysis.records import Records, SweepRecord
from lightning_gnnopt.loading import GraphDataModule, LoaderStats
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.models.scoring import scored_rows
from lightning_gnnopt.sampling import ClusterSampler
from lightning_gnnopt.studies.bottleneck.settings import Setting

WHOLE_DEGREE = "whole_degree"
"""Attribute of the nodes: their in-degree in the whole graph, for the models that ask for it."""


def profile_setting(
    setting: Setting, model: NodeClassifier, data: Data, study: Mapping[str, Any], *, seed: int
) -> Records:
    """Train for a few steps, and record where time and memory go.

    Args:
        setting: What to run.
        model: The model, on the device.
        data: The graph.
        study: The config's group `study`.
        seed: Keys shuffling and sampling.

    Returns:
        The records. Steps have the setting's sampler and batch size, and are a point of a sweep over batch sizes, too.

    Raises:
        ValueError: If the graph has fewer nodes to train on than a batch has seeds.
    """
    device = next(model.parameters()).device
    num_train = int(data.train_mask.sum())
    if setting.batch_size is not None and setting.batch_size > num_train:
        raise ValueError(
            f"`batch_size` must not be above the {num_train:,} nodes that the graph has to train on, but is"
            f" {setting.batch_size:,}. HINT: a larger graph (`study.options`), or smaller `study.sampled.batch_sizes`."
        )
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=study["learning_rate"])
    # Some to be timed and one for its memory; more where batches differ
    least = min(setting.steps, setting.skip + (4 if setting.batch_size is None else 6))
    loader = _Repeated(_loader(setting, data, study, device, seed), setting.steps, least, study["max_s"])
    profiler = GNNProfiler(
        skip_batches=setting.skip,
        memory_every=setting.memory_every,
        detail_batches=int(setting.name == "full"),
    )
    with _limited_memory(study["memory"], device), profiler.watch(model):
        for batch in profiler.steps(loader):
            optimizer.zero_grad()
            _loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    records = profiler.records
    size = num_train if setting.batch_size is None else setting.batch_size
    records.batches = [replace(row, sampler=setting.sampler, batch_size=size) for row in records.batches]
    records.sweeps = _sweep_point(setting, size, data, records)
    records.info["model"] = type(model.net).__name__
    return records


def _sweep_point(setting: Setting, size: int, data: Data, records: Records) -> list[SweepRecord]:
    timed = [row for row in records.batches if row.timed]
    loads = {row.batch: row for row in records.loads}
    if not timed:
        return []
    mine = [loads[row.batch] for row in timed]
    return [
        SweepRecord(
            sweep="batch_size",
            value=float(size),
            sampler=setting.sampler,
            graph_nodes=int(data.num_nodes or 0),
            graph_edges=int(data.num_edges),
            batches=len(timed),
            nodes=fmean(row.nodes for row in timed),
            edges=fmean(row.edges for row in timed),
            sample_s=fmean(row.sample_s or 0.0 for row in mine),
            slice_s=fmean(row.slice_s or 0.0 for row in mine),
            transfer_s=fmean(row.transfer_s for row in mine),
            step_s=median(row.step_s - load.wait_s for row, load in zip(timed, mine, strict=True)),
            loaded_bytes=fmean(row.loaded_bytes for row in timed),
            peak_bytes=max((row.peak_bytes for row in records.batches if row.peak_bytes is not None), default=None),
            error="",
        )
    ]


class _Repeated:
    """A loader that begins anew until so many batches were drawn, or it takes too long.

    Its counters stay to be seen.

    Args:
        loader: What yields an epoch's batches.
        steps: Batches to draw.
        least: Batches to draw however long that takes.
        max_s: Seconds after which no more than these are drawn; None for as long as it takes.
    """

    def __init__(self, loader: Any, steps: int, least: int, max_s: float | None) -> None:
        self._loader, self._steps, self._least, self._max_s = loader, steps, least, max_s
        self.num_workers = 0

    @property
    def stats(self) -> LoaderStats | None:
        stats: LoaderStats | None = getattr(self._loader, "stats", None)
        return stats

    def __iter__(self) -> Iterator[Any]:
        drawn, began_s = 0, time.perf_counter()
        while True:
            for batch in self._loader:
                yield batch
                drawn += 1
                is_late = self._max_s is not None and time.perf_counter() - began_s > self._max_s
                if drawn == self._steps or (is_late and drawn >= self._least):
                    return


def _loader(setting: Setting, data: Data, study: Mapping[str, Any], device: torch.device, seed: int) -> Any:
    if setting.batch_size is None:
        return [data.to(device)]
    options: dict[str, Any] = {"sampler": setting.sampler, "batch_size": setting.batch_size}
    sampled = study["sampled"]
    if setting.sampler == "cluster":
        joined = int(sampled["clusters_per_batch"])
        # each cluster holds as many nodes to train on, about, that so many of them make a batch
        parts = max(joined, round(int(data.train_mask.sum()) * joined / setting.batch_size))
        sampler = partial(ClusterSampler, num_parts=parts, clusters_per_batch=joined, seed=seed)
        options = {"sampler": sampler, "batch_size": setting.batch_size, "eval_mode": "layerwise"}
    else:
        options["num_neighbors"] = [int(sampled["num_neighbors"])] * setting.layers
    module = GraphDataModule(data, num_workers=0, drop_last=True, seed=seed, device=device, **options)
    module.setup("fit")
    return module.train_dataloader()


def _loss(model: NodeClassifier, batch: Any) -> Tensor:
    rows = scored_rows(batch, "train")
    y = batch.y[rows]
    if WHOLE_DEGREE in batch:
        batch.in_degree = batch[WHOLE_DEGREE]
    logits = model(batch)[rows]
    loss: Tensor = model.criterion(logits, y.to(logits.dtype) if model.multilabel else y)
    return loss


@contextmanager
def _limited_memory(share: float | None, device: torch.device) -> Iterator[None]:
    """Make allocations fail that Linux would grant and then end the process for."""
    if share is None or device.type != "cpu" or sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + int(share * psutil.virtual_memory().available)
    if before[1] != resource.RLIM_INFINITY:
        most = min(most, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

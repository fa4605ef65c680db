"""What takes turns where batches are prepared: our loader, and PyG's `NeighborLoader` on the same graph."""

from __future__ import annotations

import functools
import importlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_geometric.typing
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.sampler import NeighborSampler as PygSampler

from benchmarks.harness import median
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import BatchBuilder, DevicePlacement, NodeSource, PrefetchLoader, SeedOrder
from lightning_gnnopt.loading.streams import DeviceStreams
from lightning_gnnopt.sampling import NeighborSampler, Topology

PEERS = {"torch-sparse": "torch_sparse", "pyg-lib": "pyg_lib"}
"""What PyG's loader can sample with: its name on PyPI and its module."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Batches that one side prepared, in the state where it prepares one after the other.

    Attributes:
        batches: How many were counted.
        nodes: Nodes in them.
        edges: Edges in them.
        seconds: From the end of the last one that was not counted to the end of the last one.
    """

    batches: int
    nodes: int
    edges: int
    seconds: float

    @property
    def batch_s(self) -> float:
        """Seconds per batch."""
        return self.seconds / self.batches


class LoadingGraph:
    """A graph with the two libraries' own views of it.

    Args:
        data: The graph, its edges sorted by destination, with ``x``, ``y``, a ``train_mask`` and a `name`.
    """

    def __init__(self, data: Data) -> None:
        self.name: str = data.name
        self.data = Data(x=data.x, y=data.y, edge_index=data.edge_index)
        self.train_nodes: Tensor = data.train_mask.nonzero().flatten()

    @property
    def label(self) -> str:
        """What a row calls it."""
        return f"{self.name}, {self.data.num_nodes:,} nodes, {self.data.num_edges:,} edges"

    @functools.cached_property
    def topology(self) -> Topology:
        """The graph as our samplers read it."""
        return Topology.from_edge_index(self.data.edge_index, self.data.num_nodes)

    def loader(
        self,
        fanouts: Sequence[int],
        *,
        batch_size: int,
        num_workers: int,
        num_batches: int | None = None,
        streams: DeviceStreams | None = None,
    ) -> PrefetchLoader:
        """Make our loader: shuffled training nodes, or as many of them, repeated if need be, as fill `num_batches`."""
        seeds = self._seeds(batch_size, num_batches)
        return PrefetchLoader(
            NodeSource(
                NeighborSampler(self.topology, fanouts),
                BatchBuilder(self.data, self.topology),
                seeds,
            ),
            SeedOrder(len(seeds), batch_size, shuffle=True, drop_last=True),
            num_workers=num_workers,
            placement=None if streams is None else DevicePlacement(streams),
        )

    def pyg_loader(
        self,
        fanouts: Sequence[int],
        *,
        batch_size: int,
        num_workers: int,
        num_batches: int | None = None,
        **options: Any,
    ) -> Any:
        """Make PyG's loader of the same nodes. To be used within :func:`pyg_samples_with`."""
        return NeighborLoader(
            self.data,
            num_neighbors=list(fanouts),
            neighbor_sampler=self._pyg_sampler(tuple(fanouts)),
            input_nodes=torch.from_numpy(self._seeds(batch_size, num_batches)),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            **options,
        )

    def _seeds(self, batch_size: int, num_batches: int | None) -> NDArray[np.int64]:
        nodes: NDArray[np.int64] = self.train_nodes.numpy()
        return nodes if num_batches is None else np.resize(nodes, num_batches * batch_size)

    @functools.cache  # noqa: B019  (one graph lives as long as the benchmark)
    def _pyg_sampler(self, fanouts: tuple[int, ...]) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'pyg-lib' installation.*")  # that is the side measured
            return PygSampler(self.data, num_neighbors=list(fanouts), is_sorted=True)


@functools.cache
def products_like(scale: float) -> LoadingGraph:
    """Make a graph like ogbn-products, with 100 float32 features: `scale` times its nodes and edges."""
    return LoadingGraph(load_dataset("products-like", scale=scale))


def missing_peers() -> dict[str, str]:
    """Find what PyG's loader cannot sample with, and why."""
    missing: dict[str, str] = {}
    for name, module in PEERS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # one built for another torch fails in its own way
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return missing


@contextmanager
def pyg_samples_with(peer: str) -> Iterator[None]:
    """Have PyG, and workers that it forks meanwhile, sample with one of :data:`PEERS`; it takes pyg-lib if it can."""
    typing: Any = torch_geometric.typing
    before = typing.WITH_PYG_LIB
    typing.WITH_PYG_LIB = before and peer == "pyg-lib"
    try:
        yield
    finally:
        typing.WITH_PYG_LIB = before


def prepare(
    loader: Iterable[Any], *, batches: int, skip: int, arrive: Callable[[Any], Any] = lambda batch: batch
) -> Preparation:
    """Take batches from a loader, untouched, and time those after the first `skip`.

    By then threads and processes run, kernels are compiled, and what was prepared before anyone asked is used up.

    Args:
        loader: Of at least ``skip + batches`` batches.
        batches: How many to count.
        skip: How many to take before them.
        arrive: Called with each batch; returns when the batch is where it is wanted.
    """
    iterator = iter(loader)
    try:
        for _ in range(skip):
            arrive(next(iterator))
        nodes = edges = 0
        start = time.perf_counter()
        for _ in range(batches):
            batch = arrive(next(iterator))
            nodes += batch.num_nodes
            edges += batch.edge_index.shape[1]
            del batch  # not kept until the next one is there
        seconds = time.perf_counter() - start
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:  # a generator; PyG's iterator ends its processes when it is dropped
            close()
    return Preparation(batches=batches, nodes=nodes, edges=edges, seconds=seconds)


def our_side(loader: PrefetchLoader, *, batches: int, arrive: Callable[[Any], Any]) -> Callable[[], Preparation]:
    """Make the side of our loader; each run draws other batches."""
    epochs = itertools.count()

    def run() -> Preparation:
        loader.set_epoch(next(epochs))
        return prepare(loader, batches=batches, skip=skipped(loader.num_workers), arrive=arrive)

    return run


def pyg_side(
    make: Callable[[], Any], peer: str, *, num_workers: int, batches: int, arrive: Callable[[Any], Any]
) -> Callable[[], Preparation]:
    """Make the side of PyG's loader with one of its peers."""

    def run() -> Preparation:
        with pyg_samples_with(peer):
            return prepare(make(), batches=batches, skip=skipped(num_workers), arrive=arrive)

    return run


def skipped(num_workers: int) -> int:
    """How many batches are taken before the clock starts: all that workers prepare before the first is asked for."""
    return max(1, 2 * num_workers)  # both libraries prepare two ahead per worker


def best_side(seconds: Mapping[str, Sequence[float]], prefix: str) -> str:
    """Name the side whose median is least, of those whose names start with `prefix`.

    Args:
        seconds: What each run of each side took.
        prefix: Start of the names.

    Raises:
        ValueError: If there is no such side.

    Examples:
        >>> best_side({"ours, 0 workers": [3.0, 1.0, 2.0], "ours, 1 workers": [1.5], "theirs": [0.1]}, "ours")
        'ours, 1 workers'
    """
    names = [name for name in seconds if name.startswith(prefix)]
    if not names:
        raise ValueError(
            f"`prefix` must start the name of a side, but got {prefix!r} for {list(seconds)}."
            " HINT: a side's name starts with its library's."
        )
    return min(names, key=lambda name: median(seconds[name]))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Have operators of torch run on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""What takes turns in the sampling benchmark: our samplers and other libraries', with the same seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import SampleFunction
from lightning_gnnopt.sampling import (
    HeteroNeighborSampler,
    HeteroTopology,
    LinkSampler,
    NeighborSampler,
    NodeSampler,
    SampleKey,
    Topology,
)

BATCH_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one side did in one round."""

    batches: int
    nodes: int
    edges: int
    seconds: float

    @property
    def rate(self) -> float:
        """Edges per second."""
        return self.edges / self.seconds


Side = Callable[[], Run]


class SeedStream:
    """Batches of seeds without end, the same ones for each side.

    Args:
        topology: The graph.
        batches: Batches per run.
    """

    def __init__(self, topology: Topology, batches: int) -> None:
        self._nodes = np.flatnonzero(np.diff(topology.indptr) > 0)
        self._batches = batches

    def run(self, number: int) -> list[NDArray[np.int64]]:
        """Draw the seeds of run `number`."""
        generator = np.random.default_rng(number)
        size = min(BATCH_SIZE, len(self._nodes))
        return [generator.choice(self._nodes, size, replace=False) for _ in range(self._batches)]


OurFunction = Callable[[NDArray[np.int64], SampleKey], tuple[int, int]]
"""``(seeds, key) -> (nodes, edges)`` of one batch."""


def our_side(sampler: NodeSampler | OurFunction, seeds: SeedStream, *, threads: int = 1) -> Side:
    """Make the side of one of our samplers."""
    numbers, pool = itertools.count(), ThreadPoolExecutor(threads)
    draw = _nodes(sampler) if isinstance(sampler, NodeSampler) else sampler

    def sample(task: tuple[int, int, NDArray[np.int64]]) -> tuple[int, int]:
        number, batch, nodes = task
        return draw(nodes, SampleKey(0, epoch=number, batch=batch))

    def run() -> Run:
        number = next(numbers)
        tasks = [(number, batch, nodes) for batch, nodes in enumerate(seeds.run(number))]
        start = time.perf_counter()
        sizes = list(map(sample, tasks) if threads == 1 else pool.map(sample, tasks))
        return _sum(sizes, time.perf_counter() - start)

    return run


def _nodes(sampler: NodeSampler) -> OurFunction:
    def sample(nodes: NDArray[np.int64], key: SampleKey) -> tuple[int, int]:
        subgraph = sampler.sample(nodes, key)
        return subgraph.num_nodes, subgraph.num_edges

    return sample


def links(graph: Topology, fanouts: Sequence[int]) -> OurFunction:
    """Take an in-edge of each of a quarter of the seeds, and as many negatives: as many ends as there are seeds."""
    sampler = LinkSampler(NeighborSampler(graph, fanouts), negatives="binary")

    def sample(nodes: NDArray[np.int64], key: SampleKey) -> tuple[int, int]:
        targets = nodes[: len(nodes) // 4]
        subgraph = sampler.sample(graph.indices[graph.indptr[targets]], targets, key).subgraph
        return subgraph.num_nodes, subgraph.num_edges

    return sample


def edge_types(graph: Topology, fanouts: Sequence[int]) -> OurFunction:
    """Call every other edge a type of its own."""
    row = torch.from_numpy(graph.indices)
    col = torch.from_numpy(np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr)))
    edges = {("node", f"to{k}", "node"): torch.stack([row[k::2].long(), col[k::2]]) for k in range(2)}
    sampler = HeteroNeighborSampler(HeteroTopology.from_edge_index_dict(edges, {"node": graph.num_nodes}), fanouts)

    def sample(nodes: NDArray[np.int64], key: SampleKey) -> tuple[int, int]:
        subgraph = sampler.sample({"node": nodes}, key)
        return len(subgraph.n_id["node"]), sum(map(len, subgraph.row.values()))

    return sample


def peer_side(sample: SampleFunction, fanouts: Sequence[int], seeds: SeedStream) -> Side:
    """Make the side of another library's sampler."""
    numbers = itertools.count()

    def run() -> Run:
        batches = seeds.run(next(numbers))
        start = time.perf_counter()
        sizes = [sample(nodes, fanouts) for nodes in batches]
        return _sum(sizes, time.perf_counter() - start)

    return run


def _sum(sizes: Sequence[tuple[int, int]], seconds: float) -> Run:
    nodes, edges = np.sum(sizes, axis=0).tolist()
    return Run(batches=len(sizes), nodes=nodes, edges=edges, seconds=seconds)

"""Graphs, batches and selections at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology


def graph(num_nodes: int = 60, num_edges: int = 400, seed: int = 0) -> Topology:
    """Has self loops and parallel edges."""
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))
    return Topology.from_edge_index(edge_index, num_nodes=num_nodes)


def sample(seeds: Sequence[int] = (3, 1, 4, 15, 9, 2, 6), sizes: Sequence[int] = (4, 3), **options: object) -> Subgraph:
    return NeighborSampler(graph(), list(sizes), **options).sample(np.array(seeds), SampleKey(1))  # type: ignore[arg-type]


def coin(num: int, share: float = 0.5, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(num) < share

"""Small graphs, loaders over them, and what compares batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.loading import BatchBuilder, NodeSource, PrefetchLoader, SeedOrder
from lightning_gnnopt.sampling import NeighborSampler, Topology

N, E, F, C = 60, 300, 5, 3


def random_graph(num_nodes: int = N, num_edges: int = E, *, seed: int = 0) -> Tensor:
    """Draw edges with replacement: multi-edges, self loops and isolated nodes occur."""
    return torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))


def make_data(*, multilabel: bool = False, seed: int = 0) -> Data:
    """A graph of 60 nodes: 35 to train on, 13 to validate, 12 to test."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (N, C), generator=generator).float() if multilabel else torch.arange(N) % C
    data = Data(x=torch.randn(N, F, generator=generator), y=y, edge_index=random_graph(seed=seed))
    node = torch.arange(N)
    data.train_mask, data.val_mask, data.test_mask = node < 35, (node >= 35) & (node < 48), node >= 48
    return data


def make_loader(
    data: Data | None = None,
    *,
    fanouts: Sequence[int] = (3, 2),
    nodes: Sequence[int] = range(35),
    batch_size: int = 8,
    seed: int = 5,
    order: dict[str, Any] | None = None,
    **kwargs: Any,
) -> PrefetchLoader:
    """A shuffling loader over the training nodes: four batches of 8 seeds and one of 3."""
    data = make_data() if data is None else data
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes, edge_ids=True)
    seeds = np.array(nodes, dtype=np.int64)
    seed_order = SeedOrder(len(seeds), batch_size, **{"shuffle": True, "seed": seed, **(order or {})})
    source = NodeSource(NeighborSampler(topology, fanouts), BatchBuilder(data, topology, edge_id=True), seeds)
    return PrefetchLoader(source, seed_order, **kwargs)


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def same_batch(a: Data, b: Data) -> bool:
    left, right = a.to_dict(), b.to_dict()
    return left.keys() == right.keys() and all(same_bits(left[name], right[name]) for name in left)


def same_batches(a: Sequence[Data], b: Sequence[Data]) -> bool:
    return len(a) == len(b) and all(map(same_batch, a, b))


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt-prefetch")]

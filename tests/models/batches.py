"""Batches like ``NeighborLoader``'s on a small graph, and what trains on them."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch_geometric.data import Data

from lightning_gnnopt.models import NodeClassifier

from .graphs import OPTIONS, features, in_degrees, random_graph, sample_full

N, F, C = 24, 5, 3


def make_data(*, multilabel: bool = False) -> Data:
    generator = torch.Generator().manual_seed(3)
    shape, high = ((N, C), 2) if multilabel else ((N,), C)
    data = Data(
        x=features(N, F, dtype=torch.float32),
        y=torch.randint(high, shape, generator=generator),
        edge_index=random_graph(N, 40),
    )
    node = torch.arange(N)
    data.train_mask, data.val_mask, data.test_mask = node < 12, (node >= 12) & (node < 19), node >= 19
    return data


def make_batches(
    data: Data, nodes: Tensor, *, batch_size: int = 5, hops: int = 2, in_degree: bool = True
) -> list[Data]:
    """Batches with the attributes of ``NeighborLoader``'s; the last one is smaller."""
    batches = []
    degree = in_degrees(data.edge_index, N)
    for seeds in nodes.split(batch_size):
        sampled = sample_full(data.edge_index, seeds.tolist(), hops)
        batch = Data(x=data.x[sampled.n_id], y=data.y[sampled.n_id], edge_index=sampled.edge_index, n_id=sampled.n_id)
        batch.batch_size = len(seeds)
        batch.num_sampled_nodes, batch.num_sampled_edges = sampled.num_nodes, sampled.num_edges
        if in_degree:
            batch.in_degree = degree[sampled.n_id]
        batches.append(batch)
    return batches


def loader(batches: list[Data]) -> Any:
    return torch.utils.data.DataLoader(batches, batch_size=None)


def make_trainer(max_epochs: int = 1, **kwargs: Any) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_epochs=max_epochs, enable_model_summary=False, **{**defaults, **kwargs})


def make_model(net: str | nn.Module = "sage", **kwargs: Any) -> NodeClassifier:
    if isinstance(net, str):
        kwargs = {"in_channels": F, "out_channels": C, "hidden_channels": 16, **OPTIONS[net], **kwargs}
    return NodeClassifier(net, **kwargs)

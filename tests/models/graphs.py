"""Small graphs and a pure-Python full-neighbour sampler: slow, plain and independent of the package's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_gnnopt.models import SampledGNN, build_model

OPTIONS: dict[str, dict[str, int]] = {
    "gcn": {},
    "sage": {},
    "gat": {"heads": 2},
    "ggnn": {},
    "gaan": {"heads": 2, "key_channels": 3, "value_channels": 4, "gate_channels": 5},
}


def random_graph(num_nodes: int, num_edges: int, *, seed: int = 0) -> Tensor:
    """Draw edges with replacement: multi-edges, self loops and isolated nodes occur."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_nodes, (2, num_edges), generator=generator)


def features(num_nodes: int, num_features: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num_nodes, num_features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_degrees(edge_index: Tensor, num_nodes: int) -> Tensor:
    degrees = [0] * num_nodes
    for source, target in edge_index.t().tolist():
        degrees[target] += source != target
    return torch.tensor(degrees)


def small_net(
    name: str, num_layers: int, *, norm: str | None = None, dropout: float = 0.5, seed: int = 0
) -> SampledGNN:
    """Build a float64 net in eval mode, with a batch norm's statistics away from their start."""
    torch.manual_seed(seed)
    options = {"in_channels": 5, "hidden_channels": 6, "out_channels": 3, **OPTIONS[name]}
    net = build_model(name, num_layers=num_layers, norm=norm, dropout=dropout, **options).double()
    for module in net.norms:
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@dataclass
class Sampled:
    """A full-neighbour batch: seeds first, then hop by hop."""

    n_id: Tensor
    edge_index: Tensor
    num_nodes: list[int] = field(default_factory=list)
    num_edges: list[int] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, list[int]]:
        return {"num_sampled_nodes_per_hop": self.num_nodes, "num_sampled_edges_per_hop": self.num_edges}


def sample_full(edge_index: Tensor, seeds: list[int], num_hops: int) -> Sampled:
    all_edges = edge_index.t().tolist()
    local = {node: i for i, node in enumerate(seeds)}
    frontier, edges = list(seeds), []
    num_nodes, num_edges = [len(seeds)], []
    for _ in range(num_hops):
        before, new = len(edges), []
        for target in frontier:
            for source, end in all_edges:
                if end == target:
                    if source not in local:
                        local[source] = len(local)
                        new.append(source)
                    edges.append((local[source], local[target]))
        frontier = new
        num_nodes.append(len(new))
        num_edges.append(len(edges) - before)
    return Sampled(
        n_id=torch.tensor(list(local)),
        edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t(),
        num_nodes=num_nodes,
        num_edges=num_edges,
    )

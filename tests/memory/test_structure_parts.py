"""What a net computes on parts of a batch adds up to what it computes on the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.utils import trim_to_layer

from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.structure import BatchStructure, select
from lightning_gnnopt.models import GAT, GCN, GraphSAGE
from lightning_gnnopt.sampling import (
    ClusterSampler,
    FastGCNSampler,
    LaborSampler,
    LadiesSampler,
    NeighborSampler,
    SaintWalkSampler,
    SampleKey,
    ShadowSampler,
    Subgraph,
    Topology,
)
from tests.memory.structures import coin, graph, sample

Net = Callable[[Data], Tensor]


# What a net computes


def batch_of(subgraph: Subgraph, topology: Topology) -> Data:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((topology.num_nodes, 6), generator=generator, dtype=torch.float64)
    batch = Data(x=x[torch.from_numpy(subgraph.n_id).long()], num_nodes=subgraph.num_nodes)
    batch.edge_index = torch.from_numpy(np.stack([subgraph.row, subgraph.col])).long()
    batch.in_degree = torch.from_numpy(topology.in_degrees[subgraph.n_id])
    batch.batch_size = subgraph.batch_size
    if subgraph.num_sampled_nodes is not None:
        batch.num_sampled_nodes, batch.num_sampled_edges = subgraph.num_sampled_nodes, subgraph.num_sampled_edges
    return batch


def stack_of(make: Callable[[], nn.Module], depth: int) -> tuple[nn.Module, Net]:
    layers = nn.ModuleList(make() for _ in range(depth)).double()

    def run(batch: Data) -> Tensor:
        x, edge_index = batch.x, batch.edge_index
        for number, layer in enumerate(layers):
            if batch.get("num_sampled_nodes") is not None:
                x, edge_index, _ = trim_to_layer(
                    number, batch.num_sampled_nodes, batch.num_sampled_edges, x, edge_index
                )
            x = layer(x, edge_index).tanh()
        return x[: batch.batch_size]

    return layers, run


def net_of(net: nn.Module) -> tuple[nn.Module, Net]:
    def run(batch: Data) -> Tensor:
        out: Tensor = net(
            batch.x,
            batch.edge_index,
            num_sampled_nodes_per_hop=batch.get("num_sampled_nodes"),
            num_sampled_edges_per_hop=batch.get("num_sampled_edges"),
            in_degree=batch.in_degree,
        )
        return out[: batch.batch_size]

    return net.double(), run


NETS: dict[str, Callable[[], tuple[nn.Module, Net]]] = {
    "SAGEConv": lambda: stack_of(lambda: SAGEConv(6, 6), 2),
    "GATConv": lambda: stack_of(lambda: GATConv(6, 3, heads=2), 2),
    "GINConv": lambda: stack_of(lambda: GINConv(nn.Linear(6, 6)), 2),
    "GraphSAGE": lambda: net_of(GraphSAGE(6, 8, 6, 2, dropout=0.0)),
    "GAT": lambda: net_of(GAT(6, 8, 6, 2, heads=2, dropout=0.0)),
    "GCN": lambda: net_of(GCN(6, 8, 6, 2, dropout=0.0)),
}


def check_parts_add_up(
    module: nn.Module, run: Net, batch: Data, parts: Sequence[Sequence[int]], depth: int | None
) -> None:
    """Compare outputs and gradients of a batch in parts with those of the whole."""
    structure = BatchStructure.of_batch(batch)
    weights = torch.rand((structure.num_seeds, 6), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = run(batch)
    whole_gradients = torch.autograd.grad((whole * weights).sum(), list(module.parameters()))
    gradients = [torch.zeros_like(gradient) for gradient in whole_gradients]
    for part in parts:
        seeds = np.array(part)
        piece = cut_batch(batch, select(structure, seeds=seeds, depth=depth))
        out = run(piece)
        torch.testing.assert_close(out, whole[seeds], rtol=1e-9, atol=1e-12)
        for total, gradient in zip(
            gradients, torch.autograd.grad((out * weights[seeds]).sum(), list(module.parameters())), strict=True
        ):
            total += gradient
    for total, gradient in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(total, gradient, rtol=1e-6, atol=1e-9)


PARTS = [[2, 0], [5], [1, 3, 4, 6]]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seeds", [(3, 1, 4, 15, 9, 2, 6), (3, 1, 3, 15, 9, 2, 6)])
def test_parts_of_a_hopwise_batch_add_up_to_the_whole(name: str, seeds: Sequence[int]) -> None:
    torch.manual_seed(0)
    batch = batch_of(sample(seeds), graph())
    check_parts_add_up(*NETS[name](), batch, PARTS, None)


@pytest.mark.parametrize("name", NETS)
def test_parts_of_a_pruned_batch_add_up_to_it(name: str) -> None:
    torch.manual_seed(0)
    whole = batch_of(sample(sizes=(6, 6)), graph())
    pruned = cut_batch(whole, select(BatchStructure.of_batch(whole), keep=coin(whole.num_edges, 0.4)))
    assert pruned.num_nodes < whole.num_nodes
    check_parts_add_up(*NETS[name](), pruned, PARTS, None)


@pytest.mark.parametrize("depth", [2, None])
@pytest.mark.parametrize("name", NETS)
def test_parts_of_a_cluster_add_up_to_the_whole(name: str, depth: int | None) -> None:
    torch.manual_seed(0)
    topology = graph(num_edges=150)
    sampler = ClusterSampler(topology, parts=np.arange(60) % 3)
    batch = batch_of(sampler.sample(np.array([0, 3, 6, 7, 9, 12, 15]), SampleKey(0)), topology)
    check_parts_add_up(*NETS[name](), batch, PARTS, depth)


def test_a_layer_that_counts_degrees_of_sources_needs_one_step_more() -> None:
    torch.manual_seed(0)
    topology = graph(num_edges=150)
    batch = batch_of(ClusterSampler(topology, parts=np.arange(60) % 3).sample(np.arange(7), SampleKey(0)), topology)
    module, run = stack_of(lambda: GCNConv(6, 6), 2)
    check_parts_add_up(module, run, batch, PARTS, 3)
    structure = BatchStructure.of_batch(batch)
    too_small = run(cut_batch(batch, select(structure, seeds=np.arange(3), depth=2)))
    assert (too_small - run(batch)[:3]).abs().max() > 1e-3


def test_a_pruned_batch_computes_what_the_whole_does_without_the_edges() -> None:
    """The reference is not trimmed: it has no hops that could be wrong."""
    torch.manual_seed(0)
    whole = batch_of(sample(sizes=(5, 4)), graph())
    keep = coin(whole.num_edges)
    pruned = cut_batch(whole, select(BatchStructure.of_batch(whole), keep=keep))
    _, run = stack_of(lambda: SAGEConv(6, 6), 2)
    untrimmed = Data(x=whole.x, edge_index=whole.edge_index[:, torch.from_numpy(keep)], batch_size=whole.batch_size)
    torch.testing.assert_close(run(pruned), run(untrimmed), rtol=1e-12, atol=1e-12)


LAYERED: dict[str, Callable[[Topology], object]] = {
    "ladies": lambda topology: LadiesSampler(topology, [12, 12]),
    "fastgcn": lambda topology: FastGCNSampler(topology, [25, 25]),
    "labor": lambda topology: LaborSampler(topology, [3, 3]),
    "labor-importance": lambda topology: LaborSampler(topology, [3, 3], importance_iterations=1),
    "disjoint": lambda topology: NeighborSampler(topology, [4, 3], disjoint=True),
    "induced": lambda topology: NeighborSampler(topology, [4, 3], subgraph_type="induced"),
    "bidirectional": lambda topology: NeighborSampler(topology, [4, 3], subgraph_type="bidirectional"),
    "shadow": lambda topology: ShadowSampler(topology, [3, 2]),
    "saint": lambda topology: SaintWalkSampler(topology, walk_length=2),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("sampler", LAYERED)
def test_parts_add_up_for_every_sampler(sampler: str, name: str) -> None:
    """Whatever the order of edges and hops: of some samplers an edge's hop may come later than its destination's."""
    torch.manual_seed(0)
    topology = graph()
    subgraph = LAYERED[sampler](topology).sample(np.array([3, 1, 4, 15, 9, 2, 6]), SampleKey(1))  # type: ignore[attr-defined]
    batch = batch_of(subgraph, topology)
    depth = None if subgraph.num_sampled_nodes is not None else 2
    parts = [part.tolist() for part in np.array_split(np.random.default_rng(0).permutation(subgraph.batch_size), 3)]
    check_parts_add_up(*NETS[name](), batch, parts, depth)


@pytest.mark.parametrize("name", ["SAGEConv", "GAT", "GCN"])
def test_parts_of_a_temporal_batch_add_up_to_the_whole(name: str) -> None:
    torch.manual_seed(0)
    topology = graph()
    times = np.arange(60) % 20
    sampler = NeighborSampler(topology, [4, 3], node_time=times, disjoint=True)
    seeds = np.array([3, 1, 4, 15, 9, 2, 3])
    subgraph = sampler.sample(seeds, SampleKey(1), time=np.array([15, 12, 19, 3, 9, 18, 8]))
    assert subgraph.batch is not None
    assert subgraph.num_edges > 0
    check_parts_add_up(*NETS[name](), batch_of(subgraph, topology), PARTS, None)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 59), min_size=2, max_size=8),
    st.integers(0, 1000),
    st.integers(1, 3),
    st.data(),
)
def test_parts_add_up_for_any_seeds(seeds: list[int], key: int, num_hops: int, data: st.DataObject) -> None:
    """Duplicates among the seeds included, of samples and of pruned ones, cut at any place."""
    torch.manual_seed(0)
    topology = graph(num_edges=200)
    subgraph = NeighborSampler(topology, [3] * num_hops).sample(np.array(seeds), SampleKey(key))
    batch = batch_of(subgraph, topology)
    keep = coin(batch.num_edges, data.draw(st.sampled_from([0.3, 0.7, 1.1])), key)
    pruned = cut_batch(batch, select(BatchStructure.of_batch(batch), keep=keep))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(seeds) - 1), min_size=1)))
    order = data.draw(st.permutations(range(len(seeds))))
    parts = [order[i:j] for i, j in zip([0, *cuts], [*cuts, len(seeds)], strict=True)]
    check_parts_add_up(*stack_of(lambda: SAGEConv(6, 6), num_hops), pruned, parts, None)

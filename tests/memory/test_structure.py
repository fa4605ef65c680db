from __future__ import annotations

from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.utils import trim_to_layer

from lightning_gnnopt.memory.cutting import cut_batch, cut_subgraph
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
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

Net = Callable[[Data], Tensor]


def graph(num_nodes: int = 60, num_edges: int = 400, seed: int = 0) -> Topology:
    """Has self loops and parallel edges."""
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))
    return Topology.from_edge_index(edge_index, num_nodes=num_nodes)


def sample(seeds: Sequence[int] = (3, 1, 4, 15, 9, 2, 6), sizes: Sequence[int] = (4, 3), **options: object) -> Subgraph:
    return NeighborSampler(graph(), list(sizes), **options).sample(np.array(seeds), SampleKey(1))  # type: ignore[arg-type]


def coin(num: int, share: float = 0.5, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(num) < share


def distances(structure: BatchStructure, keep: NDArray[np.bool_], seeds: NDArray[np.integer]) -> dict[int, int]:
    against = nx.DiGraph()
    against.add_nodes_from(range(structure.num_nodes))
    against.add_edges_from(zip(structure.col[keep].tolist(), structure.row[keep].tolist(), strict=True))
    return dict(nx.multi_source_dijkstra_path_length(against, set(seeds.tolist())))


def check_hops(
    structure: BatchStructure, keep: NDArray[np.bool_], seeds: NDArray[np.integer], selection: Selection
) -> None:
    """Compare with shortest paths found by networkx."""
    num_hops = structure.num_hops
    assert num_hops is not None
    distance = distances(structure, keep, seeds)
    expected = [sorted(v for v, d in distance.items() if d == hop) for hop in range(num_hops + 1)]
    assert selection.num_sampled_nodes == [len(nodes) for nodes in expected]
    assert selection.nodes[: len(seeds)].tolist() == seeds.tolist()
    starts = np.cumsum([0, *selection.num_sampled_nodes])
    for hop in range(num_hops + 1):
        assert sorted(selection.nodes[starts[hop] : starts[hop + 1]].tolist()) == expected[hop]
    hop_of_edge = [
        distance.get(int(v), num_hops) + 1 if kept else 0 for v, kept in zip(structure.col, keep, strict=True)
    ]
    ends = np.cumsum([0, *(selection.num_sampled_edges or [])])
    for hop in range(1, num_hops + 1):
        there = [e for e, of_edge in enumerate(hop_of_edge) if of_edge == hop]
        assert sorted(selection.edges[ends[hop - 1] : ends[hop]].tolist()) == there
    check_renumbered(structure, selection)


def check_renumbered(structure: BatchStructure, selection: Selection) -> None:
    np.testing.assert_array_equal(selection.nodes[selection.row], structure.row[selection.edges])
    np.testing.assert_array_equal(selection.nodes[selection.col], structure.col[selection.edges])
    for node in range(len(selection.nodes)):  # in-edges in the order they had
        assert (np.diff(selection.edges[selection.col == node]) > 0).all()


@st.composite
def hop_batches(draw: st.DrawFn) -> tuple[BatchStructure, NDArray[np.bool_], NDArray[np.int64]]:
    """Any edges at all: not grouped by destination, with loops, parallel edges and nodes that nothing reaches."""
    num_nodes = draw(st.integers(1, 12))
    ends = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(ends, ends), max_size=30))
    row, col = np.array(edges, np.int64).reshape(-1, 2).T
    num_seeds = draw(st.integers(1, num_nodes))
    seeds = draw(st.lists(st.integers(0, num_seeds - 1), unique=True, min_size=1))
    keep = draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    structure = BatchStructure(row, col, num_nodes, num_seeds, draw(st.integers(1, 4)))
    return structure, np.array(keep, bool), np.array(seeds)


@settings(deadline=None, max_examples=150)
@given(hop_batches())
def test_hops_are_distances_whatever_the_edges(
    batch: tuple[BatchStructure, NDArray[np.bool_], NDArray[np.int64]],
) -> None:
    structure, keep, seeds = batch
    check_hops(structure, keep, seeds, select(structure, keep=keep, seeds=seeds))
    every = np.arange(structure.num_seeds)
    check_hops(structure, keep, every, select(structure, keep=keep))


@settings(deadline=None, max_examples=100)
@given(hop_batches(), st.sampled_from([None, 1, 2, 3]))
def test_without_hops_what_reaches_a_seed_within_depth_stays(
    batch: tuple[BatchStructure, NDArray[np.bool_], NDArray[np.int64]], depth: int | None
) -> None:
    hops, keep, seeds = batch
    structure = BatchStructure(hops.row, hops.col, hops.num_nodes, hops.num_seeds, None)
    selection = select(structure, keep=keep, seeds=seeds, depth=depth)
    distance = distances(structure, keep, seeds)
    limit = np.inf if depth is None else depth
    others = sorted({v for v, d in distance.items() if d <= limit} - set(seeds.tolist()))
    assert selection.nodes.tolist() == seeds.tolist() + others
    closer = [keep[e] and distance.get(int(v), np.inf) < limit for e, v in enumerate(structure.col)]
    assert selection.edges.tolist() == np.flatnonzero(closer).tolist()
    assert (selection.num_sampled_nodes, selection.num_sampled_edges) == (None, None)
    check_renumbered(structure, selection)


@settings(deadline=None, max_examples=100)
@given(hop_batches())
def test_without_hops_only_isolated_nodes_that_are_no_seeds_go(
    batch: tuple[BatchStructure, NDArray[np.bool_], NDArray[np.int64]],
) -> None:
    hops, keep, _ = batch
    structure = BatchStructure(hops.row, hops.col, hops.num_nodes, hops.num_seeds, None)
    selection = select(structure, keep=keep)
    ends = set(structure.row[keep].tolist()) | set(structure.col[keep].tolist())
    assert selection.nodes.tolist() == sorted(ends | set(range(structure.num_seeds)))
    assert selection.edges.tolist() == np.flatnonzero(keep).tolist()
    check_renumbered(structure, selection)


def test_nothing_dropped_is_the_identity() -> None:
    for subgraph in (sample(), sample(disjoint=True), sample((5, 5, 7)), sample(subgraph_type="induced")):
        structure = BatchStructure.of_subgraph(subgraph)
        for selection in (select(structure), select(structure, keep=np.ones(subgraph.num_edges, bool))):
            assert selection.is_identity
            assert (selection.num_sampled_nodes, selection.num_sampled_edges) == (
                subgraph.num_sampled_nodes,
                subgraph.num_sampled_edges,
            )
            np.testing.assert_array_equal(selection.row, subgraph.row)
            assert cut_subgraph(subgraph, selection) is subgraph


def test_fewer_seeds_that_reach_everything_are_not_the_identity() -> None:
    ring = BatchStructure(np.array([1, 0]), np.array([0, 1]), num_nodes=2, num_seeds=2, num_hops=2)
    selection = select(ring, seeds=np.array([0]))
    assert not selection.is_identity
    assert (selection.num_seeds, selection.num_sampled_nodes, selection.num_sampled_edges) == (1, [1, 1, 0], [1, 1])


def test_a_node_that_is_further_away_now_changes_its_hop() -> None:
    # Seed 0 <- 1 (hop 1) and 0 <- 2 <- 1; 1 <- 3. Without the edge 1 -> 0, node 1 is in hop 2 and 3 out of reach.
    structure = BatchStructure(np.array([1, 2, 3, 1]), np.array([0, 0, 1, 2]), num_nodes=4, num_seeds=1, num_hops=2)
    selection = select(structure, keep=np.array([False, True, True, True]))
    assert selection.nodes.tolist() == [0, 2, 1]
    assert selection.edges.tolist() == [1, 3]
    assert (selection.num_sampled_nodes, selection.num_sampled_edges) == ([1, 1, 1], [1, 1])


def test_a_seed_that_stands_twice_keeps_both_rows() -> None:
    subgraph = sample((5, 8, 5))
    structure = BatchStructure.of_subgraph(subgraph)
    second = cut_subgraph(subgraph, select(structure, seeds=np.array([2])))
    assert second.n_id[0] == 5
    np.testing.assert_array_equal(second.positions[second.col == 0], subgraph.positions[subgraph.col == 2])


def test_of_batch_reads_what_of_subgraph_reads() -> None:
    subgraph = sample()
    edge_index = torch.from_numpy(np.stack([subgraph.row, subgraph.col])).long()
    batch = Data(edge_index=EdgeIndex(edge_index, sparse_size=(subgraph.num_nodes,) * 2), num_nodes=subgraph.num_nodes)
    structure = BatchStructure.of_batch(batch)
    assert (structure.num_seeds, structure.num_hops) == (subgraph.num_nodes, None)
    batch.num_sampled_nodes, batch.num_sampled_edges = subgraph.num_sampled_nodes, subgraph.num_sampled_edges
    structure = BatchStructure.of_batch(batch)
    assert (structure.num_seeds, structure.num_hops) == (7, 2)  # around links there is no `batch_size`
    batch.batch_size = 5
    assert BatchStructure.of_batch(batch).num_seeds == 5
    np.testing.assert_array_equal(structure.row, subgraph.row)
    np.testing.assert_array_equal(structure.col, subgraph.col)


@pytest.mark.parametrize("batch", [HeteroData(), Data(x=torch.rand(2, 1))])
def test_what_has_no_single_edge_index_is_refused(batch: object) -> None:
    with pytest.raises(TypeError, match=rf"with `edge_index`, but is {type(batch).__name__}.* HINT: "):
        BatchStructure.of_batch(batch)


def test_wrong_arguments_are_refused() -> None:
    row, col = np.array([1, 2]), np.array([0, 0])
    structure = BatchStructure(row, col, 3, 2, 1)
    with pytest.raises(ValueError, match=r"`col` must hold local ids from 0 to 2, but found 3\. HINT"):
        BatchStructure(row, np.array([0, 3]), 3, 1, 1)
    with pytest.raises(ValueError, match=r"`col` must be integers of shape \(E,\) with E = 2, but is float64"):
        BatchStructure(row, np.array([0.0, 1.0]), 3, 1, 1)
    with pytest.raises(ValueError, match="`num_seeds` must be from 0 to the 3 nodes of the batch, but got 4"):
        BatchStructure(row, col, 3, 4, 1)
    with pytest.raises(ValueError, match="`num_hops` must be at least 1, but got 0"):
        BatchStructure(row, col, 3, 1, 0)
    with pytest.raises(ValueError, match=r"`keep` must be bool of shape \(2,\), one for each edge, but is int64"):
        select(structure, keep=np.array([0, 1]))
    with pytest.raises(ValueError, match="`seeds` must be from 0 to 1, but found 2"):
        select(structure, seeds=np.array([2]))
    with pytest.raises(ValueError, match="`seeds` must name no place twice, but names 1 twice"):
        select(structure, seeds=np.array([1, 1]))
    with pytest.raises(ValueError, match="`depth` must be at least 1, but got 0"):
        select(structure, seeds=np.array([1]), depth=0)


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

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.memory.cutting import cut_subgraph
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
from tests.memory.structures import sample


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

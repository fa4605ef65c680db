from __future__ import annotations

import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.saint import SaintSampler, inclusion_norms
from lightning_gnnopt.sampling.saint_edge import SaintEdgeSampler
from lightning_gnnopt.sampling.saint_node import SaintNodeSampler
from lightning_gnnopt.sampling.saint_walk import SaintWalkSampler

from .reference import SIGNIFICANCE, multigraphs, random_graph
from .saint_reference import Sets, all_of, check_induced, check_norms, edge_draws, node_draws

N, E = 60, 240


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_norms_of_node_and_edge_batches_are_the_exact_chances(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs(max_nodes=6, max_edges=12))
    num_draws, key = data.draw(st.integers(1, 4)), SampleKey(data.draw(st.integers(0, 99)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    samplers: list[tuple[SaintSampler, Sets]] = [(SaintNodeSampler(graph), node_draws(edge_index, num_nodes))]
    if edge_index.numel():
        samplers.append((SaintEdgeSampler(graph), edge_draws(edge_index, num_nodes)))
    for sampler, draws in samplers:
        batch = sampler.sample(np.zeros(num_draws, np.int64), key)
        check_induced(batch, edge_index, graph)
        check_norms(batch, all_of([draws] * num_draws))


@pytest.mark.parametrize(("sampler_type", "draws_of"), [(SaintNodeSampler, node_draws), (SaintEdgeSampler, edge_draws)])
def test_nodes_are_in_as_many_batches_as_their_norms_say(sampler_type: Any, draws_of: Any) -> None:
    """Also pairs that an edge joins; significance 1e-4 over all of them."""
    edge_index, num_batches, num_draws = random_graph(N, E), 20_000, 10
    sampler, draws = sampler_type(Topology.from_edge_index(edge_index, N)), draws_of(edge_index, N)
    seen: Counter[tuple[int, ...]] = Counter()
    for i in range(num_batches):
        batch = sampler.sample(np.zeros(num_draws, np.int64), SampleKey(1, batch=i))
        seen.update((v,) for v in batch.n_id.tolist())
        seen.update({tuple(sorted(pair)) for pair in zip(*batch.n_id[[batch.row, batch.col]].tolist(), strict=True)})
    tested = [(v,) for v in range(N)] + sorted({(min(u, v), max(u, v)) for u, v in edge_index.t().tolist() if u != v})
    for nodes in tested:
        # inclusion and exclusion, over the chances of missing any of the nodes
        p = 1.0
        for size in range(1, len(nodes) + 1):
            for some in combinations(nodes, size):
                hit = sum(q for visited, q in draws.items() if visited & set(some))
                p += (-1) ** size * (1 - hit) ** num_draws
        z = (seen[nodes] - num_batches * p) / max((num_batches * p * (1 - p)) ** 0.5, 1e-9)
        assert 2 * norm.sf(abs(z)) > SIGNIFICANCE / len(tested), (nodes, seen[nodes], num_batches * p)


@pytest.mark.parametrize("name", ["node", "edge", "walk"])
def test_weighted_sums_over_a_batch_are_unbiased(name: str) -> None:
    """Over nodes, and over the in-edges of nodes in the batch; significance 1e-4 over all.

    A walk's norms are estimated, and the walks taken as independent: with a sixth of all nodes as roots they may be off
    by 5 %.
    """
    edge_index, num_batches = random_graph(N, E), 10_000
    graph = Topology.from_edge_index(edge_index, N)
    sampler: SaintSampler
    if name == "walk":
        sampler, slack = SaintWalkSampler(graph, 2, coverage=20_000), 0.05
    else:
        sampler, slack = (SaintNodeSampler if name == "node" else SaintEdgeSampler)(graph), 0.0
    values = np.random.default_rng(0).uniform(1, 2, N)
    reachable = set(edge_index.unique().tolist()) if name == "edge" else set(range(N))
    sums: list[float] = []
    sums_at: dict[int, list[float]] = {v: [] for v in range(N)}
    rng = np.random.default_rng(1)
    for i in range(num_batches):
        batch = sampler.sample(rng.choice(N, 10, replace=False), SampleKey(2, batch=i))
        sums.append(float(batch.node_norm @ values[batch.n_id]))
        messages = np.bincount(batch.col, batch.edge_norm * values[batch.n_id[batch.row]], batch.num_nodes)
        for v, message in zip(batch.n_id.tolist(), messages.tolist(), strict=True):
            sums_at[v].append(message)
    tests = [(sums, values[sorted(reachable)].sum())]
    tests += [(sums_at[v], values[graph.indices[slice(*graph.indptr[v : v + 2])]].sum()) for v in sorted(reachable)]
    for found, expected in tests:
        error = abs(np.mean(found) - expected) - slack * expected
        z = error / max(np.std(found) / len(found) ** 0.5, 1e-5 * expected + 1e-9)
        assert norm.sf(z) > SIGNIFICANCE / len(tests), (np.mean(found), expected)


def test_tiny_chances_keep_their_digits() -> None:
    """Two of 1e9 nodes, 1,000 draws: 1 - (1 - q)^m by plain subtraction has five digits, P(u, v) none."""
    row, col, q = np.array([0]), np.array([1]), np.array([1e-9, 2e-9])
    none = np.empty(0, np.bool_)
    edge_norm, node_norm = inclusion_norms(row, col, q, np.empty(0), 1_000, none, 0)
    assert node_norm.tolist() == pytest.approx([1e6, 5e5], rel=2e-6)
    assert edge_norm.tolist() == pytest.approx([1 / (1e-6 * 999 / 1_000)], rel=1e-5)
    edge_norm, _ = inclusion_norms(row, col, q, np.array([1e-9]), 1_000, none, 0)  # u never without v
    assert edge_norm.tolist() == pytest.approx([2.0], rel=1e-5)


def test_a_graph_of_many_edges_is_drawn_from_evenly() -> None:
    """Some thousand edges are many blocks of the search: every edge as often as its weight says, 1e-4 over all."""
    edge_index, num_draws = random_graph(300, 2_000), 1_000_000
    sampler = SaintEdgeSampler(Topology.from_edge_index(edge_index, 300))
    ends = sampler._draw_nodes(np.zeros(num_draws, np.int64), SampleKey(5).fold()).reshape(-1, 2)
    seen = Counter(map(tuple, ends.tolist()))
    degree = Counter(v for u, v in edge_index.t().tolist() if u != v)
    weights: Counter[tuple[int, int]] = Counter()
    for u, v in edge_index.t().tolist():
        weights[u, v] += 1 / max(degree[u], 1) + 1 / max(degree[v], 1)
    assert set(seen) <= set(weights)
    total = sum(weights.values())
    for pair, weight in weights.items():
        p = weight / total
        z = (seen[pair] - num_draws * p) / (num_draws * p * (1 - p)) ** 0.5
        assert 2 * norm.sf(abs(z)) > SIGNIFICANCE / len(weights)


def make_samplers() -> list[SaintSampler]:
    graph = Topology.from_edge_index(random_graph(N, E), N, edge_ids=True)
    return [SaintNodeSampler(graph), SaintEdgeSampler(graph), SaintWalkSampler(graph, 2)]


def as_lists(batch: Subgraph) -> list[list[float]]:
    return [getattr(batch, name).tolist() for name in ("n_id", "row", "col", "positions", "edge_norm", "node_norm")]


@pytest.mark.parametrize("sampler", make_samplers(), ids=["node", "edge", "walk"])
def test_the_key_decides_in_any_thread_and_process(sampler: SaintSampler) -> None:
    assert sampler.draws_own_seeds
    assert sampler.num_hops is None
    keys, seeds = [SampleKey(1, batch=i) for i in range(64)], np.arange(9)
    alone = [as_lists(sampler.sample(seeds, key)) for key in keys]
    assert all(one != other for one, other in pairwise(alone))
    copy = pickle.loads(pickle.dumps(sampler))
    assert [as_lists(copy.sample(seeds, key)) for key in keys] == alone
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda key: as_lists(sampler.sample(seeds, key)), keys)) == alone


def test_only_the_number_of_seeds_counts_unless_walks_start_there() -> None:
    node, edge, walk = make_samplers()
    for sampler in (node, edge):
        one, other = (sampler.sample(seeds, SampleKey(1)) for seeds in (np.arange(9), np.full(9, 59)))
        assert as_lists(one) == as_lists(other)
    assert walk.sample(np.array([7, 3, 7]), SampleKey(1)).n_id[:2].tolist() == [7, 3]
    with pytest.raises(ValueError, match="`seeds` must hold at least one node"):
        node.sample(np.empty(0, np.int64), SampleKey(1))


def test_what_presampling_never_saw_has_finite_norms() -> None:
    """One walk per root, and no root next to node 0: what batches find later counts as half a walk."""
    edges = torch.tensor([[*range(1, 1_001), 0], [*[0] * 1_000, 1_001]])
    sampler = SaintWalkSampler(Topology.from_edge_index(edges, 1_002), 2, roots=np.array([1_001]), coverage=1e-3)
    assert sampler._num_walks == 1
    batches = [sampler.sample(np.array([1_001]), SampleKey(0, batch=i)) for i in range(50)]
    for batch in batches:
        assert batch.n_id[:2].tolist() == [1_001, 0]
        assert np.isfinite(batch.node_norm).all()
        assert np.isfinite(batch.edge_norm).all()
    assert {round(float(batch.node_norm[2]), 3) for batch in batches} <= {1.0, 2.0}
    assert len({int(batch.n_id[2]) for batch in batches}) > 40


def test_isolated_nodes_are_drawn_as_nodes_and_never_by_edges() -> None:
    graph = Topology.from_edge_index(torch.tensor([[0, 1, 2], [1, 0, 2]]), num_nodes=4)
    node, edge = SaintNodeSampler(graph), SaintEdgeSampler(graph)
    # nodes 0 and 1: (1 / 2)^2 + (1 / 2)^2; nodes 2 and 3 have the self loop that every node has
    assert node.chances.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    batches = [edge.sample(np.arange(4), SampleKey(0, batch=i)) for i in range(200)]
    assert set(np.concatenate([batch.n_id for batch in batches]).tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="`topology` must have edges to draw from, but got Topology"):
        SaintEdgeSampler(Topology.from_edge_index(torch.zeros((2, 0), dtype=torch.long), 4))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("sampler", make_samplers(), ids=["node", "edge", "walk"])
def test_pygs_node_loader_takes_them(sampler: SaintSampler, num_workers: int) -> None:
    edge_index, seeds = random_graph(N, E), torch.tensor([7, 0, 33, 21, 9])
    data = Data(x=torch.arange(N), edge_index=edge_index, edge_attr=torch.arange(E) * 10)
    batches = list(NodeLoader(data, sampler, input_nodes=seeds, batch_size=2, num_workers=num_workers))
    assert len(batches) == 3
    for batch in batches:
        assert batch.x.equal(batch.n_id)
        assert batch.n_id[batch.edge_index].equal(edge_index[:, batch.e_id])
        assert batch.edge_attr.equal(10 * batch.e_id)
    if isinstance(sampler, SaintWalkSampler):
        assert torch.cat([batch.n_id[: batch.batch_size] for batch in batches]).equal(seeds)
        assert torch.cat([batch.input_id for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    else:
        assert [batch.batch_size for batch in batches] == [len(batch.n_id) for batch in batches]
        assert all(batch.input_id.equal(batch.n_id) for batch in batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"walk_length": 0}, "`walk_length` must be at least 1, but got 0. HINT: 2 to 4 are usual."),
        ({"coverage": -1}, "`coverage` must not be negative, but got -1. HINT: 0 does without norms."),
        ({"roots": np.zeros(4, np.bool_)}, "`roots` must be at least one node id, of shape (T,), but got bool of"),
        ({"roots": np.zeros(0, np.int64)}, "but got int64 of shape (0,). HINT: `mask.nonzero()` makes ids of a mask."),
        ({"roots": np.array([1, 1])}, "but found 2 ids, 1 different ones, from 1 to 1. HINT: they are the training"),
        ({"roots": np.array([0, 4])}, "`roots` must be different node ids from 0 to 3, but found 2 ids, 2 different"),
        ({"roots": np.array([-1])}, "1 different ones, from -1 to -1."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    graph = Topology.from_edge_index(torch.tensor([[0], [1]]), num_nodes=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        SaintWalkSampler(graph, **{"walk_length": 2, **arguments})


def test_repr() -> None:
    graph = "Topology(num_nodes=60, num_edges=240)"
    assert repr(make_samplers()[2]) == f"SaintWalkSampler({graph}, walk_length=2)"

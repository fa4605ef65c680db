from __future__ import annotations

import bisect
import itertools
import pickle
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, norm
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology, topology
from lightning_gnnopt.sampling.fastgcn import FastGCNSampler
from lightning_gnnopt.sampling.ladies import LadiesSampler
from lightning_gnnopt.sampling.layer_kernels import draw_with_replacement

from .hop_reference import Case, Drawn, InEdge, assert_equals_reference, cases, z_scores
from .reference import SIGNIFICANCE, mix64, random_graph, star

Sampler = FastGCNSampler | LadiesSampler
SAMPLERS: list[Callable[..., Sampler]] = [FastGCNSampler, LadiesSampler]


def draw_counts(weights: list[float], count: int, key: int) -> tuple[Counter[int], list[float]]:
    """How often each element is drawn with replacement, and the elements' chances."""
    cumulative = list(itertools.accumulate(weights))
    points = [(mix64(key ^ i) >> 11) * 2.0**-53 * cumulative[-1] for i in range(count)]
    chances = [w / sum(weights) for w in weights]
    return Counter(bisect.bisect_right(cumulative, point) for point in points), chances


def keep(incoming: list[list[InEdge]], norms: dict[int, float]) -> list[Drawn]:
    return [[(t, e, norms[t]) for t, e in edges if t in norms] for edges in incoming]


def everything(incoming: list[list[InEdge]]) -> list[Drawn]:
    return [[(*edge, 1.0) for edge in edges] for edges in incoming]


def fastgcn(case: Case) -> Callable[[list[list[InEdge]], int, int], list[Drawn]]:
    """Equation 10 of the paper and section 3.2: q(u) from the whole graph's columns, drawn with replacement."""
    degree = Counter(case.edge_index[1].tolist())
    squares = [0.0] * case.num_nodes
    # in the topology's order, as sums of floats depend on it
    for source, target in sorted(case.edge_index.t().tolist(), key=lambda edge: edge[1]):
        squares[source] += 1.0 / degree[target] ** 2

    def draw(incoming: list[list[InEdge]], size: int, key: int) -> list[Drawn]:
        if size == -1 or not any(incoming):
            return everything(incoming)
        counts, chances = draw_counts(squares, size, key)
        return keep(incoming, {u: n / (size * chances[u]) for u, n in counts.items()})

    return draw


def ladies(incoming: list[list[InEdge]], size: int, key: int, *, normalize: bool = False) -> list[Drawn]:
    """Algorithm 1 of the paper: p from the rows of the hop's nodes, drawn with replacement."""
    squares: dict[int, float] = {}
    for edges in incoming:
        for t, _ in edges:
            squares[t] = squares.get(t, 0.0) + 1.0 / len(edges) ** 2
    if size == -1 or len(squares) <= size:
        return everything(incoming)
    candidates = list(squares)
    counts, chances = draw_counts(list(squares.values()), size, key)
    drawn = keep(incoming, {candidates[u]: n / (size * chances[u]) for u, n in counts.items()})
    if normalize:
        for place, edges in enumerate(drawn):
            total = sum(weight for _, _, weight in edges)
            drawn[place] = [(t, e, weight * len(incoming[place]) / total) for t, e, weight in edges]
    return drawn


def assert_same_bits(a: Subgraph, b: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions", "edge_norm"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def assert_equals_all(batch: Subgraph, case: Case, draw: Any) -> None:
    expected = case.grow(draw)
    assert_equals_reference(batch, case.topology, expected)
    assert batch.edge_norm is not None
    assert batch.edge_norm.dtype == np.float32
    assert batch.edge_norm.tolist() == pytest.approx(expected.norms, rel=1e-6)


@settings(deadline=None, max_examples=200)
@given(case=cases())
def test_fastgcn_equals_the_reference(case: Case) -> None:
    sampler = FastGCNSampler(case.topology, case.sizes)
    assert_equals_all(sampler.sample(np.array(case.seeds), case.key), case, fastgcn(case))
    assert sampler.num_hops == len(case.sizes)


@settings(deadline=None, max_examples=200)
@given(case=cases(), normalize=st.booleans())
def test_ladies_equals_the_reference(case: Case, normalize: bool) -> None:
    sampler = LadiesSampler(case.topology, case.sizes, normalize=normalize)
    batch = sampler.sample(np.array(case.seeds), case.key)
    assert_equals_all(batch, case, partial(ladies, normalize=normalize))


@pytest.mark.parametrize("number", range(5))
def test_larger_batches_equal_the_reference(number: int) -> None:
    case = Case(random_graph(400, 8_000), 400, [3, 1, 3, 7], [30, 100, 50], SampleKey(5, batch=number))
    seeds = np.array(case.seeds)
    assert_equals_all(FastGCNSampler(case.topology, case.sizes).sample(seeds, case.key), case, fastgcn(case))
    assert_equals_all(LadiesSampler(case.topology, case.sizes).sample(seeds, case.key), case, ladies)


@settings(deadline=None, max_examples=200)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-12, 0.3, 1.0, 7.0]), min_size=1, max_size=20).filter(any),
    key=st.integers(0, 2**64 - 1),
)
def test_draws_with_replacement_equal_the_reference(weights: list[float], key: int) -> None:
    drawn = draw_with_replacement(np.cumsum(weights), 50, np.uint64(key))
    assert Counter(drawn.tolist()) == draw_counts(weights, 50, key)[0]
    assert all(weights[element] > 0 for element in drawn)


def fastgcn_chances(edge_index: NDArray[np.int64], num_nodes: int, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Squared norms of the columns of the row-normalised adjacency, each parallel edge an entry of its own."""
    squares = 1.0 / np.bincount(edge_index[1], minlength=num_nodes)[edge_index[1]] ** 2.0
    return np.bincount(edge_index[0], squares, minlength=num_nodes) / squares.sum()


def ladies_chances(edge_index: NDArray[np.int64], num_nodes: int, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    degree = np.bincount(edge_index[1], minlength=num_nodes)
    rows = np.isin(edge_index[1], seeds)
    squares = np.where(rows, 1.0 / degree[edge_index[1]] ** 2.0, 0.0)
    return np.bincount(edge_index[0], squares, minlength=num_nodes) / squares.sum()


@pytest.mark.parametrize(("make", "chances_of"), [(FastGCNSampler, fastgcn_chances), (LadiesSampler, ladies_chances)])
def test_nodes_are_drawn_with_the_chances_of_the_paper(make: Any, chances_of: Any) -> None:
    """How often each node was drawn, read off `edge_norm`, by Pearson's test against p; significance 1e-4."""
    # Node u has an edge to seed 0, whose in-edges thus show all draws, and to some other seeds and nodes.
    rng = np.random.default_rng(0)
    n, size, num_batches = 40, 7, 2_000
    more = np.stack([rng.integers(0, n, 150), rng.integers(0, n, 150)])
    edge_index = np.concatenate([np.stack([np.arange(n), np.zeros(n, np.int64)]), more[:, more[1] != 0]], axis=1)
    seeds = np.arange(10)
    chances = chances_of(edge_index, n, seeds)
    sampler = make(Topology.from_edge_index(torch.from_numpy(edge_index), n), [size])

    counts = np.zeros(n)
    for number in range(num_batches):
        batch = sampler.sample(seeds, SampleKey(3, batch=number))
        to_0 = batch.col == 0
        sources = batch.n_id[batch.row[to_0]]
        assert len(set(sources.tolist())) == len(sources)
        drawn = batch.edge_norm[to_0] * size * chances[sources]
        assert drawn.tolist() == pytest.approx(np.round(drawn).tolist(), rel=1e-5)
        assert round(drawn.sum()) == size
        counts[sources] += np.round(drawn)
    expected = chances * counts.sum()
    assert counts.sum() == size * num_batches
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), n - 1) > SIGNIFICANCE


@pytest.mark.parametrize("make", SAMPLERS)
def test_the_sum_over_the_sample_is_unbiased(make: Any) -> None:
    """Mean over 5000 keys of sum(edge_norm * f), for each of 12 seeds; significance 1e-4 over all."""
    edge_index = random_graph(60, 900, seed=3)
    graph, seeds, count = Topology.from_edge_index(edge_index, 60), np.arange(12), 5_000
    value = np.random.default_rng(0).normal(1.0, 1.0, 60)
    sampler = make(graph, [20])
    estimates = np.empty((count, len(seeds)))
    for number in range(count):
        batch = sampler.sample(seeds, SampleKey(8, batch=number))
        estimates[number] = np.bincount(batch.col, batch.edge_norm * value[batch.n_id[batch.row]], minlength=len(seeds))
    exact = [value[edge_index[0, edge_index[1] == s]].sum() for s in seeds]
    scores = z_scores(estimates.sum(0).tolist(), (estimates**2).sum(0).tolist(), count, exact)
    assert max(map(abs, scores)) < norm.isf(SIGNIFICANCE / 2 / len(seeds))
    assert estimates.std(0).min() > 0


def test_normalised_rows_sum_to_the_in_degree() -> None:
    graph = Topology.from_edge_index(random_graph(60, 900), 60)
    batch = LadiesSampler(graph, [9, 9], normalize=True).sample(np.arange(12), SampleKey(0))
    degrees = np.diff(graph.indptr)[batch.n_id]
    sums = np.bincount(batch.col, batch.edge_norm, minlength=batch.num_nodes)
    assert sums[sums > 0].tolist() == pytest.approx(degrees[sums > 0].tolist(), rel=1e-5)
    assert (sums > 0).sum() > 5


def test_ladies_takes_all_candidates_where_the_layer_has_room() -> None:
    graph = Topology.from_edge_index(random_graph(50, 300), 50)
    batch = LadiesSampler(graph, [50, 50]).sample(np.arange(5), SampleKey(0))
    every = NeighborSampler(graph, [-1, -1]).sample(np.arange(5), SampleKey(0))
    for name in ("n_id", "row", "col", "positions"):
        assert np.array_equal(getattr(batch, name), getattr(every, name))
    assert batch.edge_norm.tolist() == [1.0] * batch.num_edges
    # One candidate too many, and they are drawn: the batch has fewer.
    one_hop = LadiesSampler(star(10), [9]).sample(np.array([0]), SampleKey(0))
    assert one_hop.num_edges < 10
    assert one_hop.edge_norm.sum() == pytest.approx(10.0)
    assert LadiesSampler(star(10), [10]).sample(np.array([0]), SampleKey(0)).num_edges == 10


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_hop_finds_no_more_nodes_than_it_draws(make: Any) -> None:
    graph = Topology.from_edge_index(random_graph(500, 20_000), 500)
    batch = make(graph, [25, 15]).sample(np.arange(50), SampleKey(0))
    assert batch.num_sampled_nodes[1] <= 25
    assert batch.num_sampled_nodes[2] <= 15
    assert batch.num_sampled_edges[0] > 25


@pytest.mark.parametrize("make", SAMPLERS)
def test_minus_one_takes_all(make: Any) -> None:
    graph = Topology.from_edge_index(random_graph(50, 300), 50)
    batch = make(graph, [-1, -1]).sample(np.arange(5), SampleKey(0))
    every = NeighborSampler(graph, [-1, -1]).sample(np.arange(5), SampleKey(0))
    assert np.array_equal(batch.positions, every.positions)
    assert batch.edge_norm.tolist() == [1.0] * batch.num_edges


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("edges", [[[0, 1], [1, 0]], [[], []]])
def test_isolated_seeds_have_no_edge(make: Any, edges: list[list[int]]) -> None:
    graph = Topology.from_edge_index(torch.tensor(edges, dtype=torch.long), num_nodes=4)
    batch = make(graph, [2, -1, 2]).sample(np.array([3, 2, 3]), SampleKey(0))
    assert batch.n_id.tolist() == [3, 2, 3]
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([3, 0, 0, 0], [0, 0, 0])
    assert batch.row.dtype == np.int32
    assert batch.edge_norm.dtype == np.float32


def test_a_node_without_a_drawn_in_neighbour_has_no_edge() -> None:
    """Of 1000 nodes two are drawn, and node 0 has one in-neighbour."""
    ring = torch.stack([torch.arange(1_000).roll(1), torch.arange(1_000)])
    batch = FastGCNSampler(Topology.from_edge_index(ring, 1_000), [2]).sample(np.array([0]), SampleKey(0))
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([1, 0], [0])


@pytest.mark.parametrize("make", [*SAMPLERS, partial(LadiesSampler, normalize=True)])
def test_threads_and_processes_draw_the_same_bits(make: Any) -> None:
    graph = Topology.from_edge_index(random_graph(2_000, 60_000), 2_000)
    sampler = make(graph, [200, 100])
    seeds = [np.random.default_rng(i).integers(0, 2_000, 64) for i in range(32)]
    keys = [SampleKey(3, batch=i) for i in range(32)]
    alone = [sampler.sample(*pair) for pair in zip(seeds, keys, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sampler.sample, seeds, keys))
    dumped = pickle.dumps(sampler)
    assert len(dumped) < 1.2 * graph.nbytes  # no table comes along
    copy = pickle.loads(dumped)
    hashed = make(graph, [200, 100], dense_limit_bytes=0)
    for one, other, s, key in zip(alone, together, seeds, keys, strict=True):
        assert_same_bits(one, other)
        assert_same_bits(one, copy.sample(s, key))
        assert_same_bits(one, hashed.sample(s, key))
    assert not np.array_equal(alone[0].positions, sampler.sample(seeds[0], keys[1]).positions)
    assert repr(copy) == repr(sampler)


@pytest.mark.parametrize("make", SAMPLERS)
def test_64_bit_ids_draw_the_same_batch(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    edge_index, seeds, key = random_graph(90, 900), np.arange(9), SampleKey(7)
    one = make(Topology.from_edge_index(edge_index, 90), [20, 10]).sample(seeds, key)
    monkeypatch.setattr(topology, "_INT32_MAX", 0)
    other = make(Topology.from_edge_index(edge_index, 90), [20, 10]).sample(seeds, key)
    assert_same_bits(one, other)
    assert (one.n_id.dtype, other.n_id.dtype) == (np.int32, np.int64)
    assert (one.positions.dtype, other.positions.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_serves_pyg_node_loader(make: Any, num_workers: int) -> None:
    edge_index = random_graph(90, 900)
    data = Data(x=torch.arange(90.0).unsqueeze(1), edge_index=edge_index)
    sampler = make(Topology.from_edge_index(edge_index, 90, edge_ids=True), [20, 10])
    loader = NodeLoader(data, node_sampler=sampler, batch_size=30, num_workers=num_workers)
    seeds = []
    for batch in loader:
        assert torch.equal(batch.x.squeeze(1).long(), batch.n_id)
        assert torch.equal(edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
        assert sum(batch.num_sampled_nodes) == batch.num_nodes
        seeds += batch.n_id[: batch.batch_size].tolist()
    assert seeds == list(range(90))


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize(
    ("layer_sizes", "message"),
    [
        ([], "`layer_sizes` must hold one fan-out per hop, but it is empty."),
        ([5, 0], "`layer_sizes` must hold integers that are positive or -1 (all neighbours), but got 0 in [5, 0]."),
        (5, "`layer_sizes` must be a list with one fan-out per hop, but got 5."),
    ],
)
def test_sizes_that_cannot_be_sampled_are_refused(make: Any, layer_sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(star(3), layer_sizes)


@pytest.mark.parametrize("make", SAMPLERS)
def test_repr_says_graph_and_sizes(make: Any) -> None:
    assert repr(make(star(3), [2, -1])) == (f"{make.__name__}(Topology(num_nodes=4, num_edges=3), layer_sizes=[2, -1])")

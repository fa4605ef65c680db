from __future__ import annotations

import itertools
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.datasets.rmat import make_rmat
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology, topology
from lightning_gnnopt.sampling.labor import LaborSampler
from lightning_gnnopt.sampling.labor_draws import _fraction
from lightning_gnnopt.sampling.labor_importance import _improve

from .hop_reference import Case, Drawn, InEdge, assert_equals_reference, cases, hop_keys, z_scores
from .reference import SIGNIFICANCE, mix64, random_graph, star, uniform_p_value

Z_LIMIT = float(norm.isf(SIGNIFICANCE / 2))


def labor_0(incoming: list[list[InEdge]], fanout: int, key: int) -> list[Drawn]:
    """Section 3.2 of the paper with uniform pi: t is taken by s iff r_t < k / d_s."""
    return [
        [
            (t, e, 1.0)
            for t, e in edges
            if fanout == -1 or len(edges) <= fanout or mix64(key ^ t) < fanout * 2**64 // len(edges)
        ]
        for edges in incoming
    ]


def labor_sequential(incoming: list[list[InEdge]], fanout: int, key: int) -> list[Drawn]:
    """Appendix A.3: the k smallest r_t; of equal ones the first."""
    result = []
    for edges in incoming:
        ranked = sorted(range(len(edges)), key=lambda j: (mix64(key ^ edges[j][0]), j))
        kept = sorted(ranked if fanout == -1 else ranked[:fanout])
        result.append([(*edges[j], 1.0) for j in kept])
    return result


def solve_scale(weights: list[float], fanout: int) -> float:
    """c_s by bisection: the sum of 1 / min(1, c * pi) falls from infinity to d."""
    degree = len(weights)
    if degree <= fanout:
        return max((1 / w for w in weights), default=0.0)
    low, high = 0.0, 1 / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(1 / min(1.0, middle * w) for w in weights) > degree**2 / fanout:
            low = middle
        else:
            high = middle
    return high


def labor_chances(incoming: list[list[InEdge]], fanout: int, iterations: int) -> list[list[float]]:
    """min(1, c_s * pi_t) of each edge after the paper's fixed-point iteration."""
    pi = {t: 1.0 for edges in incoming for t, _ in edges}
    objective = math.inf
    for done in range(10**6):
        scales = [solve_scale([pi[t] for t, _ in edges], fanout) for edges in incoming]
        largest = dict.fromkeys(pi, 0.0)
        for edges, scale in zip(incoming, scales, strict=True):
            for t, _ in edges:
                largest[t] = max(largest[t], scale)
        now = sum(min(1.0, pi[t] * largest[t]) for t in pi)
        if done == iterations or (iterations == -1 and now >= (1 - 1e-4) * objective):
            break
        objective = now
        pi = {t: pi[t] * largest[t] for t in pi}
    return [
        [1.0 if len(edges) <= fanout else min(1.0, scale * pi[t]) for t, _ in edges]
        for edges, scale in zip(incoming, scales, strict=True)
    ]


def labor_importance(iterations: int) -> Any:
    def draw(incoming: list[list[InEdge]], fanout: int, key: int) -> list[Drawn]:
        if fanout == -1:
            return [[(*edge, 1.0) for edge in edges] for edges in incoming]
        chances = labor_chances(incoming, fanout, iterations)
        return [
            [(t, e, 1 / p) for (t, e), p in zip(edges, ps, strict=True) if (mix64(key ^ t) >> 11) * 2.0**-53 < p]
            for edges, ps in zip(incoming, chances, strict=True)
        ]

    return draw


def assert_same_bits(a: Subgraph, b: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.edge_norm is None) == (b.edge_norm is None)
    assert a.edge_norm is None or np.array_equal(a.edge_norm, b.edge_norm)


@settings(deadline=None, max_examples=200)
@given(case=cases(), layer_dependency=st.booleans(), fixed_size=st.booleans())
def test_labor_0_equals_the_reference_bit_for_bit(case: Case, layer_dependency: bool, fixed_size: bool) -> None:
    graph = case.topology
    sampler = LaborSampler(graph, case.sizes, layer_dependency=layer_dependency, fixed_size=fixed_size)
    batch = sampler.sample(np.array(case.seeds), case.key)

    keys = hop_keys(case.key, len(case.sizes))
    keys = [keys[0]] * len(keys) if layer_dependency else keys
    assert_equals_reference(batch, graph, case.grow(labor_sequential if fixed_size else labor_0, keys))
    assert batch.edge_norm is None
    assert sampler.num_hops == len(case.sizes)


@settings(deadline=None, max_examples=200)
@given(case=cases(), iterations=st.sampled_from([1, 2, 5, -1]))
def test_labor_i_equals_the_reference(case: Case, iterations: int) -> None:
    graph = case.topology
    batch = LaborSampler(graph, case.sizes, importance_iterations=iterations).sample(np.array(case.seeds), case.key)

    expected = case.grow(labor_importance(iterations))
    assert_equals_reference(batch, graph, expected)
    assert batch.edge_norm is not None
    assert batch.edge_norm.dtype == np.float32
    assert batch.edge_norm.tolist() == pytest.approx(expected.norms, rel=1e-6)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize(("num_nodes", "num_edges", "fanouts"), [(300, 20_000, [7, 3]), (40, 60_000, [5, 40])])
def test_large_neighbourhoods_equal_the_reference(
    num_nodes: int, num_edges: int, fanouts: list[int], fixed_size: bool
) -> None:
    """In-degrees of some 70, and of some 1500 in several chunks with many parallel edges."""
    edge_index = random_graph(num_nodes, num_edges)
    for number in range(5):
        case = Case(edge_index, num_nodes, [3, 1, 3, 7], fanouts, SampleKey(5, batch=number))
        graph = case.topology
        batch = LaborSampler(graph, fanouts, fixed_size=fixed_size).sample(np.array(case.seeds), case.key)
        assert_equals_reference(batch, graph, case.grow(labor_sequential if fixed_size else labor_0))


@pytest.mark.parametrize("fixed_size", [False, True])
def test_what_was_drawn_before_survives_growing(fixed_size: bool) -> None:
    """In-degrees 30 and 3000: the second node's in-edges do not fit into the room made for ten."""
    sources = torch.cat([torch.arange(2, 32), torch.arange(2, 3_002)])
    edge_index = torch.stack([sources, (torch.arange(len(sources)) >= 30).long()])
    graph = Topology.from_edge_index(edge_index, 3_002, edge_ids=True)
    for number in range(5):
        case = Case(edge_index, 3_002, [0, 1], [5], SampleKey(0, batch=number))
        batch = LaborSampler(graph, [5], fixed_size=fixed_size).sample(np.array(case.seeds), case.key)
        assert_equals_reference(batch, graph, case.grow(labor_sequential if fixed_size else labor_0))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_fraction_of_two_to_the_64_is_exact(data: st.DataObject) -> None:
    whole = data.draw(st.integers(1, 2**32 - 1))
    part = data.draw(st.integers(0, whole - 1))
    assert int(_fraction(part, whole)) == part * 2**64 // whole


@pytest.mark.parametrize(("degree", "fanout"), [(7, 3), (40, 10), (600, 25)])
@pytest.mark.parametrize("fixed_size", [False, True])
def test_each_in_edge_is_drawn_with_the_same_chance(degree: int, fanout: int, fixed_size: bool) -> None:
    """Binomial test of each chance k/d and, of a fixed size, of the spread; significance 1e-4 over all in-edges."""
    sampler, count = LaborSampler(star(degree), [fanout], fixed_size=fixed_size), 4_000
    batches = [sampler.sample(np.array([0]), SampleKey(2, batch=i)) for i in range(count)]
    counts = np.bincount(np.concatenate([batch.positions for batch in batches]), minlength=degree)
    if fixed_size:
        assert {batch.num_edges for batch in batches} == {fanout}
        assert uniform_p_value(counts, population=degree, fanout=fanout) > SIGNIFICANCE
    p_values = [binomtest(int(c), count, fanout / degree).pvalue for c in counts]
    assert min(p_values) > SIGNIFICANCE / degree
    # sizes: always k, or binomial with mean k
    sizes = np.array([batch.num_edges for batch in batches])
    if not fixed_size:
        assert abs(sizes.mean() - fanout) < Z_LIMIT * (fanout * (1 - fanout / degree) / count) ** 0.5


def test_two_nodes_of_a_hop_that_share_in_neighbours_agree() -> None:
    """The node with the smaller in-degree takes a superset of the other's choice among those they share."""
    shared = torch.arange(2, 102)
    edges = torch.stack([torch.cat([shared, shared[:40]]), torch.cat([shared * 0, shared[:40] * 0 + 1])])
    sampler = LaborSampler(Topology.from_edge_index(edges, num_nodes=102), [10])
    differences = 0
    for number in range(200):
        batch = sampler.sample(np.array([0, 1]), SampleKey(0, batch=number))
        of_0, of_1 = (set(batch.n_id[batch.row[batch.col == place]].tolist()) for place in (0, 1))
        assert {node for node in of_0 if node < 42} <= of_1
        differences += len(of_1 - of_0)
    assert differences > 0


def test_hops_choose_alike_only_if_asked() -> None:
    """Nodes 0 and 1 have the same hundred in-neighbours; 1 is an in-neighbour of 2, and found in the first hop."""
    common = torch.arange(3, 103)
    sources = torch.cat([common, common, torch.tensor([1])])
    targets = torch.cat([common * 0, common * 0 + 1, torch.tensor([2])])
    graph = Topology.from_edge_index(torch.stack([sources, targets]), num_nodes=103)
    same = []
    for layer_dependency in (True, False):
        sampler = LaborSampler(graph, [10, 10], layer_dependency=layer_dependency, fixed_size=True)
        batch = sampler.sample(np.array([0, 2]), SampleKey(0))
        by_0 = set(batch.n_id[batch.row[batch.n_id[batch.col] == 0]].tolist())
        by_1 = set(batch.n_id[batch.row[batch.n_id[batch.col] == 1]].tolist())
        assert (len(by_0), len(by_1)) == (10, 10)
        same.append(by_0 == by_1)
    assert same == [True, False]


@pytest.mark.parametrize("iterations", [1, -1])
def test_the_sum_over_the_sample_is_unbiased(iterations: int) -> None:
    """Mean over 5000 keys of sum(edge_norm * f), for each of 12 seeds; significance 1e-4 over all."""
    edge_index = random_graph(60, 900, seed=3)
    graph, seeds, count = Topology.from_edge_index(edge_index, 60), np.arange(12), 5_000
    value = np.random.default_rng(0).normal(1.0, 1.0, 60)
    sampler = LaborSampler(graph, [4], importance_iterations=iterations)
    estimates = np.empty((count, len(seeds)))
    for number in range(count):
        batch = sampler.sample(seeds, SampleKey(8, batch=number))
        assert batch.edge_norm is not None
        estimates[number] = np.bincount(batch.col, batch.edge_norm * value[batch.n_id[batch.row]], minlength=len(seeds))
    exact = [value[edge_index[0, edge_index[1] == s]].sum() for s in seeds]
    scores = z_scores(estimates.sum(0).tolist(), (estimates**2).sum(0).tolist(), count, exact)
    assert max(map(abs, scores)) < norm.isf(SIGNIFICANCE / 2 / len(seeds))
    assert estimates.std(0).min() > 0


@pytest.mark.parametrize("seed", range(3))
def test_iterations_keep_the_variance_and_lower_the_number_of_nodes(seed: int) -> None:
    """sum(1/p) over the in-edges of a node stays d**2 / k (equation 14), and sum(max p) over the sources falls."""
    graph, fanout, expected_nodes = Topology.from_edge_index(random_graph(60, 600, seed=seed), 60), 3, []
    for iterations in (0, 1, 2, 5, 20, -1):
        scales, inverses = np.empty(60), np.ones(60)
        _improve(graph.indptr, graph.indices, fanout, iterations, scales, inverses)
        highest = np.zeros(60)
        for v, scale in enumerate(scales):
            sources = graph.indices[graph.indptr[v] : graph.indptr[v + 1]]
            chances = np.minimum(1.0, scale / inverses[sources])
            degree = len(sources)
            assert (1 / chances).sum() == pytest.approx(degree * max(degree / fanout, 1.0), rel=1e-9)
            np.maximum.at(highest, sources, chances)
        expected_nodes.append(highest.sum())
    assert all(later < 0.9999 * earlier for earlier, later in itertools.pairwise(expected_nodes[:3]))
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(expected_nodes[:5]))
    assert expected_nodes[-1] == pytest.approx(expected_nodes[-2], rel=0.01)


@pytest.fixture(scope="module")
def power_law() -> Topology:
    data = make_rmat(seed=0, num_nodes=4_096, avg_degree=40.0, num_features=4)
    return Topology.from_edge_index(data.edge_index, data.num_nodes)


def mean_counts(sampler: NeighborSampler | LaborSampler, count: int = 40) -> tuple[float, float, float]:
    """Mean nodes, mean edges of the first hop, and the standard error of the latter."""
    seeds = np.flatnonzero(np.diff(sampler.topology.indptr))[:256]
    batches = [sampler.sample(seeds, SampleKey(1, batch=i)) for i in range(count)]
    edges = [batch.num_sampled_edges[0] for batch in batches]
    return (
        float(np.mean([batch.num_nodes for batch in batches])),
        float(np.mean(edges)),
        float(np.std(edges) / count**0.5),
    )


def test_a_batch_has_as_many_edges_and_fewer_nodes(power_law: Topology) -> None:
    """Against node-wise sampling; the first hop's edges to within what 40 batches can tell, significance 1e-4."""
    nodes, edges, _ = mean_counts(NeighborSampler(power_law, [10, 5]))
    labor_nodes, labor_edges, error = mean_counts(LaborSampler(power_law, [10, 5]))
    assert abs(labor_edges - edges) < Z_LIMIT * error
    fixed_nodes, fixed_edges, _ = mean_counts(LaborSampler(power_law, [10, 5], fixed_size=True))
    assert fixed_edges == edges
    dependent_nodes = mean_counts(LaborSampler(power_law, [10, 5], layer_dependency=True))[0]
    improved = [mean_counts(LaborSampler(power_law, [10, 5], importance_iterations=i))[0] for i in (1, 3, -1)]
    assert nodes > 1.3 * labor_nodes
    assert nodes > 1.3 * fixed_nodes
    assert labor_nodes > dependent_nodes
    assert labor_nodes > improved[0] > improved[1] > improved[2]


@pytest.mark.parametrize("iterations", [0, 2])
def test_everything_is_taken_where_degrees_are_small(iterations: int) -> None:
    graph = Topology.from_edge_index(random_graph(50, 150), 50)
    for sizes in ([-1, -1], [150, 150], [150, -1]):
        batch = LaborSampler(graph, sizes, importance_iterations=iterations).sample(np.arange(5), SampleKey(0))
        every = NeighborSampler(graph, [-1, -1]).sample(np.arange(5), SampleKey(0))
        for name in ("n_id", "row", "col", "positions"):
            assert np.array_equal(getattr(batch, name), getattr(every, name))
        assert iterations == 0 or batch.edge_norm.tolist() == [1.0] * batch.num_edges


@pytest.mark.parametrize("options", [{}, {"fixed_size": True}, {"importance_iterations": 1}])
def test_an_isolated_seed_has_no_edge(options: dict[str, Any]) -> None:
    graph = Topology.from_edge_index(torch.tensor([[0, 1], [1, 0]]), num_nodes=4)
    batch = LaborSampler(graph, [2, -1], **options).sample(np.array([3, 2, 3]), SampleKey(0))
    assert batch.n_id.tolist() == [3, 2, 3]
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([3, 0, 0], [0, 0])
    assert batch.row.dtype == np.int32


@pytest.mark.parametrize(
    "options", [{}, {"fixed_size": True}, {"layer_dependency": True}, {"importance_iterations": -1}]
)
def test_threads_and_processes_draw_the_same_bits(options: dict[str, Any]) -> None:
    graph = Topology.from_edge_index(random_graph(2_000, 60_000), 2_000)
    sampler = LaborSampler(graph, [6, 4], **options)
    seeds = [np.random.default_rng(i).integers(0, 2_000, 64) for i in range(32)]
    keys = [SampleKey(3, batch=i) for i in range(32)]
    alone = [sampler.sample(*pair) for pair in zip(seeds, keys, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sampler.sample, seeds, keys))
    dumped = pickle.dumps(sampler)
    assert len(dumped) < 1.2 * graph.nbytes  # no table comes along
    copy = pickle.loads(dumped)
    hashed = LaborSampler(graph, [6, 4], dense_limit_bytes=0, **options)
    for one, other, s, key in zip(alone, together, seeds, keys, strict=True):
        assert_same_bits(one, other)
        assert_same_bits(one, copy.sample(s, key))
        assert_same_bits(one, hashed.sample(s, key))
    assert repr(copy) == repr(sampler)


@pytest.mark.parametrize("options", [{}, {"fixed_size": True}, {"importance_iterations": 1}])
def test_64_bit_ids_draw_the_same_batch(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    edge_index, seeds, key = random_graph(90, 900), np.arange(9), SampleKey(7)
    one = LaborSampler(Topology.from_edge_index(edge_index, 90), [3, 2], **options).sample(seeds, key)
    monkeypatch.setattr(topology, "_INT32_MAX", 0)
    other = LaborSampler(Topology.from_edge_index(edge_index, 90), [3, 2], **options).sample(seeds, key)
    assert_same_bits(one, other)
    assert (one.n_id.dtype, other.n_id.dtype) == (np.int32, np.int64)
    assert (one.positions.dtype, other.positions.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("field", SampleKey._fields)
@pytest.mark.parametrize("layer_dependency", [False, True])
def test_every_part_of_the_key_counts(field: str, layer_dependency: bool) -> None:
    sampler = LaborSampler(
        Topology.from_edge_index(random_graph(90, 900), 90), [3, 2], layer_dependency=layer_dependency
    )
    key = SampleKey(1, 2, 3, 4)
    batch = sampler.sample(np.arange(9), key)
    assert_same_bits(sampler.sample(np.arange(9), key), batch)
    assert not np.array_equal(sampler.sample(np.arange(9), key._replace(**{field: 9})).positions, batch.positions)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_serves_pyg_node_loader(num_workers: int) -> None:
    edge_index = random_graph(90, 900)
    data = Data(x=torch.arange(90.0).unsqueeze(1), edge_index=edge_index)
    sampler = LaborSampler(Topology.from_edge_index(edge_index, 90, edge_ids=True), [3, 2])
    loader = NodeLoader(data, node_sampler=sampler, batch_size=30, num_workers=num_workers)
    seeds = []
    for batch in loader:
        assert torch.equal(batch.x.squeeze(1).long(), batch.n_id)
        assert torch.equal(edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
        assert sum(batch.num_sampled_nodes) == batch.num_nodes
        seeds += batch.n_id[: batch.batch_size].tolist()
    assert seeds == list(range(90))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbors": []}, "`num_neighbors` must hold one fan-out per hop, but it is empty."),
        ({"num_neighbors": [0]}, "`num_neighbors` must hold integers that are positive or -1"),
        ({"importance_iterations": -2}, "`importance_iterations` must be an integer, 0 or more, or -1"),
        ({"importance_iterations": 1.0}, "but got 1.0. HINT: 0 is LABOR-0, 1 is LABOR-1."),
        ({"importance_iterations": True}, "but got True. HINT: 0 is LABOR-0"),
        (
            {"importance_iterations": 1, "fixed_size": True},
            "`fixed_size` needs equal chances, but `importance_iterations` is 1. HINT: leave",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LaborSampler(star(3), **({"num_neighbors": [2]} | options))


def test_repr_says_graph_fan_outs_and_iterations() -> None:
    sampler = LaborSampler(star(3), [2, -1], importance_iterations=1)
    assert repr(sampler) == (
        "LaborSampler(Topology(num_nodes=4, num_edges=3), num_neighbors=[2, -1], importance_iterations=1)"
    )

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

from lightning_gnnopt.datasets import _kernels
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.synthetic import stream_key

KEY = stream_key(0, 0)


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    num_nodes = draw(st.integers(1, 12))
    node = st.integers(0, num_nodes - 1)
    return num_nodes, draw(st.lists(st.tuples(node, node), max_size=60))


@given(edge_lists())
@settings(max_examples=100, deadline=None)
def test_undirected_edges_equal_pyg(graph: tuple[int, list[tuple[int, int]]]) -> None:
    num_nodes, edges = graph
    source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    reference = remove_self_loops(torch.from_numpy(np.stack([source, target])))[0]
    reference = to_undirected(reference, num_nodes=num_nodes)
    reference = coalesce(reference, num_nodes=num_nodes, sort_by_row=False)
    edge_index = undirected_edges(source, target, num_nodes)
    assert edge_index.tolist() == reference.tolist()
    assert edge_index.dtype == torch.long
    assert edge_index.is_contiguous()


@pytest.mark.parametrize(("source", "target"), [([0, 3], [1, 1]), ([0, 1], [1, -1])])
def test_edges_to_nodes_that_are_not_there_are_refused(source: list[int], target: list[int]) -> None:
    with pytest.raises(ValueError, match=r"Edges must join nodes 0 to 2, but they name nodes .* HINT"):
        undirected_edges(np.array(source), np.array(target), 3)


@given(edge_lists(), st.data())
@settings(max_examples=100, deadline=None)
def test_thinning_keeps_exactly_so_many_of_the_pairs(
    graph: tuple[int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    num_nodes, edges = graph
    u, v = np.array(edges, dtype=np.int32).reshape(-1, 2).T.copy()
    offsets, larger = _kernels.unique_pairs(u, v, num_nodes)
    keep = data.draw(st.integers(0, len(larger)))
    thinned, left = _kernels.thin_pairs(offsets, larger, keep, KEY)
    pairs = {(a, int(b)) for a in range(num_nodes) for b in larger[offsets[a] : offsets[a + 1]]}
    kept = {(a, int(b)) for a in range(num_nodes) for b in left[thinned[a] : thinned[a + 1]]}
    assert pairs == {(min(e), max(e)) for e in edges if e[0] != e[1]}
    assert len(kept) == len(left) == thinned[-1] == keep
    assert kept <= pairs


def test_thinning_gives_every_pair_the_same_chance() -> None:
    offsets, larger = np.array([0, 3, 5, 6, 6]), np.array([1, 2, 3, 2, 3, 3], dtype=np.int32)
    count = np.zeros((4, 4))
    rounds = 4_000
    for key in range(rounds):
        thinned, left = _kernels.thin_pairs(offsets, larger, 2, stream_key(key, 0))
        for a in range(4):
            count[a, left[thinned[a] : thinned[a + 1]]] += 1
    chance = count[np.triu_indices(4, 1)] / rounds
    # Each pair is kept with chance 1/3; five standard errors hold all six with a chance above 99.999 %.
    np.testing.assert_allclose(chance, 1 / 3, atol=5 * np.sqrt(2 / 9 / rounds))


def test_a_permutation_is_one_and_every_place_is_as_likely() -> None:
    order = _kernels.permutation(1_000, KEY)
    assert sorted(order.tolist()) == list(range(1_000))
    first = np.bincount([_kernels.permutation(4, stream_key(key, 0))[0] for key in range(4_000)], minlength=4) / 4_000
    np.testing.assert_allclose(first, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 4_000))  # five standard errors


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    x = _kernels.normal(20_000, 11, 2.0, KEY).astype(np.float64)
    size = x.size
    # Five standard errors of mean, variance and fourth moment.
    assert abs(x.mean()) < 5 * 2 / np.sqrt(size)
    assert abs(x.var() / 4 - 1) < 5 * np.sqrt(2 / size)
    assert abs((x**4).mean() / 16 - 3) < 5 * np.sqrt(96 / size)
    assert abs(np.corrcoef(x.T) - np.eye(11)).max() < 6 / np.sqrt(20_000)


def test_rmat_draws_fall_into_the_quadrants_as_asked() -> None:
    chances = np.array([0.5, 0.2, 0.1, 0.2])
    bounds = np.tile(np.cumsum(chances)[:3], (6, 1))
    u, v = _kernels.draw_rmat(100_000, KEY, np.arange(64, dtype=np.int32), bounds)
    for level in range(6):
        quadrant = 2 * (u >> level & 1) + (v >> level & 1)
        share = np.bincount(quadrant, minlength=4) / len(u)
        np.testing.assert_allclose(share, chances, atol=5 * np.sqrt(0.25 / len(u)))  # five standard errors


def test_rmat_draws_stay_below_a_number_of_nodes_that_is_no_power_of_two() -> None:
    u, v = _kernels.draw_rmat(10_000, KEY, np.arange(37, dtype=np.int32), np.tile([0.25, 0.5, 0.75], (6, 1)))
    assert set(u) == set(v) == set(range(37))


def test_block_draws_follow_weights_and_homophily() -> None:
    num_nodes, classes, homophily, shift, power = 1_000, 4, 0.7, 0.01, 3.0
    order = np.arange(num_nodes, dtype=np.int32)
    u, v = _kernels.draw_blocks(200_000, KEY, order, classes, homophily, shift, power)
    error = 5 * np.sqrt(0.25 / len(u))  # five standard errors
    assert abs((u // 250 == v // 250).mean() - homophily) < error
    rank = (np.concatenate([u, v]) % 250) / 250
    for x in (0.1, 0.5):
        mass = ((x + shift) ** (1 / 3) - shift ** (1 / 3)) / ((1 + shift) ** (1 / 3) - shift ** (1 / 3))
        assert abs((rank < x).mean() - mass) < error
    np.testing.assert_allclose(np.bincount(u // 250) / len(u), 0.25, atol=error)
    np.testing.assert_allclose(np.bincount(v // 250) / len(u), 0.25, atol=error)


def test_draws_do_not_depend_on_how_many_there_are() -> None:
    order = _kernels.permutation(500, KEY)
    few = _kernels.draw_blocks(100, KEY, order, 4, 0.8, 0.01, 3.0)
    many = _kernels.draw_blocks(1_000, KEY, order, 4, 0.8, 0.01, 3.0)
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[:100])


def test_the_closed_neighborhood_mean_equals_the_dense_product() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((20, 3)).astype(np.float32)
    edge_index = undirected_edges(*generator.integers(0, 20, (2, 50)), 20).numpy()
    adjacency = np.eye(20)
    adjacency[edge_index[1], edge_index[0]] = 1
    expected = adjacency @ x / adjacency.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(_kernels.closed_neighborhood_mean(edge_index, x), expected, rtol=1e-5, atol=1e-6)


def test_products_and_rows_are_added() -> None:
    out = np.ones((2, 2), dtype=np.float32)
    _kernels.add_product(out, np.array([[1, 2], [3, 4]], np.float32), np.array([[1, 0], [1, 1]], np.float32))
    assert out.tolist() == [[4, 3], [8, 5]]
    _kernels.add_rows(out, np.array([[10, 20], [30, 40]], np.float32), np.array([1, 0]))
    assert out.tolist() == [[34, 43], [18, 25]]

"""Batches that are drawn by one call, beside the same drawn hop by hop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling import ClusterSampler, NeighborSampler, SampleKey, Subgraph, Topology, at_once
from lightning_gnnopt.sampling.draws import Draw, Drawn, UniformDraw
from tests.sampling.reference import random_graph

N, E = 60, 400


class HopByHop(Draw):
    """A draw that the sampler cannot know to be uniform."""

    def __init__(self, draw: UniformDraw) -> None:
        self._draw = draw

    @override
    def __call__(self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: Any) -> Drawn:
        return self._draw(frontier, size, key, time=time)


def pair(fanouts: list[int], *, wide: bool = False, num_nodes: int = N, num_edges: int = E, **options: Any) -> Any:
    """A sampler, and one that draws the same hop by hop."""
    topology = Topology.from_edge_index(random_graph(num_nodes, num_edges), num_nodes)
    if wide:
        topology = Topology(topology.indptr, topology.indices.astype(np.int64))
        assert topology.indices.dtype == np.int64
    sampler, other = (NeighborSampler(topology, fanouts, **options) for _ in range(2))
    assert isinstance(other._draw, UniformDraw)
    other._draw = HopByHop(other._draw)
    return sampler, other


def assert_same(one: Subgraph, other: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions"):
        mine, its = getattr(one, name), getattr(other, name)
        assert np.array_equal(mine, its), name
        assert mine.dtype == its.dtype, name
    assert (one.num_sampled_nodes, one.num_sampled_edges) == (other.num_sampled_nodes, other.num_sampled_edges)
    assert one.batch_size == other.batch_size
    assert (one.batch, one.edge_norm, one.node_norm) == (None, None, None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([-1, 1, 2, 5, 40]), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=70), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_they_are_the_same_bits(
    fanouts: list[int], batches: list[list[int]], replace: bool, wide: bool, hashed: bool
) -> None:
    """Seeds that stand twice, batches that grow and shrink, both kinds of tables and of ids."""
    options = {"dense_limit_bytes": 0} if hashed else {}
    sampler, other = pair(fanouts, wide=wide, replace=replace, **options)
    for number, seeds in enumerate(batches):
        key = SampleKey(3, batch=number)
        assert_same(sampler.sample(np.array(seeds), key), other.sample(np.array(seeds), key))


def test_hops_that_are_counted_first() -> None:
    """A hop that could draw more than 2**22 edges, and draws few."""
    sampler, other = pair([200_000, 3])
    seeds = np.arange(30)
    assert_same(sampler.sample(seeds, SampleKey(0)), other.sample(seeds, SampleKey(0)))
    assert sampler._tables._idle[0].room[1] < 10_000


def test_room_is_found_once_and_kept() -> None:
    sampler, other = pair([5, 5], num_nodes=500, num_edges=5000)
    for size in (3, 200, 40):
        seeds = np.arange(size)
        assert_same(sampler.sample(seeds, SampleKey(size)), other.sample(seeds, SampleKey(size)))
    (table,) = sampler._tables._idle
    assert table.scratch is not None
    kept = table.scratch
    sampler.sample(np.arange(200), SampleKey(9))
    assert table.scratch is kept
    assert kept[1] is kept[2]  # 32-bit ids are replaced where they stand


def test_large_scratch_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, other = pair([5, 5])
    monkeypatch.setattr(at_once, "_KEPT_BYTES", 100)
    for number in range(2):
        key = SampleKey(1, batch=number)
        assert_same(sampler.sample(np.arange(20), key), other.sample(np.arange(20), key))
        assert sampler._tables._idle[0].scratch is None
    assert sampler._tables._idle[0].room[1] >= 20 * 5


@pytest.mark.parametrize("hashed", [False, True])
def test_a_table_that_is_nearly_full_begins_anew(hashed: bool) -> None:
    sampler, other = pair([5, 5], **({"dense_limit_bytes": 0} if hashed else {}))
    seeds = np.arange(20)
    sampler.sample(seeds, SampleKey(0))
    (table,) = sampler._tables._idle
    table._base = 2**32 - 60
    for number in range(4):
        key = SampleKey(2, batch=number)
        assert_same(sampler.sample(seeds, key), other.sample(seeds, key))
    assert table._base < 10_000


def test_what_is_returned_is_the_batchs_own() -> None:
    """The scratch of the next batch is not what a batch before it shows."""
    sampler, _ = pair([5, 5])
    first = sampler.sample(np.arange(20), SampleKey(0))
    before = [array.copy() for array in (first.n_id, first.row, first.col, first.positions)]
    for number in range(5):
        sampler.sample(np.arange(20, 40), SampleKey(7, batch=number))
    for array, was in zip((first.n_id, first.row, first.col, first.positions), before, strict=True):
        assert np.array_equal(array, was)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=30), st.integers(1, 12), st.booleans())
def test_clusters_are_joined_as_a_plain_reading_says(seeds: list[int], num_parts: int, wide: bool) -> None:
    edge_index = random_graph(N, E)
    topology = Topology.from_edge_index(edge_index, N)
    if wide:
        topology = Topology(topology.indptr, topology.indices.astype(np.int64))
    parts = np.random.default_rng(num_parts).integers(0, num_parts, N)
    found = ClusterSampler(topology, parts=parts).sample(np.array(seeds), SampleKey(0))
    clusters = sorted({int(parts[seed]) for seed in seeds})
    others = [v for cluster in clusters for v in range(N) if parts[v] == cluster and v not in seeds]
    n_id = [*seeds, *others]
    assert found.n_id.tolist() == n_id
    place: dict[int, int] = {}
    for i, v in enumerate(n_id):
        place.setdefault(v, i)
    edges = [
        (place[int(topology.indices[p])], i, p)
        for i, v in enumerate(n_id)
        for p in range(int(topology.indptr[v]), int(topology.indptr[v + 1]))
        if int(topology.indices[p]) in place
    ]
    assert list(zip(found.row.tolist(), found.col.tolist(), found.positions.tolist(), strict=True)) == edges
    assert (found.num_sampled_nodes, found.num_sampled_edges, found.batch_size) == (None, None, len(seeds))

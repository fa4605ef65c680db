from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from lightning_gnnopt.sampling.temporal import TemporalDraw

from .reference import SIGNIFICANCE, fold, in_edges, multigraphs, random_graph, star, uniform_p_value
from .test_neighbor_options import Pair, assert_equals_reference, sample_trees

KEY = np.uint64(2024)
TYPES: list[Any] = [np.int64, np.int32, np.uint8, np.uint64, np.float64, np.float32, np.float16]


def past_of(
    edge_index: Tensor, num_nodes: int, times: list[float], latest: list[float]
) -> Callable[[int, int], list[Pair]]:
    """For a tree and a node the in-edges of at most the tree's time, the earliest first; `times` are the edges'."""
    incoming = in_edges(edge_index, num_nodes)

    def candidates(tree: int, target: int) -> list[Pair]:
        past = [(source, number) for source, number in incoming[target] if times[number] <= latest[tree]]
        return sorted(past, key=lambda edge: times[edge[1]])  # Python's sort is stable

    return candidates


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_batches_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    """Few times, so that many are the same; the seeds' may be of another type than the graph's."""
    edge_index, num_nodes = data.draw(multigraphs())
    of_nodes, last = data.draw(st.booleans()), data.draw(st.booleans())
    replace = not last and data.draw(st.booleans())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    count = num_nodes if of_nodes else edge_index.shape[1]
    times = np.array([data.draw(st.integers(0, 6)) for _ in range(count)], data.draw(st.sampled_from(TYPES)))
    latest = np.array([data.draw(st.integers(0, 7)) for _ in seeds], data.draw(st.sampled_from(TYPES)))
    if latest.dtype.kind == "f":
        latest -= latest.dtype.type(data.draw(st.sampled_from([0, 0.5])))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3, 5]), min_size=1, max_size=3))
    key = SampleKey(data.draw(st.integers(0, 99)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)

    options: dict[str, Any] = {"node_time" if of_nodes else "edge_time": times}
    strategy: Any = "last" if last else "uniform"
    sampler = NeighborSampler(graph, fanouts, disjoint=True, replace=replace, temporal_strategy=strategy, **options)
    batch = sampler.sample(np.array(seeds), key, time=latest)

    edge_times = (times[edge_index[0].numpy()] if of_nodes else times).tolist()
    past = past_of(edge_index, num_nodes, edge_times, latest.tolist())
    expected = sample_trees(past, seeds, fanouts, fold(key), replace=replace, last=last)
    assert_equals_reference(batch, graph, expected)


def test_seeds_have_their_own_time_by_default() -> None:
    edge_index = random_graph(50, 900)
    times = torch.randint(10, (50,), generator=torch.Generator().manual_seed(1))
    graph = Topology.from_edge_index(edge_index, 50)
    sampler = NeighborSampler(graph, [3, 3], disjoint=True, node_time=times)
    seeds = np.array([4, 9, 4, 30])
    batch = sampler.sample(seeds, SampleKey(1))
    same = sampler.sample(seeds, SampleKey(1), time=times[seeds])
    assert batch.positions.tolist() == same.positions.tolist()
    assert (times[batch.n_id] <= times[seeds][batch.batch]).all()
    assert len(batch.positions) > 20


def test_reverses_and_induced_edges_stay_within_the_past() -> None:
    edge_index = random_graph(50, 900)
    times = torch.randint(10, (50,), generator=torch.Generator().manual_seed(1))
    graph = Topology.from_edge_index(edge_index, 50)
    seeds = np.array([4, 9, 4, 30])
    for kind in ("bidirectional", "induced"):
        sampler: Any = NeighborSampler(graph, [3, 3], disjoint=True, node_time=times, subgraph_type=kind)
        batch = sampler.sample(seeds, SampleKey(1))
        assert (times[batch.n_id] <= times[seeds][batch.batch]).all()
        assert batch.batch[batch.row].tolist() == batch.batch[batch.col].tolist()


# Floyd's draw and selection sampling
@pytest.mark.parametrize(("fanout", "replace"), [(1, False), (10, False), (40, False), (10, True)])
def test_every_edge_of_the_past_is_equally_likely(fanout: int, replace: bool) -> None:
    """Of 100 edges the 60 up to time 59; significance 1e-4."""
    times = np.random.default_rng(0).permutation(100)
    draw = TemporalDraw(star(100), edge_time=times, replace=replace)
    drawn = draw(np.zeros(5_000, np.int32), fanout, KEY, time=np.full(5_000, 59))
    counts = np.bincount(drawn.positions, minlength=100)
    assert counts[times > 59].sum() == 0
    assert drawn.colptr.tolist() == list(range(0, 5_000 * fanout + 1, fanout))
    population = {} if replace else {"population": 60, "fanout": fanout}
    assert uniform_p_value(counts[times <= 59], **population) > SIGNIFICANCE


def test_the_latest_of_the_same_time_are_the_ones_that_stand_last() -> None:
    draw = TemporalDraw(star(6), edge_time=np.array([5, 3, 5, 3, 9, 3]), strategy="last")
    drawn = draw(np.zeros(4, np.int32), 3, KEY, time=np.array([8, 4, 2, 9]))
    assert [part.tolist() for part in np.split(drawn.positions, drawn.colptr[1:-1])] == [
        [5, 0, 2],
        [1, 3, 5],
        [],
        [0, 2, 4],
    ]


def test_edges_of_the_same_time_keep_their_order() -> None:
    """Long rows: sorting short ones is stable by any method."""
    times = np.random.default_rng(0).integers(0, 4, 1_000)
    drawn = TemporalDraw(star(1_000), edge_time=times)(np.array([0]), -1, KEY, time=np.array([2]))
    assert drawn.positions.tolist() == sorted(np.flatnonzero(times <= 2).tolist(), key=lambda e: times[e])


LARGE = 2**53


@pytest.mark.parametrize(
    ("edge_time", "time", "num_drawn"),
    [
        ([LARGE, LARGE + 1, LARGE + 2], np.array([LARGE + 1]), 2),  # floats do not tell these apart
        ([-(2**63), 0, 2**63 - 1], np.array([np.inf]), 3),
        ([-(2**63), 0, 2**63 - 1], np.array([2.0**63]), 3),
        ([-(2**63) + 1, 0, 2**63 - 1], np.array([-np.inf]), 0),
        ([-3, -2, -1], np.array([-2.5]), 1),
        ([-3, -2, -1], np.array([-2], np.int8), 2),
        ([0, 200, 255], np.array([250], np.uint8), 2),
        ([-np.inf, 0.5, np.inf], np.array([0]), 1),
        ([-np.inf, 0.5, np.inf], np.array([1]), 2),
        ([-np.inf, 0.5, np.inf], np.array([np.inf]), 3),
        (np.array([0.1, 0.2], np.float32), np.array([0.1]), 0),  # 0.1 as float32 is larger than as float64
    ],
)
def test_times_are_compared_exactly(edge_time: Any, time: Any, num_drawn: int) -> None:
    draw = TemporalDraw(star(len(edge_time)), edge_time=np.asarray(edge_time))
    assert len(draw(np.array([0]), -1, KEY, time=time).positions) == num_drawn


def test_the_topology_keeps_its_order() -> None:
    edge_index = random_graph(50, 900)
    graph = Topology.from_edge_index(edge_index, 50, edge_ids=True)
    before = [graph.indptr.copy(), graph.indices.copy(), graph.edge_ids.copy()]
    times = np.random.default_rng(0).random(900)
    sampler = NeighborSampler(graph, [-1], disjoint=True, edge_time=times)
    batch = sampler.sample(np.arange(50), SampleKey(0), time=np.full(50, 0.5))
    assert all(
        np.array_equal(*pair) for pair in zip(before, [graph.indptr, graph.indices, graph.edge_ids], strict=True)
    )
    assert sorted(graph.edge_ids[batch.positions].tolist()) == np.flatnonzero(times <= 0.5).tolist()
    sources, targets = batch.n_id[batch.row].tolist(), batch.n_id[batch.col].tolist()
    assert edge_index[:, graph.edge_ids[batch.positions]].tolist() == [sources, targets]


def test_many_threads_and_another_process_draw_the_same_bits() -> None:
    graph = Topology.from_edge_index(random_graph(300, 9_000), 300, edge_ids=True)
    times = np.random.default_rng(0).integers(0, 50, 300)
    sampler = NeighborSampler(graph, [5, 5], disjoint=True, node_time=times)
    keys = [SampleKey(3, batch=i) for i in range(32)]
    alone = [sampler.sample(np.arange(32), key).positions for key in keys]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: sampler.sample(np.arange(32), key).positions, keys))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))
    copy = pickle.loads(pickle.dumps(sampler))
    assert np.array_equal(copy.sample(np.arange(32), keys[5]).positions, alone[5])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("of_nodes", [False, True])
def test_pygs_node_loader_hands_over_the_times(num_workers: int, of_nodes: bool) -> None:
    num_nodes, num_edges = 80, 1_500
    generator = torch.Generator().manual_seed(0)
    edge_index = random_graph(num_nodes, num_edges)
    times = torch.randint(100, (num_nodes if of_nodes else num_edges,), generator=generator)
    edge_time = times[edge_index[0]] if of_nodes else times
    data = Data(x=torch.randn(num_nodes, 3, generator=generator), edge_index=edge_index, edge_time=edge_time)
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    options: dict[str, Any] = {"node_time" if of_nodes else "edge_time": times}
    sampler = NeighborSampler(graph, [4, 3], disjoint=True, **options)
    seeds, seed_times = torch.tensor([7, 0, 33, 7, 9]), torch.tensor([50, 20, 90, 80, 0])
    loader = NodeLoader(data, sampler, seeds, input_time=seed_times, batch_size=2, num_workers=num_workers)
    batches = list(loader)

    assert [batch.batch_size for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.seed_time for batch in batches]).equal(seed_times)
    assert torch.cat([batch.n_id[: batch.batch_size] for batch in batches]).equal(seeds)
    incoming = in_edges(edge_index, num_nodes)
    for batch in batches:
        assert batch.x.equal(data.x[batch.n_id])
        assert batch.n_id[batch.edge_index].equal(edge_index[:, batch.e_id])
        assert batch.batch[batch.edge_index[0]].equal(batch.batch[batch.edge_index[1]])
        limit = batch.seed_time[batch.batch]
        assert batch.edge_time.equal(edge_time[batch.e_id])
        assert (batch.edge_time <= limit[batch.edge_index[1]]).all()
        degrees = torch.bincount(batch.edge_index[1], minlength=len(batch.n_id)).tolist()
        for hop, fanout in enumerate([4, 3]):
            start = sum(batch.num_sampled_nodes[:hop])
            for place in range(start, start + batch.num_sampled_nodes[hop]):
                numbers = [number for _, number in incoming[int(batch.n_id[place])]]
                assert degrees[place] == min(fanout, int((edge_time[numbers] <= limit[place]).sum()))


def test_samplers_without_times_or_seeds_without_one_are_refused() -> None:
    graph = Topology.from_edge_index(random_graph(9, 40), 9, edge_ids=True)
    seeds, key = np.array([1, 2]), SampleKey(0)
    with pytest.raises(ValueError, match=r"^`time` was given to a sampler that draws from all times\. HINT: make"):
        NeighborSampler(graph, [2]).sample(seeds, key, time=np.array([1, 2]))
    sampler = NeighborSampler(graph, [2], disjoint=True, edge_time=np.arange(40))
    with pytest.raises(ValueError, match=r"`time` must be given for the seeds of a sampler with `edge_time`, but got"):
        sampler.sample(seeds, key)
    with pytest.raises(
        ValueError, match=re.escape("`time` must hold 2 integers or floats, but got int64 of shape (3,)")
    ):
        sampler.sample(seeds, key, time=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"`time` must not hold NaN, but 1 of its 2 values are. HINT: an edge or node"):
        sampler.sample(seeds, key, time=np.array([1, np.nan]))
    with pytest.raises(ValueError, match="`seeds` must be node ids from 0 to 8, but found 9"):
        NeighborSampler(graph, [2], disjoint=True, node_time=np.arange(9)).sample(np.array([9]), key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "One of `node_time` and `edge_time` must be given, but got neither. HINT: with the time of its source"),
        ({"node_time": np.ones(4), "edge_time": np.ones(3)}, "must be given, but got both."),
        ({"node_time": np.ones(3)}, "`node_time` must hold 4 integers or floats, but got float64 of shape (3,)."),
        (
            {"edge_time": np.ones((3, 1))},
            "`edge_time` must hold 3 integers or floats, but got float64 of shape (3, 1).",
        ),
        ({"edge_time": np.zeros(3, "M8[s]")}, "but got datetime64[s] of shape (3,). HINT: `datetime64` values become"),
        ({"edge_time": np.array([1, np.nan, np.nan])}, "`edge_time` must not hold NaN, but 2 of its 3 values are."),
        ({"edge_time": np.full(3, 2**63, np.uint64)}, "`edge_time` must fit in int64, but found 9223372036854775808."),
        ({"edge_time": np.ones(3), "strategy": "lats"}, "Unknown temporal_strategy 'lats'. Did you mean 'last'?"),
        (
            {"edge_time": np.ones(3), "strategy": "last", "replace": True},
            "`replace` must be False with the temporal strategy 'last', but got True: nothing is left to chance.",
        ),
    ],
)
def test_times_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TemporalDraw(star(3), **options)


def test_a_draw_needs_a_time() -> None:
    message = (
        "`time` must be given to a temporal draw, but got None."
        " HINT: `NeighborSampler.sample` takes the time of each seed."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TemporalDraw(star(3), edge_time=np.arange(3))(np.array([0]), 2, KEY, time=None)

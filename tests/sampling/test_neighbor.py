from __future__ import annotations

import pickle
import re
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.utils import k_hop_subgraph

from lightning_gnnopt.sampling import (
    NeighborSampler,
    SampleKey,
    Subgraph,
    Topology,
    at_once,
    check_fanouts,
    hopwise,
    topology,
)

from . import reference
from .reference import SIGNIFICANCE, multigraphs, random_graph, star, uniform_p_value

N, E = 200, 3_000


def make_sampler(
    num_neighbors: list[int], *, num_nodes: int = N, num_edges: int = E, disjoint: bool = False
) -> NeighborSampler:
    topology = Topology.from_edge_index(random_graph(num_nodes, num_edges), num_nodes)
    return NeighborSampler(topology, num_neighbors, disjoint=disjoint)


def assert_same_bits(a: Subgraph, b: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.num_sampled_nodes, a.num_sampled_edges) == (b.num_sampled_nodes, b.num_sampled_edges)


def differ(a: Subgraph, b: Subgraph) -> bool:
    return not np.array_equal(a.positions, b.positions)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_batches_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3, 5]), min_size=1, max_size=3))
    key = SampleKey(*data.draw(st.tuples(*[st.integers(0, 99)] * 4)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)

    batch = NeighborSampler(graph, fanouts).sample(np.array(seeds), key)

    expected = reference.sample(edge_index, num_nodes, seeds, fanouts, reference.fold(key))
    assert batch.n_id.tolist() == expected.n_id
    assert list(zip(batch.row.tolist(), batch.col.tolist(), strict=True)) == expected.edges
    assert graph.edge_ids[batch.positions].tolist() == expected.edge_ids
    assert batch.num_sampled_nodes == expected.num_nodes
    assert batch.num_sampled_edges == expected.num_edges


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_what_every_batch_promises(data: st.DataObject) -> None:
    """Checked against the list of edges alone, whatever the random numbers."""
    edge_index, num_nodes = data.draw(multigraphs())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3, 5]), min_size=1, max_size=3))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    batch = NeighborSampler(graph, fanouts).sample(np.array(seeds), SampleKey(data.draw(st.integers(0, 99))))
    degree = Counter(edge_index[1].tolist())
    edges = list(zip(batch.row.tolist(), batch.col.tolist(), strict=True))

    # counts
    assert len(batch.num_sampled_nodes) == len(fanouts) + 1
    assert sum(batch.num_sampled_nodes) == batch.num_nodes == len(batch.n_id)
    assert sum(batch.num_sampled_edges) == batch.num_edges == len(edges)
    assert batch.batch_size == len(seeds)
    # nodes: the seeds as given, then each other node once
    assert batch.n_id[: len(seeds)].tolist() == seeds
    others = batch.n_id[len(seeds) :].tolist()
    assert len(set(others)) == len(others)
    assert not set(others) & set(seeds)
    # every edge is one of the graph's, and none is taken twice for the same local destination
    edge_ids = graph.edge_ids[batch.positions]
    assert edge_index[:, edge_ids].tolist() == [batch.n_id[batch.row].tolist(), batch.n_id[batch.col].tolist()]
    assert len(set(zip(edge_ids.tolist(), batch.col.tolist(), strict=True))) == len(edges)
    # each node of each hop but the last is expanded once, in order, to as many edges as it must
    node_ends, edge_end = np.cumsum([0, *batch.num_sampled_nodes]).tolist(), 0
    for hop, fanout in enumerate(fanouts):
        expanded = range(node_ends[hop], node_ends[hop + 1])
        expected_col = []
        for local in expanded:
            available = degree[batch.n_id[local]]
            expected_col += [local] * (available if fanout == -1 else min(available, fanout))
        found = edges[edge_end : edge_end + batch.num_sampled_edges[hop]]
        assert [col for _, col in found] == expected_col
        # a hop's sources are known nodes or those it found, numbered in the order it found them
        new = [row for row, _ in found if row >= node_ends[hop + 1]]
        assert list(dict.fromkeys(new)) == list(range(node_ends[hop + 1], node_ends[hop + 2]))
        edge_end += batch.num_sampled_edges[hop]
    # a node that stands twice among the seeds is the first of them as a neighbour
    first = {node: place for place, node in reversed(list(enumerate(batch.n_id.tolist())))}
    assert all(row == first[batch.n_id[row]] for row, _ in edges)


def breadth_first(edge_index: Tensor, seeds: list[int], num_hops: int) -> tuple[dict[int, int], list[int]]:
    """Each reached node's distance, and the numbers of the edges into nodes nearer than `num_hops`."""
    distance, queue = dict.fromkeys(seeds, 0), deque(seeds)
    while queue:
        target = queue.popleft()
        if distance[target] == num_hops:
            continue
        for source in edge_index[0, edge_index[1] == target].tolist():
            if source not in distance:
                distance[source] = distance[target] + 1
                queue.append(source)
    return distance, [e for e, (_, v) in enumerate(edge_index.t().tolist()) if distance.get(v, num_hops) < num_hops]


@pytest.mark.parametrize("num_hops", [1, 2, 3])
def test_a_full_fan_out_is_the_whole_neighbourhood(num_hops: int) -> None:
    edge_index, seeds = random_graph(N, 300), [5, 17, 0]
    graph = Topology.from_edge_index(edge_index, N, edge_ids=True)
    for fanout in (-1, 300):
        batch = NeighborSampler(graph, [fanout] * num_hops).sample(np.array(seeds), SampleKey(0))

        distance, edges = breadth_first(edge_index, seeds, num_hops)
        assert sorted(batch.n_id.tolist()) == sorted(distance)
        hop_of = np.repeat(np.arange(num_hops + 1), batch.num_sampled_nodes)
        assert dict(zip(batch.n_id.tolist(), hop_of.tolist(), strict=True)) == distance
        assert sorted(graph.edge_ids[batch.positions].tolist()) == edges
        assert sorted(batch.n_id.tolist()) == k_hop_subgraph(seeds, num_hops, edge_index, num_nodes=N)[0].tolist()


def test_a_full_fan_out_does_not_depend_on_the_key() -> None:
    sampler = make_sampler([-1, -1])
    assert_same_bits(sampler.sample(np.arange(5), SampleKey(0)), sampler.sample(np.arange(5), SampleKey(1, 2, 3, 4)))


def test_an_isolated_seed_has_no_edge() -> None:
    graph = Topology.from_edge_index(torch.tensor([[0, 1], [1, 0]]), num_nodes=4)
    batch = NeighborSampler(graph, [2, -1]).sample(np.array([3, 2, 3]), SampleKey(0))
    assert batch.n_id.tolist() == [3, 2, 3]
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([3, 0, 0], [0, 0])
    assert batch.row.dtype == np.int32


def test_a_self_loop_is_an_edge_like_any_other() -> None:
    graph = Topology.from_edge_index(torch.tensor([[0, 0, 0], [0, 0, 0]]), num_nodes=1)
    batch = NeighborSampler(graph, [2, -1]).sample(np.array([0]), SampleKey(0))
    assert (batch.n_id.tolist(), batch.row.tolist(), batch.col.tolist()) == ([0], [0, 0], [0, 0])
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([1, 0, 0], [2, 0])
    assert len(set(batch.positions.tolist())) == 2


def test_a_node_that_stands_twice_among_the_seeds_is_drawn_twice() -> None:
    sampler = NeighborSampler(star(50), [5])
    batch = sampler.sample(np.array([0, 0]), SampleKey(0))
    first, second = batch.positions[batch.col == 0].tolist(), batch.positions[batch.col == 1].tolist()
    assert len(first) == len(second) == 5
    assert sorted(first) != sorted(second)


# Floyd's draw with few and with many neighbours; selection sampling
@pytest.mark.parametrize(("degree", "fanout"), [(2, 1), (12, 5), (17_481, 15), (40_000, 25), (500, 60)])
def test_batches_with_other_keys_draw_fairly(degree: int, fanout: int) -> None:
    """Each neighbour is in as many of the batches as any other; significance 1e-4."""
    sampler, seeds = NeighborSampler(star(degree), [fanout]), np.array([0])
    batches = [sampler.sample(seeds, SampleKey(1, batch=i)) for i in range(max(10 * degree // fanout, 2_000))]
    counts = np.bincount(np.concatenate([batch.positions for batch in batches]), minlength=degree)
    assert uniform_p_value(counts, population=degree, fanout=fanout) > SIGNIFICANCE


@pytest.mark.parametrize("field", SampleKey._fields)
def test_every_part_of_the_key_counts(field: str) -> None:
    sampler, key, seeds = make_sampler([3, 3]), SampleKey(1, 2, 3, 4), np.arange(20)
    batch = sampler.sample(seeds, key)
    assert_same_bits(sampler.sample(seeds, key), batch)
    assert differ(sampler.sample(seeds, key._replace(**{field: 9})), batch)


def test_a_node_draws_anew_at_every_place_and_in_every_hop() -> None:
    """Node 0 has the in-neighbours 1, ..., 50, and is the only in-neighbour of node 51."""
    edges = torch.stack([torch.arange(51), torch.zeros(51, dtype=torch.long)])
    edges[1, 0] = 51
    graph = Topology.from_edge_index(edges, num_nodes=52)
    one_hop, two_hops = NeighborSampler(graph, [10]), NeighborSampler(graph, [1, 10])
    drawn = [
        one_hop.sample(np.array([0]), SampleKey(3)).positions,
        one_hop.sample(np.array([51, 0]), SampleKey(3)).positions[1:],
        two_hops.sample(np.array([51]), SampleKey(3)).positions[1:],
    ]
    assert len({tuple(sorted(positions.tolist())) for positions in drawn}) == 3
    assert [len(positions) for positions in drawn] == [10, 10, 10]


def test_many_threads_at_once_draw_the_same_bits() -> None:
    sampler = make_sampler([10, 5], num_nodes=2_000, num_edges=60_000)
    seeds = [np.random.default_rng(i).integers(0, 2_000, 64) for i in range(64)]
    keys = [SampleKey(3, batch=i) for i in range(64)]
    alone = [sampler.sample(*pair) for pair in zip(seeds, keys, strict=True)]
    assert len(sampler._tables._idle) == 1  # one thread needs one table, however many batches

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sampler.sample, seeds, keys))

    for one, other in zip(alone, together, strict=True):
        assert_same_bits(one, other)
    assert 1 <= len(sampler._tables._idle) <= 8


@pytest.mark.parametrize("disjoint", [False, True])
def test_a_batch_that_failed_leaves_nothing_behind(disjoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once or hop by hop."""
    sampler, seeds = make_sampler([3, 3], disjoint=disjoint), np.arange(9)
    expected = sampler.sample(seeds, SampleKey(0))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the first hop")

    monkeypatch.setattr(hopwise, "gather", fail)
    monkeypatch.setattr(at_once, "_grow_uniform", fail)
    with pytest.raises(RuntimeError, match="in the first hop"):
        sampler.sample(seeds, SampleKey(0))
    monkeypatch.undo()
    assert_same_bits(sampler.sample(seeds, SampleKey(0)), expected)
    assert len(sampler._tables._idle) == 1


def test_it_travels_to_another_process() -> None:
    sampler, seeds = make_sampler([3, 3]), np.arange(9)
    expected = sampler.sample(seeds, SampleKey(7))
    dumped = pickle.dumps(sampler)
    assert len(dumped) < 1.2 * sampler.topology.nbytes  # no table comes along
    copy = pickle.loads(dumped)
    assert_same_bits(copy.sample(seeds, SampleKey(7)), expected)
    assert repr(copy) == repr(sampler)


def test_64_bit_ids_draw_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = make_sampler([3, -1]).sample(np.arange(9), SampleKey(7))
    monkeypatch.setattr(topology, "_INT32_MAX", 0)
    wide = make_sampler([3, -1]).sample(np.arange(9), SampleKey(7))
    assert_same_bits(narrow, wide)
    assert (narrow.n_id.dtype, wide.n_id.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_seeds_of_any_integer_type(dtype: Any) -> None:
    sampler = make_sampler([3])
    seeds = np.arange(9, dtype=dtype)
    assert_same_bits(sampler.sample(seeds, SampleKey(7)), sampler.sample(np.arange(9), SampleKey(7)))
    assert seeds.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("num_neighbors", "message"),
    [
        ([], "`num_neighbors` must hold one fan-out per hop, but it is empty. HINT: [15, 10] samples 15 neighbours"),
        ([5, 0], "positive or -1 (all neighbours), but got 0 in [5, 0]. HINT: to use fewer hops, shorten the list."),
        ([-2], "`num_neighbors` must hold integers that are positive or -1 (all neighbours), but got -2 in [-2]."),
        ([True], "but got True in [True]."),
        ([2.0], "but got 2.0 in [2.0]."),
        (["5"], "but got '5' in ['5']."),
        (5, "`num_neighbors` must be a list with one fan-out per hop, but got 5. HINT: [5, 5] samples two hops."),
    ],
)
def test_fan_outs_that_cannot_be_sampled_are_refused(num_neighbors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NeighborSampler(star(3), num_neighbors)


def test_fan_outs_become_plain_integers() -> None:
    fanouts = check_fanouts((np.int64(3), -1, np.int32(2)))
    assert fanouts == [3, -1, 2]
    assert {type(fanout) for fanout in fanouts} == {int}
    with pytest.raises(ValueError, match=re.escape("`eval_num_neighbors` must hold one fan-out per hop")):
        check_fanouts([], name="eval_num_neighbors")


def test_repr_says_graph_and_fan_outs() -> None:
    sampler = NeighborSampler(star(3), [2, -1])
    assert repr(sampler) == "NeighborSampler(Topology(num_nodes=4, num_edges=3), num_neighbors=[2, -1])"
    assert sampler.num_hops == 2

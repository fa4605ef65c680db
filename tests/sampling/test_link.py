from __future__ import annotations

import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, SeedsOnlySampler, Topology
from lightning_gnnopt.sampling.link import LinkSampler
from lightning_gnnopt.sampling.link_subgraph import LinkSubgraph

from . import reference
from .reference import multigraphs, random_graph

N, E = 60, 400
TAG = int.from_bytes(b"negative", "big")


def make_sampler(**options: Any) -> NeighborSampler:
    return NeighborSampler(Topology.from_edge_index(random_graph(N, E), N, edge_ids=True), [4, 3], **options)


def negatives(links: list[tuple[int, int]], mode: str, amount: float, num_nodes: int, key: SampleKey) -> list[Any]:
    """The pairs, or the destinations in the order link by link and then again, drawn node by node."""
    word = reference.mix64(reference.fold(key) ^ TAG)
    drawn: list[Any] = []
    for j in range(math.ceil(len(links) * amount)):
        first, state = reference.uniform_below(reference.mix64(word ^ j), num_nodes)
        second, state = reference.uniform_below(state, num_nodes)
        drawn.append((first, second) if mode == "binary" else first)
    return drawn


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_batches_around_links_equal_the_reference(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    node = st.integers(0, num_nodes - 1)
    links = data.draw(st.lists(st.tuples(node, node), min_size=1, max_size=5))
    mode = data.draw(st.sampled_from([None, "binary", "triplet"]))
    amount = data.draw(st.sampled_from([1, 3] if mode == "triplet" else [0.3, 1, 2.5]))
    disjoint = data.draw(st.booleans())
    key = SampleKey(*data.draw(st.tuples(*[st.integers(0, 99)] * 4)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    sampler = NeighborSampler(graph, [2, -1], disjoint=disjoint)

    sources, targets = np.array(links).T
    batch = LinkSampler(sampler, negatives=mode, amount=amount).sample(sources, targets, key)

    num_links = len(links)
    drawn = negatives(links, mode, amount, num_nodes, key) if mode else []
    if mode == "triplet":
        ends = [[u for u, _ in links], [v for _, v in links] + drawn]
        negative = batch.dst_neg_index.reshape(num_links, amount)
        places = [batch.src_index, np.concatenate([batch.dst_pos_index, negative.T.ravel()])]
        assert batch.dst_neg_index.shape == ((num_links,) if amount == 1 else (num_links, amount))
        assert batch.edge_label_index is None
        assert batch.edge_label is None
    else:
        ends = [[u for u, _ in links + drawn], [v for _, v in links + drawn]]
        places = list(batch.edge_label_index)
        assert batch.dst_neg_index is None
        if mode == "binary":
            assert batch.edge_label.dtype == np.float32
            assert batch.edge_label.tolist() == [1.0] * num_links + [0.0] * len(drawn)
        else:
            assert batch.edge_label is None
    subgraph = batch.subgraph
    for place, end in zip(places, ends, strict=True):
        assert subgraph.n_id[place].tolist() == end
    seeds = ends[0] + ends[1] if disjoint else sorted({*ends[0], *ends[1]})
    assert subgraph.n_id[: len(seeds)].tolist() == seeds
    assert subgraph.batch_size == len(seeds)
    if disjoint:
        plain = sampler.sample(np.array(seeds), key)
        link_of = [j % num_links for end in ends for j in range(len(end))]
        assert np.concatenate(places).tolist() == list(range(len(seeds)))
        assert subgraph.batch.tolist() == [link_of[tree] for tree in plain.batch.tolist()]
    else:
        expected = reference.sample(edge_index, num_nodes, seeds, [2, -1], reference.fold(key))
        assert subgraph.n_id.tolist() == expected.n_id
        assert list(zip(subgraph.row.tolist(), subgraph.col.tolist(), strict=True)) == expected.edges
        assert graph.edge_ids[subgraph.positions].tolist() == expected.edge_ids
        assert subgraph.num_sampled_nodes == expected.num_nodes
        assert subgraph.batch is None


def test_the_trees_of_a_links_two_ends_bear_its_number() -> None:
    """Also where the negatives are no multiple of the links."""
    sampler = make_sampler(disjoint=True)
    batch = LinkSampler(sampler, negatives="binary", amount=0.5).sample(np.arange(4), np.arange(10, 14), SampleKey(0))
    assert batch.subgraph.batch[:12].tolist() == [0, 1, 2, 3, 0, 1] * 2


def test_labels_stand_before_the_zeros_of_the_negatives() -> None:
    links = LinkSampler(make_sampler(), negatives="binary", amount=1.5)
    for label in (np.array([3, 1, 2]), np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 9.0]])):
        batch = links.sample(np.arange(3), np.arange(3), SampleKey(0), label=label)
        assert batch.edge_label.dtype == label.dtype
        assert batch.edge_label.shape == (8, *label.shape[1:])
        assert np.array_equal(batch.edge_label[:3], label)
        assert not batch.edge_label[3:].any()
    batch = LinkSampler(make_sampler()).sample(np.arange(3), np.arange(3), SampleKey(0), label=np.array([3, 1, 2]))
    assert batch.edge_label.tolist() == [3, 1, 2]


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_positives_are_kept_out(mode: Any) -> None:
    sources, targets = np.arange(40), np.arange(40)[::-1]
    refused = {(u, v) for u, v in random_graph(N, E).t().tolist()}
    if mode == "triplet":
        refused |= set(zip(sources.tolist(), targets.tolist(), strict=True))

    def negative_links(exclude: bool) -> list[tuple[int, int]]:
        links = LinkSampler(make_sampler(), negatives=mode, amount=20, exclude_positives=exclude)
        batch = links.sample(sources, targets, SampleKey(3))
        if mode == "binary":
            pair_2M = batch.subgraph.n_id[batch.edge_label_index[:, 40:]]
            return [(u, v) for u, v in pair_2M.T.tolist()]
        negative_PK = batch.subgraph.n_id[batch.dst_neg_index]
        return [(u, v) for u, row in zip(sources.tolist(), negative_PK.tolist(), strict=True) for v in row]

    assert len(negative_links(True)) == 800
    assert not refused & set(negative_links(True))
    assert refused & set(negative_links(False))


def test_weights_apply_to_their_own_end() -> None:
    only_3, only_5 = np.eye(N)[3], np.eye(N)[5]
    options: dict[str, Any] = {"src_weight": only_3, "dst_weight": only_5}
    batch = LinkSampler(make_sampler(), negatives="binary", **options).sample(np.arange(4), np.arange(4), SampleKey(0))
    assert batch.subgraph.n_id[batch.edge_label_index[:, 4:]].tolist() == [[3] * 4, [5] * 4]
    batch = LinkSampler(make_sampler(), negatives="triplet", **options).sample(np.arange(4), np.arange(4), SampleKey(0))
    assert batch.subgraph.n_id[batch.dst_neg_index].tolist() == [5] * 4


@pytest.mark.parametrize("mode", [None, "binary", "triplet"])
def test_seeds_and_negatives_keep_to_their_links_time(mode: Any) -> None:
    node_time = np.random.default_rng(0).integers(0, 100, N)
    sampler = make_sampler(disjoint=True, node_time=node_time)
    sources, targets = np.arange(10), np.arange(10, 20)
    time = np.maximum(node_time[sources], node_time[targets]) + np.arange(10) % 2
    links = LinkSampler(sampler, negatives=mode, amount=3 if mode == "triplet" else 1.5)
    batch = links.sample(sources, targets, SampleKey(0), time=time)
    subgraph = batch.subgraph
    assert (node_time[subgraph.n_id] <= time[subgraph.batch]).all()
    assert subgraph.num_edges > 0
    assert batch.time.tolist() == (time.tolist() if mode != "binary" else [*time, *time, *time[:5]])
    if mode == "triplet":
        assert (node_time[subgraph.n_id[batch.dst_neg_index]] <= time[:, None]).all()
        assert (subgraph.batch[batch.dst_neg_index] == np.arange(10)[:, None]).all()


def test_a_link_sees_up_to_its_own_time_not_its_ends() -> None:
    node_time = np.random.default_rng(0).integers(0, 100, N)
    sampler = make_sampler(disjoint=True, node_time=node_time)
    sources, targets = np.arange(10), np.arange(10, 20)
    time = np.arange(100, 110)
    batch = LinkSampler(sampler).sample(sources, targets, SampleKey(0), time=time).subgraph
    plain = sampler.sample(np.arange(20), SampleKey(0), time=np.concatenate([time, time]))
    assert batch.n_id.tolist() == plain.n_id.tolist()
    assert batch.num_nodes > sampler.sample(np.arange(20), SampleKey(0)).num_nodes  # at the ends' own times


def flat(batch: LinkSubgraph) -> list[list[int]]:
    return [batch.subgraph.n_id.tolist(), batch.subgraph.positions.tolist(), batch.edge_label_index.ravel().tolist()]


def test_a_batch_is_a_function_of_links_and_key_in_any_thread_and_process() -> None:
    links = LinkSampler(make_sampler(), negatives="binary", exclude_positives=True)
    keys = [SampleKey(1, batch=i) for i in range(32)]
    alone = [flat(links.sample(np.arange(9), np.arange(9), key)) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: flat(links.sample(np.arange(9), np.arange(9), key)), keys))
    assert alone == together
    copy = pickle.loads(pickle.dumps(links))
    assert flat(copy.sample(np.arange(9), np.arange(9), keys[0])) == alone[0]
    assert len({str(batch) for batch in alone}) == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "triple"}, "Unknown negatives 'triple'. Did you mean 'triplet'?"),
        (
            {"negatives": "binary", "amount": 0},
            "`amount` must be positive, and a whole number for triplets, but got 0.",
        ),
        ({"negatives": "triplet", "amount": 1.5}, "a whole number for triplets, but got 1.5. HINT: `negatives=None`"),
        ({"edge_type": ("a", "b", "c")}, "`edge_type` must be None in a homogeneous graph, but got ('a', 'b', 'c')."),
        (
            {"negatives": "binary", "dst_weight": np.ones(3)},
            "must have the shape (60,), one number per node, but got (3,)",
        ),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LinkSampler(make_sampler(), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], {}), "`sources` must hold at least one node, but it is empty. HINT: check the split's links."),
        (([1, 2], [1], {}), "`targets` must have one entry per link (2), but got 1. HINT: a link is a source"),
        (([1], [1], {"label": np.ones(2)}), "`label` must have one entry per link (1), but got 2."),
        (([1], [1], {"label": np.ones(1)}), "`label` must be None for triplets"),
        (([1], [1], {"time": np.ones(1)}), "`time` needs a sampler with disjoint trees"),
        (([0.5], [1], {}), "`sources` must be a one-dimensional array of integers, but got float64 of shape (1,)."),
        (([1], [60], {}), "`seeds` must be node ids from 0 to 59, but found 60."),
        (([-1], [0], {}), "`seeds` must be node ids from 0 to 59, but found -1."),
    ],
)
def test_bad_links_are_refused(arguments: Any, message: str) -> None:
    sources, targets, options = arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        LinkSampler(make_sampler(), negatives="triplet").sample(sources, targets, SampleKey(0), **options)


def test_a_sampler_that_draws_its_own_seeds_is_refused() -> None:
    class Elsewhere(SeedsOnlySampler):
        draws_own_seeds = True

    message = (
        "but Elsewhere draws its own: the ends of a link might not be in its batch. HINT: use a `NeighborSampler`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        LinkSampler(Elsewhere(make_sampler().topology))


def test_repr_says_what_is_drawn() -> None:
    links = LinkSampler(make_sampler(), negatives="triplet", amount=3)
    assert repr(links) == f"LinkSampler({links.sampler!r}, negatives='triplet', amount=3)"

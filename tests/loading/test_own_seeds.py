from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_gnnopt.loading import NodeSource, PrefetchLoader
from lightning_gnnopt.loading.own_seeds import OwnSeeds, seeds_first
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.sampling import NodeSampler, SaintNodeSampler, SampleKey, Subgraph, Topology

from .graphs import N, make_data, make_loader, random_graph, same_batches


class Scripted(NodeSampler):
    """Draws what it is told, attempt by attempt."""

    draws_own_seeds = True
    num_hops = None

    def __init__(self, draws: dict[int, list[int]], default: list[int]) -> None:
        self.topology = Topology.from_edge_index(random_graph(), N)
        self.draws, self.default = draws, default
        self.attempts: list[int] = []

    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: Any = None) -> Subgraph:
        self.attempts.append(key.attempt)
        n_id = np.array(self.draws.get(key.attempt, self.default))
        none = np.empty(0, np.int32)
        return Subgraph(n_id, none, none, none, None, None, len(n_id))


@settings(deadline=None)
@given(st.data())
def test_seeds_first_moves_nodes_and_nothing_else(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 12))
    node = st.integers(0, num_nodes - 1)
    edges = np.array(data.draw(st.lists(st.tuples(node, node), max_size=20)), dtype=np.int32).reshape(-1, 2)
    is_seed = np.array(data.draw(st.lists(st.booleans(), min_size=num_nodes, max_size=num_nodes)))
    n_id = 100 + np.array(data.draw(st.permutations(range(num_nodes))))
    batch = Subgraph(
        n_id,
        edges[:, 0],
        edges[:, 1],
        np.arange(len(edges)),
        [num_nodes],
        [len(edges)],
        batch=np.arange(num_nodes, dtype=np.int32),
        edge_norm=np.arange(len(edges), dtype=np.float32),
        node_norm=n_id.astype(np.float32),
    )

    out = seeds_first(batch, is_seed)

    seeds = [int(v) for v, chosen in zip(n_id, is_seed, strict=True) if chosen]
    others = [int(v) for v, chosen in zip(n_id, is_seed, strict=True) if not chosen]
    assert out.n_id.tolist() == seeds + others
    assert out.batch_size == len(seeds)
    assert (out.num_sampled_nodes, out.num_sampled_edges) == (None, None)
    assert out.n_id[out.row].tolist() == n_id[edges[:, 0]].tolist()
    assert out.n_id[out.col].tolist() == n_id[edges[:, 1]].tolist()
    assert out.positions is batch.positions
    assert out.edge_norm is batch.edge_norm
    assert out.node_norm.tolist() == out.n_id.tolist()
    assert n_id[out.batch].tolist() == out.n_id.tolist()


def test_input_nodes_become_the_seeds() -> None:
    own = OwnSeeds(Scripted({}, [7, 3, 9, 5]), np.array([9, 2, 3]))
    batch = own.sample(np.array([9]), SampleKey(0))
    assert batch.n_id.tolist() == [3, 9, 7, 5]
    assert own.input_id(batch).tolist() == [2, 0]


def test_a_batch_without_input_nodes_is_drawn_anew_apart_from_all_attempts_of_transforms() -> None:
    sampler = Scripted({5: [7], 5 + 2**32: [8, 6]}, [8, 3])
    own = OwnSeeds(sampler, np.array([3]))
    assert own.sample(np.array([3]), SampleKey(0, attempt=5)).n_id.tolist() == [3, 8]
    assert sampler.attempts == [5, 5 + 2**32, 5 + 2 * 2**32]


def test_a_hundred_batches_without_input_nodes_are_refused() -> None:
    sampler = Scripted({}, [7, 8])
    message = (
        "Scripted found none of the 2 input nodes in 100 draws of 3. HINT: raise `batch_size`, or `drop_last=True` if"
        " only the last batch is so small."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OwnSeeds(sampler, np.array([3, 4])).sample(np.array([3, 4, 3]), SampleKey(0))
    assert len(set(sampler.attempts)) == len(sampler.attempts) == 100


def saint_loader(**kwargs: Any) -> Any:
    plain = make_loader()
    sampler = SaintNodeSampler(plain.source.sampler.topology)
    order = SeedOrder(35, 8, shuffle=True, seed=5)
    return PrefetchLoader(NodeSource(sampler, plain.source.builder, np.arange(35)), order, **kwargs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loaders_batches_are_scored_on_the_training_nodes_that_were_drawn(num_workers: int) -> None:
    found = list(saint_loader(num_workers=num_workers))
    sampler = SaintNodeSampler(Topology.from_edge_index(make_data().edge_index, N))
    seeds = SeedOrder(35, 8, shuffle=True, seed=5)
    assert len(found) == 5
    for index, batch in enumerate(found):
        drawn = sampler.sample(seeds.batch(seeds.epoch(0), index), SampleKey(5, 0, index))
        nodes, size = batch.n_id.tolist(), batch.batch_size
        assert sorted(nodes) == sorted(drawn.n_id.tolist())
        assert nodes[:size] == batch.input_id.tolist()  # the training nodes are 0 .. 34
        assert all(node < 35 for node in nodes[:size])
        assert all(node >= 35 for node in nodes[size:])
        norm = dict(zip(drawn.n_id.tolist(), drawn.node_norm.tolist(), strict=True))
        assert batch.node_norm.tolist() == [norm[node] for node in nodes]
        assert len(batch.edge_norm) == batch.num_edges == drawn.num_edges
        assert "num_sampled_nodes" not in batch
    assert same_batches(found, list(saint_loader(num_workers=0)))


def test_transforms_see_the_seeds_first_and_may_draw_again() -> None:
    sizes: list[list[int]] = []

    def again(subgraph: Subgraph, resample: Any) -> Subgraph:
        other = resample(1)
        assert other.n_id.tolist() != subgraph.n_id.tolist()
        for batch in (subgraph, other):
            assert (batch.n_id[: batch.batch_size] < 35).all()
            assert (batch.n_id[batch.batch_size :] >= 35).all()
        sizes.append(other.n_id[: other.batch_size].tolist())
        return other

    assert [batch.input_id.tolist() for batch in saint_loader(num_workers=0, transforms=[again])] == sizes

"""Sampling over parts: the bits of the sampler that has the whole graph, whoever owns what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from lightning_gnnopt.parallel import node_map, part_sampler
from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.part_files import load_part
from lightning_gnnopt.parallel.part_sampler import PartNeighborSampler
from lightning_gnnopt.parallel.partition import partition_graph
from lightning_gnnopt.parallel.parts import cut_graph
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from tests.parallel.part_ranks import (
    FANOUTS,
    Asked,
    E,
    N,
    asked_by,
    assert_same_batch,
    batches_on_parts,
    cut,
    hub_graph,
    owners,
)
from tests.sampling.reference import multigraphs

OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "replace": {"replace": True},
    "disjoint": {"disjoint": True},
    "hashed": {"dense_limit_bytes": 0},
    "edge-ids": {"edge_ids": True, "disjoint": True, "replace": True},
}


def whole_sampler(edge_index: torch.Tensor, num_nodes: int, fanouts: list[int], **options: Any) -> NeighborSampler:
    options.pop("edge_ids", None)
    return NeighborSampler(Topology.from_edge_index(edge_index, num_nodes, edge_ids=True), fanouts, **options)


def assert_same_on_parts(kind: str, num_parts: int, fanouts: list[int], **options: Any) -> None:
    edge_index = hub_graph()
    parts = cut(edge_index, owners(kind, num_parts), num_parts)
    asked = [asked_by(rank, 4) for rank in range(num_parts)]
    whole = whole_sampler(edge_index, N, fanouts, **options)
    for batches, wanted in zip(batches_on_parts(parts, asked, fanouts, **options), asked, strict=True):
        for batch, one in zip(batches, wanted, strict=True):
            assert_same_batch(batch, one, whole)


@pytest.mark.parametrize("fanouts", [[6, 4], [40, 2], [1, 1, 1], [3, -1]], ids=str)
@pytest.mark.parametrize(
    ("kind", "num_parts"),
    [("random", 1), ("random", 2), ("contiguous", 3), ("random", 4), ("one-is-empty", 4), ("random", 7)],
)
def test_a_batch_does_not_depend_on_who_owns_what(kind: str, num_parts: int, fanouts: list[int]) -> None:
    """Fan-outs that take few of a row, many of it (40 of some hundreds is drawn in another way), or all."""
    assert_same_on_parts(kind, num_parts, fanouts)


@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_those_of_one_process(options: str) -> None:
    assert_same_on_parts("random", 3, [5, 3], **OPTIONS[options])


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_draw_what_they_draw_in_one_process(dtype: type[np.floating[Any]], replace: bool) -> None:
    """With edges of weight 0; and with a fan-out that exceeds the rows of one rank, but not those of another."""
    weight = np.random.default_rng(0).exponential(size=E).astype(dtype)
    weight[::5] = 0
    assert_same_on_parts("contiguous", 3, [60, 3], edge_weight=weight, replace=replace)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_graph_and_partition(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    num_parts = data.draw(st.integers(1, 4))
    owner = data.draw(st.lists(st.integers(0, num_parts - 1), min_size=num_nodes, max_size=num_nodes))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3))
    options: dict[str, Any] = {name: data.draw(st.booleans()) for name in ("replace", "disjoint")}
    seeds = st.lists(st.integers(0, num_nodes - 1), max_size=5)
    keys = st.builds(SampleKey, *[st.integers(0, 99)] * 4)
    asked = [Asked(np.array(data.draw(seeds), np.int64), data.draw(keys)) for _ in range(num_parts)]

    parts = cut(edge_index, np.array(owner), num_parts)
    batches = batches_on_parts(parts, [[one] for one in asked], fanouts, edge_ids=True, **options)

    whole = whole_sampler(edge_index, num_nodes, fanouts, **options)
    for (batch,), one in zip(batches, asked, strict=True):
        assert_same_batch(batch, one, whole)
        assert batch.edge_id is not None
        # What an edge's id says is what the batch says of it.
        ends = edge_index[:, torch.from_numpy(batch.edge_id.astype(np.int64))]
        assert ends.tolist() == [batch.n_id[batch.row].tolist(), batch.n_id[batch.col].tolist()]


def test_batches_of_more_than_32_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a graph that only passes for so large."""
    edge_index = hub_graph()
    parts, asked = cut(edge_index, owners("random", 2), 2), [asked_by(rank, 2) for rank in range(2)]
    narrow = batches_on_parts(parts, asked, FANOUTS, edge_ids=True)
    monkeypatch.setattr(part_sampler, "_INT32_MAX", 1)
    for mine, others in zip(batches_on_parts(parts, asked, FANOUTS, edge_ids=True), narrow, strict=True):
        for batch, other in zip(mine, others, strict=True):
            for name in ("n_id", "positions", "edge_id"):
                assert getattr(batch, name).dtype == np.int64
                assert getattr(batch, name).tolist() == getattr(other, name).tolist()
            assert (batch.row.tolist(), batch.col.tolist()) == (other.row.tolist(), other.col.tolist())


def test_parts_are_sampled_from_their_files(tmp_path: Path) -> None:
    edge_index, weight = hub_graph(), np.random.default_rng(0).exponential(size=E)
    data = Data(edge_index=edge_index, num_nodes=N, weight=torch.from_numpy(weight))
    partition_graph(data, 2, folder=tmp_path / "parts", owner=owners("random", 2))
    asked = [asked_by(rank, 2) for rank in range(2)]
    whole = NeighborSampler(Topology.from_edge_index(edge_index, N, edge_ids=True), FANOUTS, edge_weight=weight)

    def work(channel: Channel) -> None:
        part, attributes = load_part(tmp_path / "parts", channel.rank)
        nodes = NodeMap.collect(part, channel)
        sampler = PartNeighborSampler(part, nodes, channel, FANOUTS, edge_weight=attributes.weight.numpy())
        for one in asked[channel.rank]:
            assert_same_batch(sampler.sample(one.seeds, one.key), one, whole)

    run_ranks(2, work)


def test_what_travels_are_the_drawn_neighbours() -> None:
    """A hub of rank 1 has ten thousand of them; rank 0 wants five, and is sent five."""
    num_edges, fanout = 10_000, 5
    edge_index = torch.stack([torch.arange(1, num_edges + 1), torch.zeros(num_edges, dtype=torch.long)])
    owner = np.zeros(num_edges + 1, np.int64)
    owner[0] = 1
    parts = cut(edge_index, owner, 2)

    def work(channel: ThreadChannel) -> int:
        part = parts[channel.rank]
        sampler = PartNeighborSampler(part, NodeMap.collect(part, channel), channel, [fanout])
        before = channel.traffic.bytes_sent
        sampler.sample(np.array([0]) if channel.rank == 0 else np.array([]), SampleKey(0))
        assert channel.traffic.by_kind == {"sampling": channel.traffic.bytes_sent}
        return channel.traffic.bytes_sent - before

    header = 3 * 8  # the number of questions, that of places, and a key
    question, count, edge = 2 * 4, 4, 2 * 4  # node and place; how many; source and position
    assert run_ranks(2, work) == [header + question, header + count + fanout * edge]


@pytest.mark.parametrize("chunk", [1, 7, N + 1])
@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("given_owner", [False, True])
def test_a_map_knows_owners_and_where_in_edges_begin(
    chunk: int, num_parts: int, given_owner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_map, "_CHUNK_NODES", chunk)
    edge_index, owner = hub_graph(), owners("one-is-empty", num_parts)
    parts, topology = cut(edge_index, owner, num_parts), Topology.from_edge_index(edge_index, N)

    def work(channel: Channel) -> None:
        part = parts[channel.rank]
        nodes = NodeMap.collect(part, channel, owner=owner if given_owner else None)
        assert nodes.owner.tolist() == owner.tolist()
        assert nodes.owner is owner if given_owner else nodes.owner.dtype == np.uint8
        assert nodes.first_in_edge.tolist() == topology.indptr[part.inner].tolist()
        assert nodes.local(part.inner[::-1]).tolist() == list(range(part.num_inner))[::-1]

    run_ranks(num_parts, work)


def test_seeds_that_cannot_be_are_told_to_all() -> None:
    parts = cut(hub_graph(), owners("random", 3), 3)

    def work(channel: Channel) -> str:
        part = parts[channel.rank]
        sampler = PartNeighborSampler(part, NodeMap.collect(part, channel), channel, FANOUTS)
        with pytest.raises((ValueError, RuntimeError)) as raised:
            sampler.sample(np.array([0, N if channel.rank == 1 else 1]), SampleKey(0))
        after = sampler.sample(np.array([0]), SampleKey(0))  # the ranks are still in step
        assert after.n_id[0] == 0
        return str(raised.value)

    messages = run_ranks(3, work)
    assert [message.split(".")[0] for message in messages] == [
        "Rank 1 has given up before this exchange of kind 'sampling'",
        f"`seeds` must be node ids from 0 to {N - 1}, but found {N}",
        "Rank 1 has given up before this exchange of kind 'sampling'",
    ]


def test_ranks_with_different_options_are_told() -> None:
    parts = cut(hub_graph(), owners("random", 2), 2)

    def work(channel: Channel) -> None:
        part = parts[channel.rank]
        PartNeighborSampler(part, NodeMap.collect(part, channel), channel, [5, 3 + channel.rank])

    with pytest.raises(RuntimeError, match=r"the same fan-outs and options, but those of rank \d are not"):
        run_ranks(2, work)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("another part", "Rank 0 of 2 must hold part 0 of 2, but got part 1 of 2"),
        ("two owners", "node 0 belongs to 2"),
        ("wrong owner", "`owner` says that node 4 belongs to rank 1, but rank 0 has it"),
        ("short owner", r"each of the graph's 6 nodes, but its shape is \(5,\)"),
        ("another map", r"must be the map of part (\d) of 2 and its 3 nodes, but is that of part (?!\1)\d of 2"),
        ("few weights", r"each of the part's 1 edges, but its shape is \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(what: str, message: str) -> None:
    owner = np.array([0, 1, 0, 1, 0, 1])
    edges = np.array([[0, 1], [1, 2]])
    parts = list(cut_graph(edges, owner, 2))

    def work(channel: Channel) -> None:
        part = parts[1 - channel.rank if what == "another part" else channel.rank]
        if what == "two owners":
            part = list(cut_graph(edges, np.full(6, channel.rank), 2))[channel.rank]
        given = {"wrong owner": np.array([0, 1, 0, 1, 1, 1]), "short owner": owner[:5]}.get(what)
        nodes = NodeMap.collect(part, channel, owner=given)
        if what == "another map":
            nodes = replace(nodes, rank=1 - channel.rank)
        weight = np.ones(3) if what == "few weights" else None
        PartNeighborSampler(part, nodes, channel, [1], edge_weight=weight)

    with pytest.raises(ValueError, match=message):
        run_ranks(2, work)

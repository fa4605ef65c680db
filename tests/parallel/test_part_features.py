"""Rows over the ranks that own them: those of the whole attribute, wherever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.datasets.rmat import make_rmat
from lightning_gnnopt.loading.hotness import degree_scores, hot_nodes, inclusion_probabilities
from lightning_gnnopt.parallel.channel import Channel, Traffic
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.part_features import GatherCounts, PartFeatures
from lightning_gnnopt.parallel.parts import GraphPart
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from tests.parallel.part_ranks import N, cut, hub_graph, owners

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool]


def attribute_of(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """All bit patterns there are, NaNs too."""
    generator = torch.Generator().manual_seed(2)
    if dtype == torch.bool:
        return torch.rand(N, *shape, generator=generator) < 0.5
    raw = torch.randint(256, (N, *shape, dtype.itemsize), generator=generator).to(torch.uint8)
    return raw.view(dtype).squeeze(-1)


def same_bits(one: Tensor, other: Tensor) -> bool:
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and one.contiguous().view(-1).view(torch.uint8).equal(
        other.contiguous().view(-1).view(torch.uint8)
    )


def requests(rank: int) -> list[NDArray[np.int64]]:
    """Any nodes, with repeats; nothing, too."""
    random = np.random.default_rng(rank)
    return [random.integers(0, N, int(size)) for size in (random.integers(1, 200), 0, random.integers(0, 30), 50)]


def gather_on_parts(
    parts: list[GraphPart], x: Tensor, cached: list[NDArray[np.int64] | None]
) -> list[tuple[list[Tensor], GatherCounts, Traffic, int]]:
    def work(channel: ThreadChannel) -> tuple[list[Tensor], GatherCounts, Traffic, int]:
        part = parts[channel.rank]
        nodes = NodeMap.collect(part, channel)
        features = PartFeatures(x[torch.from_numpy(part.inner)], nodes, channel, cached=cached[channel.rank])
        rows = [features.gather(ids) for ids in requests(channel.rank)]
        return rows, features.counts, channel.traffic, features.num_cached

    return run_ranks(len(parts), work, timeout_s=30.0)


@pytest.mark.parametrize("shape", [(4,), (), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_those_of_the_whole_with_and_without_a_cache(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, parts = attribute_of(dtype, shape), cut(hub_graph(), owners("one-is-empty", 3), 3)
    hot = np.random.default_rng(5).permutation(N)[:100]
    caches: list[list[NDArray[np.int64] | None]] = [[None] * 3, [hot, hot[:0], hot[::2]]]
    for cached in caches:
        for rank, (gathered, *_) in enumerate(gather_on_parts(parts, x, cached)):
            for rows, ids in zip(gathered, requests(rank), strict=True):
                assert same_bits(rows, x[torch.from_numpy(ids)])


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("with_cache", [False, True])
def test_each_row_is_counted_where_it_came_from(num_parts: int, with_cache: bool) -> None:
    """Against sets of ids; and the bytes that all ranks sent against what was fetched."""
    owner, x = owners("random", num_parts), attribute_of(torch.float32, (6,))
    hot = [np.arange(rank, N, 3) if with_cache else None for rank in range(num_parts)]
    found = gather_on_parts(cut(hub_graph(), owner, num_parts), x, hot)
    sent = filled = 0
    for rank, (_, counts, traffic, num_cached) in enumerate(found):
        mine = {v for v in range(N) if owner[v] == rank}
        cached = set() if hot[rank] is None else {*hot[rank].tolist()} - mine  # type: ignore[union-attr]
        expected = GatherCounts()
        for ids in requests(rank):
            others = [v for v in ids.tolist() if v not in mine | cached]
            expected.own += sum(v in mine for v in ids.tolist())
            expected.cached += sum(v in cached for v in ids.tolist())
            expected.fetched += len(others)
            expected.travelled += len(set(others))
        assert counts == expected
        assert counts.total == sum(map(len, requests(rank)))
        assert num_cached == len(cached)
        sent += traffic.by_kind["features"]
        filled += traffic.by_kind["features-cache"]
    header, word, row = 8 * num_parts * (num_parts - 1), 8, 6 * 4
    travelled = sum(counts.travelled for _, counts, *_ in found)
    assert sent == 4 * header + travelled * (word + row)  # four requests
    assert filled == 2 * header + sum(num_cached for *_, num_cached in found) * (word + row)  # what rows are like, too


def test_the_hit_rate_is_that_of_rows_of_others() -> None:
    assert GatherCounts(own=100, cached=3, fetched=9, travelled=5).hit_rate == 0.25
    assert GatherCounts(own=100).hit_rate == 0.0


def test_rows_can_lie_in_a_file(tmp_path: Path) -> None:
    x, parts = attribute_of(torch.float64, (3,)), cut(hub_graph(), owners("random", 2), 2)

    def work(channel: Channel) -> Tensor:
        part = parts[channel.rank]
        np.save(tmp_path / f"{channel.rank}.npy", x[torch.from_numpy(part.inner)].numpy())
        nodes = NodeMap.collect(part, channel)
        return PartFeatures(tmp_path / f"{channel.rank}.npy", nodes, channel).gather(np.arange(N))

    for rows in run_ranks(2, work):
        assert same_bits(rows, x)


def test_inclusion_probabilities_choose_better_rows_than_degrees() -> None:
    """On an R-MAT graph, of which each rank trains on a few nodes of its own."""
    data = make_rmat(seed=0, num_nodes=3_000, avg_degree=8.0, num_features=1)
    num_nodes, num_parts, fanouts, batch_size = 3_000, 2, [5, 3], 20
    topology = Topology.from_edge_index(data.edge_index, num_nodes)
    owner = owners("contiguous", num_parts, num_nodes)
    parts, sampler = cut(data.edge_index, owner, num_parts), NeighborSampler(topology, fanouts)
    x = torch.arange(num_nodes)

    def work(channel: Channel) -> dict[str, GatherCounts]:
        part = parts[channel.rank]
        nodes = NodeMap.collect(part, channel)
        train = part.inner[:100]
        chance = np.zeros(num_nodes)
        chance[train] = batch_size / len(train)
        scores = {"degree": degree_scores(topology), "vip": inclusion_probabilities(topology, chance, fanouts)}
        found = {}
        for name, score in scores.items():
            hot = hot_nodes(np.where(owner == channel.rank, 0.0, score), 100)
            features = PartFeatures(x[torch.from_numpy(part.inner)], nodes, channel, cached=hot)
            for i in range(40):
                key = SampleKey(channel.rank, batch=i)
                ids = sampler.sample(train[key.permutation(len(train))[:batch_size]], key).n_id
                assert features.gather(ids).tolist() == ids.tolist()
            found[name] = features.counts
        return found

    for counts in run_ranks(num_parts, work):
        assert counts["vip"].total == counts["degree"].total
        assert counts["vip"].cached > 1.05 * counts["degree"].cached > 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("few rows", "a row for each of the 3 nodes of part \\d, but has 2"),
        ("cached", "`cached` must be node ids from 0 to 5, but found 6"),
        ("ids", "`ids` must be node ids from 0 to 5, but found -1"),
        ("flat ids", "`ids` must be a one-dimensional array of integers"),
    ],
)
def test_what_does_not_fit_is_refused(what: str, message: str) -> None:
    parts = cut(torch.tensor([[0, 1], [1, 2]]), np.array([0, 1] * 3), 2)

    def work(channel: Channel) -> None:
        nodes = NodeMap.collect(parts[channel.rank], channel)
        wrong = channel.rank == 0
        cached = np.array([6 if wrong and what == "cached" else 1])
        features = PartFeatures(torch.zeros(2 if what == "few rows" else 3), nodes, channel, cached=cached)
        given: dict[str, Any] = {"ids": np.array([-1]), "flat ids": np.array([[1]])}
        features.gather(given.get(what, np.array([1])) if wrong else np.array([1]))

    with pytest.raises(ValueError, match=message):
        run_ranks(2, work)


def test_ids_that_cannot_be_are_told_to_all() -> None:
    parts = cut(hub_graph(), owners("random", 2), 2)

    def work(channel: Channel) -> str:
        nodes = NodeMap.collect(parts[channel.rank], channel)
        features = PartFeatures(torch.from_numpy(nodes.inner), nodes, channel)
        with pytest.raises((ValueError, RuntimeError)) as raised:
            features.gather(np.array([N if channel.rank == 0 else 0]))
        assert features.gather(np.arange(N)).tolist() == list(range(N))  # the ranks are still in step
        return str(raised.value)

    messages = run_ranks(2, work)
    assert messages[0].startswith("`ids` must be node ids")
    assert messages[1].startswith("Rank 0 has given up before this exchange of kind 'features'")


def test_ranks_with_different_rows_are_told() -> None:
    parts = cut(hub_graph(), owners("random", 2), 2)

    def work(channel: Channel) -> None:
        nodes = NodeMap.collect(parts[channel.rank], channel)
        PartFeatures(torch.zeros(len(nodes.inner), 2 + channel.rank), nodes, channel)

    with pytest.raises(RuntimeError, match="the same type and shape of a row"):
        run_ranks(2, work)

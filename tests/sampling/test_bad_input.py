"""What users can get wrong, wherever sampling begins: one sentence that says what, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gnnopt.sampling import (
    ClusterSampler,
    NeighborSampler,
    NodeSampler,
    SaintEdgeSampler,
    SaintNodeSampler,
    SampleKey,
    SeedsOnlySampler,
    Topology,
)
from lightning_gnnopt.sampling.checks import checked_seeds, first_decrease, first_outside, id_range

from .reference import random_graph, star

N = 40
IDS = "must be a one-dimensional array of integers, but got"
RANGE = "`seeds` must be node ids from 0 to 39, but found"


def samplers() -> list[NodeSampler]:
    graph = Topology.from_edge_index(random_graph(N, 200), N)
    return [NeighborSampler(graph, [2, -1]), SeedsOnlySampler(graph)]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (np.array([], np.int64), "`seeds` must hold at least one node, but it is empty. HINT: check the split's mask."),
        ([], "`seeds` must hold at least one node, but it is empty. HINT: check the split's mask."),
        (torch.zeros(0, dtype=torch.long), "`seeds` must hold at least one node, but it is empty."),
        (np.array([0.0, 1.0]), f"`seeds` {IDS} float64 of shape (2,). HINT: `mask.nonzero()` gives the ids"),
        (torch.tensor([0.5]), f"`seeds` {IDS} float32 of shape (1,)."),
        (np.ones(N, bool), f"`seeds` {IDS} bool of shape (40,)."),
        (torch.ones(N, dtype=torch.bool), f"`seeds` {IDS} bool of shape (40,)."),
        (np.zeros((2, 3), np.int64), f"`seeds` {IDS} int64 of shape (2, 3)."),
        (np.zeros((0, 3), np.int64), f"`seeds` {IDS} int64 of shape (0, 3)."),
        (np.array(3), f"`seeds` {IDS} int64 of shape ()."),
        (3, f"`seeds` {IDS} int64 of shape ()."),
        (np.array(["3"]), f"`seeds` {IDS} <U1 of shape (1,)."),
        ([0, 40], f"{RANGE} 40. HINT: seeds are global ids of the graph that is sampled."),
        ([0, -1, 99], f"{RANGE} -1."),
        (np.array([5, 2**40]), f"{RANGE} 1,099,511,627,776."),
        (np.array([5, 2**64 - 1], np.uint64), f"{RANGE} 18,446,744,073,709,551,615."),
        (np.array([5, -7], np.int8), f"{RANGE} -7."),
        (torch.tensor([3, 40], dtype=torch.int32), f"{RANGE} 40."),
    ],
)
def test_seeds_that_cannot_be_sampled_are_refused(sampler: NodeSampler, seeds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler.sample(seeds, SampleKey(0))


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize(
    "seeds",
    [
        [7, 0, 7, 39],
        torch.tensor([7, 0, 7, 39]),
        torch.tensor([7, 0, 7, 39], dtype=torch.uint8),
        np.array([7, 0, 7, 39], np.uint64),
        np.array([7, 1, 0, 1, 7, 1, 39, 1])[::2],
        np.broadcast_to(np.array([7, 0, 7, 39]), (2, 4))[1],
    ],
)
def test_seeds_of_any_kind_draw_the_same_batch(sampler: NodeSampler, seeds: Any) -> None:
    batch, expected = sampler.sample(seeds, SampleKey(3)), sampler.sample(np.array([7, 0, 7, 39]), SampleKey(3))
    for name in ("n_id", "row", "col", "positions"):
        assert getattr(batch, name).tolist() == getattr(expected, name).tolist()


def test_checking_seeds_copies_none() -> None:
    seeds = np.array([3, 1])
    assert checked_seeds(seeds, 4) is seeds
    assert np.shares_memory(checked_seeds(torch.from_numpy(seeds), 4), seeds)


@pytest.mark.parametrize("fanouts", [[0], [5, 0], [-2], [True], [2.0], [np.float32(2)], [None], ["5"]])
def test_fan_outs_that_cannot_be_sampled_are_refused(fanouts: list[Any]) -> None:
    message = f"integers that are positive or -1 (all neighbours), but got {fanouts[-1]!r} in {fanouts}. HINT: to use"
    with pytest.raises(ValueError, match=re.escape(message)):
        NeighborSampler(star(3), fanouts)


def test_the_passes_that_checks_rest_on() -> None:
    ids = np.array([3, -4, 9, 0])
    assert id_range(ids, ids[::-1]) == (-4, 9)
    assert id_range(ids[:1], ids[2:3]) == (0, 9)  # no id is below 0, whatever the lowest is
    assert id_range(ids[:0], ids[:0]) == (0, -1)
    assert id_range(ids[[1, 0]], ids[[0, 0]].astype(np.int8)) == (-4, 3)
    assert [first_outside(ids, 10), first_outside(ids[2:], 9), first_outside(ids[2:], 10)] == [1, 0, -1]
    assert first_outside(np.array([2**63], np.uint64), 9) == 0
    assert [first_decrease(np.array(numbers, np.int64)) for numbers in ([], [1], [1, 1, 2], [1, 3, 2, 0])] == [
        -1,
        -1,
        -1,
        2,
    ]


@pytest.mark.parametrize(
    "sampler_type", [SeedsOnlySampler, SaintNodeSampler, SaintEdgeSampler, partial(ClusterSampler, num_parts=2)]
)
def test_times_are_refused_where_nothing_goes_by_them(sampler_type: Callable[[Topology], NodeSampler]) -> None:
    graph = Topology.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    with pytest.raises(ValueError, match="`time` was given to a sampler that draws from all times"):
        sampler_type(graph).sample(np.array([0]), SampleKey(0), time=np.array([5]))


def test_subgraph_samplers_take_seeds_as_tensors_and_lists() -> None:
    graph = Topology.from_edge_index(random_graph(N, 200), N)
    for sampler in (ClusterSampler(graph, 4), SaintNodeSampler(graph), SaintEdgeSampler(graph)):
        expected = sampler.sample(np.array([3, 5]), SampleKey(1)).n_id.tolist()
        for seeds in (torch.tensor([3, 5]), [3, 5]):
            assert sampler.sample(seeds, SampleKey(1)).n_id.tolist() == expected

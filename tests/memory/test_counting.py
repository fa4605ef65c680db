from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.memory.counting import LeadingCounts, count
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select


@st.composite
def batches(draw: st.DrawFn) -> BatchStructure:
    num_nodes = draw(st.integers(1, 10))
    ends = st.integers(0, num_nodes - 1)
    row, col = np.array(draw(st.lists(st.tuples(ends, ends), max_size=25)), np.int32).reshape(-1, 2).T
    num_hops = draw(st.sampled_from([None, 1, 2, 3]))
    return BatchStructure(row, col, num_nodes, draw(st.integers(1, num_nodes)), num_hops)


def lists_of(selection: Selection) -> tuple[list[int], list[int], list[int]]:
    loops = selection.row == selection.col
    if selection.num_sampled_nodes is None or selection.num_sampled_edges is None:
        others = len(selection.nodes) - selection.num_seeds
        return [selection.num_seeds, others], [len(selection.edges)], [int(loops.sum())]
    ends = np.cumsum(selection.num_sampled_edges)[:-1]
    return selection.num_sampled_nodes, selection.num_sampled_edges, [int(hop.sum()) for hop in np.split(loops, ends)]


@settings(deadline=None, max_examples=200)
@given(batches(), st.randoms(use_true_random=False))
def test_counts_are_those_of_the_selection_for_any_number_of_edges(batch: BatchStructure, random: object) -> None:
    order = np.arange(batch.num_edges)
    random.shuffle(order)  # type: ignore[attr-defined]
    ranks = np.argsort(order).astype(np.int32)
    leading = LeadingCounts(batch, ranks)
    for num_edges in range(batch.num_edges + 1):
        keep = ranks < num_edges
        expected = lists_of(select(batch, keep=keep))
        for counts in (leading.at(num_edges), count(batch, keep)):
            assert (counts.nodes.tolist(), counts.edges.tolist(), counts.loops.tolist()) == expected


def test_without_a_mask_all_is_counted() -> None:
    batch = BatchStructure(np.array([1, 0, 2]), np.array([0, 0, 1]), num_nodes=4, num_seeds=1, num_hops=2)
    counts = count(batch)
    assert (counts.nodes.tolist(), counts.edges.tolist(), counts.loops.tolist()) == ([1, 1, 1], [2, 1], [1, 0])


def test_a_mask_of_another_batch_is_refused() -> None:
    batch = BatchStructure(np.array([1, 0, 2]), np.array([0, 0, 1]), num_nodes=4, num_seeds=1, num_hops=2)
    with pytest.raises(
        ValueError, match=r"`keep` must be bool of shape \(3,\), one for each edge, but is bool of shape"
    ):
        count(batch, np.ones(4, bool))

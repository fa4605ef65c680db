"""Fitters that leave a batch as it is, prune it or split it; the footprint is that of `fitting.py`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading import LinkSplit, LinkTask
from lightning_gnnopt.memory.any_batch import names_seeds
from lightning_gnnopt.memory.policy import MemoryBudgetError
from lightning_gnnopt.memory.predictors import MaxAffinePredictor
from lightning_gnnopt.sampling import LinkSubgraph
from tests.memory.fitting import (
    BATCH_EDGE,
    BATCH_NODE,
    EDGE,
    HELD,
    LOADERS,
    NODE,
    budget_for,
    bytes_of,
    drawn,
    loader_of,
    make,
    part_bytes,
    seeds_of,
)
from tests.memory.runs import make_graph

# What fits


@pytest.mark.parametrize("name", LOADERS)
def test_what_fits_is_the_same_object(name: str) -> None:
    for batch in drawn(name):
        fitter = make(batch, bytes_of(batch))
        assert fitter(batch) is batch
        assert (fitter.tally.batches, fitter.tally.over, fitter.tally.edges) == (1, 0, batch.num_edges)
        tight = make(batch, bytes_of(batch) - 1)
        assert tight(batch) is not batch
        assert (tight.tally.batches, tight.tally.over, tight.tally.edges) == (1, 1, batch.num_edges)


def test_without_a_prediction_nothing_is_done() -> None:
    subgraph, batch = drawn()
    fitter = make(subgraph, HELD + 1)
    fitter.footprint.predictors = {"step": MaxAffinePredictor(fitter.footprint.reader.names)}
    assert fitter(subgraph) is subgraph
    assert fitter.parts(batch) is None
    assert fitter.tally.batches == 0


def test_time_is_counted_where_it_is_spent() -> None:
    subgraph, _ = drawn()
    fitter = make(subgraph, bytes_of(subgraph))
    fitter(subgraph)
    assert (fitter.tally.worker_s > 0, fitter.tally.inline_s) == (True, 0)
    fitter.is_inline = True
    fitter(subgraph)
    assert fitter.tally.inline_s > 0


# Pruning


@pytest.mark.parametrize("share", [0.95, 0.7, 0.4])
@pytest.mark.parametrize("what", ["subgraph", "batch"])
@pytest.mark.parametrize("name", LOADERS)
def test_a_pruned_batch_fits_and_uses_what_there_is(name: str, what: str, share: float) -> None:
    batch = drawn(name)[what == "batch"]
    budget = budget_for(batch, share)
    fitter = make(batch, budget)
    pruned = fitter(batch)
    assert type(pruned) is type(batch)
    # 0.5 % of what the seeds leave, and one edge with the nodes that it strands.
    seeds_alone = HELD + (NODE + BATCH_NODE) * batch.batch_size
    assert budget - 0.005 * (budget - seeds_alone) - 4 * 200 <= bytes_of(pruned) <= budget
    assert seeds_of(pruned) == seeds_of(batch)
    assert (fitter.tally.pruned, fitter.tally.pruned_edges) == (1, batch.num_edges - pruned.num_edges)
    if name == "hops":
        assert sum(pruned.num_sampled_nodes) == len(pruned.n_id)
        assert sum(pruned.num_sampled_edges) == pruned.num_edges


@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_evaluation_prunes_at_once(stage: str) -> None:
    subgraph, _ = drawn()
    fitter = make(subgraph, budget_for(subgraph, 0.6), ("resample", "split"), stage=stage)
    pruned = fitter(subgraph, lambda attempt: pytest.fail("drawn anew"))
    assert bytes_of(pruned) <= fitter.budget_bytes
    assert (fitter.returns_seeds, fitter.splits) == (False, False)


def test_loops_are_counted_where_they_cost() -> None:
    batch = drawn(num_inputs=60)[1]
    batch.edge_index[0, ::5] = batch.edge_index[1, ::5]
    loop = 300

    def cost(some: Any) -> int:
        return bytes_of(some) + loop * int((some.edge_index[0] == some.edge_index[1]).sum())

    budget = HELD + int(0.6 * (cost(batch) - HELD))
    pruned = make(batch, budget, loops=loop)(batch)
    assert 0.97 * budget <= cost(pruned) <= budget


def test_padded_rows_shrink_with_the_nodes() -> None:
    """An aggregation that pads costs as many rows as nodes times the largest in-degree, taken as it was."""
    batch = drawn(num_inputs=60)[1]

    def cost(some: Any, largest: int) -> int:
        return bytes_of(some) + 100 * int(some.num_nodes) * largest

    largest = int(torch.bincount(batch.edge_index[1]).max())
    budget = HELD + int(0.7 * (cost(batch, largest) - HELD))
    pruned = make(batch, budget, padded=100)(batch)
    assert 0.97 * budget <= cost(pruned, largest) <= budget


def test_batches_ahead_count() -> None:
    subgraph, _ = drawn()
    budget = HELD + int(0.6 * (bytes_of(subgraph, ahead=3) - HELD))
    pruned = make(subgraph, budget, ahead=3)(subgraph)
    assert 0.95 * budget <= bytes_of(pruned, ahead=3) <= budget


def test_weights_say_which_edges_stay() -> None:
    subgraph, _ = drawn()
    weights = np.random.default_rng(0).random(subgraph.num_edges)
    fitter = make(subgraph, budget_for(subgraph, 0.7), pruning="inverse_weight", weights=lambda batch: weights)
    pruned = fitter(subgraph)
    kept = set(pruned.positions.tolist())
    expanded = set(pruned.n_id[: sum(pruned.num_sampled_nodes[:-1])].tolist())
    by_end: dict[int, list[tuple[float, bool]]] = {}
    ends = subgraph.n_id[subgraph.col].tolist()
    for place, end, weight in zip(subgraph.positions.tolist(), ends, weights.tolist(), strict=True):
        by_end.setdefault(end, []).append((weight, place in kept))
    # Of the edges that lead to a node, as far as it is still read, the lightest go.
    assert len(expanded & by_end.keys()) > 20
    for end in expanded & by_end.keys():
        light_to_heavy = [is_kept for _, is_kept in sorted(by_end[end])]
        assert light_to_heavy == sorted(light_to_heavy)
    with pytest.raises(MemoryBudgetError, match=r"needs the weights of edges\. HINT: pass `weight_attr`"):
        make(subgraph, budget_for(subgraph, 0.9), pruning="inverse_weight")(subgraph)


def test_seeds_that_are_too_large_are_an_error_with_numbers() -> None:
    subgraph, _ = drawn()
    budget = HELD + (NODE + BATCH_NODE) * 32 - 1
    with pytest.raises(MemoryBudgetError) as caught:
        make(subgraph, budget)(subgraph)
    message = str(caught.value)
    for expected in (
        "A 'train' batch does not fit",
        f"({budget:,} bytes)",
        f"it would need {bytes_of(subgraph):,} bytes, {HELD:,} of them for the model",
        f"{BATCH_NODE * subgraph.num_nodes + BATCH_EDGE * subgraph.num_edges:,} for batches",
        f"{NODE * subgraph.num_nodes + EDGE * subgraph.num_edges:,} for the step",
        "nodes_0 32, ",
        f"without any edge, need {budget + 1:,} bytes",
        " HINT: ",
    ):
        assert expected in message


def test_pruning_is_a_function_of_the_batch_in_any_thread() -> None:
    loader = loader_of(num_neighbors=[6, 4])
    subgraphs = [loader.draw(num)[0] for num in range(12, 32)]
    fitter = make(subgraphs[0], budget_for(subgraphs[0], 0.6), pruning="random")
    alone = [fitter(subgraph) for subgraph in subgraphs]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(fitter, reversed(subgraphs)))[::-1]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
    assert fitter.tally.batches == 2 * len(subgraphs)


def test_links_stay_and_their_subgraph_is_pruned() -> None:
    pairs = torch.randint(210, (2, 60), generator=torch.Generator().manual_seed(4))
    links = LinkTask(train=LinkSplit(pairs), negatives="binary", amount=1.0)
    batch, _ = drawn(links=links)
    assert isinstance(batch, LinkSubgraph)
    budget = HELD + int(0.7 * (bytes_of(batch.subgraph) - HELD))
    pruned = make(batch, budget)(batch)
    assert 0.95 * budget <= bytes_of(pruned.subgraph) <= budget
    np.testing.assert_array_equal(pruned.edge_label_index, batch.edge_label_index)
    num_ends = int(batch.edge_label_index.max()) + 1
    np.testing.assert_array_equal(pruned.subgraph.n_id[:num_ends], batch.subgraph.n_id[:num_ends])


def test_types_of_edges_cannot_be_cut_and_it_says_so() -> None:
    batch = HeteroData()
    batch["a"].num_nodes = 3
    batch["a"].num_sampled_nodes = [1, 2]
    batch["a", "to", "a"].edge_index = torch.tensor([[1, 2], [0, 0]])
    batch["a", "to", "a"].num_sampled_edges = [2]
    with pytest.raises(MemoryBudgetError, match=r"prune: batches of heterogeneous graphs cannot be cut.* HINT: "):
        make(batch, HELD + 10)(batch)


# Splitting


@pytest.mark.parametrize("share", [0.95, 0.75])
@pytest.mark.parametrize("name", ["hops", "trees"])
def test_parts_are_all_seeds_in_order_and_fit(name: str, share: float) -> None:
    subgraph, batch = drawn(name)
    budget = budget_for(batch, share)
    fitter = make(batch, budget, "split")
    assert fitter(subgraph) is subgraph
    parts = fitter.parts(batch)
    assert parts is not None
    made = [part.make() for part in parts]
    assert [seed for part in made for seed in seeds_of(part)] == seeds_of(batch)
    assert [part.num_seeds for part in parts] == [part.batch_size for part in made]
    assert max(part_bytes(batch, part) for part in made) <= budget
    assert fitter.split_predicted == max(part_bytes(batch, part) for part in made)
    assert sum(part.weight for part in parts) == pytest.approx(1)
    assert [part.weight for part in parts] == pytest.approx([part.num_seeds / 32 for part in parts])
    assert (fitter.tally.splits, fitter.tally.parts) == (1, len(parts))
    # No two neighbours would do as one, unless the first is full already.
    for first, second in pairwise(made):
        assert part_bytes(batch, first) >= 0.97 * budget or second.batch_size >= 1
    positions = sorted(set(batch.n_id[batch.edge_index[1]].tolist()))
    assert positions == sorted({int(v) for part in made for v in part.n_id[part.edge_index[1]]})


def test_what_fits_is_not_split() -> None:
    _, batch = drawn()
    fitter = make(batch, bytes_of(batch), "split")
    assert fitter.parts(batch) is None
    assert fitter.split_predicted is None


def test_a_batch_that_was_made_to_fit_is_split_when_the_step_costs_more_now() -> None:
    subgraph, batch = drawn()
    fitter = make(subgraph, bytes_of(subgraph), "prune")
    assert fitter(subgraph) is subgraph
    fitter.budget_bytes = budget_for(batch, 0.8)
    parts = fitter.parts(batch)
    assert parts is not None
    assert max(part_bytes(batch, part.make()) for part in parts) <= fitter.budget_bytes
    assert fitter.tally.late == 1


def test_one_seed_at_a_time_that_is_too_large() -> None:
    _, batch = drawn()
    whole = HELD + BATCH_NODE * batch.num_nodes + BATCH_EDGE * batch.num_edges
    with pytest.raises(MemoryBudgetError, match=r"split: one seed at a time is still too large.*HINT"):
        make(batch, whole + 100, "split").parts(batch)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_parts(reduction: str) -> None:
    _, batch = drawn()
    fitter = make(batch, 2**40, "split", loss_reduction=reduction)
    parts = fitter.more_parts(batch, 5)
    assert parts is not None
    sizes = [7, 7, 6, 6, 6]
    assert [part.num_seeds for part in parts] == sizes
    assert [part.weight for part in parts] == ([1.0] * 5 if reduction == "sum" else [size / 32 for size in sizes])


def test_norms_of_seeds_weigh_the_parts_in_training() -> None:
    _, batch = drawn()
    batch.node_norm = torch.rand(batch.num_nodes, generator=torch.Generator().manual_seed(0))
    shares = [float(part.sum() / batch.node_norm[:32].sum()) for part in batch.node_norm[:32].split(8)]
    for stage, expected in (("train", shares), ("val", [0.25] * 4)):
        parts = make(batch, 2**40, "split", stage=stage, exact=True).more_parts(batch, 4)
        assert parts is not None
        assert [part.weight for part in parts] == pytest.approx(expected)


def test_more_parts_up_to_one_for_each_seed() -> None:
    _, batch = drawn()
    fitter = make(batch, 2**40, "prune")
    parts = fitter.more_parts(batch, 32)
    assert parts is not None
    assert [part.make().batch_size for part in parts] == [1] * 32
    assert fitter.more_parts(batch, 33) is None


def unnamed(batch: Data) -> Data:
    del batch.batch_size, batch.num_sampled_nodes, batch.num_sampled_edges
    return batch


def test_batches_that_do_not_say_their_seeds_are_not_split() -> None:
    batch = unnamed(drawn()[1])
    assert not names_seeds(batch)
    assert make(batch, 2**40, "prune").more_parts(batch, 2) is None
    assert make(batch, HELD + 10, "prune").parts(batch) is None
    with pytest.raises(MemoryBudgetError, match=r"split: needs batches of nodes that say their seeds"):
        make(batch, HELD + 10, "split").parts(batch)


NOT_NODES: dict[str, Callable[[Data], Any]] = {
    "links": lambda batch: batch.update({"edge_label_index": torch.tensor([[0], [1]])}),
    "types": lambda batch: HeteroData(),
    "subgraph": lambda batch: drawn()[0],
}


@pytest.mark.parametrize("what", NOT_NODES)
def test_only_batches_of_nodes_name_seeds(what: str) -> None:
    _, batch = drawn()
    assert names_seeds(batch)
    assert not names_seeds(NOT_NODES[what](batch))


# What was touched


def test_what_was_touched_is_told_once() -> None:
    subgraph, batch = drawn()
    fitter = make(subgraph, budget_for(subgraph, 0.7))
    assert not fitter.was_touched(fitter.footprint.features(batch))
    pruned = fitter.footprint.features(fitter(subgraph))
    assert [fitter.was_touched(pruned), fitter.was_touched(pruned)] == [True, False]
    split = make(batch, budget_for(batch, 0.9), "split")
    split.parts(batch)
    assert split.was_touched(split.footprint.features(batch))


def test_graphs_without_loaders_are_batches() -> None:
    """A whole graph has no ids, and is pruned all the same, in the same way each time."""
    data = make_graph()
    budget = budget_for_graph(data, 0.6)
    one, other = (make(data, budget)(data) for _ in range(2))
    assert torch.equal(one.edge_index, other.edge_index)
    assert bytes_of(one) <= budget
    assert one.num_nodes == data.num_nodes  # all are seeds


def budget_for_graph(data: Data, share: float) -> int:
    return bytes_of(data) - int((1 - share) * (EDGE + BATCH_EDGE) * data.num_edges)

"""Fitters with a footprint made by hand: 90 bytes a node and 40 an edge in the step, 50 and 16 in the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading import LinkSplit, LinkTask
from lightning_gnnopt.memory.any_batch import names_seeds
from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.policy import MemoryBudgetError, Policy
from lightning_gnnopt.memory.predictors import AnalyticPredictor, MaxAffinePredictor
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.sampling import ClusterSampler, LinkSubgraph, Subgraph
from tests.memory.runs import make_datamodule, make_graph

HELD = 10_000
NODE, EDGE, BATCH_NODE, BATCH_EDGE = 90, 40, 50, 16

LOADERS: dict[str, dict[str, Any]] = {
    "hops": {},
    "trees": {"sampler": "shadow", "num_neighbors": [4, 3]},
    "clusters": {
        "sampler": partial(ClusterSampler, num_parts=12, clusters_per_batch=3),
        "num_neighbors": None,
        "eval_num_neighbors": [6, 4],
    },
}


def loader_of(name: str = "hops", **options: Any) -> Any:
    datamodule = make_datamodule(**{**LOADERS[name], **options})
    datamodule.setup("fit")
    return datamodule.train_dataloader()


def drawn(name: str = "hops", num_inputs: int = 32, attempt: int = 0, **options: Any) -> tuple[Any, Any]:
    subgraph, batch = loader_of(name, **options).draw(num_inputs, attempt=attempt)
    return subgraph, batch


def bytes_of(batch: Any, ahead: int = 0) -> int:
    """What the footprint should say, from the sizes of the arrays."""
    nodes, edges = int(batch.num_nodes), int(batch.num_edges)
    return HELD + NODE * nodes + EDGE * edges + (1 + ahead) * (BATCH_NODE * nodes + BATCH_EDGE * edges)


def part_bytes(whole: Any, part: Any) -> int:
    nodes, edges = whole.num_nodes, whole.num_edges
    batches = BATCH_NODE * (nodes + part.num_nodes) + BATCH_EDGE * (edges + part.num_edges)
    return int(HELD + batches + NODE * part.num_nodes + EDGE * part.num_edges)


def footprint_of(example: Any, *, ahead: int = 0, **costs: float) -> Footprint:
    reader = FeatureReader(example, loops="loops" in costs, padded="padded" in costs)

    def row(node: float, edge: float) -> list[float]:
        by_kind = {"nodes": node, "edges": edge, **costs}
        return [0.0] + [by_kind.get(name.split("_")[0], 0.0) for name in reader.names]

    step = row(NODE, EDGE)
    predictor = AnalyticPredictor([step], feature_names=reader.names)
    batch_row = np.array([value if value in (BATCH_NODE, BATCH_EDGE) else 0 for value in row(BATCH_NODE, BATCH_EDGE)])
    return Footprint(
        reader=reader,
        predictors={"step": predictor},
        batch_row=batch_row,
        held_bytes=HELD,
        ahead=Ahead(batches=ahead),
    )


def make(
    example: Any, budget: float, on_exceed: str | Sequence[str] = "prune", *, stage: str = "train", **options: Any
) -> Fitter:
    policy = {
        name: options.pop(name)
        for name in ("max_resamples", "pruning", "keep_connected", "exact", "depth", "loss_reduction")
        if name in options
    }
    weights = options.pop("weights", None)
    return Fitter(
        footprint_of(example, **options),
        int(budget),
        Policy(on_exceed=on_exceed, **policy),  # type: ignore[arg-type]
        stage,
        Tally(),
        weights=weights,
    )


def budget_for(batch: Any, share: float) -> int:
    """A share of what the batch takes beyond the model."""
    return HELD + int(share * (bytes_of(batch) - HELD))


def seeds_of(batch: Any) -> list[int]:
    return [int(node) for node in batch.n_id[: batch.batch_size]]


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


# Resampling


class Draws:
    """Gives prepared batches, and notes what it was asked for."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.attempts = list(batches), list[int]()

    def __call__(self, attempt: int) -> Any:
        self.attempts.append(attempt)
        return self.batches[attempt - 1]


def of_fanouts(*fanouts: int) -> list[Subgraph]:
    return [drawn(num_neighbors=[fanout, 4])[0] for fanout in fanouts]


def test_the_first_draw_that_fits_is_taken() -> None:
    large, *others = of_fanouts(8, 7, 6, 2, 1)
    draws = Draws(others)
    fitter = make(large, bytes_of(others[2]), ("resample", "prune"))
    assert fitter(large, draws) is others[2]
    assert draws.attempts == [1, 2, 3]
    tally = fitter.tally
    assert (tally.batches, tally.over, tally.resamples, tally.pruned) == (1, 1, 3, 0)
    assert tally.edges == others[2].num_edges


def test_if_none_fits_the_smallest_is_pruned() -> None:
    large, *others = of_fanouts(8, 7, 3, 6)
    fitter = make(large, budget_for(others[1], 0.8), ("resample", "prune"), max_resamples=3)
    pruned = fitter(large, Draws(others))
    assert set(pruned.positions.tolist()) <= set(others[1].positions.tolist())
    assert (fitter.tally.resamples, fitter.tally.edges) == (3, others[1].num_edges)


def test_draws_that_are_all_alike_are_given_up() -> None:
    (large,) = of_fanouts(8)
    draws = Draws([large] * 10)
    make(large, bytes_of(large) - 100, ("resample", "prune"))(large, draws)
    assert draws.attempts == [1, 2, 3]


def test_draws_that_differ_are_all_tried() -> None:
    sizes = [8, 2, 8, 2, 8, 2, 8, 2, 8, 2]
    large, *others = of_fanouts(8, *sizes)
    draws = Draws(others)
    make(large, bytes_of(others[1]) - 100, ("resample", "prune"))(large, draws)
    assert draws.attempts == list(range(1, 11))


@pytest.mark.parametrize("max_resamples", [0, 2])
def test_no_more_draws_than_allowed(max_resamples: int) -> None:
    (large,) = of_fanouts(8)
    draws = Draws([large] * 10)
    make(large, bytes_of(large) - 1, ("resample", "prune"), max_resamples=max_resamples)(large, draws)
    assert len(draws.attempts) == max_resamples


def test_how_to_draw_anew_is_asked_only_where_it_may_help() -> None:
    large, small = of_fanouts(8, 2)
    asked: list[str] = []
    fitter = make(large, bytes_of(small), ("resample", "prune"))
    fitter.fit(small, lambda: asked.append("fits"))  # type: ignore[func-returns-value]
    fitter.spread_bytes = (bytes_of(large) - bytes_of(small)) / 4.1
    fitter.fit(large, lambda: asked.append("hopeless"))  # type: ignore[func-returns-value]
    assert (asked, fitter.tally.pruned) == ([], 1)
    fitter.spread_bytes = (bytes_of(large) - bytes_of(small)) / 3.9
    draws = Draws([small])
    assert fitter.fit(large, lambda: draws) is small
    assert draws.attempts == [1]


def test_without_a_way_to_draw_anew_it_is_pruned() -> None:
    (large,) = of_fanouts(8)
    fitter = make(large, budget_for(large, 0.5), ("resample", "prune"))
    assert bytes_of(fitter(large)) <= fitter.budget_bytes
    assert fitter.tally.resamples == 0


def test_a_resampled_batch_that_is_too_large_is_left_to_the_split() -> None:
    large, *others = of_fanouts(8, 3, 6)
    fitter = make(large, budget_for(others[0], 0.8), ("resample", "split"), max_resamples=2)
    assert fitter(large, Draws(others)) is others[0]
    assert fitter.splits


def test_watching_changes_nothing() -> None:
    subgraph, batch = drawn()
    for stage in ("train", "val"):
        fitter = make(subgraph, HELD + 1, "watch", stage=stage)
        assert fitter(subgraph, lambda attempt: pytest.fail("drawn anew")) is subgraph
        assert fitter.parts(batch) is None
        assert (fitter.tally.batches, fitter.tally.over, fitter.tally.splits) == (1, 1, 0)


# Shrinking


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("name", LOADERS)
def test_leading_seeds_stay_and_no_edge_of_theirs_goes(name: str, share: float) -> None:
    subgraph, _ = drawn(name)
    budget = budget_for(subgraph, share)
    fitter = make(subgraph, budget, ("shrink", "prune"), depth=1 if name == "clusters" else None)
    assert fitter.returns_seeds
    if name == "clusters" and share < 0.9:
        return
    shrunk = fitter(subgraph)
    assert bytes_of(shrunk) <= budget
    assert 0 < shrunk.batch_size < subgraph.batch_size
    assert seeds_of(shrunk) == seeds_of(subgraph)[: shrunk.batch_size]
    tally = fitter.tally
    assert (tally.shrunk, tally.returned_seeds) == (1, subgraph.batch_size - shrunk.batch_size)
    for seed in range(shrunk.batch_size):  # in-edges, by their places in the graph
        mine, whole = shrunk.positions[shrunk.col == seed], subgraph.positions[subgraph.col == seed]
        assert sorted(mine.tolist()) == sorted(whole.tolist())


def test_as_many_seeds_stay_as_fit() -> None:
    """The reference tries each number; one that fills 97 % of the budget will do."""
    subgraph, _ = drawn()
    for share in (0.9, 0.6, 0.3):
        budget = budget_for(subgraph, share)
        shrunk = make(subgraph, budget, "shrink")(subgraph)
        more = make(subgraph, budget, "shrink")
        assert bytes_of(shrunk) >= 0.97 * budget or not fits_with(more, subgraph, shrunk.batch_size + 1)


def fits_with(fitter: Fitter, subgraph: Subgraph, num_seeds: int) -> bool:
    """Whether so many leading seeds fit, found by a walk over the edges in plain Python."""
    hops = 2
    reached = list(range(num_seeds))
    frontier, edges = set(reached), 0
    seen = set(reached)
    for _ in range(hops):
        found = [e for e in range(subgraph.num_edges) if int(subgraph.col[e]) in frontier]
        edges += len(found)
        frontier = {int(subgraph.row[e]) for e in found} - seen
        seen |= frontier
    nodes = len(seen)
    return HELD + (NODE + BATCH_NODE) * nodes + (EDGE + BATCH_EDGE) * edges <= fitter.budget_bytes


def test_a_single_seed_that_does_not_fit() -> None:
    subgraph, _ = drawn()
    with pytest.raises(MemoryBudgetError, match=r"shrink: The seeds alone"):
        make(subgraph, HELD + 150, "shrink")(subgraph)


def test_shrinking_gives_up_seeds_and_pruning_takes_over() -> None:
    subgraph, _ = drawn(num_neighbors=[-1, -1])
    budget = HELD + (NODE + BATCH_NODE) * 32 + 500
    pruned = make(subgraph, budget, ("shrink", "prune"))(subgraph)
    assert bytes_of(pruned) <= budget


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

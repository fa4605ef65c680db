"""Fitters that leave out seeds."""

from __future__ import annotations

import pytest

from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.policy import MemoryBudgetError
from lightning_gnnopt.sampling import Subgraph
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
    make,
    seeds_of,
)

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

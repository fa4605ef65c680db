"""How many seeds of a batch a part may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.parts import Part
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select

FULL = 0.97
"""Of the budget: what takes more need not be larger."""
_FEWEST = 8  # seeds of a part


class SeedTooLarge(ValueError):  # noqa: N818 - a statement of fact
    """A single seed does not fit.

    Args:
        upper_bytes: What it would need.
    """

    def __init__(self, upper_bytes: float) -> None:
        super().__init__(f"A part of a single seed would need {upper_bytes:,.0f} bytes.")
        self.upper_bytes = upper_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Splitter:
    """Finds the parts of one batch.

    Args:
        structure: The batch.
        footprint: Predicts the bytes at the peak of a step.
        features: The batch's features, shape ``(P,)``: it stays while a part runs.
        budget_bytes: What no part must exceed.
        depth: Layers of the model, for batches without hops.
    """

    structure: BatchStructure
    footprint: Footprint
    features: NDArray[np.float64]
    budget_bytes: float
    depth: int | None = None

    def split(self) -> tuple[list[Selection], float]:
        """Take runs of seeds, from the first seed on, each as long as fits.

        Returns:
            The parts, and the bytes of the largest one's peak.

        Raises:
            SeedTooLarge: If one seed alone does not fit.
        """
        selections: list[Selection] = []
        largest, first, guess = 0.0, 0, self.structure.num_seeds // 2
        while first < self.structure.num_seeds:
            selection, upper = self._next_part(first, guess)
            selections.append(selection)
            largest, first, guess = max(largest, upper), first + selection.num_seeds, selection.num_seeds
        return self._without_rest(selections), largest

    def _next_part(self, first: int, guess: int) -> tuple[Selection, float]:
        """Find a run of seeds, from one on, that fills the budget."""
        low, high = 0, self.structure.num_seeds - first + 1  # a number that fits, one that does not
        best: tuple[Selection, float] | None = None
        guess = min(max(guess, 1), high - 1)
        while low < high - 1:
            selection = self._select(np.arange(first, first + guess))
            upper = self._upper(selection)
            if upper <= self.budget_bytes:
                low, best = guess, (selection, upper)
                if upper >= FULL * self.budget_bytes:
                    break
            else:
                high = guess
                if guess == 1:
                    raise SeedTooLarge(upper)
            guess = (low + high) // 2 if high <= self.structure.num_seeds - first else min(2 * low, high - 1)
        assert best is not None
        return best

    def _without_rest(self, selections: list[Selection]) -> list[Selection]:
        """Let the part before the last give it some seeds: of a single one there are no batch statistics."""
        if len(selections) < 2:
            return selections
        together = selections[-2].num_seeds + selections[-1].num_seeds
        fewest = min(_FEWEST, together // 2)
        if selections[-1].num_seeds >= fewest:
            return selections
        seeds = np.arange(self.structure.num_seeds - together, self.structure.num_seeds)
        last = [self._select(part) for part in (seeds[:-fewest], seeds[-fewest:])]
        if any(self._upper(part) > self.budget_bytes for part in last):
            return selections
        return [*selections[:-2], *last]

    def _select(self, seeds: NDArray[np.integer]) -> Selection:
        return select(self.structure, seeds=seeds, depth=self.depth)

    def _upper(self, selection: Selection) -> float:
        return self.footprint.upper_of_part(self.features, self.footprint.features(_Counted(selection)))


def even_parts(structure: BatchStructure, num_parts: int, *, depth: int | None = None) -> list[Selection]:
    """Give each of `num_parts` about the same number of seeds."""
    return [
        select(structure, seeds=seeds, depth=depth)
        for seeds in np.array_split(np.arange(structure.num_seeds), num_parts)
    ]


def parts_of(batch: Any, selections: Sequence[Selection], policy: Policy, *, training: bool) -> list[Part]:
    """Make what is run of what was selected, each part weighed by what the loss of its seeds is in the whole."""
    norms = batch.get("node_norm")
    weights = [float(selection.num_seeds) for selection in selections]
    if policy.loss_reduction == "sum":
        weights = [1.0] * len(selections)
    elif norms is not None and training:
        weights = [float(norms[selection.nodes[: selection.num_seeds]].double().sum()) for selection in selections]
    total = 1.0 if policy.loss_reduction == "sum" else sum(weights)
    return [
        Part(make=partial(cut_batch, batch, selection), num_seeds=selection.num_seeds, weight=weight / total)
        for selection, weight in zip(selections, weights, strict=True)
    ]


class _Counted:
    """Has what `FeatureReader` reads, for a batch that has not been cut out."""

    def __init__(self, selection: Selection) -> None:
        self.row, self.col = selection.row, selection.col
        self.num_nodes, self.num_edges = len(selection.nodes), len(selection.edges)
        self.batch_size = selection.num_seeds
        self.num_sampled_nodes = selection.num_sampled_nodes
        self.num_sampled_edges = selection.num_sampled_edges

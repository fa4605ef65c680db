"""Make the batches of a stage fit into the budget."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import Data

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.cutting import cut_batch, cut_subgraph
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.policy import MemoryBudgetError, Policy
from lightning_gnnopt.memory.pruning import DoesNotFit, keep_order, prune
from lightning_gnnopt.memory.scores import SCORES
from lightning_gnnopt.memory.split_steps import Part
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.sampling import SampleKey, Subgraph

Resample = Callable[[int], Any]
Weights = Callable[[Any], NDArray[np.floating]]
_MAX_TOUCHED = 10_000
_FULL = 0.97  # of the budget: a part that takes more need not be larger
_HOPELESS = 4  # standard deviations
_FEWEST = 8  # seeds of a part
_LEAST_UPPERS = 4


class Fitter:
    """Looks at each batch of a stage before its step, and changes it if it would not fit.

    It is a transform of `PrefetchLoader`'s: ``fitter(subgraph, resample)`` runs in the loader's threads, at once for
    different batches. Batches of other loaders are looked at when they are there.

    What it does depends on the batch alone, and on what was learned so far of the step.

    Args:
        footprint: Predicts the bytes at the peak of a step.
        budget_bytes: What they must not exceed.
        policy: What is tried.
        stage: The stage.
        tally: Counts what was done.
        weights: Gives the weights of a batch's edges, for scores that need them.
    """

    def __init__(
        self,
        footprint: Footprint,
        budget_bytes: int,
        policy: Policy,
        stage: str,
        tally: Tally,
        *,
        weights: Weights | None = None,
    ) -> None:
        self.footprint = footprint
        self.budget_bytes = budget_bytes
        self.policy = policy
        self.stage = stage
        self.tally = tally
        self._remedies = policy.remedies(stage)
        self._weights = weights
        self._touched: dict[bytes, None] = {}
        self._uppers: deque[float] = deque(maxlen=64)
        self.is_inline = False
        """Whether it is called between steps."""
        self.spread_bytes: float | None = None
        """Standard deviation of what batches take, as far as it is known: what is further away is not drawn anew."""
        self.split_predicted: float | None = None
        """What was predicted for the batch that is run in parts now."""

    @property
    def returns_seeds(self) -> bool:
        """Whether a batch may leave out seeds, which the loader has to bring back."""
        return "shrink" in self._remedies

    @property
    def splits(self) -> bool:
        """Whether a batch that is too large is run in parts."""
        return "split" in self._remedies

    # Before the step

    def __call__(self, batch: Any, resample: Resample | None = None) -> Any:
        """Return the batch to use instead: the batch itself if it fits.

        Args:
            batch: A sampled subgraph, or a PyG batch.
            resample: Draws the same seeds again; its argument is the attempt, from 1. None if that cannot be done.

        Raises:
            MemoryBudgetError: If nothing that may be tried makes it fit.
        """
        started_s = time.perf_counter()
        fitted = self._fit(batch, resample) if self.footprint.is_ready else batch
        elapsed_s = time.perf_counter() - started_s
        self.tally.add(**{"inline_s" if self.is_inline else "worker_s": elapsed_s})
        return fitted

    def _fit(self, batch: Any, resample: Resample | None) -> Any:
        features = self.footprint.features(batch)
        upper = self.footprint.upper(features)
        if self.is_inline:
            self._learn_spread(upper)
        if upper <= self.budget_bytes:
            self.tally.add(batches=1, edges=_edges_of(batch).num_edges)
            return batch
        fitted = self._tried(batch, upper, resample)
        if fitted is not batch:
            self._remember(self.footprint.features(fitted))
        return fitted

    def _learn_spread(self, upper: float) -> None:
        """Learn how much batches differ, from those that came before; inline these are the same in every run."""
        self._uppers.append(upper)
        if len(self._uppers) >= _LEAST_UPPERS:
            self.spread_bytes = float(np.std(self._uppers, ddof=1))

    def _tried(self, batch: Any, upper: float, resample: Resample | None) -> Any:
        reasons: list[str] = []
        best = batch
        self.tally.add(batches=1, over=1)
        for remedy in self._remedies:
            if remedy == "resample" and resample is not None:
                best, upper = self._resampled(batch, upper, resample)
                if upper <= self.budget_bytes:
                    self.tally.add(edges=_edges_of(best).num_edges)
                    return best
            elif remedy in ("split", "watch"):  # at the step, where the whole batch is; never
                self.tally.add(edges=_edges_of(best).num_edges)
                return best
            elif remedy in ("prune", "shrink"):
                change = self._pruned if remedy == "prune" else self._shrunk
                try:
                    return change(best)
                except DoesNotFit as error:
                    reasons.append(f"{remedy}: {error}")
                except TypeError as error:
                    reasons.append(f"{remedy}: {error}")
        raise self._refused(best, upper, reasons)

    def _resampled(self, batch: Any, upper: float, resample: Resample) -> tuple[Any, float]:
        """Draw anew until it fits, or draws differ too little for that; then the smallest, which loses least."""
        best, drawn_uppers = batch, [upper]
        if self.spread_bytes is not None and upper - self.budget_bytes > _HOPELESS * self.spread_bytes:
            return best, upper
        for attempt in range(1, self.policy.max_resamples + 1):
            if attempt > 3 and np.mean(drawn_uppers) - _HOPELESS * np.std(drawn_uppers, ddof=1) > self.budget_bytes:
                break
            self.tally.add(resamples=1)
            drawn = resample(attempt)
            upper_of_drawn = self.footprint.upper(self.footprint.features(drawn))
            drawn_uppers.append(upper_of_drawn)
            if upper_of_drawn < upper:
                best, upper = drawn, upper_of_drawn
            if upper <= self.budget_bytes:
                break
        return best, upper

    def _pruned(self, batch: Any) -> Any:
        structure, edges = _structure_of(batch), _edges_of(batch)
        order = keep_order(
            structure,
            self._scores(batch, structure),
            key=_key(batch),
            keep_connected=self.policy.keep_connected,
            by_destination=self.policy.pruning != "random",
        )
        row = self._row_of(batch)
        selection = prune(
            structure,
            order,
            lambda counts: self.footprint.upper(row(counts)),
            self.budget_bytes,
            pieces=self.footprint.pieces(),
        )
        self.tally.add(pruned=1, edges=edges.num_edges, pruned_edges=edges.num_edges - len(selection.edges))
        return _cut(batch, selection)

    def _shrunk(self, batch: Any) -> Any:
        structure = _structure_of(batch)
        low, high, fitted = 0, structure.num_seeds, None  # seeds that fit, that do not
        guess = max(1, int(high * self._share_that_fits(batch)))
        while low < high - 1 or fitted is None:
            num_seeds = min(max(guess, low + 1), high - 1)
            if num_seeds < 1:
                break
            selection = select(structure, seeds=np.arange(num_seeds), depth=self.policy.depth)
            candidate = _cut(batch, selection)
            upper = self.footprint.upper(self.footprint.features(candidate))
            if upper <= self.budget_bytes:
                low, fitted = num_seeds, candidate
                if upper >= _FULL * self.budget_bytes:
                    break
            else:
                high = num_seeds
            guess = (low + high) // 2
        if fitted is None:
            one = _cut(batch, select(structure, seeds=np.arange(1), depth=self.policy.depth))
            raise DoesNotFit(self.footprint.upper(self.footprint.features(one)), self.budget_bytes)
        self.tally.add(shrunk=1, returned_seeds=structure.num_seeds - low, edges=_edges_of(fitted).num_edges)
        return fitted

    # At the step

    def parts(self, batch: Any) -> Sequence[Part] | None:
        """Say in which parts a batch is to be run; None for as it is.

        Raises:
            MemoryBudgetError: If a single seed does not fit.
        """
        self.split_predicted = None
        if "watch" in self._remedies or not self.footprint.is_ready:
            return None
        features = self.footprint.features(batch)
        upper = self.footprint.upper(features)
        if upper <= self.budget_bytes:
            return None
        if not self.splits:  # it was made to fit, but the step has changed since: no reason to lose edges at random
            self.tally.add(late=1)
        if not names_seeds(batch):
            if not self.splits:
                return None
            raise self._refused(
                batch, upper, ["split: needs batches of nodes that say their seeds (`batch_size`), which come first"]
            )
        structure = BatchStructure.of_batch(batch)
        selections: list[Selection] = []
        largest, first, guess = 0.0, 0, structure.num_seeds // 2
        while first < structure.num_seeds:
            selection, upper = self._next_part(structure, features, first, guess)
            if selection is None:
                raise self._refused(batch, upper, ["split: one seed at a time is still too large"])
            selections.append(selection)
            largest, first, guess = max(largest, upper), first + selection.num_seeds, selection.num_seeds
        selections = self._without_rest(structure, features, selections)
        self._remember(features)
        self.split_predicted = largest
        self.tally.add(splits=1, parts=len(selections))
        return self._parts_of(batch, selections)

    def _without_rest(
        self, structure: BatchStructure, whole: NDArray[np.float64], selections: list[Selection]
    ) -> list[Selection]:
        """Let the part before the last give it some seeds: of a single one there are no batch statistics."""
        if len(selections) < 2:
            return selections
        together = selections[-2].num_seeds + selections[-1].num_seeds
        fewest = min(_FEWEST, together // 2)
        if selections[-1].num_seeds >= fewest:
            return selections
        seeds = np.arange(structure.num_seeds - together, structure.num_seeds)
        last = [select(structure, seeds=part, depth=self.policy.depth) for part in (seeds[:-fewest], seeds[-fewest:])]
        if any(
            self.footprint.upper_of_part(whole, self.footprint.features(_Counted(part))) > self.budget_bytes
            for part in last
        ):
            return selections
        return [*selections[:-2], *last]

    def _next_part(
        self, structure: BatchStructure, whole: NDArray[np.float64], first: int, guess: int
    ) -> tuple[Selection | None, float]:
        """Find a run of seeds, from one on, that fills the budget; None if one seed does not fit."""
        low, high = 0, structure.num_seeds - first + 1  # a number that fits, one that does not
        best, upper_of_best = None, 0.0
        guess = min(max(guess, 1), high - 1)
        while low < high - 1:
            seeds = np.arange(first, first + guess)
            selection = select(structure, seeds=seeds, depth=self.policy.depth)
            upper = self.footprint.upper_of_part(whole, self.footprint.features(_Counted(selection)))
            if upper <= self.budget_bytes:
                low, best, upper_of_best = guess, selection, upper
                if upper >= _FULL * self.budget_bytes:
                    break
            else:
                high = guess
                if guess == 1:
                    return None, upper
            guess = (low + high) // 2 if high <= structure.num_seeds - first else min(2 * low, high - 1)
        return best, upper_of_best

    def more_parts(self, batch: Any, num_parts: int) -> Sequence[Part] | None:
        """Cut a batch into at least so many parts, fitting or not; None if it has not so many seeds."""
        if not names_seeds(batch):
            return None
        structure = _structure_of(batch)
        if num_parts > structure.num_seeds:
            return None
        selections = [
            select(structure, seeds=seeds, depth=self.policy.depth)
            for seeds in np.array_split(np.arange(structure.num_seeds), num_parts)
        ]
        self.tally.add(splits=1, parts=num_parts)
        return self._parts_of(batch, selections)

    def _parts_of(self, batch: Any, selections: Sequence[Selection]) -> list[Part]:
        norms = batch.get("node_norm")
        weights = [float(selection.num_seeds) for selection in selections]
        if self.policy.loss_reduction == "sum":
            weights = [1.0] * len(selections)
        elif norms is not None and self.stage == "train":
            weights = [float(norms[selection.nodes[: selection.num_seeds]].double().sum()) for selection in selections]
        total = 1.0 if self.policy.loss_reduction == "sum" else sum(weights)
        return [
            Part(make=partial(cut_batch, batch, selection), num_seeds=selection.num_seeds, weight=weight / total)
            for selection, weight in zip(selections, weights, strict=True)
        ]

    # What was touched

    def was_touched(self, features: NDArray[np.float64]) -> bool:
        """Whether a batch with these features had been over the budget; asks once for each."""
        return self._touched.pop(features.tobytes(), self) is not self

    def _remember(self, features: NDArray[np.float64]) -> None:
        if len(self._touched) > _MAX_TOUCHED:  # batches that were made, and never run
            self._touched.clear()
        self._touched[features.tobytes()] = None

    # Pieces of it

    def _scores(self, batch: Any, structure: BatchStructure) -> NDArray[np.float32]:
        score = SCORES[self.policy.pruning]
        options: dict[str, Any] = {}
        if self.policy.pruning == "random":
            options["key"] = _key(batch)
        elif self.policy.pruning == "inverse_weight":
            if self._weights is None:
                raise TypeError("`pruning='inverse_weight'` needs the weights of edges. HINT: pass `weight_attr`.")
            options["weight"] = self._weights(batch)
        scores: NDArray[np.float32] = score(structure.row, structure.col, structure.num_nodes, **options)
        return scores

    def _row_of(self, batch: Any) -> Callable[[Any], NDArray[np.float64]]:
        """Make what turns the counts of a pruned batch into its features; labels stay as they are."""
        features, names = self.footprint.features(batch), self.footprint.reader.names
        counted = [place for place, name in enumerate(names) if name.split("_")[0] in ("nodes", "edges", "loops")]
        has_loops = self._has_loops
        num_nodes = sum(value for name, value in zip(names, features, strict=True) if name.startswith("nodes_"))
        padded = (names.index("padded"), features[names.index("padded")] / num_nodes) if "padded" in names else None

        def row(counts: Any) -> NDArray[np.float64]:
            values = features.copy()
            given = [counts.nodes, counts.edges, counts.loops] if has_loops else [counts.nodes, counts.edges]
            values[counted] = np.concatenate(given)
            if padded is not None:  # the largest in-degree may have fallen: no more than this
                values[padded[0]] = padded[1] * counts.nodes.sum()
            return values

        return row

    @property
    def _has_loops(self) -> bool:
        return any(name.startswith("loops") for name in self.footprint.reader.names)

    def _share_that_fits(self, batch: Any) -> float:
        features = self.footprint.features(batch)
        nothing = self.footprint.upper(np.zeros_like(features))
        growth = self.footprint.upper(features) - nothing
        return float(np.clip((self.budget_bytes - nothing) / growth, 0, 1)) if growth > 0 else 1.0

    def _refused(self, batch: Any, upper: float, reasons: Sequence[str]) -> MemoryBudgetError:
        features = self.footprint.features(batch)
        counts = ", ".join(
            f"{name} {value:,.0f}" for name, value in zip(self.footprint.reader.names, features, strict=True)
        )
        held, constant = self.footprint.held_bytes, self.footprint.constant_bytes(features)
        tried = "; ".join(reasons) if reasons else f"nothing of {tuple(self._remedies)} was left to try"
        return MemoryBudgetError(
            f"A {self.stage!r} batch does not fit into the `budget` of {format_bytes(self.budget_bytes)}"
            f" ({self.budget_bytes:,} bytes): it would need {upper:,.0f} bytes, {held:,} of them for the model,"
            f" {constant - held:,.0f} for batches and {upper - constant:,.0f} for the step ({counts}). {tried}."
            " HINT: raise `budget`, lower `batch_size` or the fan-outs, or let it be run in parts with"
            " `on_exceed='split'` (in evaluation `exact=True`)."
        )


class _Counted:
    """Has what `FeatureReader` reads, for a batch that has not been cut out."""

    def __init__(self, selection: Selection) -> None:
        self.row, self.col = selection.row, selection.col
        self.num_nodes, self.num_edges = len(selection.nodes), len(selection.edges)
        self.batch_size = selection.num_seeds
        self.num_sampled_nodes = selection.num_sampled_nodes
        self.num_sampled_edges = selection.num_sampled_edges


def names_seeds(batch: Any) -> bool:
    """Whether the loss is over the first rows of a batch of nodes, as far as the batch says."""
    return isinstance(batch, Data) and "batch_size" in batch and "edge_label_index" not in batch


def _edges_of(batch: Any) -> Any:
    """The sampled part of a batch around links; the batch itself otherwise."""
    return getattr(batch, "subgraph", batch) if not hasattr(batch, "num_edges") else batch


def _structure_of(batch: Any) -> BatchStructure:
    nodes = _edges_of(batch)
    if isinstance(nodes, Subgraph):
        return BatchStructure.of_subgraph(nodes)
    if hasattr(nodes, "edge_types") or isinstance(getattr(nodes, "row", None), dict):
        raise TypeError("batches of heterogeneous graphs cannot be cut")
    return BatchStructure.of_batch(nodes)


def _cut(batch: Any, selection: Selection) -> Any:
    nodes = _edges_of(batch)
    if nodes is not batch:
        return replace(batch, subgraph=cut_subgraph(nodes, selection))
    return cut_subgraph(batch, selection) if isinstance(batch, Subgraph) else cut_batch(batch, selection)


def _key(batch: Any) -> SampleKey:
    """Key random numbers by what the batch holds, so that they are the same in any thread and on every run."""
    nodes = _edges_of(batch)
    ids = getattr(nodes, "n_id", None)
    if ids is None:
        return SampleKey(0, 0, int(nodes.num_edges))
    ids = ids if isinstance(ids, np.ndarray) else ids.cpu().numpy()
    return SampleKey(zlib.crc32(np.ascontiguousarray(ids).tobytes()), 0, int(nodes.num_edges))

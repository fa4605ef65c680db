"""Make the batches of a stage fit into the budget."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.any_batch import edges_of, names_seeds, structure_of
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.parts import Part
from lightning_gnnopt.memory.policy import MemoryBudgetError, Policy
from lightning_gnnopt.memory.pruning import DoesNotFit
from lightning_gnnopt.memory.remedies import Weights, prune_to_fit, shrink_to_fit
from lightning_gnnopt.memory.splitting import SeedTooLarge, Splitter, even_parts, parts_of
from lightning_gnnopt.memory.structure import BatchStructure
from lightning_gnnopt.memory.tally import Tally

Resample = Callable[[int], Any]
_MAX_TOUCHED = 10_000
_HOPELESS = 4  # standard deviations
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
        return self.fit(batch, lambda: resample)

    def fit(self, batch: Any, find_resample: Callable[[], Resample | None]) -> Any:
        """Do the same where it takes a while to find out how a batch is drawn again: only if it does not fit."""
        started_s = time.perf_counter()
        fitted = self._fit(batch, find_resample) if self.footprint.is_ready else batch
        elapsed_s = time.perf_counter() - started_s
        self.tally.add(**{"inline_s" if self.is_inline else "worker_s": elapsed_s})
        return fitted

    def _fit(self, batch: Any, find_resample: Callable[[], Resample | None]) -> Any:
        features = self.footprint.features(batch)
        upper = self.footprint.upper(features)
        if self.is_inline:
            self._uppers.append(upper)
        if upper <= self.budget_bytes:
            self.tally.add(batches=1, edges=edges_of(batch).num_edges)
            return batch
        fitted = self._tried(batch, upper, find_resample)
        if fitted is not batch:
            self._remember(self.footprint.features(fitted))
        return fitted

    def _is_hopeless(self, upper: float) -> bool:
        """Whether other draws will not fit, as far as it is known how much they differ.

        Inline that is learned from the batches that came before, which are the same in every run.
        """
        if len(self._uppers) >= _LEAST_UPPERS:
            self.spread_bytes = float(np.std(self._uppers, ddof=1))
        return self.spread_bytes is not None and upper - self.budget_bytes > _HOPELESS * self.spread_bytes

    def _tried(self, batch: Any, upper: float, find_resample: Callable[[], Resample | None]) -> Any:
        reasons: list[str] = []
        best = batch
        self.tally.add(batches=1, over=1)
        for remedy in self._remedies:
            if remedy == "resample":
                if self._is_hopeless(upper) or (resample := find_resample()) is None:
                    continue
                best, upper = self._resampled(batch, upper, resample)
                if upper <= self.budget_bytes:
                    self.tally.add(edges=edges_of(best).num_edges)
                    return best
            elif remedy in ("split", "watch"):  # at the step, where the whole batch is; never
                self.tally.add(edges=edges_of(best).num_edges)
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
        fitted = prune_to_fit(batch, self.footprint, self.budget_bytes, self.policy, weights=self._weights)
        num_edges = edges_of(batch).num_edges
        self.tally.add(pruned=1, edges=num_edges, pruned_edges=num_edges - edges_of(fitted).num_edges)
        return fitted

    def _shrunk(self, batch: Any) -> Any:
        fitted, num_returned = shrink_to_fit(batch, self.footprint, self.budget_bytes, depth=self.policy.depth)
        self.tally.add(shrunk=1, returned_seeds=num_returned, edges=edges_of(fitted).num_edges)
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
        splitter = Splitter(
            structure=BatchStructure.of_batch(batch),
            footprint=self.footprint,
            features=features,
            budget_bytes=self.budget_bytes,
            depth=self.policy.depth,
        )
        try:
            selections, self.split_predicted = splitter.split()
        except SeedTooLarge as error:
            reasons = ["split: one seed at a time is still too large"]
            raise self._refused(batch, error.upper_bytes, reasons) from None
        self._remember(features)
        self.tally.add(splits=1, parts=len(selections))
        return parts_of(batch, selections, self.policy, training=self.stage == "train")

    def more_parts(self, batch: Any, num_parts: int) -> Sequence[Part] | None:
        """Cut a batch into at least so many parts, fitting or not; None if it has not so many seeds."""
        if not names_seeds(batch):
            return None
        structure = structure_of(batch)
        if num_parts > structure.num_seeds:
            return None
        self.tally.add(splits=1, parts=num_parts)
        selections = even_parts(structure, num_parts, depth=self.policy.depth)
        return parts_of(batch, selections, self.policy, training=self.stage == "train")

    # What was touched

    def was_touched(self, features: NDArray[np.float64]) -> bool:
        """Whether a batch with these features had been over the budget; asks once for each."""
        return self._touched.pop(features.tobytes(), self) is not self

    def _remember(self, features: NDArray[np.float64]) -> None:
        if len(self._touched) > _MAX_TOUCHED:  # batches that were made, and never run
            self._touched.clear()
        self._touched[features.tobytes()] = None

    def _refused(self, batch: Any, upper: float, reasons: Sequence[str]) -> MemoryBudgetError:
        features = self.footprint.features(batch)
        counts = ", ".join(
            f"{name} {value:,.0f}" for name, value in zip(self.footprint.reader.names, features, strict=True)
        )
        held, constant = self.footprint.held_bytes, self.footprint.constant_bytes(features)
        tried = (
            "; ".join(reason.rstrip(".") for reason in reasons)
            if reasons
            else f"nothing of {tuple(self._remedies)} was left to try"
        )
        return MemoryBudgetError(
            f"A {self.stage!r} batch does not fit into the `budget` of {format_bytes(self.budget_bytes)}"
            f" ({self.budget_bytes:,} bytes): it would need {upper:,.0f} bytes, {held:,} of them for the model,"
            f" {constant - held:,.0f} for batches and {upper - constant:,.0f} for the step ({counts}). {tried}."
            " HINT: raise `budget`, lower `batch_size` or the fan-outs, or let it be run in parts with"
            " `on_exceed='split'` (in evaluation `exact=True`)."
        )

"""The fitters of a run, and what steps ask of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.parts import Part
from lightning_gnnopt.memory.prober import Stage
from lightning_gnnopt.memory.tally import Tally

Place = tuple[Stage, int]
"""A stage, and the number of one of its loaders."""
_LOWERED = 0.9  # of what was predicted for a step that ran out of memory
_LEAST_BUDGET = 0.5  # of what was asked for


class Fitters(dict[Place, Fitter]):
    """Fitters by stage and number of the loader.

    Steps do not say which of several loaders their batch is from: the stage's first fitter answers, as their footprints
    differ little.

    Args:
        tally: Counts what was done.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def parts(self, batch: Any, stage: str) -> Sequence[Part] | None:
        """Say in which parts a batch is to be run; None for as it is."""
        fitter = self._of(stage)
        if fitter is None:
            return None
        started_s = time.perf_counter()
        parts = fitter.parts(batch)
        self._tally.add(inline_s=time.perf_counter() - started_s)
        return parts

    def more_parts(self, batch: Any, stage: str, num_parts: int) -> Sequence[Part] | None:
        """Cut a batch into at least so many parts; None if it cannot be cut further."""
        fitter = self._of(stage)
        return None if fitter is None else fitter.more_parts(batch, num_parts)

    def lower_budget(self, batch: Any, stage: str, error: BaseException, *, asked_bytes: int) -> None:
        """Learn from a step that ran out of memory: there is less than was thought.

        Args:
            batch: Its batch.
            stage: Its stage.
            error: What it raised.
            asked_bytes: The budget that was asked for.
        """
        fitter = self._of(stage)
        if fitter is None:
            return
        first_line = next(iter(str(error).splitlines()), "no message")
        said = f"A {stage!r} step ran out of memory ({type(error).__name__}: {first_line})."
        if fitter.footprint.is_ready:
            footprint = fitter.footprint
            predicted = footprint.reserved_factor * footprint.predict(footprint.features(batch))
            lowered = int(max(min(_LOWERED * predicted, fitter.budget_bytes), _LEAST_BUDGET * asked_bytes))
            said += f" {format_bytes(predicted)} had been predicted."
            if lowered < fitter.budget_bytes:
                said += f" The budget is {format_bytes(lowered)} from now on,"
                said += f" instead of {format_bytes(fitter.budget_bytes)}."
            for other in self.values():
                other.budget_bytes = min(other.budget_bytes, lowered)
        rank_zero_warn(said + " The step is run again in parts.")

    def _of(self, stage: str) -> Fitter | None:
        return next((fitter for place, fitter in self.items() if place[0] == stage), None)

"""Compare what steps take with what was predicted for them, and learn from it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import lightning as L
from torch import nn

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.once import WarnOnce
from lightning_gnnopt.memory.peaks import StepPeaks
from lightning_gnnopt.memory.prober import FIRST, LAST, MIDDLE, STEP, Stage
from lightning_gnnopt.memory.tally import Tally

_MAX_PAIRS = 10_000
_EXCESS_STEPS = 8
_TOLERANCE = 0.001
_NEAR = 0.01  # a change of what is left of the budget that matters


class StepWatch:
    """Measures some steps.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        tally: Counts what was seen.
        warn: Says so if a step was over the budget, or is not what it was.
        measure_every: Every how many steps the peak is measured; None for as often as is cheap.

    Attributes:
        pairs: Predicted and measured bytes of the last steps that were measured.
        largest_batch_bytes: Bytes of the largest batch among them.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: nn.Module,
        *,
        tally: Tally,
        warn: WarnOnce,
        measure_every: int | None = None,
    ) -> None:
        self.pairs: deque[tuple[float, float]] = deque(maxlen=_MAX_PAIRS)
        self.largest_batch_bytes = 0
        self._trainer: Any = trainer
        self._module = pl_module
        self._tally, self._warn = tally, warn
        self._peaks = StepPeaks(trainer.strategy.root_device, every=measure_every)
        self._kind, self._counts = STEP, True
        self._excess: deque[float] = deque(maxlen=_EXCESS_STEPS)

    def start(self, stage: Stage, learned: Learned) -> None:
        """Measure a step, if it is time to."""
        if not learned.tapes:
            self._peaks.learn()
        if not self._peaks.start(stage, wanted=not learned.footprint.is_ready):
            return
        self._kind, self._counts = STEP, True
        if stage == "train":
            self._kind = self._kind_of_step()
            # A first step makes the optimizer's state, and validation clears gradients: neither is like all others.
            self._counts = any(parameter.grad is not None for parameter in self._module.parameters())

    def end(self, stage: Stage, batch: Any, learned: Learned, fitter: Fitter) -> bool:
        """Compare a measured step with what was predicted, and learn from it; return whether it was measured."""
        peak = self._peaks.stop(stage)
        if peak is None:
            return False
        started_s = time.perf_counter()
        footprint = learned.footprint
        features = footprint.features(batch)
        touched = fitter.was_touched(features)
        predictor = footprint.predictors.get(self._kind, footprint.predictors[STEP])
        split, fitter.split_predicted = fitter.split_predicted, None
        constant, growth = footprint.constant_bytes(features), peak.growth_bytes
        if peak.start_bytes is not None:  # what nobody can count, such as workspaces, if it stays
            self._excess.append(peak.start_bytes - constant)
            if len(self._excess) == _EXCESS_STEPS and min(self._excess) > 0:
                footprint.held_bytes += int(min(self._excess))
                self._excess.clear()
            constant = float(peak.start_bytes)
        budget_bytes = fitter.budget_bytes / footprint.reserved_factor  # of bytes that are asked for
        self.largest_batch_bytes = max(self.largest_batch_bytes, int(footprint.batch_bytes(features)))
        if self._counts and footprint.is_ready:
            predicted = (
                constant + float(predictor.predict(features)) if split is None else split / footprint.reserved_factor
            )
            self._judge(stage, learned, fitter, predicted, constant + growth, touched=touched)
        if split is None and self._counts:
            near, room = predictor.margin.near_bytes, max(1.0, budget_bytes - constant)
            if near is None or abs(near - room) > _NEAR * room:
                predictor.margin.near_bytes = room
            predictor.update(features, growth)
        if learned.reserved is not None:
            learned.reserved.update(peak)
            footprint.reserved_factor = learned.reserved.value
        self._tally.add(inline_s=time.perf_counter() - started_s)
        return True

    def close(self) -> None:
        """End a step that an error has ended."""
        self._peaks.close()

    def _judge(
        self, stage: Stage, learned: Learned, fitter: Fitter, predicted: float, measured: float, *, touched: bool
    ) -> None:
        """Count a step; say so, once, if it was over the budget or is not what it was."""
        self.pairs.append((predicted, measured))
        budget_bytes = fitter.budget_bytes / learned.footprint.reserved_factor  # of bytes that are asked for
        self._tally.observe(predicted, measured, budget_bytes, touched=touched)
        if measured > budget_bytes and "watch" not in fitter.policy.on_exceed:
            self._warn(
                f"over the budget, {stage}",
                f"A {stage!r} step took {format_bytes(measured)} ({measured:,.0f} bytes), more than the budget of"
                f" {budget_bytes:,.0f}; {predicted:,.0f} had been predicted. HINT: lower `budget`, and look at"
                " `MemoryControl`'s table at the end.",
            )
        if learned.tapes and measured > (1 + _TOLERANCE) * predicted:
            self._peaks.every = 1  # as long as it is not known what else it depends on
            self._warn(
                f"more than predicted, {stage}",
                f"A {stage!r} step took {measured / predicted - 1:.1%} more than was predicted from tiny batches: it"
                " depends on more than the batch's numbers of nodes and edges. Predictions have a margin from now on.",
            )

    def _kind_of_step(self) -> str:
        epoch_loop, window = self._trainer.fit_loop.epoch_loop, self._trainer.accumulate_grad_batches
        starts, ends = epoch_loop.batch_idx % window == 0, not epoch_loop._should_accumulate()
        if starts:
            return STEP if ends else FIRST
        return LAST if ends else MIDDLE

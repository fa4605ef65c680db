"""Learn what a stage's steps cost, from tiny batches, before the first real one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch_geometric.data import HeteroData

from lightning_gnnopt.memory.batch_row import batch_row
from lightning_gnnopt.memory.drawing import Draw
from lightning_gnnopt.memory.features import FeatureReader, batch_bytes, num_edges_of
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.held import held_bytes
from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.predictors import AnalyticPredictor, Predictor, resolve_predictor
from lightning_gnnopt.memory.predictors.base import MIN_SAMPLES
from lightning_gnnopt.memory.probe_batches import probe_batches
from lightning_gnnopt.memory.prober import FIRST, LAST, MIDDLE, STEP, Stage, StepProber
from lightning_gnnopt.memory.reserved_settings import AllocatorSettings
from lightning_gnnopt.memory.step_tapes import solve_step
from lightning_gnnopt.memory.tape import TapeError

BASE_EDGES = 600
"""Probes are made from a batch of about so many edges: small, but with work for every kernel."""
_SAMPLES = 32
_FEW_INPUTS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """Learns what a stage's steps cost.

    Args:
        trainer: The Trainer, at the start of the stage or between its steps.
        pl_module: Its module.
        stage: The stage.
        dataloader_idx: Which of several loaders; None if there is one.
        predictor: The predictor's name; ``"analytic"`` solves an allocation tape and needs no sample.
        options: Arguments of the predictor.
        ahead: The batches that the loader has ready.
        coverage: How sure a prediction's upper bound is.
        splits: Whether training steps may be run in parts.
        budget_bytes: No probe is to be larger; None for no limit.
        converted: Whether what is drawn has been through what comes before a batch's transfer.
    """

    trainer: L.Trainer
    pl_module: L.LightningModule
    stage: Stage
    dataloader_idx: int | None = None
    predictor: str = "analytic"
    options: dict[str, Any] = field(default_factory=dict)
    ahead: Ahead = field(default_factory=Ahead)
    coverage: float = 0.999
    splits: bool = False
    budget_bytes: int | None = None
    converted: bool = False

    def learn(self, draw: Draw, num_inputs: int) -> Learned:
        """Run probes.

        Args:
            draw: Draws a batch around so many of the loader's inputs, as the loader yields it.
            num_inputs: How many a whole batch has.

        Returns:
            What was learned. Its footprint may have nothing to predict with yet (`is_ready`).
        """
        started_s = time.perf_counter()
        learned = self._learn(draw, num_inputs)
        learned.probe_s = time.perf_counter() - started_s
        return learned

    def _learn(self, draw: Draw, num_inputs: int) -> Learned:
        base = _small_batch(draw, num_inputs)
        reason = self._no_tape(base)
        learned, failed = None, ""
        if not reason:
            try:
                learned = self._from_tape(base, draw)
            except TapeError as error:
                reason = str(error).split(" HINT:")[0]
            except Exception as error:
                failed = f"the step raised {type(error).__name__} on a tiny batch: {error}"
        if self._any(bool(failed)):
            return self._from_executed(base, failed or "the step of another process raised an error on a tiny batch")
        if not self._any(learned is None):
            assert learned is not None
            return learned
        reason = reason or "The step of another process has no allocation tape."
        if self.predictor == "analytic":
            rank_zero_warn(
                f"`MemoryControl` learns the memory of {self.stage!r} steps from measured batches: {reason}"
                " Predictions are close then, not exact, and have a margin."
            )
        if self._is_compiled:
            return self._from_executed(base, reason, warn=False)
        try:
            return self._from_samples(draw, num_inputs, reason)
        except Exception as error:
            return self._from_executed(base, f"the step raised {type(error).__name__}: {error}")

    def _no_tape(self, base: Any) -> str:
        """Say why there is no tape to be had; nothing if there may be one."""
        if self.predictor != "analytic":
            return f"`predictor={self.predictor!r}` was chosen."
        if self._is_compiled:
            return "The model is compiled, and tiny batches would have it compiled once more for each shape."
        if isinstance(base, HeteroData):
            return "The batches have several types of nodes, which cannot be thinned for probes."
        return ""

    @property
    def _is_compiled(self) -> bool:
        optimized = getattr(getattr(torch, "_dynamo", None), "OptimizedModule", None)
        if getattr(self.pl_module, "_compiler_ctx", None) is not None:
            return True
        return any(
            (optimized is not None and isinstance(module, optimized)) or getattr(module, "_compiled_call_impl", None)
            for module in self.pl_module.modules()
        )

    # From an allocation tape

    def _from_tape(self, base: Any, draw: Draw) -> Learned:
        # `requested_bytes` is what steps are measured by; where the driver keeps the pools, its blocks are.
        is_cuda = self.trainer.strategy.root_device.type == "cuda"
        round_to = 512 if is_cuda and AllocatorSettings.read().backend != "native" else 1
        solved = solve_step(base, self._prober(), accumulate=self._accumulates, round_to=round_to)
        reader, batches = solved.reader, solved.probes
        predictors: dict[str, Predictor] = {
            kind: AnalyticPredictor(pieces, feature_names=reader.names, coverage=self.coverage, **self.options)
            for kind, pieces in solved.pieces.items()
        }
        if "labels" in reader.names:  # cut batches have other shares of links and negatives than real ones
            batches = [draw(1 + number) for number in range(2 * len(batches))]
        footprint = self._footprint(reader, predictors, batches, solved.recorded.held_bytes)
        footprint.reserve_bytes = solved.recorded.logged_bytes
        return Learned(footprint, solved.tapes, solved.recorded.labels)

    # From samples

    def _from_samples(self, draw: Draw, num_inputs: int, reason: str) -> Learned:
        """Measure steps on batches that grow from tiny ones to the size of real ones, or of the budget."""
        prober = self._prober()
        batches: list[Any] = []
        peaks: list[float] = []
        most, held = num_inputs, self._held_bytes
        available = None if self.budget_bytes is None else self.budget_bytes - self._held_bytes
        for number in range(1, _SAMPLES + 1):
            batch = draw(max(1, number * most // _SAMPLES))
            # Half of them as they are drawn, as real ones are; the others so that no count follows from another.
            if number % 2 and not isinstance(batch, HeteroData):
                (batch,) = probe_batches(batch, 1, seed=number, loops=False, most=None)
            if available is not None and peaks:  # the same on all processes, so that all run as many steps
                growth = batch_bytes(batch) / max(1, batch_bytes(batches[-1]))
                if self._any(peaks[-1] * max(growth, 1.0) + 2 * batch_bytes(batch) > available):
                    most = max(1, most * 3 // 4)
                    continue
            batches.append(batch)
            peak, held = prober.measure(batch)
            peaks.append(float(peak))
        reader = FeatureReader(batches[0])
        features = np.stack([reader(batch) for batch in batches])
        if len(np.unique(features, axis=0)) < MIN_SAMPLES:
            # A loader of which only one batch is known, or the budget lets too few be tried.
            return self._from_executed(batches[0], reason, warn=False)
        predictor = self._make_predictor(reader).fit(features, np.array(peaks))
        return Learned(self._footprint(reader, {STEP: predictor}, batches, held), reason=reason)

    def _from_executed(self, base: Any, reason: str, *, warn: bool = True) -> Learned:
        if warn:
            rank_zero_warn(
                f"`MemoryControl` cannot probe {self.stage!r} steps: {reason}. It learns from the batches that are run,"
                " and controls none until it has seen some; a step that runs out of memory until then is run in parts."
            )
        reader = FeatureReader(base)
        footprint = self._footprint(reader, {STEP: self._make_predictor(reader)}, [base], self._held_bytes)
        return Learned(footprint, reason=reason)

    def _any(self, what: bool) -> bool:
        """Whether something is so in any process: all must go the same way."""
        if self.trainer.world_size == 1:
            return what
        return bool(self.trainer.strategy.reduce_boolean_decision(what, all=False))

    def _make_predictor(self, reader: FeatureReader) -> Predictor:
        name = "max_affine" if self.predictor == "analytic" else self.predictor
        return resolve_predictor(name)(reader.names, coverage=self.coverage, **self.options)

    # Both

    def _footprint(
        self, reader: FeatureReader, predictors: dict[str, Predictor], batches: Sequence[Any], held: int
    ) -> Footprint:
        training = self.stage == "train"
        whole: tuple[str, ...] = (STEP,)
        parts: tuple[str, ...] = (STEP,)
        if training and len(predictors) > 1:
            window = (FIRST, LAST) if self.trainer.accumulate_grad_batches == 2 else (FIRST, MIDDLE, LAST)
            whole = (STEP,) if self.trainer.accumulate_grad_batches == 1 else (STEP, *window)
            parts = (FIRST, MIDDLE, LAST)
        return Footprint(
            reader=reader,
            predictors=predictors,
            batch_row=batch_row(reader, batches),
            held_bytes=held,
            ahead=self.ahead,
            kinds=whole,
            part_kinds=parts,
        )

    @property
    def _held_bytes(self) -> int:
        return held_bytes(self.pl_module, self.trainer.optimizers, steady=self.stage == "train")

    @property
    def _accumulates(self) -> bool:
        return self.stage == "train" and (self.splits or self.trainer.accumulate_grad_batches > 1)

    def _prober(self) -> StepProber:
        return StepProber(
            self.trainer,
            self.pl_module,
            self.stage,
            dataloader_idx=self.dataloader_idx,
            converted=self.converted,
        )


def _small_batch(draw: Draw, num_inputs: int) -> Any:
    """Draw a batch of some hundred edges: enough work for each kernel, and a step takes milliseconds."""
    num_drawn = _FEW_INPUTS  # also where a batch has fewer: one row is summed by other kernels than several
    batch = draw(num_drawn)
    while num_edges_of(batch) < BASE_EDGES and num_drawn < num_inputs:
        num_drawn = min(2 * num_drawn, num_inputs)
        batch = draw(num_drawn)
    return batch

"""One fit, or some passes over a loader: what came of it."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import re
import shutil
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lightning_gnnopt import MemoryControl
from lightning_gnnopt.loading import SimulatedDevice

from .faults import armed
from .parts import Parts, make_datamodule, make_parts, state_of
from .plans import Plan, Recipe


@dataclass
class Outcome:
    """What came of a fit.

    Attributes:
        error: The type of what it ended with; None if it went to its end.
        text: That error with its notes and its causes.
        losses: Of each step, by its number.
        verdicts: Of each validation, by the number of steps before it.
        beyond: Of a reference whose budget changes validation batches: the verdicts of a process that has no budget.
        state: The weights at its end.
        num_steps: Steps it made.
        seconds: How long it took.
        told: What was warned of.
    """

    error: type[BaseException] | None = None
    text: str = ""
    losses: dict[int, float] = field(default_factory=dict)
    verdicts: dict[int, dict[str, float]] = field(default_factory=dict)
    beyond: dict[int, dict[str, float]] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps that were made."""
        return len(self.losses)


def run(parts: Parts, *, ckpt_path: Path | None = None, faulty: bool = True) -> Outcome:
    """Fit, with the plan's fault if it is to happen; nothing of the fit is kept but numbers."""
    outcome, started_s = Outcome(), time.monotonic()
    L.seed_everything(parts.plan.recipe.seed + 7 * bool(ckpt_path), verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with armed(parts) if faulty else nullcontext():
                parts.trainer().fit(parts.module, parts.datamodule, ckpt_path=ckpt_path)
        except BaseException as error:
            outcome.error = type(error)
            outcome.text = "".join(traceback.format_exception(error))
    if parts.device is not None:
        parts.device.close()
    outcome.losses, outcome.verdicts = parts.recorder.losses, parts.recorder.verdicts
    outcome.verdicts = outcome.verdicts | _judged(parts.folder)
    outcome.state = state_of(parts.module)
    outcome.seconds = time.monotonic() - started_s
    outcome.told = [str(warning.message) for warning in caught if "gnnopt" in warning.filename]
    gc.collect()
    return outcome


def _judged(folder: Path) -> dict[int, dict[str, float]]:
    """The verdicts of the validation process."""
    ledger = folder / "judged" / "validations.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return {line["step"]: {name: line["metrics"][name] for name in ("val/loss", "val/acc")} for line in lines}


def last_checkpoint(folder: Path) -> Path | None:
    """The one with the most steps."""

    def step(path: Path) -> int:
        found = re.search(r"step=(\d+)", path.name)
        return int(found.group(1)) if found else -1

    paths = sorted((folder / "saved").glob("*.ckpt"), key=step)
    return paths[-1] if paths else None


class References:
    """Plain fits, without a fault and without threads, each made when it is first asked for.

    Args:
        folder: Where their files go for as long as they run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._outcomes: dict[Any, Outcome] = {}
        self._peaks: dict[Recipe, int] = {}

    def of(self, plan: Plan) -> Outcome:
        """The numbers that a plan's fit must have."""
        control = None if plan.control is None or plan.control.share >= 1 else plan.control
        # Batches that are ready count as well, so how many there are decides which are too large.
        ahead = (0, False) if control is None else (plan.num_workers, plan.on_device)
        key = (plan.recipe, control, ahead)
        plain = Plan(-1, plan.recipe, num_workers=ahead[0], on_device=ahead[1], control=control)
        if key not in self._outcomes:
            self._outcomes[key] = self._run(plain)
        expected = self._outcomes[key]
        if control is not None and plan.is_async and expected.error is None and not expected.beyond:
            expected.beyond = self._run(replace(plain, is_async=True)).verdicts
        return expected

    def _run(self, plan: Plan) -> Outcome:
        try:
            return run(
                make_parts(plan, self._folder, budget_bytes=self.budget_bytes(plan), checkpoints=False), faulty=False
            )
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def budget_bytes(self, plan: Plan) -> int:
        """The plan's budget: a share of the largest step that there is without one."""
        if plan.control is None:
            return 0
        if plan.recipe not in self._peaks:
            watch = MemoryControl(0.9, on_exceed="watch", measure_every=1, verbose=False)
            parts = make_parts(Plan(-1, plan.recipe), self._folder, checkpoints=False)
            parts.callbacks.append(watch)
            outcome = run(parts, faulty=False)
            assert watch.controller is not None, outcome.text
            self._peaks[plan.recipe] = int(max(measured for _, measured in watch.controller.pairs))
        # Room for what is ready, which a budget that is meant to be ample must have.
        ample = 4 * plan.num_workers if plan.control.share > 1 else 0
        return int((plan.control.share + ample) * self._peaks[plan.recipe])


@cache
def batch_sums(recipe: Recipe) -> dict[tuple[int, int], str]:
    """What the loader of a recipe yields, by epoch and number."""
    loader = make_datamodule(recipe).train_dataloader()
    return {(epoch, i): _sum(batch) for epoch in range(recipe.epochs) for i, batch in enumerate(loader)}


def pass_over(plan: Plan) -> list[str]:
    """Go over a loader, leaving most passes early; say which batches were not those they should have been."""
    rng, expected, wrong = random.Random(plan.number), batch_sums(plan.recipe), []
    device = SimulatedDevice(host_computes=True) if plan.on_device else None
    loader = make_datamodule(plan.recipe, num_workers=plan.num_workers, device=device).train_dataloader()
    kept = []
    for epoch in [epoch for epoch in range(plan.recipe.epochs) for _ in range(3)]:
        loader.set_epoch(epoch)
        stop = rng.randrange(len(loader) + 1)
        batches = iter(loader)
        for i, batch in enumerate(batches):
            if i == stop:
                kept.append((epoch, i, batch))
                break
            if _sum(batch) != expected[epoch, i]:
                wrong.append(f"batch {i} of epoch {epoch} is another")
        if rng.random() < 0.5:
            batches.close()
    wrong += [f"batch {i} of epoch {e}, kept, is another" for e, i, batch in kept if _sum(batch) != expected[e, i]]
    if device is not None:
        del batch, batches, kept
        gc.collect()
        device.close()
    return wrong


def _sum(batch: Any) -> str:
    digest = hashlib.sha256()
    for name in ("n_id", "edge_index", "x", "y"):
        digest.update(batch[name].numpy().tobytes())
    return digest.hexdigest()

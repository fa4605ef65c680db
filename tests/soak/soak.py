"""Fit after fit in one process, with faults; what is wrong is told at once, and the rest goes on."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .checks import Problem, check, may_fail_for_memory
from .leftovers import Leftovers, resident_mib, slope_per_100
from .parts import make_parts
from .plans import Plan, draw_plan
from .runs import Outcome, References, last_checkpoint, pass_over, run

SLOPE_MIB = 6.0
"""Most that the resident memory may grow in a hundred fits, after the warm-up: 5.4 and 5.8 were measured in 20 minutes
each (277 and 426 fits), references and graphs that are kept included; 0.3 a fit would already be 30."""

_WARM_UP = 60  # fits, after which each kernel is compiled and each kind of object has been made
_FEWEST = 60  # fits after it, below which nothing can be said of the slope
_MEASURE_EVERY = 5


@dataclass
class Tally:
    """What was done, and what was wrong.

    Attributes:
        fits: Fits without their references.
        passes: Passes over loaders.
        epochs: Epochs of all of them.
        resumed: Fits that went on from a checkpoint.
        faults: Fits by fault.
        ended: What fits ended with, by type.
        leaks: Things that were left.
        problems: All that was wrong, leaks included.
        resident: The resident memory in MiB, by the number of fits.
    """

    fits: int = 0
    passes: int = 0
    epochs: int = 0
    resumed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    leaks: int = 0
    problems: list[str] = field(default_factory=list)
    resident: list[tuple[int, float]] = field(default_factory=list)

    @property
    def slope_mib(self) -> float | None:
        """Growth per hundred fits after the warm-up; None after too few."""
        after = [(number, mib) for number, mib in self.resident if number >= _WARM_UP]
        return slope_per_100(after) if after and after[-1][0] - after[0][0] >= _FEWEST else None


class Soak:
    """Runs plans until the time is over.

    Args:
        seed: What the plans are drawn from.
        folder: Where the runs' files go; removed after each.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed, self._folder = seed, folder
        self.tally = Tally()
        self._references = References(folder / "references")

    def go_on(self, *, minutes: float, first: int = 0, most: int | None = None, fault: str = "") -> Tally:
        """Run plans, from the one of this number on."""
        self.do(Plan(-1, draw_plan(self._seed, first).recipe), told=False)  # what is imported late
        leftovers = Leftovers()
        end_s, number = time.monotonic() + 60 * minutes, first
        while time.monotonic() < end_s and (most is None or number < first + most):
            plan = draw_plan(self._seed, number)
            number += 1
            if not (plan.fault or "").startswith(fault):
                continue
            self.do(plan, leftovers)
            if number % _MEASURE_EVERY == 0:
                self.tally.resident.append((self.tally.fits, resident_mib()))
        slope = self.tally.slope_mib
        if slope is not None and slope > SLOPE_MIB:
            self._wrong(None, [Problem(f"resident memory grows by {slope:.1f} MiB in 100 fits")])
        return self.tally

    def do(self, plan: Plan, leftovers: Leftovers | None = None, *, told: bool = True) -> None:
        """Run a plan, and check what came of it and what it left."""
        folder = self._folder / "run"
        folder.mkdir(parents=True)
        try:
            problems = self._pass(plan) if plan.kind == "loader" else self._fit(plan, folder)
            problems += [Problem(f"left in the folder: {path}") for path in sorted(folder.rglob("*.tmp"))]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if leftovers is not None and (found := leftovers.found(interrupted=plan.fault == "interrupt")):
            self.tally.leaks += len(found)
            problems += [Problem(f"left behind: {what}") for what in found]
        if told:
            self._wrong(plan, problems)

    def _pass(self, plan: Plan) -> list[Problem]:
        self.tally.passes += 3 * plan.recipe.epochs
        return [Problem(what) for what in pass_over(plan)]

    def _fit(self, plan: Plan, folder: Path) -> list[Problem]:
        expected = self._references.of(plan)
        if expected.error is not None and not (plan.control is not None and may_fail_for_memory(expected)):
            return [Problem(f"the reference ended with {expected.error.__name__}", expected.text)]
        sizes = {
            "budget_bytes": self._references.budget_bytes(plan),
            "num_steps": expected.num_steps,
            "usual_s": expected.seconds,
        }
        outcome = run(make_parts(plan, folder, **sizes))  # type: ignore[arg-type]
        self._count(plan, outcome, fault=plan.fault or "none")
        problems = check(plan, outcome, expected)
        path = last_checkpoint(folder)
        if outcome.error is not None and expected.error is None and path is not None and not problems:
            resumed = self._resume(plan, folder, path, sizes)
            # Of a run that ended too early for a checkpoint of its last step, those steps are made again.
            first = expected.num_steps - resumed.num_steps
            problems = [
                replace(problem, what=f"resumed from {path.name}: {problem.what}")
                for problem in check(plan, resumed, expected, first=first, faulty=False)
            ]
            if first != int(path.stem.split("=")[1]):
                problems.append(Problem(f"resumed from {path.name} with step {first + 1}", resumed.text))
        return problems

    def _resume(self, plan: Plan, folder: Path, path: Path, sizes: dict[str, float]) -> Outcome:
        """Go on with other threads, where that changes nothing."""
        is_tight = plan.control is not None and plan.control.share < 1
        num_workers = plan.num_workers if is_tight else (plan.num_workers + 1) % 4
        again = replace(plan, num_workers=num_workers)
        parts = make_parts(again, folder, **sizes)  # type: ignore[arg-type]
        outcome = run(parts, ckpt_path=path, faulty=False)
        self.tally.resumed += 1
        self._count(plan, outcome, fault="none, resumed")
        return outcome

    def _count(self, plan: Plan, outcome: Outcome, *, fault: str) -> None:
        self.tally.fits += 1
        self.tally.epochs += plan.recipe.epochs if outcome.error is None else 1
        self.tally.faults[fault] += 1
        self.tally.ended["went well" if outcome.error is None else outcome.error.__name__] += 1

    def _wrong(self, plan: Plan | None, problems: list[Problem]) -> None:
        for problem in problems:
            told = f"WRONG (seed {self._seed}, plan {plan.number if plan else '-'}): {problem.what}\n  {plan}\n"
            self.tally.problems.append(f"{plan.number if plan else '-'}: {problem.what}")
            print(told + problem.text[-6000:], flush=True)


def soak(seed: int, *, minutes: float, first: int = 0, most: int | None = None, fault: str = "") -> Tally:
    """Run plans for so long, in a temporary folder.

    Args:
        seed: What they are drawn from.
        minutes: How long.
        first: Number of the first one.
        most: How many at most.
        fault: What the names of their faults begin with.
    """
    torch.set_num_threads(1)
    level, before = logging.getLogger("lightning.pytorch"), tempfile.tempdir
    old_level = level.level
    level.setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    (folder / "temporary").mkdir()
    tempfile.tempdir = str(folder / "temporary")
    try:
        return Soak(seed, folder).go_on(minutes=minutes, first=first, most=most, fault=fault)
    finally:
        tempfile.tempdir = before
        level.setLevel(old_level)
        shutil.rmtree(folder, ignore_errors=True)


def table(tally: Tally, seed: int) -> str:
    """What was done, in lines."""
    resident = [mib for _, mib in tally.resident] or [resident_mib()]
    slope = tally.slope_mib
    lines = [
        f"seed {seed}: {tally.fits} fits, {tally.passes} passes over loaders, {tally.epochs} epochs,"
        f" {tally.resumed} resumed",
        f"  {'fault':<30}fits",
        *(f"  {name:<30}{count}" for name, count in sorted(tally.faults.items())),
        f"  {'ended with':<30}fits",
        *(f"  {name:<30}{count}" for name, count in sorted(tally.ended.items())),
        f"  resident memory: {resident[0]:.0f} MiB at first, {resident[-1]:.0f} MiB at the end; per 100 fits after"
        f" {_WARM_UP}: {'too few to say' if slope is None else f'{slope:+.1f} MiB (bound {SLOPE_MIB:g})'}",
        f"  left behind: {tally.leaks}",
        f"  wrong: {len(tally.problems)}",
        *(f"    plan {problem}" for problem in tally.problems),
    ]
    return "\n".join(lines)

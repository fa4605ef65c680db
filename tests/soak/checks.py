"""Whether what came of a fit is what it must be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gnnopt.memory import MemoryBudgetError

from .faults import FAULTS
from .plans import Plan
from .runs import Outcome


@dataclass
class Problem:
    """What was wrong with a fit.

    Attributes:
        what: Said in a line.
        text: The error's traceback, if there was an error.
    """

    what: str
    text: str = ""


def check(plan: Plan, outcome: Outcome, expected: Outcome, *, first: int = 0, faulty: bool = True) -> list[Problem]:
    """Compare a fit with its reference.

    Args:
        plan: What was run.
        outcome: What came of it.
        expected: The reference.
        first: Steps that were made before, if it was resumed.
        faulty: Whether the plan's fault was to happen.
    """
    fault = FAULTS[plan.fault] if plan.fault is not None and faulty else None
    problems = _check_end(outcome, expected, fault.error if fault else (), fault.names if fault else "")
    if outcome.error is None:
        if fault is not None and fault.error and not fault.may_pass:
            problems.append(Problem("the fault did not end the fit"))
        if outcome.num_steps != expected.num_steps - first:
            problems.append(Problem(f"{outcome.num_steps} steps instead of {expected.num_steps - first}"))
        if expected.error is None and not same(outcome.state, expected.state):
            problems.append(Problem("the final weights are others"))
    wrong = [step for step, loss in outcome.losses.items() if not _equal(loss, expected.losses.get(step))]
    if wrong:
        step = min(wrong)
        problems.append(
            Problem(f"{len(wrong)} losses are others, from step {step} on: {outcome.losses[step]!r} instead of"
                    f" {expected.losses.get(step)!r}")
        )  # fmt: skip
    return problems + _check_verdicts(plan, outcome, expected, first)


def _check_end(
    outcome: Outcome, expected: Outcome, errors: tuple[type[BaseException], ...], names: str
) -> list[Problem]:
    if outcome.error is None:
        return [] if expected.error is None else [Problem("it passed, but its reference did not", expected.text)]
    if expected.error is not None and issubclass(outcome.error, expected.error):
        return []
    if not issubclass(outcome.error, errors or ()):
        return [Problem(f"unexpected {outcome.error.__name__}", outcome.text)]
    if names not in outcome.text:
        return [Problem(f"the error does not say {names!r}", outcome.text)]
    return []


def _check_verdicts(plan: Plan, outcome: Outcome, expected: Outcome, first: int) -> list[Problem]:
    wrong = {
        step: verdict
        for step, verdict in outcome.verdicts.items()
        if step in expected.verdicts
        and not any(_alike(verdict, known[step]) for known in (expected.verdicts, expected.beyond) if step in known)
    }
    if wrong:
        step = min(wrong)
        return [Problem(f"the verdict of step {step} is {wrong[step]} instead of {expected.verdicts[step]}")]
    # Lightning does not validate again at the step that a run is resumed from.
    missing = sorted(step for step in expected.verdicts.keys() - outcome.verdicts.keys() if step > first)
    if missing and outcome.error is None and expected.error is None and plan.fault != "disk-full-for-snapshots":
        return [Problem(f"steps {missing} of {sorted(expected.verdicts)} have no verdict; told: {outcome.told}")]
    return []


def may_fail_for_memory(outcome: Outcome) -> bool:
    """Whether a fit ended since nothing made a batch fit, which a small budget may lead to."""
    return outcome.error is not None and issubclass(outcome.error, MemoryBudgetError | ValueError)


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def _alike(verdict: dict[str, float], other: dict[str, float]) -> bool:
    return all(_equal(value, other[name]) for name, value in verdict.items())


def _equal(one: float, other: float | None) -> bool:
    return one == other or (one != one and other is not None and other != other)

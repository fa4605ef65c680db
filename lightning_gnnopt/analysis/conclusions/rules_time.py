"""Rules on what takes time beside batches and layers, and on the profile itself."""

from __future__ import annotations

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.conclusions.words import duration, factor, percent, times_faster

VALIDATION_SHARE = 0.10
"""Share of the fit above which validation that stops training is worth a remedy."""
BETWEEN_SHARE = 0.10
"""Share of the fit above which what lies between epochs is."""
CALLBACKS_SHARE = 0.05
"""Share of a step above which callbacks are."""
OPTIMIZER_SHARE = 0.15
"""Share of a step above which the optimizer is."""
OTHER_SHARE = 0.20
"""Share of a step above which what lies between its phases is."""
FEW_STEPS = 10
"""Fewer timed steps give rough numbers only."""
OVERHEAD_SHARE = 0.05
"""Share of the timed steps above which the profiler itself is worth a word."""


def validation_blocks(facts: Facts) -> Advice | None:
    """Training stands still while it is validated."""
    share = validation_share(facts)
    if share is None or share <= VALIDATION_SHARE or facts.async_validation:
        return None
    assert facts.fit_s is not None
    took_s = min(facts.validation_s, facts.fit_s)
    bound = times_faster(facts.fit_s, max(facts.fit_s - took_s, took_s))
    finding = f"Evaluation is {percent(share)} of the fit ({duration(took_s)} of {duration(facts.fit_s)}"
    if facts.validations:
        finding += f", {facts.validations:,} {'validation' if facts.validations == 1 else 'validations'}"
    remedy = (
        "`AsyncValidation` runs it beside training, where there are cores for it, and bounds the gain at"
        f" {factor(bound)}"
    )
    if share > 0.5:
        remedy += ", as it takes longer than training: validate less often too (`check_val_every_n_epoch`)"
    return Advice(rule="validation_blocks", finding=f"{finding}).", remedy=f"{remedy}.", speedup=bound)


def between_epochs(facts: Facts) -> Advice | None:
    """Much of the fit lies in no epoch."""
    if not facts.fit_s or facts.between_s is None or facts.between_s / facts.fit_s <= BETWEEN_SHARE:
        return None
    bound = times_faster(facts.fit_s, facts.fit_s - facts.between_s)
    share = percent(facts.between_s / facts.fit_s)
    finding = f"{share} of the fit lies before, between and after its epochs"
    finding += f" ({duration(facts.between_s)} of {duration(facts.fit_s)}"
    finding += f", {facts.epochs:,} {'epoch' if facts.epochs == 1 else 'epochs'})" if facts.epochs else ")"
    return Advice(
        rule="between_epochs",
        finding=f"{finding}.",
        remedy="There workers are started, checkpoints are written and callbacks run: `persistent_workers=True` keeps"
        " the workers of PyG's loaders, and what runs at the end of each epoch may run less often"
        f" (`every_n_epochs`; at most {factor(bound)}).",
        speedup=bound,
    )


def callbacks_slow(facts: Facts) -> Advice | None:
    """Callbacks hold up training."""
    found = _share(facts, "callbacks", CALLBACKS_SHARE)
    if found is None:
        return None
    took, bound = found
    return Advice(
        rule="callbacks_slow",
        finding=f"Callbacks take {took}.",
        remedy="Let those that run at every batch do less, or less often: Lightning's `SimpleProfiler` names the"
        f" slowest hooks (at most {factor(bound)}).",
        speedup=bound,
    )


def optimizer_slow(facts: Facts) -> Advice | None:
    """The optimizer's step is long."""
    found = _share(facts, "optimizer", OPTIMIZER_SHARE)
    if found is None:
        return None
    took, bound = found
    return Advice(
        rule="optimizer_slow",
        finding=f"The optimizer takes {took}.",
        remedy="torch's optimizers update all parameters in one pass with `fused=True` (Adam, AdamW, SGD, Adagrad) or"
        " `foreach=True`; fewer parameters, or larger batches and so fewer steps, save time as well"
        f" (at most {factor(bound)}).",
        speedup=bound,
    )


def overhead_other(facts: Facts) -> Advice | None:
    """What lies between the phases is long: steps are small."""
    found = _share(facts, "other", OTHER_SHARE)
    if found is None:
        return None
    took, bound = found
    return Advice(
        rule="overhead_other",
        finding=f"The training loop itself, its hooks and logging take {took}.",
        remedy="They cost the same for each step, however small: a larger `batch_size` makes fewer of them, and"
        f" `self.log` with `on_step=False` does less in each (at most {factor(bound)}).",
        speedup=bound,
    )


def too_few_steps(facts: Facts) -> Advice | None:
    """The times rest on too little."""
    steps = facts.timed_steps
    if steps >= FEW_STEPS:
        return None
    finding = (
        "No step was timed."
        if steps == 0
        else f"Only {steps} {'step was' if steps == 1 else 'steps were'} timed: the numbers are rough."
    )
    return Advice(
        rule="too_few_steps",
        finding=finding,
        remedy=f"Profile at least {FEW_STEPS} steps beyond `skip_batches` and those recorded for their memory"
        " (`memory_every`).",
    )


def profiler_overhead(facts: Facts) -> Advice | None:
    """The profiler itself took time."""
    if facts.overhead is None or facts.overhead <= OVERHEAD_SHARE:
        return None
    finding = f"The profiler itself is {percent(facts.overhead)} of the timed steps"
    finding += f" ({duration(facts.overhead * facts.step_s)} of each)" if facts.step_s else ""
    return Advice(
        rule="profiler_overhead",
        finding=f"{finding}: times of short parts are too long by it.",
        remedy="Larger batches give truer shares: what it costs is the same for each layer and step.",
    )


def validation_share(facts: Facts) -> float | None:
    """Share of the fit that training stood still for validation; None where the fit's time is not known."""
    if not facts.fit_s:
        return None
    return min(facts.validation_s / facts.fit_s, 1.0)


def _share(facts: Facts, phase: str, threshold: float) -> tuple[str, float] | None:
    """Say how much of a step a phase takes, and what its absence would bring, if it is above a threshold."""
    seconds = facts.phase_s.get(phase, 0.0)
    if not facts.step_s or seconds / facts.step_s <= threshold:
        return None
    took = f"{percent(seconds / facts.step_s)} of the step ({duration(seconds)} of {duration(facts.step_s)})"
    return took, times_faster(facts.step_s, facts.step_s - seconds)

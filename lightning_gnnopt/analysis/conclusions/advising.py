"""What follows from a profile's numbers: advice, and the bottleneck in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.conclusions.rules_layers import (
    EDGE_SHARE,
    VERTEX_SHARE,
    edge_dominates,
    edge_work,
    fused_helps,
    vertex_dominates,
)
from lightning_gnnopt.analysis.conclusions.rules_loading import TRANSFER_SHARE, WAIT_SHARE, transfer, waits_for_batches
from lightning_gnnopt.analysis.conclusions.rules_memory import memory_expands, memory_varies, over_limit
from lightning_gnnopt.analysis.conclusions.rules_time import (
    CALLBACKS_SHARE,
    OPTIMIZER_SHARE,
    OTHER_SHARE,
    VALIDATION_SHARE,
    between_epochs,
    callbacks_slow,
    optimizer_slow,
    overhead_other,
    profiler_overhead,
    too_few_steps,
    validation_blocks,
    validation_share,
)
from lightning_gnnopt.analysis.conclusions.words import percent

_MEMORY = (over_limit, memory_varies, memory_expands)
RULES: tuple[Callable[[Facts], Advice | None], ...] = (
    waits_for_batches,
    transfer,
    validation_blocks,
    between_epochs,
    callbacks_slow,
    optimizer_slow,
    overhead_other,
    *_MEMORY,
    edge_dominates,
    vertex_dominates,
    fused_helps,
    too_few_steps,
    profiler_overhead,
)
"""All rules. Each looks at the facts and has something to say, or has not."""

_HINDRANCES = {
    "wait": (WAIT_SHARE, "waits for batches {}"),
    "transfer": (TRANSFER_SHARE, "spends {} on moving batches to the device"),
    "callbacks": (CALLBACKS_SHARE, "spends {} in callbacks"),
    "optimizer": (OPTIMIZER_SHARE, "spends {} in the optimizer"),
    "other": (OTHER_SHARE, "spends {} in the loop itself, its hooks and logging"),
}


def advise(facts: Facts) -> list[Advice]:
    """Apply all rules, those that save most first, then those on memory, then those that only explain."""
    found = [(rule in _MEMORY, advice) for rule in RULES if (advice := rule(facts)) is not None]
    saving = sorted((a for _, a in found if a.speedup > 1), key=lambda a: -a.speedup)  # stable among equals
    others = [(on_memory, a) for on_memory, a in found if a.speedup <= 1]
    return saving + [a for on_memory, a in others if on_memory] + [a for on_memory, a in others if not on_memory]


def verdict(facts: Facts) -> str:
    """Say in one sentence what the bottleneck is.

    First what takes most of the fit, the computation or what holds it up, and of the latter the most of what is worth a
    remedy; then what is computed; then whether memory is too small.

    Examples:
        >>> kinds, parts = {"vertex": 1.0, "edge": 4.0}, {"gather": 1.0, "message": 3.0}
        >>> verdict(
        ...     Facts(timed_steps=50, step_s=8.0, phase_s={"wait": 5.0, "forward": 3.0}, kind_s=kinds, part_s=parts)
        ... )
        "Training waits for batches 62 % of the time; of the layers' work, 80 % is edge computation, mostly message."
    """
    clauses = list(_clauses(facts))
    return "; ".join(clauses) + "."


def _clauses(facts: Facts) -> Iterator[str]:
    memory = _memory(facts)
    if facts.step_s or _validation(facts):
        yield _most(facts)
    else:
        yield "No step was timed" if memory or facts.peaks_bytes or facts.fit_steps else "Nothing was recorded"
    if facts.step_s:
        yield _computation(facts)
    if memory is not None:
        yield memory


def _most(facts: Facts) -> str:
    """What takes most of the fit: the computation, or what holds it up, if that is worth a remedy."""
    validation = _validation(facts)
    shares = {phase: seconds / facts.step_s for phase, seconds in facts.phase_s.items()} if facts.step_s else {}
    computing = shares.get("forward", 0.0) + shares.get("backward", 0.0)
    of_fit = {phase: shares[phase] * (1 - validation) for phase, (least, _) in _HINDRANCES.items()
              if shares.get(phase, 0.0) > least}  # fmt: skip
    largest = max(of_fit, key=lambda phase: of_fit[phase], default="")
    if validation > of_fit.get(largest, 0.0):
        if validation >= computing * (1 - validation):
            return f"Validation takes {percent(validation)} of the fit while training stands still"
        return (
            f"Training computes {percent(computing)} of the time between validations, which take"
            f" {percent(validation)} of the fit"
        )
    if not largest:
        return f"Training computes {percent(computing)} of the time, and little holds it up"
    share, (_, sentence) = shares[largest], _HINDRANCES[largest]
    if share >= computing:
        return f"Training {sentence.format(f'{percent(share)} of the time')}"
    return f"Training computes {percent(computing)} of the time and {sentence.format(percent(share))}"


def _validation(facts: Facts) -> float:
    """Share of the fit in which training stands still for validation, if it is worth a remedy; else 0."""
    share = 0.0 if facts.async_validation else validation_share(facts) or 0.0
    return share if share > VALIDATION_SHARE else 0.0


def _computation(facts: Facts) -> str:
    work = edge_work(facts)
    if work is None and facts.closed:
        return "the layers could not be looked into"
    if work is None:
        return "no message-passing layers were found"
    outside_s, all_s = facts.kind_s.get("", 0.0), sum(facts.kind_s.values())
    if outside_s > all_s / 2:
        return f"of the computation, {percent(outside_s / all_s)} lies outside the message-passing layers"
    if VERTEX_SHARE < work.share < EDGE_SHARE:
        return f"of the layers' work, {percent(work.share)} is for edges and {percent(1 - work.share)} for vertices"
    if work.share <= VERTEX_SHARE:
        return f"of the layers' work, {percent(1 - work.share)} is vertex computation"
    mostly = "" if not work.part else f", {'mostly' if work.part_share >= 0.5 else 'above all'} {work.part}"
    return f"of the layers' work, {percent(work.share)} is edge computation{mostly}"


def _memory(facts: Facts) -> str | None:
    if facts.limit_bytes is None:
        return None
    if facts.fixed_bytes >= facts.limit_bytes:
        what = "the model with all that stays on the device" if facts.beside_bytes else "the model alone"
        return f"{what} takes more memory than the limit of {format_bytes(facts.limit_bytes)}"
    if not facts.over_limit:
        return None
    return f"{percent(facts.over_limit)} of batches exceed the limit of {format_bytes(facts.limit_bytes)}"

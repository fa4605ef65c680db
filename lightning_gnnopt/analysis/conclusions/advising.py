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
    "wait": (WAIT_SHARE, "Training waits for batches {} of the time"),
    "transfer": (TRANSFER_SHARE, "Training spends {} of the time on moving batches to the device"),
    "callbacks": (CALLBACKS_SHARE, "Training spends {} of the time in callbacks"),
    "optimizer": (OPTIMIZER_SHARE, "Training spends {} of the time in the optimizer"),
    "other": (OTHER_SHARE, "Training spends {} of the time in the loop itself, its hooks and logging"),
}


def advise(facts: Facts) -> list[Advice]:
    """Apply all rules, those that save most first, then those on memory, then those that only explain."""
    found = [(rule in _MEMORY, advice) for rule in RULES if (advice := rule(facts)) is not None]
    saving = sorted((a for _, a in found if a.speedup > 1), key=lambda a: -a.speedup)  # stable among equals
    others = [(on_memory, a) for on_memory, a in found if a.speedup <= 1]
    return saving + [a for on_memory, a in others if on_memory] + [a for on_memory, a in others if not on_memory]


def verdict(facts: Facts) -> str:
    """Say in one sentence what the bottleneck is.

    First what holds up the computation most, if anything is worth a remedy; then what is computed; then whether memory
    is too small.

    Examples:
        >>> kinds, parts = {"vertex": 1.0, "edge": 4.0}, {"gather": 1.0, "message": 3.0}
        >>> verdict(
        ...     Facts(timed_steps=50, step_s=8.0, phase_s={"wait": 3.0, "forward": 5.0}, kind_s=kinds, part_s=parts)
        ... )
        "Training waits for batches 38 % of the time; of the layers' work, 80 % is edge computation, mostly message."
    """
    clauses = list(_clauses(facts))
    return "; ".join(clauses) + "."


def _clauses(facts: Facts) -> Iterator[str]:
    hindrance, memory = _hindrance(facts), _memory(facts)
    computing_s = facts.phase_s.get("forward", 0.0) + facts.phase_s.get("backward", 0.0)
    if hindrance is not None:
        yield hindrance
    elif not facts.step_s:
        yield "No step was timed" if memory or facts.peaks_bytes or facts.fit_steps else "Nothing was recorded"
    else:
        yield f"Training computes {percent(computing_s / facts.step_s)} of the time, and little holds it up"
    if facts.step_s:
        yield _computation(facts)
    if memory is not None:
        yield memory


def _hindrance(facts: Facts) -> str | None:
    """What takes most of the fit but the computation itself, if it is worth a remedy."""
    found: list[tuple[float, str]] = []
    validation = 0.0 if facts.async_validation else validation_share(facts) or 0.0
    if validation > VALIDATION_SHARE:
        found.append((validation, f"Validation takes {percent(validation)} of the fit while training stands still"))
    for phase, (threshold, sentence) in _HINDRANCES.items():
        share = facts.phase_s.get(phase, 0.0) / facts.step_s if facts.step_s else 0.0
        if share > threshold:
            found.append((share * (1 - validation), sentence.format(percent(share))))
    return max(found)[1] if found else None


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
    if (facts.static_bytes or 0) >= facts.limit_bytes:
        return f"the model alone takes more memory than the limit of {format_bytes(facts.limit_bytes)}"
    if not facts.over_limit:
        return None
    return f"{percent(facts.over_limit)} of batches exceed the limit of {format_bytes(facts.limit_bytes)}"

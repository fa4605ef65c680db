"""Rules on memory."""

from __future__ import annotations

from statistics import median

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.conclusions.words import factor, percent

MEASURED = 5
"""Fewer measured peaks do not tell how much they vary."""
VARIES = 1.3
"""Largest peak over the median above which batches vary."""
EXPANSION = 10.0
"""Peak over the bytes of the batch above which a step expands it."""
PRUNED_MOST = 0.5
"""Share of the edges from which on pruning is no remedy."""


def over_limit(facts: Facts) -> Advice | None:
    """Steps take more than they may."""
    limit_bytes, fixed_bytes = facts.limit_bytes, facts.fixed_bytes
    if limit_bytes is None:
        return None
    limit = format_bytes(limit_bytes)
    if fixed_bytes >= limit_bytes:
        return Advice(
            rule="over_limit",
            finding=f"{_fixed(facts)} takes {format_bytes(fixed_bytes)}, which leaves nothing of {limit} for a step.",
            remedy="Pruning or splitting batches cannot help: a narrower model, an optimizer with less state, or a"
            " higher limit can.",
        )
    if not facts.over_limit:
        return None
    measured = len(facts.peaks_bytes)
    over = round(facts.over_limit * measured)
    finding = f"{percent(facts.over_limit)} of batches exceed {limit} ({over:,} of {measured:,} measured steps"
    if facts.peaks_bytes:
        finding += f", the largest {format_bytes(max(facts.peaks_bytes) + fixed_bytes)}, model included"
    if facts.memory_control:
        finding += "), although `MemoryControl` is on"
        remedy = f"Give it a `budget` below {limit}; its own report compares its predictions with the measured peaks."
    else:
        finding += ")"
        remedy = _control(facts)
    return Advice(rule="over_limit", finding=f"{finding}.", remedy=remedy)


def memory_varies(facts: Facts) -> Advice | None:
    """Few batches are much larger than the others, and memory has to be there for them."""
    if len(facts.peaks_bytes) < MEASURED or facts.memory_control:
        return None
    middle, largest = median(facts.peaks_bytes), max(facts.peaks_bytes)
    if middle <= 0 or largest / middle <= VARIES:
        return None
    budget = format_bytes(largest + facts.fixed_bytes)
    if facts.static_bytes is not None:
        budget += " (model included)"
    return Advice(
        rule="memory_varies",
        finding=f"The largest of {len(facts.peaks_bytes):,} measured peaks is {factor(largest / middle)} the median"
        f" ({format_bytes(largest)} and {format_bytes(middle)}): in half of the steps"
        f" {percent(1 - middle / largest)} or more of the memory that it needs lies idle.",
        remedy=f"`MemoryControl` with a `budget` of {budget} holds the few large batches below it, so that"
        f" `batch_size` can be raised by up to {percent(largest / middle - 1)}.",
    )


def memory_expands(facts: Facts) -> Advice | None:
    """A step holds many times what it loads."""
    if facts.expansion is None or facts.expansion <= EXPANSION:
        return None
    finding = f"A step holds {facts.expansion:,.0f} times the bytes of its batch"
    if facts.loaded_bytes:
        finding += f" ({format_bytes(facts.loaded_bytes)})"
    total = sum(facts.alive_bytes.values())
    if total > 0:
        place = max(facts.alive_bytes, key=lambda name: facts.alive_bytes[name])
        finding += f": {percent(facts.alive_bytes[place] / total)} of the largest tensors at its peak are of `{place}`"
    return Advice(
        rule="memory_expands",
        finding=f"{finding}.",
        remedy="Tensors with a row for each edge, messages above all, are what grows: fewer or smaller heads, a"
        " narrower layer, a fused aggregation where the layer has one (it makes no messages), or `MemoryControl` with"
        " `on_exceed='split'`.",
    )


def _fixed(facts: Facts) -> str:
    if facts.beside_bytes:
        return "The model with all that stays on the device (waiting batches, features)"
    return "The model alone (parameters, gradients, the optimizer's state)"


def _control(facts: Facts) -> str:
    if facts.edge_bytes is None or facts.measured_edges == 0:
        return "`MemoryControl` would prune those batches, or run them in parts (`on_exceed='split'`)."
    share = facts.excess_bytes / facts.edge_bytes / facts.measured_edges
    if share >= PRUNED_MOST:
        return (
            f"`MemoryControl` would have to prune {percent(min(share, 1.0))} of edges: lower `batch_size`, or run"
            " batches in parts (`on_exceed='split'`)."
        )
    return f"`MemoryControl` would prune {percent(share)} of edges, or none with `on_exceed='split'`."

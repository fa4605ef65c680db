"""Rules on what happens to a batch before its step: it is prepared, waited for, and moved to the device."""

from __future__ import annotations

import math

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.conclusions.words import duration, factor, percent, times_faster

WAIT_SHARE = 0.05
"""Share of a step above which waiting for its batch is worth a remedy."""
TRANSFER_SHARE = 0.05
"""Share of a step above which moving its batch is."""
QUEUED = 1.0
"""Batches that are ready on average, from which on waiting is not for want of them."""
FIRST_WAIT = 0.5
"""Share of the waiting that is for the first batches of epochs, above which it is that which wants a remedy."""
MOST_WORKERS = 16
"""More workers than that are not recommended where the number of cores is not known."""

_NARROWER = "`feature_dtype='float16'` halves, `'int8'` quarters the bytes of float32 features"


def waits_for_batches(facts: Facts) -> Advice | None:
    """Training waits for its batches."""
    step_s, wait_s = facts.step_s, facts.phase_s.get("wait", 0.0)
    if not step_s or wait_s / step_s <= WAIT_SHARE:
        return None
    compute_s = max(step_s - wait_s, 0.0)
    finding = f"{percent(wait_s / step_s)} of the step waits for batches ({duration(wait_s)} of {duration(step_s)})"
    if facts.first_wait is not None and facts.first_wait > FIRST_WAIT:
        return _waits_for_first(facts.first_wait, finding, step_s, wait_s)
    if facts.num_workers is None:
        return _waits_for_other(facts, finding, step_s, compute_s)
    if facts.num_workers == 0:
        return _more_workers(facts, f"{finding}, which the training loop prepares itself", step_s, compute_s, wait_s)
    if facts.queued is not None and facts.queued >= QUEUED:
        bound = times_faster(step_s, compute_s)
        finding += f", although {facts.queued:.1f} were ready on average: threads get in each other's way"
        remedy = (
            f"Free a core for the training thread: fewer workers than {facts.num_workers}, or a lower"
            f" `OMP_NUM_THREADS` (theoretical {factor(bound)})."
        )
        return Advice(rule="waits_for_batches", finding=f"{finding}.", remedy=remedy, speedup=bound)
    told_s = _told_s(facts)
    if told_s is None:  # workers that training waits for are busy all the time
        return _more_workers(facts, finding, step_s, compute_s, facts.num_workers * step_s)
    finding += f": preparing one takes {duration(told_s)}"
    if _bus_is_slowest(facts, told_s, compute_s):
        assert facts.transfer_s is not None
        bound = times_faster(step_s, max(compute_s, told_s / facts.num_workers))
        finding += f", and moving it to the device {duration(facts.transfer_s)}, longer than anything else"
        remedy = (
            f"{_NARROWER}, and a `cache` keeps the rows that are asked for most often on the device"
            f" (theoretical {factor(bound)})."
        )
        return Advice(rule="waits_for_batches", finding=f"{finding}.", remedy=remedy, speedup=bound)
    return _more_workers(facts, finding, step_s, compute_s, told_s)


def transfer(facts: Facts) -> Advice | None:
    """The training loop itself moves the batches."""
    step_s, moved_s = facts.step_s, facts.phase_s.get("transfer", 0.0)
    if not step_s or moved_s / step_s <= TRANSFER_SHARE:
        return None
    bound = times_faster(step_s, step_s - moved_s)
    finding = f"{percent(moved_s / step_s)} of the step moves the batch to its device ({duration(moved_s)})"
    if facts.device == "cpu":
        finding += ", although nothing has to be copied on the CPU"
        remedy = (
            "Look at the module's and the data module's `on_before_batch_transfer`, `transfer_batch_to_device` and"
            f" `on_after_batch_transfer`: what they do belongs into the loader's workers (theoretical {factor(bound)})."
        )
    else:
        if facts.loaded_bytes:
            rate = facts.loaded_bytes / moved_s / 1e9
            finding += f": {facts.loaded_bytes / 1e6:,.1f} MB at {rate:,.1f} GB/s"
        remedy = (
            "`GraphDataModule` copies the next batch on a side stream while this one computes (theoretical"
            f" {factor(bound)}); {_NARROWER}, and a `cache` on the device leaves out the rows asked for most often."
        )
    return Advice(rule="transfer", finding=f"{finding}.", remedy=remedy, speedup=bound)


def _waits_for_first(share: float, finding: str, step_s: float, wait_s: float) -> Advice:
    """Workers begin anew with each epoch."""
    bound = times_faster(step_s, step_s - share * wait_s)
    return Advice(
        rule="waits_for_batches",
        finding=f"{finding}; {percent(share)} of that is for the first batches of epochs.",
        remedy="Workers begin anew with each epoch: `persistent_workers=True` keeps those of PyG's loaders, and threads"
        f" (`GraphDataModule`) begin in no time; longer epochs begin less often (theoretical {factor(bound)}).",
        speedup=bound,
    )


def _waits_for_other(facts: Facts, finding: str, step_s: float, compute_s: float) -> Advice:
    """The loader does not say whether it has workers."""
    bound = times_faster(step_s, compute_s)
    finding += ", and the loader does not tell what it does" if _told_s(facts) is None else ""
    remedy = f"`GraphDataModule` prepares batches beside training (theoretical {factor(bound)}), and tells its stages."
    return Advice(rule="waits_for_batches", finding=f"{finding}.", remedy=remedy, speedup=bound)


def _more_workers(facts: Facts, finding: str, step_s: float, compute_s: float, prepare_s: float) -> Advice:
    """More workers if there are cores for them and they help; else cheaper batches."""
    workers = facts.num_workers or 0
    room = MOST_WORKERS if facts.cores is None else facts.cores - 1  # training has one
    needed = math.ceil(prepare_s / compute_s) if compute_s * MOST_WORKERS > prepare_s else MOST_WORKERS
    needed = max(needed, 1)
    if needed <= workers:
        return _uneven(finding, workers, times_faster(step_s, compute_s))
    if workers >= room:
        return _cheaper(facts, finding, step_s, compute_s, prepare_s)
    chosen = min(needed, room)
    bound = times_faster(step_s, max(prepare_s / chosen, compute_s))
    hidden = "it" if prepare_s <= chosen * compute_s else "a part of it"
    remedy = f"`num_workers` {workers} -> {chosen} would hide {hidden} (theoretical {factor(bound)})"
    if facts.device == "cpu":
        remedy += "; a worker takes a core that training computes with"
    if facts.cores is None:
        remedy += ", if there are as many cores and one for training"
    if _told_s(facts) is None:
        remedy += "; the loader does not tell its stages: `GraphDataModule` does, and prepares batches beside training"
    return Advice(rule="waits_for_batches", finding=f"{finding}.", remedy=f"{remedy}.", speedup=bound)


def _uneven(finding: str, workers: int, bound: float) -> Advice:
    finding += f", which {workers} {'worker keeps' if workers == 1 else 'workers keep'} up with on average"
    remedy = (
        "Batches are uneven or come in bursts: a larger `prefetch_factor` (and `max_bytes_in_flight`) rides out slow"
        f" ones (theoretical {factor(bound)})."
    )
    return Advice(rule="waits_for_batches", finding=f"{finding}.", remedy=remedy, speedup=bound)


def _cheaper(facts: Facts, finding: str, step_s: float, compute_s: float, prepare_s: float) -> Advice:
    """No core is free for a worker."""
    bound = times_faster(step_s, compute_s)
    taken = f"{facts.cores} core{'' if facts.cores == 1 else 's'}"
    sampling = "smaller fan-outs or `sampler='labor'` draw fewer nodes"
    slicing = f"{_NARROWER}, and on a GPU a `cache` leaves out the rows asked for most often"
    sample_s, slice_s = facts.sample_s, facts.slice_s
    if sample_s is None or slice_s is None:
        remedy = f"{sampling}; {slicing}"
    elif sample_s >= slice_s:
        remedy = f"sampling takes most of it ({duration(sample_s)}, slicing {duration(slice_s)}): {sampling}"
    else:
        remedy = f"slicing takes most of it ({duration(slice_s)}, sampling {duration(sample_s)}): {slicing}"
    return Advice(
        rule="waits_for_batches",
        finding=f"{finding}.",
        remedy=f"No core is free for another worker ({taken}), so make batches cheaper (theoretical {factor(bound)}):"
        f" {remedy}.",
        speedup=bound,
    )


def _told_s(facts: Facts) -> float | None:
    """Seconds of preparing a batch, as the loader tells them."""
    if facts.sample_s is None and facts.slice_s is None:
        return None
    return (facts.sample_s or 0.0) + (facts.slice_s or 0.0)


def _bus_is_slowest(facts: Facts, told_s: float, compute_s: float) -> bool:
    return facts.device != "cpu" and (facts.transfer_s or 0.0) > max(told_s / (facts.num_workers or 1), compute_s)

"""One cell of the study: the four sides in turn, their speed-ups, and whether they trained alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch_geometric.data import Data

from lightning_gnnopt._machine import other_cpu_s, usable_cores
from lightning_gnnopt.loading.pipeline import PipelineOptions
from lightning_gnnopt.studies.pipeline.baseline import Baseline, find_baseline
from lightning_gnnopt.studies.pipeline.fits import Fit, run_fit
from lightning_gnnopt.studies.pipeline.loaders import our_batches, partition
from lightning_gnnopt.studies.pipeline.settings import Setting
from lightning_gnnopt.studies.pipeline.theory import (
    SIDES,
    effect,
    gain_share,
    least_epoch_s,
    least_fit_s,
    speedups,
)

_BESIDE = ("async", "both")
_PREFETCHED = ("prefetch", "both")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A fit, and how many cores other processes kept busy meanwhile."""

    fit: Fit
    other_cores: float


def measure_setting(
    setting: Setting,
    make_module: Callable[[], L.LightningModule],
    data: Data,
    study: Mapping[str, Any],
    *,
    seed: int,
    turn: int = 0,
) -> dict[str, Any]:
    """Run the four sides of a setting in turn and compare them.

    All sides run with one torch thread: training that uses both cores leaves nothing to prepare batches on.

    Args:
        setting: What to run.
        make_module: Makes the module, with the same weights each time.
        data: The graph.
        study: The config's group `pipeline`.
        seed: Keys shuffling and sampling.
        turn: Number of the side that the first round begins with; the next round begins with the next one.

    Returns:
        What was measured, in plain types; see `recipes/pipeline_study`.

    Raises:
        ValueError: If the graph has fewer nodes to train on than a batch has seeds.
        ValidationFailed: If the validation process fails.
    """
    num_train = int(data.train_mask.sum())
    if setting.batch_size > num_train:
        raise ValueError(
            f"`batch_size` must not be above the {num_train:,} nodes that the graph has to train on, but is"
            f" {setting.batch_size:,}. HINT: a larger graph (`pipeline.options`), or a smaller `pipeline.batch_size`."
        )
    began_s = time.monotonic()
    with _one_torch_thread():
        parts = partition(data, setting, study["clusters_per_batch"], seed=seed)
        make_ours = partial(
            our_batches,
            data,
            setting,
            fanout=study["num_neighbors"],
            clusters_per_batch=study["clusters_per_batch"],
            seed=seed,
            parts=parts,
        )
        run = partial(_run, make_module, seed=seed)
        baseline = find_baseline(
            setting, data, study, make_ours, lambda batches: run(batches, epochs=2, beside=False).fit
        )
        passes = max(1, round(study["epoch_s"] / baseline.pass_s))
        sides: dict[str, Callable[[], _Run]] = {}
        for side in SIDES:
            make: Callable[[int], L.LightningDataModule] = baseline.make
            if side in _PREFETCHED:
                make = partial(_ours, make_ours, study["num_workers"])
            sides[side] = partial(_made, run, make, passes, epochs=study["epochs"], beside=side in _BESIDE)
        rounds = list(_rounds(sides, turn, setting.rounds, study["max_s"]))
    return {
        "baseline": baseline.name,
        "baseline_tries_s": baseline.tries_s,
        "baseline_note": baseline.note,
        "passes": passes,
        "epochs": study["epochs"],
        "num_workers": study["num_workers"],
        "torch_threads": 1,
        "cores": usable_cores(),
        **_compared(
            rounds,
            baseline,
            passes,
            workers=PipelineOptions(num_workers=study["num_workers"]).threads,
            epochs=study["epochs"],
        ),
        "seconds": time.monotonic() - began_s,
    }


def _ours(make: Callable[..., L.LightningDataModule], num_workers: int | str, passes: int) -> L.LightningDataModule:
    return make(passes=passes, num_workers=num_workers)


def _made(
    run: Callable[..., _Run], make: Callable[[int], L.LightningDataModule], passes: int, *, epochs: int, beside: bool
) -> _Run:
    return run(make(passes), epochs=epochs, beside=beside)


def _run(
    make_module: Callable[[], L.LightningModule],
    datamodule: L.LightningDataModule,
    *,
    seed: int,
    epochs: int,
    beside: bool,
) -> _Run:
    gc.collect()
    module = make_module()
    torch.manual_seed(seed)  # of dropout, and of PyG's sampling
    start_s, other_s = time.monotonic(), other_cpu_s()
    fit = run_fit(module, datamodule, epochs=epochs, beside=beside)
    return _Run(fit=fit, other_cores=max(0.0, other_cpu_s() - other_s) / (time.monotonic() - start_s))


def _rounds(
    sides: Mapping[str, Callable[[], _Run]], turn: int, rounds: int, max_s: float | None
) -> Iterator[dict[str, _Run]]:
    """Run all sides once per round, each round beginning with the next one; no round that would end too late."""
    began_s, names = time.monotonic(), list(sides)
    for number in range(rounds):
        first = (turn + number) % len(names)
        found = {name: sides[name]() for name in names[first:] + names[:first]}
        yield {name: found[name] for name in names}
        passed_s = time.monotonic() - began_s
        if max_s is not None and passed_s * (number + 2) / (number + 1) > max_s:
            return


def _compared(
    rounds: Sequence[Mapping[str, _Run]], baseline: Baseline, passes: int, *, workers: int, epochs: int
) -> dict[str, Any]:
    """Compare within each round, and take medians over the rounds."""
    cores = usable_cores()
    stages = [baseline.stages_of(runs["baseline"].fit, passes) for runs in rounds]
    theory, fit_theory = [], []
    for runs, its in zip(rounds, stages, strict=True):
        # what is compared with is the baseline as it ran, which is not one stage after the other if it has workers
        whole_s = its.epoch_s if baseline.num_workers == 0 else runs["baseline"].fit.epoch_s
        least_s = least_epoch_s(its, workers=workers, cores=cores)
        theory.append(speedups({**least_s, "baseline": whole_s}))
        least_s = least_fit_s(its, epochs=epochs, workers=workers, cores=cores)
        fit_theory.append(speedups({**least_s, "baseline": epochs * whole_s}))
    measured = [speedups({side: run.fit.epoch_s for side, run in runs.items()}) for runs in rounds]
    fit_measured = [speedups({side: run.fit.fit_s for side, run in runs.items()}) for runs in rounds]
    found: dict[str, Any] = {}
    for side in SIDES:
        fits = [runs[side].fit for runs in rounds]
        found[side] = {
            "epoch_s": statistics.median(fit.epoch_s for fit in fits),
            "fit_s": statistics.median(fit.fit_s for fit in fits),
            "cpu_s": statistics.median(fit.cpu_s for fit in fits),
            "startup_s": statistics.median(fit.startup_s for fit in fits),
            "workers": list(fits[-1].workers),
            "steady_epochs": sum(len(fit.steady_s) for fit in fits),
        }
        if side != "baseline":
            numbers = {
                "speedup": _middle(measured, side),
                "theory": _middle(theory, side),
                "fit_speedup": _middle(fit_measured, side),
                "fit_theory": _middle(fit_theory, side),
            }
            found[side] |= numbers | {
                "effect": effect(numbers["speedup"], numbers["theory"]),
                "gain_share": gain_share(numbers["speedup"], numbers["theory"]),
            }
    return {
        "sides": found,
        "stages": {name: statistics.median(getattr(its, name) for its in stages) for name in asdict(stages[0])},
        "pass_s": found["baseline"]["epoch_s"] / passes,
        **_trained_alike(rounds, with_baseline=baseline.is_ours),
        "other_cores": max(run.other_cores for runs in rounds for run in runs.values()),
        "rounds": [{side: _plain(run) for side, run in runs.items()} for runs in rounds],
    }


def _trained_alike(rounds: Sequence[Mapping[str, _Run]], *, with_baseline: bool) -> dict[str, Any]:
    """Compare the bits of the losses of all sides whose batches are our loader's."""
    sides = SIDES if with_baseline else _PREFETCHED
    fits = [runs[side].fit for runs in rounds for side in sides]
    return {
        "compared_sides": list(sides),
        "losses_equal": len({fit.losses for fit in fits}) == 1,
        "val_losses_equal": len({fit.val_losses for fit in fits}) == 1,
        "last_loss": fits[0].last_loss,
        "last_val_loss": fits[0].val_losses[-1],
    }


def _plain(run: _Run) -> dict[str, Any]:
    fit = run.fit
    return {
        "fit_s": fit.fit_s,
        "startup_s": fit.startup_s,
        "epochs_s": list(fit.epochs_s),
        "steady_epochs": len(fit.steady_s),
        "losses": fit.losses,
        "other_cores": run.other_cores,
    }


def _middle(rounds: Sequence[Mapping[str, float]], side: str) -> float:
    return statistics.median(found[side] for found in rounds)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Control's own share of a run: by its own count, and by the wall clock."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_gnnopt.memory import MemoryControl, Tally
from lightning_gnnopt.studies.memory_control.limit import unlimited_peaks
from lightning_gnnopt.studies.memory_control.setup import Setup
from lightning_gnnopt.studies.memory_control.watched import make_trainer
from lightning_gnnopt.studies.quiet import quiet

_TWICE = 2  # the largest peak: a budget that touches no batch


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How long a run took.

    Attributes:
        fit_s: Seconds from its start, probes included, to its end.
        epochs_s: Seconds of each epoch.
        tally: What control did; None without it.
        own_epochs_s: Seconds of each epoch that control took, by its own count.
    """

    fit_s: float
    epochs_s: Sequence[float]
    tally: Tally | None = None
    own_epochs_s: Sequence[float] = ()

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch: the median without the first, which compiles and allocates."""
        return statistics.median(self.epochs_s[1:] or self.epochs_s)

    @property
    def own_s(self) -> float:
        """Seconds that control took, by its own count, probes included."""
        return _own_s(self.tally)

    @property
    def probe_s(self) -> float:
        """Seconds of these that the probes took, once a run."""
        return 0.0 if self.tally is None else self.tally.probe_s

    @property
    def steady(self) -> float:
        """Share of the epochs behind the first that control took."""
        return sum(self.own_epochs_s[1:]) / sum(self.epochs_s[1:])


def measure_overhead(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train without control, and with it on a budget that touches no batch, in turn; then at a limit.

    Batches are prepared between the steps, so that all that control takes is in the run's time.

    Args:
        setup: The graph and the model.
        options: `batch_size`; `num_neighbors`; `quantile` of the peaks without a limit; `steps` of an epoch and
            `epochs`; `rounds`; `predictors`, those that control is run with at the limit.

    Returns:
        ``wall``, by round the share of an epoch that the time without control does not explain; ``step_s``, seconds of
        a step without it; ``sides``: ``untouched`` and, by predictor, ``limit``, each with its ``own`` share of the
        run by its own count, ``steady``, the same of the epochs behind the first, ``probe_s``, and ``touched`` and
        ``resamples`` per batch.
    """
    loading = {"batch_size": options["batch_size"], "num_neighbors": options["num_neighbors"]}
    peaks = unlimited_peaks(setup, steps=int(options["steps"]), **loading)
    limit_bytes = int(np.quantile(peaks, options["quantile"]))
    untouched_bytes = int(_TWICE * max(peaks))
    # What is compiled when something is cut first is no share of a run.
    _timed_fit(setup, {**options, "epochs": 1, "steps": 3}, MemoryControl(int(np.median(peaks)), verbose=False))
    without: list[Timed] = []
    untouched: list[Timed] = []
    for number in range(int(options["rounds"])):
        sides = [(without, None), (untouched, untouched_bytes)]
        for runs, budget in sides if number % 2 == 0 else reversed(sides):
            control = None if budget is None else MemoryControl(budget, verbose=False)
            runs.append(_timed_fit(setup, options, control))
    found = {"untouched": _counted(untouched)}
    for name in options["predictors"]:
        control = MemoryControl(limit_bytes, predictor=name, verbose=False)
        found[f"limit, {name}"] = _counted([_timed_fit(setup, options, control)])
    return {
        "wall": wall_shares([run.epoch_s for run in untouched], [run.epoch_s for run in without]),
        "step_s": statistics.median(run.epoch_s for run in without) / _steps_of(setup, options),
        "sides": found,
    }


def wall_shares(with_control: Sequence[float], without: Sequence[float]) -> list[float]:
    """By round, the part of the time with control that the time without it does not explain.

    Examples:
        >>> wall_shares([1.25, 2.0], [1.0, 2.0])
        [0.19999999999999996, 0.0]
    """
    return [1 - plain / controlled for controlled, plain in zip(with_control, without, strict=True)]


class RunClock(Callback):
    """Times a run and its epochs; stands before all other callbacks, so that what they do at the start counts.

    Args:
        control: Whose own count is read at the end of each epoch; None if there is none.
    """

    def __init__(self, control: MemoryControl | None = None) -> None:
        self.fit_s = 0.0
        self.epochs_s: list[float] = []
        self.own_epochs_s: list[float] = []
        self._control = control
        self._start_s = self._epoch_start_s = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_s = time.perf_counter()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start_s = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs_s.append(time.perf_counter() - self._epoch_start_s)
        so_far_s = _own_s(None if self._control is None else self._control.tally)
        self.own_epochs_s.append(so_far_s - sum(self.own_epochs_s))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fit_s = time.perf_counter() - self._start_s


def _timed_fit(setup: Setup, options: Mapping[str, Any], control: MemoryControl | None) -> Timed:
    gc.collect()  # so that no run clears up after another
    clock = RunClock(control)
    datamodule = setup.datamodule(batch_size=options["batch_size"], num_neighbors=options["num_neighbors"])
    callbacks = [clock] if control is None else [clock, control]
    with quiet():
        trainer = make_trainer(*callbacks, max_epochs=int(options["epochs"]), limit_train_batches=int(options["steps"]))
        trainer.fit(setup.module(), datamodule=datamodule)
    tally = None if control is None else control.tally
    return Timed(fit_s=clock.fit_s, epochs_s=clock.epochs_s, tally=tally, own_epochs_s=clock.own_epochs_s)


def _own_s(tally: Tally | None) -> float:
    return 0.0 if tally is None else tally.inline_s + tally.worker_s


def _counted(runs: Sequence[Timed]) -> dict[str, float]:
    tallies = [run.tally for run in runs if run.tally is not None]
    batches = max(1, sum(tally.batches for tally in tallies))
    return {
        "own": statistics.median(run.own_s / run.fit_s for run in runs),
        "steady": statistics.median(run.steady for run in runs),
        "probe_s": statistics.median(run.probe_s for run in runs),
        "touched": sum(tally.over for tally in tallies) / batches,
        "resamples": sum(tally.resamples for tally in tallies) / batches,
    }


def _steps_of(setup: Setup, options: Mapping[str, Any]) -> int:
    return min(int(options["steps"]), setup.graph["train"] // int(options["batch_size"]))

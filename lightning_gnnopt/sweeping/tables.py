"""The two tables of a sweep: its jobs, and what they average to."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_gnnopt.sweeping.collecting import Job

_MISSING = object()
_LIKELY = ("test/acc", "test/f1")


@dataclass(frozen=True)
class Stat:
    """A metric of several jobs.

    Attributes:
        mean: Its mean.
        std: Its sample standard deviation (over ``n - 1``); None for a single job.
        n: Number of jobs.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat | None:
        """Average numbers; None if there are none."""
        if not values:
            return None
        with np.errstate(invalid="ignore"):  # a loss that is infinite in one job
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.std is None else f"{self.mean:.4g} ± {self.std:.2g}"


@dataclass(frozen=True)
class SummaryRow:
    """Jobs that differ in nothing but what is averaged over.

    Attributes:
        overrides: Values of the other overrides that vary, by key; a key that these jobs were not given is left out.
        n: Number of jobs that went well.
        failed: Number of those that did not.
        metrics: Metrics of those that went well, by name.
        seconds: How long those took.
        peak_bytes: The most memory that one of them held; None if unknown.
    """

    overrides: Mapping[str, Any]
    n: int
    failed: int
    metrics: Mapping[str, Stat]
    seconds: Stat | None
    peak_bytes: int | None


def varying_overrides(jobs: Iterable[Job]) -> list[str]:
    """List the overrides that not all jobs have in common, in the order of the command line."""
    jobs = list(jobs)
    keys = dict.fromkeys(key for job in jobs for key in job.outcome.overrides)
    return [key for key in keys if len({_identity(job.outcome.overrides.get(key, _MISSING)) for job in jobs}) > 1]


def metric_names(jobs: Iterable[Job]) -> list[str]:
    """List the metrics that any job has: of the test first, then of the validation, then the others."""
    names = dict.fromkeys(name for job in jobs for name in job.outcome.metrics)
    return sorted(names, key=lambda name: (not name.startswith("test/"), not name.startswith("val/")))


def likely_metric(names: Collection[str]) -> str | None:
    """Choose the metric that a reader wants to see; None if there is none."""
    for name in (*_LIKELY, *(likely.replace("test", "val") for likely in _LIKELY)):
        if name in names:
            return name
    return next(iter(names), None)


def summarize(jobs: Iterable[Job], varying: Sequence[str], over: Collection[str]) -> list[SummaryRow]:
    """Average the jobs that agree in all varying overrides but some.

    Args:
        jobs: The jobs; those that failed are counted.
        varying: The overrides that vary.
        over: Those of them whose values are averaged over.

    Returns:
        Rows in the order of the jobs.
    """
    groups: dict[tuple[str, ...], list[Job]] = {}
    keys = [key for key in varying if key not in over]
    for job in jobs:
        place = tuple(_identity(job.outcome.overrides.get(key, _MISSING)) for key in keys)
        groups.setdefault(place, []).append(job)
    return [_summary_row(group, keys) for group in groups.values()]


def _summary_row(group: Sequence[Job], keys: Sequence[str]) -> SummaryRow:
    given = group[0].outcome.overrides
    good = [job.outcome for job in group if job.outcome.status == "ok"]
    metrics = {}
    for name in metric_names(group):
        stat = Stat.of([outcome.metrics[name] for outcome in good if name in outcome.metrics])
        if stat is not None:
            metrics[name] = stat
    return SummaryRow(
        overrides={key: given[key] for key in keys if key in given},
        n=len(good),
        failed=len(group) - len(good),
        metrics=metrics,
        seconds=Stat.of([outcome.seconds for outcome in good if outcome.seconds is not None]),
        peak_bytes=max((outcome.peak_bytes for outcome in good if outcome.peak_bytes is not None), default=None),
    )


def _identity(value: object) -> str:
    return "" if value is _MISSING else json.dumps(value, sort_keys=True)

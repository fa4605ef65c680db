"""How a job tells what it has reached."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """What a job has reached so far.

    Attributes:
        metrics: Metrics by name.
        peak_bytes: The most memory that it held; None if unknown.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None


_current: ContextVar[Result | None] = ContextVar("gnnopt_job_result", default=None)


def record_result(metrics: Mapping[str, Any], *, peak_bytes: int | None = None) -> None:
    """Tell what the running job has reached, for its `outcome.json`; a metric told again replaces the earlier one.

    Outside of a job whose Hydra application has the callback `OutcomeWriter` it does nothing.

    Args:
        metrics: Numbers or tensors of one number, by name.
        peak_bytes: The most memory that the job held; None if unknown.
    """
    result = _current.get()
    if result is not None:
        result.metrics.update({name: float(value) for name, value in metrics.items()})
        result.peak_bytes = result.peak_bytes if peak_bytes is None else peak_bytes


def open_result() -> None:
    """Take what the job tells from now on."""
    _current.set(Result())


def close_result() -> Result:
    """Take no more, and hand out what was told."""
    result = _current.get() or Result()
    _current.set(None)
    return result

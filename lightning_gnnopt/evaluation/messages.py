"""What training and validation tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

FailureKind = Literal["start", "raised", "died", "hung", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Weights to judge.

    Attributes:
        step: The Trainer's `global_step` when they were taken.
        epoch: Its `current_epoch` then.
        weights: The file that holds them.
    """

    step: int
    epoch: int
    weights: Path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What validation says of a snapshot's weights.

    Attributes:
        step: The snapshot's step.
        epoch: The snapshot's epoch.
        metrics: What a Trainer has as `callback_metrics` after `validate`, on the CPU.
        logged: What goes to loggers.
        shown: What goes into the progress bar.
        records: What the module gave to its logger itself: metrics and, if it said one, the step.
        started_s: When validation began, by `time.monotonic`, which all processes of a machine share.
        ended_s: When it ended.
    """

    step: int
    epoch: int
    metrics: Mapping[str, Tensor]
    logged: Mapping[str, Tensor]
    shown: Mapping[str, Tensor]
    records: Sequence[tuple[dict[str, float], int | None]] = field(default_factory=list)
    started_s: float
    ended_s: float


class ValidationFailed(RuntimeError):  # noqa: N818 - says what happened
    """No verdict came of a snapshot.

    Attributes:
        kind: ``"start"``: the process did not come up. ``"raised"``: the user's code raised. ``"died"``: the process
            ended. ``"hung"``: it took too long, and was killed. ``"stopped"``: training did not want it any more.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))

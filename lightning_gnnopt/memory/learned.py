"""What was learned of a stage's steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.reserved_factor import ReservedFactor
from lightning_gnnopt.memory.tape import AllocationTape


@dataclass(eq=False)
class Learned:
    """What was learned of a stage.

    Attributes:
        footprint: Predicts the bytes at a step's peak.
        tapes: The allocation tapes of the kinds of steps; empty where the step has none.
        labels: The operator behind each event of the tape of whole steps.
        reason: Why there is no tape; empty if there is.
        reserved: How much more CUDA must give than is predicted; None on other devices.
        probe_s: Seconds it took.
    """

    footprint: Footprint
    tapes: dict[str, AllocationTape] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    reason: str = ""
    reserved: ReservedFactor | None = None
    probe_s: float = 0.0

    @property
    def has_drifted(self) -> bool:
        """Whether an exact predictor is wrong all the time: the step must have changed."""
        return any(getattr(predictor, "has_drifted", False) for predictor in self.footprint.predictors.values())

    def state_dict(self) -> dict[str, Any]:
        """Give what was learned from samples, by kind of step; a tape is solved anew faster than it is read."""
        if self.tapes:
            return {}
        return {kind: predictor.state_dict() for kind, predictor in self.footprint.predictors.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Go on from what an earlier run learned from samples; a tape needs none of it."""
        for kind, predictor in self.footprint.predictors.items():
            if not self.tapes and kind in states:
                predictor.load_state_dict(states[kind])

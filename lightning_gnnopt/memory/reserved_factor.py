"""How much more a CUDA card must give than a step asks for, from a simulation and from what the allocator counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.meter import Peak
from lightning_gnnopt.memory.reserved import Reserve, model_blocks, simulate_reserve
from lightning_gnnopt.memory.reserved_settings import AllocatorSettings
from lightning_gnnopt.memory.tape import AllocationTape

_WINDOW = 200
_LEAST = 20


class ReservedFactor:
    """Follows how many bytes must be reserved for each byte that a step asks for.

    The allocator's counters say no more than a bound: what was in use at most, and at most so many free bytes beside it
    that could not be given back, though perhaps not at the same moment; never more than was reserved. The free parts of
    segments that expand can be given back but for their pages, so that with them it is what was reserved.

    So the simulated factor is used. It is lowered where the bound is below it, as less was enough. Where the bound is
    above what the counters would have said of the simulation, the run fragments memory more than that did, and the
    factor is raised in proportion.

    What counts is the largest bound of the recent steps, over the largest sum of requests in them, and no quantile: one
    step that runs out is one too many, what cannot be given back hardly changes from step to step, and a small step
    still has what a larger one left.

    Where nothing could be simulated, the bound is all that is known, and used.

    Args:
        simulated: What was simulated.
        expandable: Whether segments expand.
        window: So many steps are recent.

    Examples:
        >>> factor = ReservedFactor(Reserve(factor=1.2, bound=1.5))
        >>> for _ in range(20):
        ...     factor.update(
        ...         Peak(allocated_bytes=900, held_bytes=100, reserved_bytes=5000, unreleasable_bytes=100)
        ...     )
        >>> factor.value
        1.1
    """

    def __init__(self, simulated: Reserve, *, expandable: bool = False, window: int = _WINDOW) -> None:
        self.simulated = simulated
        self.expandable = expandable
        self._requested: deque[int] = deque(maxlen=window)
        self._bounds: deque[int] = deque(maxlen=window)

    @classmethod
    def of_stage(
        cls,
        tapes: Mapping[str, AllocationTape],
        footprint: Footprint,
        rows: Sequence[NDArray[np.float64]],
        *,
        pl_module: nn.Module,
        device: torch.device,
        budget_bytes: int | None = None,
    ) -> Self | None:
        """Simulate a stage's steps, and let its footprint use the factor from now on.

        Args:
            tapes: Those of the kinds of steps; without any there is nothing to simulate.
            footprint: Predicts the bytes of the stage's steps.
            rows: Features of some of its batches.
            pl_module: The model.
            device: The device that computes.
            budget_bytes: What batches will be made to fit.

        Returns:
            The factor, to be updated; None where the device is not CUDA.
        """
        if device.type != "cuda":
            return None
        settings = AllocatorSettings.read()
        reserve = Reserve(reason="there is no tape of the steps")
        if tapes and len(rows):
            largest = max(rows, key=footprint.predict)
            kind = max(footprint.kinds, key=lambda kind: footprint.predict(largest, kind=kind))
            blocks = model_blocks(pl_module, device)
            reserve = simulate_reserve(
                tapes[kind], footprint, rows, blocks=blocks, budget_bytes=budget_bytes, settings=settings
            )
        factor = cls(reserve, expandable=settings.expandable_segments)
        footprint.reserved_factor = factor.value
        return factor

    @property
    def value(self) -> float:
        """The factor, at least 1; the simulated one until 20 steps were measured."""
        measured = self.measured
        if measured is None:
            return self.simulated.factor
        raised = self.simulated.factor * max(1.0, measured / self.simulated.bound)  # all of it without a simulation
        return max(1.0, min(measured, raised))

    @property
    def measured(self) -> float | None:
        """The bound that was measured over the recent steps, as a factor; None before 20 of them."""
        if len(self._bounds) < _LEAST:
            return None
        return max(self._bounds) / max(1, *self._requested)

    def update(self, peak: Peak) -> None:
        """Add what was measured of a step; nothing if the device does not count what it takes."""
        held, start = peak.held_bytes, peak.start_bytes
        reserved, unreleasable = peak.reserved_bytes, peak.unreleasable_bytes
        if held is None or start is None or reserved is None or unreleasable is None:
            return
        in_use = held + peak.allocated_bytes
        self._bounds.append(reserved if self.expandable else min(reserved, in_use + unreleasable))
        self._requested.append(start + peak.growth_bytes)

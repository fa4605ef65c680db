"""What reads batches late on a real device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SECOND = 2_000_000_000
"""Cycles: a second or so, which is longer than the host takes for anything here."""


class Reader:
    """Reads batches with kernels that start late, without ever waiting for them.

    Attributes:
        seen: The smallest and the largest number of each tensor, as they stood before and after a pause.
    """

    def __init__(self, *, cycles: int = 0) -> None:
        self._cycles = cycles
        self._seen: list[list[Tensor]] = []

    def read(self, tensors: Sequence[Tensor]) -> None:
        extremes: list[Tensor] = []
        for _ in range(2):
            for tensor in tensors:
                extremes += [tensor.amin().double(), tensor.amax().double()]
            if self._cycles:
                torch.cuda._sleep(self._cycles)
        self._seen.append(extremes)

    @property
    def seen(self) -> list[set[float]]:
        torch.cuda.synchronize()
        return [{extreme.item() for extreme in extremes} for extremes in self._seen]

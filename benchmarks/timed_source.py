"""A source of batches that take a known time to sample."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.loading.plan import BatchPlan, Field, Part
from lightning_gnnopt.sampling import SampleKey

_SPIN_S = 3e-4  # more than a sleep usually takes too long
_CALIBRATION_STEPS = 200_000


class TimedSource:
    """A `BatchSource` whose batches take a given time to sample and have a given size.

    Args:
        num_inputs: Number of inputs.
        sample_s: Seconds to sample a batch, whatever it holds.
        nbytes: Bytes of a batch.
    """

    def __init__(self, num_inputs: int, *, sample_s: float, nbytes: int) -> None:
        self.num_inputs = num_inputs
        self._sample_s = sample_s
        self._part = Part(torch.uint8, (nbytes,), lambda out: None)

    def sample(self, input_id: NDArray[np.int64], key: SampleKey) -> None:
        """Wait, without the GIL."""
        wait_until(time.perf_counter() + self._sample_s)

    def plan(self, sampled: None, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out bytes that nobody writes."""
        return BatchPlan([Field(self._part)], lambda tensors: tensors[0], 0, 0)


def wait_until(end_s: float) -> None:
    """Wait until a time of ``time.perf_counter``: asleep, and the last bit in compiled code, neither with the GIL.

    A sleep alone ends some hundredths of a millisecond late, which would count as our pipeline's loss.
    """
    steps_per_s = _steps_per_s()
    if (left_s := end_s - time.perf_counter()) > _SPIN_S:
        time.sleep(left_s - _SPIN_S)
    while (left_s := end_s - time.perf_counter()) > 0:
        _spin(int(left_s * steps_per_s) + 1)


@functools.cache
def _steps_per_s() -> float:
    _spin(1)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        _spin(_CALIBRATION_STEPS)
        taken.append(time.perf_counter() - start)
    return _CALIBRATION_STEPS / min(taken)


@njit(nogil=True, cache=True)
def _spin(steps: int) -> int:
    word = np.uint64(88172645463325252)
    for _ in range(steps):
        word ^= word << np.uint64(13)
        word ^= word >> np.uint64(7)
        word ^= word << np.uint64(17)
    return int(word)

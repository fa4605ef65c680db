"""Counter-based random numbers: a draw is a pure function of a key and a counter, never of what ran before.

A batch's key is ``(seed, epoch, batch, attempt)``. Folding it gives one 64-bit word; every node of the batch derives
its own stream from that word, its hop and its position. No state is shared, so a batch is the same bits for any number
of worker threads and on every run.

The generator is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
Bounded draws are exactly uniform: multiply-shift with rejection (Lemire, "Fast random integer generation in an
interval", ACM TOMACS 2019).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
LOW_32 = np.uint64(0xFFFFFFFF)
ONE = np.uint64(1)
_ALL = (1 << 64) - 1
_TWO_32 = np.uint64(1 << 32)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


class SampleKey(NamedTuple):
    """What a batch's random numbers are keyed by.

    Attributes:
        seed: The run's seed.
        epoch: Epoch number, from 0.
        batch: Batch number within the epoch, from 0.
        attempt: 0 for the first draw of a batch, 1 for its first resampling, and so on.
    """

    seed: int
    epoch: int = 0
    batch: int = 0
    attempt: int = 0

    def fold(self) -> np.uint64:
        """Mix the four numbers into one 64-bit word.

        Examples:
            >>> SampleKey(seed=1, batch=2).fold() == SampleKey(seed=1, batch=2).fold()
            np.True_
            >>> SampleKey(seed=1, batch=2).fold() == SampleKey(seed=2, batch=1).fold()
            np.False_
        """
        word = 0
        for part in self:
            word = mix64_int(word ^ (int(part) & _ALL))
        return np.uint64(word)

    def permutation(self, size: int) -> NDArray[np.int64]:
        """Draw a uniform permutation of ``0 .. size - 1`` from this key alone.

        Args:
            size: Number of elements.

        Returns:
            Int64 array of shape ``(size,)``.
        """
        return np.random.Generator(np.random.Philox(key=int(self.fold()))).permutation(size)


@njit(nogil=True, cache=True, inline="always")
def mix64(word: np.uint64) -> np.uint64:
    """Scramble a 64-bit word (SplitMix64's output function after one step of its counter)."""
    word = word + GOLDEN
    word = (word ^ (word >> _30)) * _MIX_1
    word = (word ^ (word >> _27)) * _MIX_2
    return word ^ (word >> _31)


def mix64_int(word: int) -> int:
    """Do what :func:`mix64` does, in Python: a compiled call for one word would let go of the GIL, and wait for it."""
    word = (word + int(GOLDEN)) & _ALL
    word = ((word ^ (word >> 30)) * int(_MIX_1)) & _ALL
    word = ((word ^ (word >> 27)) * int(_MIX_2)) & _ALL
    return word ^ (word >> 31)


@njit(nogil=True, cache=True, inline="always")
def uniform_below(state: np.uint64, bound: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Draw uniformly from ``0 .. bound - 1``, for ``1 <= bound < 2**32``, with no bias.

    Returns:
        The draw and the stream's next state.
    """
    state = state + GOLDEN
    product = (mix64(state) >> _32) * bound
    if (product & LOW_32) < bound:
        threshold = (_TWO_32 - bound) % bound
        while (product & LOW_32) < threshold:
            state = state + GOLDEN
            product = (mix64(state) >> _32) * bound
    return product >> _32, state


@njit(nogil=True, cache=True, inline="always")
def bounded(half: np.uint64, bound: np.uint64, spare: np.uint64) -> np.uint64:
    """Turn 32 random bits into a uniform draw from ``0 .. bound - 1``, for ``1 <= bound < 2**32``, with no bias.

    Args:
        half: The random bits.
        bound: Number of values.
        spare: Starts the stream that is read if these bits fall into the part that has to be rejected.
    """
    product = half * bound
    if (product & LOW_32) < bound:
        threshold = (_TWO_32 - bound) % bound
        while (product & LOW_32) < threshold:
            spare = spare + GOLDEN
            product = (mix64(spare) >> _32) * bound
    return product >> _32

"""Arrays that grow at their end, for outputs whose length is known only when they are full."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LEAST_USE = 0.75  # of a buffer's memory; below it, a copy of what is used is cheaper to keep


class Buffer:
    """An array that grows at its end. Kernels write into :attr:`tail`'s room, which costs no copy afterwards.

    Args:
        dtype: Type of the elements.
        room: Elements to make room for at first.
    """

    def __init__(self, dtype: DTypeLike, room: int) -> None:
        self._array: NDArray[Any] = np.empty(max(room, 1), dtype)
        self.size = 0
        self.asked = 0  # the most room that was asked for, which is what the next buffer of its kind should start with

    def __getitem__(self, span: slice) -> NDArray[Any]:
        """Show a part of what was pushed; what :meth:`tail` returns later may lie elsewhere."""
        return self._array[: self.size][span]

    def tail(self, room: int) -> NDArray[Any]:
        """Return `room` places behind the last element, to be written to and then pushed."""
        self.asked = max(self.asked, self.size + room)
        if self.asked > len(self._array):
            grown = np.empty(self.asked + self.asked // 2, self._array.dtype)
            grown[: self.size] = self._array[: self.size]
            self._array = grown
        return self._array[self.size : self.size + room]

    def push(self, num: int) -> None:
        """Keep the first `num` places of the tail."""
        self.size += num

    def extend(self, values: NDArray[Any]) -> None:
        """Append a copy of `values`."""
        self.tail(len(values))[:] = values
        self.push(len(values))

    def finish(self) -> NDArray[Any]:
        """Return all elements: the buffer itself if they fill most of it, else a copy."""
        filled = self._array[: self.size]
        return filled if self.size >= _LEAST_USE * len(self._array) else filled.copy()

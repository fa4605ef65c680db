"""What brings rows to other ranks: as they are, in few bits, or late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.halo import Wire
from lightning_gnnopt.parallel.quantization import pack, packed_bytes, unpack


def quantized_wire(channel: Channel, bits: int, generator: torch.Generator) -> Wire:
    """Bring floating rows in few bits; others, such as ids, as they are.

    Args:
        channel: What to send over.
        bits: For each value.
        generator: Of the rounding.
    """

    def wire(rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], kind: str) -> Callable[[], Tensor]:
        if not rows.is_floating_point():
            return channel.start(rows, send_counts, recv_counts, kind=kind)
        shape = rows.shape[1:]
        num_values = shape.numel()
        packed = pack(rows.reshape(rows.size(0), num_values), bits, generator)
        assert packed.size(1) == packed_bytes(num_values, bits)
        dtype, received = rows.dtype, channel.start(packed, send_counts, recv_counts, kind=kind)
        return lambda: unpack(received(), num_values, bits, dtype).view(-1, *shape)

    return wire


class StaleWires:
    """Wires that give what was sent some steps ago, one for each exchange of a step.

    The exchanges of a step are told apart by their order, which is the same in each step.

    Args:
        delay: How many steps.
        smooth: Weight of the average so far.
    """

    def __init__(self, delay: int, smooth: float) -> None:
        self._delay, self._smooth = delay, smooth
        self._late: dict[tuple[int, str], deque[_Coming]] = {}
        self._average: dict[tuple[int, str], Tensor] = {}
        self._place = 0

    def start(self) -> None:
        """Begin a step."""
        self._place = 0

    def reset(self) -> None:
        """Forget what was sent: another model or graph comes."""
        self._late.clear()
        self._average.clear()
        self._place = 0

    def next(self, wire: Wire) -> Wire:
        """The wire of the step's next exchange.

        Args:
            wire: What brings the rows in time.
        """
        place = self._place
        self._place += 1

        def late(
            rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], kind: str
        ) -> Callable[[], Tensor]:
            key, shape = (place, kind), (sum(recv_counts), *rows.shape[1:])
            waiting = self._late.setdefault(key, deque())
            if waiting and waiting[-1].shape != shape:  # the exchanges are not those of the steps before
                waiting.clear()
                self._average.pop(key, None)
            waiting.append(_Coming(wire(rows, send_counts, recv_counts, kind), shape))
            if len(waiting) <= self._delay:
                return waiting[-1].rows
            found = waiting.popleft()
            return found.rows if not self._smooth else lambda: self._averaged(key, found.rows())

        return late

    def _averaged(self, key: tuple[int, str], rows: Tensor) -> Tensor:
        average = self._average.get(key)
        self._average[key] = average = rows if average is None else torch.lerp(rows, average, self._smooth)
        return average


class _Coming:
    """Rows that are on their way, and may be asked for twice."""

    def __init__(self, wait: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._wait: Callable[[], Tensor] | None = wait
        self._rows: Tensor | None = None

    def rows(self) -> Tensor:
        if self._wait is not None:
            self._rows, self._wait = self._wait(), None
        assert self._rows is not None
        return self._rows

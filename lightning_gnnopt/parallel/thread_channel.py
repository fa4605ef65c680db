"""A channel between threads of one process: for the probe before a run, and for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_gnnopt.parallel.channel import Traffic

T = TypeVar("T")


class ThreadChannel:
    """One rank's end of a channel between threads; :meth:`connected` makes all of them.

    A thread that ends with an error must call :meth:`close`: it wakes the others, whose calls raise then.
    """

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self.traffic = Traffic()
        self._table, self._barrier = table, barrier

    @classmethod
    def connected(cls, size: int, *, timeout_s: float = 60.0) -> list[ThreadChannel]:
        """Make the ends of a channel.

        Args:
            size: How many.
            timeout_s: How long a rank waits for the others before it raises.
        """
        barrier = threading.Barrier(size, timeout=timeout_s)
        table: list[Any] = [None] * size
        return [cls(rank, table, barrier) for rank in range(size)]

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.start`."""
        self.traffic.count(rows, send_counts[self.rank], kind)
        pieces = self._all(torch.split(rows, list(send_counts)))
        received = [pieces[sender][self.rank] for sender in range(self.size)]
        counts = [piece.size(0) for piece in received]
        if counts != list(recv_counts):
            raise RuntimeError(f"Rank {self.rank} expected {list(recv_counts)} rows of the ranks, but got {counts}.")
        result = torch.cat(received)
        self._barrier.wait()  # nobody changes what it has sent before all have read it
        return lambda: result

    def sum(self, tensor: Tensor) -> Tensor:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.sum`."""
        total = torch.stack([piece.detach() for piece in self._all(tensor)]).sum(0)
        self._barrier.wait()
        return total

    def close(self) -> None:
        """Wake all that wait; they raise ``threading.BrokenBarrierError``."""
        self._barrier.abort()

    def _all(self, mine: Any) -> list[Any]:
        self._table[self.rank] = mine
        self._barrier.wait()
        return list(self._table)


def run_ranks(size: int, function: Callable[[ThreadChannel], T], *, timeout_s: float = 60.0) -> list[T]:
    """Run a function on each rank, in threads, and return what each returns.

    Args:
        size: Number of ranks.
        function: Called with the rank's end of the channel.
        timeout_s: How long a rank waits for the others.

    Raises:
        BaseException: What the first rank that failed by itself has raised.
    """
    ends = ThreadChannel.connected(size, timeout_s=timeout_s)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def work(end: ThreadChannel) -> None:
        try:
            results[end.rank] = function(end)
        except BaseException as error:  # raised below, in the thread that asked
            errors[end.rank] = error
            end.close()

    threads = [threading.Thread(target=work, args=(end,), name=f"rank-{end.rank}", daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [error for error in errors if error is not None]
    own = [error for error in raised if not isinstance(error, threading.BrokenBarrierError)]
    if raised:
        raise (own or raised)[0]
    return results

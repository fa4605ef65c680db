"""What the parts of a graph talk over, and how much they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import prod
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gnnopt.parallel.rank_lost import RankLost


@dataclass
class Traffic:
    """What a rank has sent to the others; what it keeps for itself does not count.

    Attributes:
        bytes_sent: Bytes of all exchanges.
        rows_sent: Rows of all exchanges.
        exchanges: Number of exchanges.
        by_kind: Bytes by what the exchange was for: ``"forward"``, ``"backward"``, ...
        log: Each exchange, if it is a list: its kind, and the shape and type of a row.
    """

    bytes_sent: int = 0
    rows_sent: int = 0
    exchanges: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    log: list[tuple[str, tuple[int, ...], torch.dtype]] | None = None

    def count(self, rows: Tensor, own: int, kind: str) -> None:
        """Add an exchange.

        Args:
            rows: What is sent.
            own: How many of the rows the rank keeps for itself.
            kind: What it is for.
        """
        sent = rows.size(0) - own
        num_bytes = sent * rows.element_size() * prod(rows.shape[1:])
        self.exchanges += 1
        self.rows_sent += sent
        self.bytes_sent += num_bytes
        self.by_kind[kind] = self.by_kind.get(kind, 0) + num_bytes
        if self.log is not None:
            self.log.append((kind, tuple(rows.shape[1:]), rows.dtype))


class Channel(Protocol):
    """Connects ranks ``0 .. size - 1``. All of them call the same methods in the same order."""

    rank: int
    size: int
    traffic: Traffic

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        """Begin to send rows to each rank.

        Args:
            rows: Shape ``(sum(send_counts), ...)``, grouped by receiver in order of ranks.
            send_counts: Rows for each rank.
            recv_counts: Rows from each rank.
            kind: What the exchange is for, in `traffic`.

        Returns:
            What waits for the rows that come from each rank and returns them: shape ``(sum(recv_counts), ...)``,
            grouped by sender in order of ranks.
        """
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, the same bits on each."""
        ...


class GroupChannel:
    """A channel over a process group of ``torch.distributed``.

    ``all_to_all_single`` where the group's backend has it. Where it has not, pairs of ``isend`` and ``irecv``: all are
    posted before any is waited for, so that no order of ranks can block.

    On CPUs, a rank waits for the others no longer than `timeout`; the first time, and after :meth:`allow_delay`, it
    waits as long as the group's own timeout allows, because another rank may still be reading its part. With NCCL the
    host never waits, only the stream does: a time limit would make each exchange block the host. There the group's
    timeout and the watchdog of ``torch.distributed`` end a process whose peer is gone.

    Args:
        group: The process group; None for the default one.
        timeout: Seconds that a rank waits in an exchange before it raises. Must be longer than what one rank may be
            busy with while the others have nothing to do, such as what a callback does on rank 0 only.

    Raises:
        RuntimeError: If ``torch.distributed`` is not initialized.
        ValueError: If `timeout` is not positive.
        RankLost: In an exchange, if another rank has ended, or does not take part in time. The channel is of no more
            use then.
    """

    def __init__(self, group: Any = None, *, timeout: float | timedelta = 60.0) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "A `GroupChannel` needs a process group, but `torch.distributed` is not initialized."
                " HINT: `Trainer(strategy=GraphParallelStrategy(), devices=2)` does it."
            )
        self.timeout = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        if self.timeout <= timedelta(0):
            raise ValueError(f"`timeout` must be positive, but got {timeout}. HINT: 60 waits for a minute.")
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.traffic = Traffic()
        self._has_met = False
        self._has_all_to_all: bool | None = None

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        """See :meth:`Channel.start`."""
        rows = rows.contiguous()
        received = rows.new_empty((sum(recv_counts), *rows.shape[1:]))
        self.traffic.count(rows, send_counts[self.rank], kind)
        self._meet(rows)
        if self._has_all_to_all is None:
            self._has_all_to_all = self._probe(rows)
        exchange = self._all_to_all if self._has_all_to_all else self._pairwise
        with self._waiting(kind):
            works = exchange(received, rows, recv_counts, send_counts)
        sent = [rows]  # lives until it has been read

        def wait() -> Tensor:
            self._wait(works, received, kind)
            sent.clear()
            return received

        return wait

    def sum(self, tensor: Tensor) -> Tensor:
        """See :meth:`Channel.sum`."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._meet(total)
        with self._waiting("sum"):
            work = self.group.allreduce([total], self._options(dist.AllreduceOptions(), total))
        self._wait([work], total, "sum")
        return total

    def allow_delay(self) -> None:
        """Let the next exchange wait as long as the first one: one rank is busy with what only it does."""
        self._has_met = False

    def _meet(self, like: Tensor) -> None:
        if not self._has_met:
            with self._waiting("meeting"):
                dist.all_reduce(like.new_zeros(1, dtype=torch.float32), group=self.group)
            self._has_met = True

    def _probe(self, like: Tensor) -> bool:
        one, splits = like.new_zeros(self.size, dtype=torch.float32), [1] * self.size
        try:
            works = self._all_to_all(received := torch.empty_like(one), one, splits, splits)
        except RuntimeError:  # a rank that is gone shows when it is waited for
            return False
        self._wait(works, received, "probe")
        return True

    def _all_to_all(
        self, received: Tensor, rows: Tensor, recv_counts: Sequence[int], send_counts: Sequence[int]
    ) -> list[Any]:
        options = self._options(dist.AllToAllOptions(), rows)
        return [self.group.alltoall_base(received, rows, list(recv_counts), list(send_counts), options)]

    def _pairwise(
        self, received: Tensor, rows: Tensor, recv_counts: Sequence[int], send_counts: Sequence[int]
    ) -> list[Any]:
        sends, receives = torch.split(rows, list(send_counts)), torch.split(received, list(recv_counts))
        receives[self.rank].copy_(sends[self.rank])
        operations = []
        for shift in range(1, self.size):
            to, source = (self.rank + shift) % self.size, (self.rank - shift) % self.size
            if send_counts[to]:
                operations.append(dist.P2POp(dist.isend, sends[to], group=self.group, group_peer=to))
            if recv_counts[source]:
                operations.append(dist.P2POp(dist.irecv, receives[source], group=self.group, group_peer=source))
        return list(dist.batch_isend_irecv(operations)) if operations else []

    def _limit(self, tensor: Tensor) -> timedelta | None:
        """How long the host waits for an exchange; None where only a stream does."""
        is_on_host = tensor.device.type == "cpu" or self.group._get_backend(tensor.device).name() == "gloo"
        return self.timeout if is_on_host else None

    def _options(self, options: Any, tensor: Tensor) -> Any:
        """Make gloo itself give up in time: else its threads go on, and the process cannot end before they do."""
        if hasattr(options, "asyncOp"):  # older releases of torch do not ask
            options.asyncOp = True
        if (limit := self._limit(tensor)) is not None:
            options.timeout = limit
        return options

    def _wait(self, works: list[Any], tensor: Tensor, kind: str) -> None:
        limit = self._limit(tensor)
        with self._waiting(kind):
            while works:
                works[0].wait() if limit is None else works[0].wait(timeout=limit)
                works.pop(0)  # not before: who asks again for rows that have not come gets the error again

    @contextmanager
    def _waiting(self, kind: str) -> Iterator[None]:
        since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited_s = time.monotonic() - since
            raise RankLost.after(error, rank=self.rank, kind=kind, waited_s=waited_s) from error

"""Measures what each rank's steps take, and has the graph cut anew where they differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gnnopt.parallel.balance import Balancer, LearnedBalance
from lightning_gnnopt.parallel.channel import GroupChannel
from lightning_gnnopt.parallel.datamodule import PartitionDataModule


class WaitClock:
    """A channel that knows how long it has waited.

    Args:
        channel: What to send over.

    Attributes:
        waited_s: Seconds that calls have taken: what a rank waits for the others is among them.
    """

    def __init__(self, channel: GroupChannel) -> None:
        self.rank, self.size, self.traffic = channel.rank, channel.size, channel.traffic
        self.waited_s = 0.0
        self._channel = channel

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.start`."""
        with self._waiting():
            wait = self._channel.start(rows, send_counts, recv_counts, kind=kind)

        def waiting() -> Tensor:
            with self._waiting():
                return wait()

        return waiting

    def sum(self, tensor: Tensor) -> Tensor:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.sum`."""
        with self._waiting():
            return self._channel.sum(tensor)

    def allow_delay(self) -> None:
        """See :meth:`~lightning_gnnopt.parallel.channel.GroupChannel.allow_delay`."""
        self._channel.allow_delay()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - start_s


class Rebalancing:
    """The course of a `LearnedBalance` in a run.

    Args:
        options: When and how far to move cuts.
        channel: Whose waits do not count.
        device: What steps are computed on.
    """

    def __init__(self, options: LearnedBalance, channel: WaitClock, device: torch.device) -> None:
        self._options, self._channel, self._device = options, channel, device
        self._balancer: Balancer | None = None  # of rank 0
        self._steps: list[float] = []
        self._step_s = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what happens in the block as a part of the step, without waits."""
        start_s, waited_s = self._now(), self._channel.waited_s
        try:
            yield
        finally:
            self._step_s += self._now() - start_s - (self._channel.waited_s - waited_s)

    def next_step(self, datamodule: Any) -> None:
        """End a step; after some, have the graph cut anew if that helps. All ranks call it together.

        Args:
            datamodule: What holds the part, a `PartitionDataModule` that has the whole graph on rank 0.
        """
        if self._step_s:
            self._steps.append(self._step_s)
            self._step_s = 0.0
        if len(self._steps) <= self._options.every_n_steps:  # the first one starts things up
            return
        own = torch.zeros(self._channel.size, dtype=torch.float64, device=self._device)
        own[self._channel.rank] = median(self._steps[1:])
        self._steps = self._steps[:1]
        seconds = self._channel.sum(own).cpu().numpy()
        self._channel.allow_delay()  # cutting takes rank 0 its time
        number = torch.zeros(1, dtype=torch.int64, device=self._device)
        if self._channel.rank == 0:
            number[0] = self._cut(datamodule, seconds)
        if cut := int(self._channel.sum(number)):
            datamodule.use_cut(cut)
            self._channel.sum(number)  # all have opened the new one
            datamodule.drop_old_cut()

    def _cut(self, datamodule: PartitionDataModule, seconds: np.ndarray) -> int:
        """Cut the graph anew, if that helps: the number of the cut, or 0."""
        data: Any = datamodule.data
        if self._balancer is None:
            if data is None:
                raise ValueError(
                    '`balance="learned"` cuts the graph anew, and needs it whole on rank 0, but there are its parts'
                    " only. HINT: `PartitionDataModule(data, folder=...)`."
                )
            self._balancer = Balancer(
                data.edge_index.cpu().numpy(), datamodule.owner_of_nodes(), self._channel.size, self._options
            )
        if not self._balancer.observe(seconds):
            return 0
        return datamodule.cut_anew(self._balancer.owner)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

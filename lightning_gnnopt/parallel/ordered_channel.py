"""A channel whose exchanges start when it is their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.launch_order import LaunchOrder


class OrderedChannel:
    """A lane's channel: each exchange is started in a turn of the lane, and waited for outside of it.

    Args:
        channel: What rows go over; no other lane uses it.
        order: Gives the turns.
        lane: Whose turns.
    """

    def __init__(self, channel: Channel, order: LaunchOrder, lane: str) -> None:
        self.rank, self.size, self.traffic = channel.rank, channel.size, channel.traffic
        self._channel, self._order, self._lane = channel, order, lane

    def start(
        self, rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], *, kind: str = "forward"
    ) -> Callable[[], Tensor]:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.start`."""
        with self._order.turn(self._lane):
            return self._channel.start(rows, send_counts, recv_counts, kind=kind)

    def sum(self, tensor: Tensor) -> Tensor:
        """See :meth:`~lightning_gnnopt.parallel.channel.Channel.sum`."""
        with self._order.turn(self._lane):
            return self._channel.sum(tensor)

"""Rows that other ranks own, fetched so that gradients find their way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt.parallel.channel import Channel

Wire = Callable[[Tensor, Sequence[int], Sequence[int], str], Callable[[], Tensor]]
"""Starts to bring rows to other ranks: rows by receiver, how many for each, how many from each, ``"forward"`` or
``"backward"``; returns what waits for the rows by sender. It may change their values, but not how many there are."""


@dataclass(frozen=True)
class HaloPlan:
    """Which rows a rank sends to each other one, and where those that it receives belong.

    Attributes:
        num_inner: Rows it owns, ``n``.
        num_halo: Rows of its halo, ``h``.
        send_index: Long tensor of shape ``(sum(send_counts),)``: local ids, grouped by receiver.
        send_counts: Rows for each rank; none for itself.
        recv_counts: Rows from each rank; none from itself.
        recv_index: Long tensor of shape ``(sum(recv_counts),)``: places in the halo of what is received, grouped by
            sender; the other rows are zero. None: all of them, in order.
        recv_scale: What they are multiplied by, shape ``(sum(recv_counts),)``.
    """

    num_inner: int
    num_halo: int
    send_index: Tensor
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]
    recv_index: Tensor | None = None
    recv_scale: Tensor | None = None

    def unscaled(self) -> HaloPlan:
        """The same rows as they are."""
        return self if self.recv_scale is None else replace(self, recv_scale=None)

    def place(self, received: Tensor) -> Tensor:
        """Put what was received into the halo: ``(r, ...)`` to ``(h, ...)``."""
        if self.recv_scale is not None:
            received = received * _column(self.recv_scale, received)
        if self.recv_index is None:
            return received
        halo = received.new_zeros(self.num_halo, *received.shape[1:])
        return halo.index_copy_(0, self.recv_index, received)

    def take(self, halo: Tensor) -> Tensor:
        """Take from the halo's gradients those of what was received: ``(h, ...)`` to ``(r, ...)``."""
        rows = halo if self.recv_index is None else halo.index_select(0, self.recv_index)
        return rows if self.recv_scale is None else rows * _column(self.recv_scale, rows)


class HaloExchange(torch.autograd.Function):
    """Fetch the halo's rows from their owners; in the backward pass, bring their gradients back.

    The owner adds what comes back to the gradient of the row it has sent. Every rank must call it in the same order,
    whatever it has to send: a rank without a halo too, and with rows that need a gradient on all ranks or on none.
    """

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, plan: HaloPlan, wire: Wire, coming: Callable[[], Tensor] | None) -> Tensor:
        """Exchange rows.

        Args:
            ctx: Of autograd.
            rows: Shape ``(n, ...)``, the rank's own.
            plan: Who sends what.
            wire: What brings it.
            coming: What waits for the rows, if they are on their way already.

        Returns:
            Shape ``(h, ...)``, grouped by owner.
        """
        ctx.plan, ctx.wire, ctx.num_rows = plan, wire, rows.size(0)
        return plan.place((coming or start_halo(rows, plan, wire))())

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        plan = ctx.plan
        returned = ctx.wire(plan.take(grad).contiguous(), plan.recv_counts, plan.send_counts, "backward")()
        result = grad.new_zeros(ctx.num_rows, *grad.shape[1:])
        return result.index_add_(0, plan.send_index, returned), None, None, None


def plain_wire(channel: Channel) -> Wire:
    """Bring rows as they are."""

    def wire(rows: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], kind: str) -> Callable[[], Tensor]:
        return channel.start(rows, send_counts, recv_counts, kind=kind)

    return wire


def start_halo(rows: Tensor, plan: HaloPlan, wire: Wire) -> Callable[[], Tensor]:
    """Send this rank's share of the others' halos, and return what waits for what they send."""
    sent = rows.detach().index_select(0, plan.send_index)
    return wire(sent, plan.send_counts, plan.recv_counts, "forward")


def fetch_halo(rows: Tensor, plan: HaloPlan, wire: Wire, coming: Callable[[], Tensor] | None = None) -> Tensor:
    """Return the halo's rows, ``(h, ...)``, of which this rank's are ``rows``, ``(n, ...)``.

    Args:
        rows: Of the nodes that this rank owns.
        plan: Who sends what.
        wire: What brings it, such as :func:`plain_wire`; and brings the gradients back.
        coming: What :func:`start_halo` gave for the same rows, if they are on their way already.

    Raises:
        ValueError: If there are not as many rows as nodes.
    """
    if rows.size(0) != plan.num_inner:
        raise ValueError(
            f"Rows of the {plan.num_inner:,} nodes of this part are needed, but there are {rows.size(0):,}."
            " HINT: a layer whose rows are not the part's nodes, such as one after pooling, cannot be parallelised."
        )
    halo: Tensor = HaloExchange.apply(rows, plan, wire, coming)  # type: ignore[no-untyped-call]
    return halo


class _GlobalSum(torch.autograd.Function):
    """The sum over ranks; each rank's gradient is the sum of all ranks' gradients."""

    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, channel: Channel) -> Tensor:
        ctx.channel = channel
        return channel.sum(tensor)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.channel.sum(grad), None


def global_sum(tensor: Tensor, channel: Channel) -> Tensor:
    """Sum a tensor over all ranks, with gradients.

    Every rank's loss depends on what each rank puts in, so the gradient is summed over the ranks as well: then the
    gradients of a loss that is the sum of the ranks' losses are right.
    """
    total: Tensor = _GlobalSum.apply(tensor, channel)  # type: ignore[no-untyped-call]
    return total


def _column(scale: Tensor, rows: Tensor) -> Tensor:
    return scale.to(rows.dtype).view(-1, *(1,) * (rows.dim() - 1))

"""A clock that only stands still or is moved by hand, and layers that move it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from typing_extensions import override


class HandClock:
    """Shows what it was set to."""

    is_host = False

    def __init__(self) -> None:
        self.now = 0.0
        self.reached = float("inf")  # how far the device has come
        self.released = 0

    def stamp(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def is_past(self, stamp: float) -> bool:
        return stamp <= self.reached

    def release(self, stamps: list[float]) -> None:
        self.released += len(stamps)


class _Spend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: HandClock, forward_s: float, backward_s: float) -> Tensor:
        ctx.clock, ctx.backward_s = clock, backward_s
        clock.now += forward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.clock.now += ctx.backward_s
        return grad.clone(), None, None, None


def spend(x: Tensor, clock: HandClock, forward_s: float, backward_s: float) -> Tensor:
    """Let the clock go on by so much, in the forward pass and in the backward pass."""
    out: Tensor = _Spend.apply(x, clock, forward_s, backward_s)
    return out


class SpendingConv(MessagePassing):
    """Spends powers of two, so that every sum tells what it is made of; `scale` tells layers apart."""

    def __init__(self, clock: HandClock, scale: float = 1.0, *, attends: bool = False) -> None:
        super().__init__(aggr="add")
        self.clock, self.scale, self.attends = clock, scale, attends
        self.lin = nn.Linear(3, 3)

    def _spend(self, x: Tensor, forward_s: float) -> Tensor:
        return spend(x, self.clock, forward_s * self.scale, 2 * forward_s * self.scale)

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self._spend(self.lin(x), 1)
        alpha = self.edge_updater(edge_index, x=x) if self.attends else None
        out = self.propagate(edge_index, x=x, alpha=alpha)
        return self._spend(out, 16)

    @override
    def edge_update(self, x_j: Tensor) -> Tensor:
        return self._spend(x_j.mean(dim=-1, keepdim=True), 32)

    @override
    def message(self, x_j: Tensor, alpha: Tensor | None) -> Tensor:
        return self._spend(x_j if alpha is None else x_j * alpha, 2)

    @override
    def aggregate(
        self, inputs: Tensor, index: Tensor, ptr: Tensor | None = None, dim_size: int | None = None
    ) -> Tensor:
        return self._spend(super().aggregate(inputs, index, ptr, dim_size), 4)

    @override
    def update(self, inputs: Tensor) -> Tensor:
        return self._spend(inputs, 8)

"""Sums, means, maxima and softmax over edges that are on several ranks, while all ranks have all nodes.

What comes out of them is the same on all ranks, and so is the loss: its gradient needs no sum. What goes in is the same
on all ranks too, but each rank's gradient of it is that of its own edges only: these are summed. (Megatron's g and f.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter
from typing_extensions import override

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.halo import global_sum
from lightning_gnnopt.parallel.softmax import Softmax


def enter(channel: Channel, shared: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Let tensors into what each rank computes for its own edges; their gradients are summed over ranks.

    All gradients travel at once, when the last of them is there. A tensor that no rank has used gets none.

    Args:
        channel: Connects the ranks.
        shared: The same on all ranks.
        own: A rank's own; their gradients are what they are.

    Returns:
        A token, which must go to what leaves again, so that the backward passes of all ranks come here even if some
        have no edges; and the tensors, shared ones first.
    """
    if not shared and not own:
        return torch.zeros((), dtype=torch.float32), []
    token, *tensors = _Enter.apply(channel, len(shared), *shared, *own)  # type: ignore[no-untyped-call]
    return token, tensors


def leave_own(own: Tensor, token: Tensor) -> Tensor:
    """Bind a rank's own tensor to the token of :func:`enter`."""
    bound: Tensor = _LeaveOwn.apply(own, token)  # type: ignore[no-untyped-call]
    return bound


def leave_sum(own: Tensor, token: Tensor, channel: Channel) -> Tensor:
    """Sum a tensor over ranks.

    Args:
        own: This rank's share, the same shape on all ranks.
        token: Of :func:`enter`.
        channel: Connects the ranks.
    """
    total: Tensor = _LeaveSum.apply(own, token, channel)  # type: ignore[no-untyped-call]
    return total


def leave_extreme(
    messages: Tensor, index: Tensor, num_targets: int, dim: int, token: Tensor, channel: Channel, *, sign: int
) -> Tensor:
    """Take each target's largest message, or its smallest, over the edges of all ranks; zero where it has none.

    Messages that are equally large share the gradient evenly, wherever they are; one more shares it if they are zero.
    That is what ``torch.Tensor.scatter_reduce`` gives, which PyG calls where there is no ``torch_scatter``.

    Args:
        messages: Of the rank's own edges, ``(..., e, ...)``.
        index: Their targets, shape ``(e,)``.
        num_targets: Number of targets, ``N``.
        dim: Where the edges are.
        token: Of :func:`enter`.
        channel: Connects the ranks.
        sign: 1 for the largest, -1 for the smallest.

    Returns:
        Shape ``(..., N, ...)``.
    """
    extreme: Tensor = _LeaveExtreme.apply(  # type: ignore[no-untyped-call]
        messages, index, num_targets, dim % messages.dim(), token, channel, sign
    )
    return extreme


def global_max(tensor: Tensor, channel: Channel) -> Tensor:
    """Take the element-wise maximum over ranks, without gradients.

    Each rank takes it of a part of the elements and sends it to the others: each sends about twice the tensor.

    Args:
        tensor: The same shape on all ranks.
        channel: Connects the ranks.
    """
    flat = tensor.detach().reshape(-1)
    counts = [len(block) for block in torch.tensor_split(flat, channel.size)]
    mine = [counts[channel.rank]] * channel.size
    largest = channel.start(flat, counts, mine)().view(channel.size, -1).amax(0)
    return channel.start(largest.repeat(channel.size), mine, counts)().view(tensor.shape)


class RankSoftmax(Softmax):
    """Takes the place of a softmax over a target's in-edges, for a rank's own of them.

    Args:
        channel: Connects the ranks.
        token: Of :func:`enter`: all ranks go through the backward pass, or none.
    """

    def __init__(self, channel: Channel, token: Tensor) -> None:
        super().__init__()
        self._channel, self._token = channel, token

    @override
    def __call__(self, src: Tensor, index: Tensor, num_nodes: int) -> Tensor:
        self.was_called = True
        src, own = leave_own(src, self._token), Softmax()
        own(src, index, num_nodes)
        largest = global_max(own.log_sum, self._channel)
        largest = largest.masked_fill(largest.isinf(), 0.0)
        total = global_sum((own.log_sum - largest).exp(), self._channel)
        log_sum = torch.where(total > 0, total, 1.0).log() + largest  # of a target without in-edges nobody asks
        return Softmax(log_sum)(src, index, num_nodes)


class _Enter(torch.autograd.Function):
    """Nothing forward; backward, the sum over ranks of all gradients of what is shared."""

    @staticmethod
    @override
    def forward(ctx: Any, channel: Channel, num_shared: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # what is not used is told from what has a gradient of zero
        ctx.channel, ctx.num_shared = channel, num_shared
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        return torch.zeros((), dtype=torch.float32, device=tensors[0].device), *(
            tensor.view_as(tensor) for tensor in tensors
        )

    @staticmethod
    @override
    def backward(ctx: Any, _: Tensor, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        full = [
            torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
            for grad, (shape, dtype, device) in zip(grads, ctx.like, strict=True)
        ]
        results: list[Tensor | None] = list(full)
        for dtype in dict.fromkeys(dtype for _, dtype, _ in ctx.like[: ctx.num_shared]):
            places = [place for place in range(ctx.num_shared) if ctx.like[place][1] == dtype]
            is_used = full[places[0]].new_tensor([grads[place] is not None for place in places])
            flat = ctx.channel.sum(torch.cat([is_used, *(full[place].reshape(-1) for place in places)]))
            counts, *sums = torch.split(flat, [len(places), *(full[place].numel() for place in places)])
            for place, count, total in zip(places, counts.tolist(), sums, strict=True):
                results[place] = total.view(full[place].shape) if count else None
        return None, None, *results


class _LeaveOwn(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, own: Tensor, token: Tensor) -> Tensor:
        return own.view_as(own)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_zeros((), dtype=torch.float32)


class _LeaveSum(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, own: Tensor, token: Tensor, channel: Channel) -> Tensor:
        return channel.sum(own)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad.new_zeros((), dtype=torch.float32), None


class _LeaveExtreme(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, messages: Tensor, index: Tensor, size: int, dim: int, token: Tensor, channel: Channel, sign: int
    ) -> Tensor:
        signed = messages if sign > 0 else -messages
        shape = (*messages.shape[:dim], size, *messages.shape[dim + 1 :])
        place = _along(index, messages, dim).expand_as(messages)
        lowest = messages.new_full(shape, float("-inf"))
        extreme = global_max(lowest.scatter_reduce_(dim, place, signed, reduce="amax"), channel)
        extreme = extreme.masked_fill(extreme == float("-inf"), 0.0) * sign
        ctx.save_for_backward(messages, index, extreme)
        ctx.dim, ctx.channel = dim, channel
        return extreme

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        messages, index, extreme = ctx.saved_tensors
        is_extreme = (messages == extreme.index_select(ctx.dim, index)).to(messages.dtype)
        ties = scatter(is_extreme, index, dim=ctx.dim, dim_size=extreme.size(ctx.dim), reduce="sum")
        ties = ctx.channel.sum(ties) + (extreme == 0)  # torch compares its own start, zero, as well
        share = (grad / ties.clamp(min=1)).index_select(ctx.dim, index)
        return is_extreme * share, None, None, None, grad.new_zeros((), dtype=torch.float32), None, None


def _along(counts: Tensor, like: Tensor, dim: int) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = len(counts)
    return counts.view(shape)

"""A softmax whose terms come one after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import scatter


class Softmax:
    """Takes the place of a softmax over a target's in-edges, for some of them.

    Without `log_sum` it only adds up: what it returns means nothing. With it, it is the softmax over all in-edges.

    Args:
        log_sum: The logarithm of the sum of exponentials over all in-edges, shape ``(n, ...)``.

    Attributes:
        log_sum: The same; after a call without it, that of this call's edges; minus infinity where there are none.

        was_called: Whether it was called at all.

    Examples:
        >>> first, second, targets = torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([0, 0])
        >>> one, other = Softmax(), Softmax()
        >>> _ = one(first, targets, 1), other(second, targets[:1], 1)
        >>> whole = Softmax(torch.logaddexp(one.log_sum, other.log_sum))
        >>> torch.cat([whole(first, targets, 1), whole(second, targets[:1], 1)])
        tensor([0.0900, 0.2447, 0.6652])
    """

    def __init__(self, log_sum: Tensor | None = None) -> None:
        self._is_adding, self.was_called = log_sum is None, False
        self.log_sum: Tensor = torch.empty(0) if log_sum is None else log_sum

    def __call__(self, src: Tensor, index: Tensor, num_nodes: int) -> Tensor:
        """Compute the softmax, or add up.

        Args:
            src: Shape ``(e, ...)``.
            index: The target of each, shape ``(e,)``.
            num_nodes: Number of targets, ``n``.
        """
        self.was_called = True
        if not self._is_adding:
            return (src - self.log_sum.index_select(0, index)).exp()
        largest = scatter(src.detach(), index, dim=0, dim_size=num_nodes, reduce="max")
        total = scatter((src - largest.index_select(0, index)).exp(), index, dim=0, dim_size=num_nodes, reduce="sum")
        is_there = total > 0
        log = torch.where(is_there, total, 1.0).log() + largest  # no logarithm of zero: its gradient would be infinite
        self.log_sum = log.masked_fill(~is_there, float("-inf"))
        return src

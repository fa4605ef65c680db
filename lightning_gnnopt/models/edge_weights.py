"""Weights of sampled edges, as layers take them."""

from __future__ import annotations

from torch import Tensor


def weights_of_mean(edge_norm: Tensor, target: Tensor, num_targets: int) -> Tensor:
    """Divide each edge's weight by the mean weight of its destination's edges.

    The plain mean over messages that are multiplied by the result is ``sum(w * m) / sum(w)``: Hajek's estimate of the
    mean over all in-edges ("Comment on 'An essay on the logical foundations of survey sampling'", 1971), a ratio of two
    unbiased estimates. It errs where the number of sampled edges happens to be off far less than ``sum(w * m) / d``.

    Args:
        edge_norm: Weights of shape ``(E,)``, each positive.
        target: Long tensor of shape ``(E,)``, the edges' destinations.
        num_targets: Number of destinations ``M``.

    Returns:
        Tensor of shape ``(E,)``, of mean 1 over the edges of each destination.

    Examples:
        >>> import torch
        >>> weights_of_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), num_targets=2)
        tensor([0.5000, 1.5000, 1.0000])
    """
    zeros = edge_norm.new_zeros(num_targets)
    total = zeros.scatter_add(0, target, edge_norm)
    count = zeros.scatter_add(0, target, edge_norm.new_ones(edge_norm.size(0)))
    return edge_norm * (count / total)[target]

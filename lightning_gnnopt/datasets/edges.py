"""Edges as the package wants them: symmetric, simple, sorted by destination."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.datasets._kernels import both_directions, unique_pairs


def undirected_edges(source: NDArray[Any], target: NDArray[Any], num_nodes: int) -> Tensor:
    """Symmetrise edges, drop self loops and merge duplicates, in linear time.

    Args:
        source: Integer array of shape ``(E,)``.
        target: Integer array of shape ``(E,)``.
        num_nodes: Number of nodes ``N``.

    Returns:
        Contiguous long tensor of shape ``(2, E')``, each edge in both directions, sorted by destination
        (``edge_index[1]``) and then by source.

    Raises:
        ValueError: If an index is negative or not below `num_nodes`.

    Examples:
        >>> undirected_edges(np.array([0, 1, 2, 2]), np.array([1, 0, 1, 2]), num_nodes=3)
        tensor([[1, 0, 2, 1],
                [0, 1, 1, 2]])
    """
    if len(source):
        lowest = min(source.min(), target.min())
        highest = max(source.max(), target.max())
        if lowest < 0 or highest >= num_nodes:
            raise ValueError(
                f"Edges must join nodes 0 to {num_nodes - 1}, but they name nodes {lowest} to {highest}."
                " HINT: the file of the graph and the file of the features may belong to different datasets."
            )
    return torch.from_numpy(both_directions(*unique_pairs(_int32(source), _int32(target), num_nodes)))


def _int32(ids: NDArray[Any]) -> NDArray[np.int32]:
    return np.ascontiguousarray(ids, dtype=np.int32)

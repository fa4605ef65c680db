"""What the synthetic graphs share: keys for their random numbers, and an exact number of edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.datasets._checks import check_above
from lightning_gnnopt.datasets._kernels import both_directions, thin_pairs, unique_pairs
from lightning_gnnopt.sampling.rng import mix64

Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]

# Most draws come out new: these many in excess are enough for the presets at full size.
_EXCESS = 1.1
_MOST_DRAWS_PER_PAIR = 32


def stream_key(seed: int, stream: int) -> np.uint64:
    """Key of one stream of random numbers of a graph.

    Args:
        seed: The user's seed.
        stream: What the numbers are for; each use has its own.

    Examples:
        >>> stream_key(0, 1) == stream_key(1, 0)
        np.False_
    """
    with np.errstate(over="ignore"):
        return np.uint64(mix64(mix64(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) ^ np.uint64(stream)))


def pairs_for_degree(num_nodes: int, avg_degree: float) -> int:
    """Number of undirected edges that give `num_nodes` nodes this mean degree.

    Raises:
        ValueError: If a simple graph of so few nodes cannot have that degree.

    Examples:
        >>> pairs_for_degree(100, 5.0)
        250
    """
    check_above(0, avg_degree=avg_degree)
    if avg_degree > num_nodes - 1:
        raise ValueError(
            f"`avg_degree` must be at most {num_nodes - 1} with {num_nodes:,} nodes, but got {avg_degree}."
            " HINT: ask for more nodes, or for a lower degree."
        )
    return max(1, round(num_nodes * avg_degree / 2))


def exact_graph(draw: Callable[[int], Pairs], *, num_nodes: int, num_pairs: int, key: np.uint64) -> Tensor:
    """Build a simple symmetric graph with an exact number of edges out of random node pairs.

    Pairs are drawn until enough distinct ones are there; of those, a uniform choice is kept.

    Args:
        draw: Draws the first so many pairs of its stream.
        num_nodes: Number of nodes ``N``.
        num_pairs: Number of undirected edges.
        key: Key of the choice.

    Returns:
        Long tensor of shape ``(2, 2 * num_pairs)``, sorted by destination, then by source.

    Raises:
        ValueError: If the distribution has too few distinct pairs.
    """
    count = int(num_pairs * _EXCESS) + 64
    while True:
        offsets, larger = unique_pairs(*draw(count), num_nodes)
        if len(larger) >= num_pairs:
            break
        if count > _MOST_DRAWS_PER_PAIR * num_pairs:
            raise ValueError(
                f"{num_nodes:,} nodes cannot hold {2 * num_pairs:,} directed edges so unevenly spread: {count:,} draws"
                f" gave {len(larger):,} distinct pairs of {num_pairs:,}. HINT: ask for more nodes (a larger `scale`),"
                " a lower `avg_degree`, or for less skew."
            )
        count = int(count * min(2.0, 1.1 * num_pairs / len(larger))) + 64
    if len(larger) > num_pairs:
        offsets, larger = thin_pairs(offsets, larger, num_pairs, key)
    return torch.from_numpy(both_directions(offsets, larger))

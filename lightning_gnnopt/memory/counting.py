"""How much of a batch is left with its leading edges, for any number of them, without making it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.structure import BatchStructure, checked_keep
from lightning_gnnopt.memory.structure_kernels import births_by_hop, births_of_ends, count_born


@dataclass(frozen=True, eq=False)
class Counts:
    """How much of a batch is left, in the order of a batch's features.

    Attributes:
        nodes: ``[seeds, new in hop 1, ..., new in hop L]``, int64; without hops ``[seeds, others]``.
        edges: ``[hop 1, ..., hop L]``, int64; without hops all edges.
        loops: Self loops among `edges`, int64 of the same shape.
    """

    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    loops: NDArray[np.int64]


class LeadingCounts:
    """Counts what `select` would leave of a batch, with all its seeds, if only the leading edges of an order are kept.

    With hops, nodes change their hop as edges go, and take their own in-edges along. For each node and number of steps
    it is found once from how many leading edges on the node is that close to the seeds: ``L`` passes over the edges.
    A count is then a comparison of these numbers with the number of edges kept.

    Args:
        structure: The batch.
        ranks: How many edges come before each edge, int32 of shape ``(E,)``.

    Examples:
        >>> path = BatchStructure(np.array([1, 2]), np.array([0, 1]), num_nodes=3, num_seeds=1, num_hops=2)
        >>> LeadingCounts(path, np.array([0, 1], np.int32)).at(1).nodes
        array([1, 1, 0])
        >>> LeadingCounts(path, np.array([1, 0], np.int32)).at(1).nodes  # what is cut off does not count
        array([1, 0, 0])
    """

    def __init__(self, structure: BatchStructure, ranks: NDArray[np.int32]) -> None:
        num_hops = structure.num_hops or 1
        row, col = structure.row, structure.col
        self._of_nodes = np.empty((num_hops + 1, structure.num_nodes), np.int32)
        self._of_edges = np.empty((num_hops, structure.num_edges), np.int32)
        find = births_of_ends if structure.num_hops is None else births_by_hop
        find(row, col, ranks, structure.num_seeds, self._of_nodes, self._of_edges)
        self._of_loops = np.ascontiguousarray(self._of_edges[:, row == col])
        self._known: dict[int, Counts] = {}

    def at(self, num_edges: int) -> Counts:
        """Count with `num_edges` leading edges."""
        known = self._known.get(num_edges)  # a search looks at its ends more than once
        if known is not None:
            return known
        counts = [np.empty(len(births), np.int64) for births in (self._of_nodes, self._of_edges, self._of_loops)]
        for births, out in zip((self._of_nodes, self._of_edges, self._of_loops), counts, strict=True):
            count_born(births, num_edges, out)
        self._known[num_edges] = known = Counts(*counts)
        return known


def count(structure: BatchStructure, keep: NDArray[np.bool_] | None = None) -> Counts:
    """Count what :func:`select` would leave of a batch with all its seeds, without making it.

    Args:
        structure: The batch.
        keep: The edges to keep, bool of shape ``(E,)``; None for all.

    Returns:
        The counts.

    Raises:
        ValueError: If `keep` is no mask over the edges.

    Examples:
        >>> path = BatchStructure(np.array([1, 2]), np.array([0, 1]), num_nodes=3, num_seeds=1, num_hops=2)
        >>> count(path).edges
        array([1, 1])
    """
    ranks = (~checked_keep(structure, keep)).astype(np.int32)
    return LeadingCounts(structure, ranks).at(1)

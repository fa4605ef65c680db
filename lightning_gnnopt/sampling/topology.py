"""Topology: which nodes an edge joins, by destination, shared between threads at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.kernels import coo_to_csc, csc_edge_ids, in_degrees_without_self_loops

if TYPE_CHECKING:
    from torch import Tensor

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Topology:
    """A graph's edges in compressed sparse columns: for each node, the sources of its in-edges.

    Messages flow from source to destination, as in PyG; a batch needs the in-neighbours of its seeds.

    Attributes:
        indptr: Int64 array of shape ``(N + 1,)``; ``indices[indptr[v]:indptr[v + 1]]`` are the in-neighbours of ``v``.
        indices: Int32 array (int64 from 2**31 nodes on) of shape ``(E,)``.
        edge_ids: Each edge's column in the `edge_index` it came from, shape ``(E,)``, or None if it was not asked for.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    edge_ids: NDArray[np.integer] | None = None

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int, *, edge_ids: bool = False) -> Topology:
        """Sort a COO edge list by destination, keeping the given order among a node's in-edges.

        Args:
            edge_index: Integer tensor of shape ``(2, E)``: sources, destinations.
            num_nodes: Number of nodes ``N``.
            edge_ids: Whether to keep each edge's original number (needed to slice edge attributes).

        Returns:
            The graph's topology.

        Raises:
            ValueError: If the shape is not ``(2, E)``, or an id is negative or not below `num_nodes`.

        Examples:
            >>> import torch
            >>> topology = Topology.from_edge_index(torch.tensor([[2, 0, 1], [1, 1, 0]]), num_nodes=3)
            >>> topology.indptr, topology.indices
            (array([0, 1, 3, 3]), array([1, 2, 0], dtype=int32))
        """
        ids_COO = edge_index.detach().cpu().numpy()
        if ids_COO.ndim != 2 or len(ids_COO) != 2 or ids_COO.dtype.kind not in "iu":
            raise ValueError(
                "`edge_index` must be an integer tensor of shape (2, E), but got"
                f" {edge_index.dtype} of shape {tuple(edge_index.shape)}."
                " HINT: row 0 holds the edges' sources, row 1 their destinations."
            )
        row, col = ids_COO
        if row.size:
            lowest, highest = min(row.min(), col.min()), max(row.max(), col.max())
            if lowest < 0 or highest >= num_nodes:
                raise ValueError(
                    f"`edge_index` must hold node ids from 0 to {num_nodes - 1:,} ({num_nodes:,} nodes),"
                    f" but found {lowest if lowest < 0 else highest:,}."
                    " HINT: set `data.num_nodes`, or give every node a row in `x`, or drop the edges that point"
                    " outside the graph."
                )
        indptr = np.zeros(num_nodes + 1, np.int64)
        indices = np.empty(row.size, np.int32 if num_nodes <= _INT32_MAX else np.int64)
        coo_to_csc(row, col, indptr, indices)
        ids: NDArray[np.integer] | None = None
        if edge_ids:
            ids = np.empty(row.size, np.int32 if row.size <= _INT32_MAX else np.int64)
            csc_edge_ids(col, indptr, ids)
        return cls(indptr, indices, ids)

    @property
    def num_nodes(self) -> int:
        """Number of nodes ``N``."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of directed edges ``E``."""
        return len(self.indices)

    @property
    def position_dtype(self) -> type[np.signedinteger[Any]]:
        """Type that holds a position in the CSC order: int32 up to 2**31 - 1 edges, else int64."""
        return np.int32 if self.num_edges <= _INT32_MAX else np.int64

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.indptr.nbytes + self.indices.nbytes + (0 if self.edge_ids is None else self.edge_ids.nbytes)

    @cached_property
    def in_degrees(self) -> NDArray[np.int32]:
        """Each node's number of in-edges from other nodes (self loops not counted), shape ``(N,)``."""
        degrees = np.empty(self.num_nodes, np.int32)
        in_degrees_without_self_loops(self.indptr, self.indices, degrees)
        return degrees

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_nodes={self.num_nodes:,}, num_edges={self.num_edges:,})"

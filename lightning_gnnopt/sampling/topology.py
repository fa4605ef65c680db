"""Topology: which nodes an edge joins, by destination, shared between threads and processes at no cost."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.adjacency import Compressed, Edges, edges_of_data, edges_of_index
from lightning_gnnopt.sampling.checks import check_csc, check_integers, id_range
from lightning_gnnopt.sampling.kernels import coo_to_csc, in_degrees_without_self_loops, rows_sorted
from lightning_gnnopt.sampling.shared_arrays import SharedArrays
from lightning_gnnopt.sampling.topology_files import TopologyFolder, save_arrays

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Topology:
    """A graph's edges in compressed sparse columns: for each node, the sources of its in-edges.

    Messages flow from source to destination, as in PyG; a batch needs the in-neighbours of its seeds.

    Attributes:
        indptr: Int64 array of shape ``(N + 1,)``; ``indices[indptr[v]:indptr[v + 1]]`` are the in-neighbours of ``v``.
        indices: Int32 array (int64 from 2**31 nodes on) of shape ``(E,)``.
        edge_ids: Each edge's column in the `edge_index` it came from, shape ``(E,)``, or None if it was not asked for.
        source: What the arrays are mapped from, of a shared or loaded topology, which pickles as that; None if it owns
            them.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    edge_ids: NDArray[np.integer] | None = None
    source: SharedArrays | TopologyFolder | None = field(default=None, repr=False)

    @classmethod
    def from_data(cls, data: Data, *, edge_ids: bool = False) -> Topology:
        """Take the edges of a PyG `Data`: its `edge_index` or, if it has none, its `adj_t`.

        Args:
            data: A homogeneous graph. Its `edge_index` is a tensor or a PyG `EdgeIndex`; its `adj_t` is as
                `ToSparseTensor` makes it, of torch_sparse or of torch (COO, CSR, CSC), rows are destinations.
            edge_ids: Whether to keep each edge's number: its column in `edge_index`, or its place among the values of
                `adj_t`.

        Returns:
            The graph's topology.

        Raises:
            ValueError: If there are no edges to be found, or see :meth:`from_edge_index`.

        Examples:
            >>> import torch
            >>> from torch_geometric.data import Data
            >>> Topology.from_data(Data(edge_index=torch.tensor([[2, 0, 1], [1, 1, 0]]), num_nodes=4))
            Topology(num_nodes=4, num_edges=3)
        """
        edges, num_nodes = edges_of_data(data)
        return cls._of(edges, num_nodes, edge_ids)

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int, *, edge_ids: bool = False) -> Topology:
        """Sort a COO edge list by destination, keeping the given order among a node's in-edges.

        Beside the result it takes no memory, and of a PyG `EdgeIndex` that is sorted by destination it takes the order.

        Args:
            edge_index: Integer tensor of shape ``(2, E)``: sources, destinations.
            num_nodes: Number of nodes ``N``.
            edge_ids: Whether to keep each edge's original number (needed to slice edge attributes).

        Returns:
            The graph's topology.

        Raises:
            ValueError: If the shape is not ``(2, E)``, an id is negative or not below `num_nodes`, or an `EdgeIndex` is
                not sorted as it says.

        Examples:
            >>> import torch
            >>> topology = Topology.from_edge_index(torch.tensor([[2, 0, 1], [1, 1, 0]]), num_nodes=3)
            >>> topology.indptr, topology.indices
            (array([0, 1, 3, 3]), array([1, 2, 0], dtype=int32))
        """
        return cls._of(edges_of_index(edge_index, num_nodes), num_nodes, edge_ids)

    @classmethod
    def from_csc(cls, indptr: Any, indices: Any, edge_ids: Any = None) -> Topology:
        """Take compressed sparse columns as they are, after a check.

        Args:
            indptr: Array or tensor of integers, shape ``(N + 1,)``.
            indices: Array or tensor of integers, shape ``(E,)``: the in-neighbours of node ``v`` are
                ``indices[indptr[v]:indptr[v + 1]]``.
            edge_ids: Each edge's number elsewhere, shape ``(E,)``.

        Returns:
            The graph's topology. It keeps arrays that have the right type, without a copy.

        Raises:
            ValueError: If something is not a one-dimensional array of integers, `indptr` does not start at 0, decreases
                or does not end at ``E``, an id is not a node, or `edge_ids` has another length or a negative number.

        Examples:
            >>> Topology.from_csc([0, 1, 3, 3], [1, 2, 0]).in_degrees
            array([1, 2, 0], dtype=int32)
        """
        arrays: dict[str, NDArray[np.integer]] = {}
        for name, values in (("indptr", indptr), ("indices", indices), ("edge_ids", edge_ids)):
            if values is not None:
                arrays[name] = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
                if isinstance(values, list | tuple) and not values:
                    arrays[name] = arrays[name].astype(np.int64)  # numpy takes an empty list for floats
                check_integers(arrays[name], name, "`from_edge_index` takes a list of edges.")
        if "edge_ids" in arrays:
            _check_edge_ids(arrays["edge_ids"], len(arrays["indices"]))
        return cls._checked(arrays["indptr"], arrays["indices"], arrays.get("edge_ids"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True, validate: bool = False) -> Topology:
        """Open a topology that :meth:`save` wrote.

        Args:
            path: The folder.
            mmap: Whether to map the arrays into memory, which reads what is used, when it is used, and lets all
                processes of a machine share it; the topology then pickles as its path. Writing to a mapped array does
                not change the file. False reads everything.
            validate: Whether to look at every edge instead of at types and sizes only.

        Returns:
            The topology.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            ValueError: If a file is not what it should be.
        """
        folder = TopologyFolder.open(Path(path))
        arrays = folder.arrays(mmap=mmap)
        if validate:
            try:
                check_csc(arrays["indptr"], arrays["indices"])
                if "edge_ids" in arrays:
                    _check_edge_ids(arrays["edge_ids"], folder.num_edges)
            except ValueError as error:
                raise ValueError(f"'{folder.path}' does not hold a graph: {error}") from error
        return cls(**arrays, source=folder if mmap else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the topology into a new folder, which appears complete or not at all.

        Args:
            path: The folder: ``indptr.npy``, ``indices.npy``, maybe ``edge_ids.npy``, and ``topology.json``.

        Raises:
            FileExistsError: If there is something at `path`.

        Examples:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp()) / "graph"
            >>> Topology.from_csc([0, 1, 3, 3], [1, 2, 0]).save(folder)
            >>> Topology.load(folder)
            Topology(num_nodes=3, num_edges=3)
        """
        save_arrays(Path(path), self.arrays)

    def share(self) -> Topology:
        """Copy the arrays into memory that processes share.

        Pickled to another process on this machine the result is a few hundred bytes, and both read the same memory. It
        stays there as long as a process uses it, but can be opened by new ones only while the topology that this method
        returned is alive; see `SharedArrays`. The original's arrays go when it does.

        Returns:
            The shared topology; this one if it is shared or mapped from files already.

        Examples:
            >>> import pickle
            >>> shared = Topology.from_csc([0, 1, 3, 3], [1, 2, 0]).share()
            >>> pickle.loads(pickle.dumps(shared)).indices
            array([1, 2, 0], dtype=int32)
        """
        if self.source is not None:
            return self
        source = SharedArrays(self.arrays)
        return type(self)(**source.arrays(), source=source)

    @property
    def arrays(self) -> dict[str, NDArray[np.integer]]:
        """The arrays there are, by name."""
        named = {"indptr": self.indptr, "indices": self.indices, "edge_ids": self.edge_ids}
        return {name: array for name, array in named.items() if array is not None}

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
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def rows_sorted(self) -> bool:
        """Whether the in-edges of every node stand by source, in ascending order."""
        return bool(rows_sorted(self.indptr, self.indices))

    @cached_property
    def in_degrees(self) -> NDArray[np.int32]:
        """Each node's number of in-edges from other nodes (self loops not counted), shape ``(N,)``."""
        degrees = np.empty(self.num_nodes, np.int32)
        in_degrees_without_self_loops(self.indptr, self.indices, degrees)
        return degrees

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_nodes={self.num_nodes:,}, num_edges={self.num_edges:,})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(self.arrays.values())) if self.source is None else (_open, (type(self), self.source))

    @classmethod
    def _of(cls, edges: Edges | Compressed, num_nodes: int, edge_ids: bool) -> Topology:
        if isinstance(edges, Compressed):
            num_edges = len(edges.indices)
            ids = np.arange(num_edges, dtype=_dtype_below(num_edges)) if edge_ids else None
            return cls._checked(*edges, ids, copy=True)
        row, col = edges
        lowest, highest = id_range(row, col)
        if lowest < 0 or highest >= num_nodes:
            raise ValueError(
                f"`edge_index` must hold node ids from 0 to {num_nodes - 1:,} ({num_nodes:,} nodes),"
                f" but found {lowest if lowest < 0 else highest:,}."
                " HINT: set `data.num_nodes`, or give every node a row in `x`, or drop the edges that point"
                " outside the graph."
            )
        indptr = np.zeros(num_nodes + 1, np.int64)
        indices = np.empty(len(row), _dtype_below(num_nodes))
        ids = np.empty(len(row), _dtype_below(len(row))) if edge_ids else None
        coo_to_csc(row, col, indptr, indices, ids)
        return cls(indptr, indices, ids)

    @classmethod
    def _checked(
        cls,
        indptr: NDArray[np.integer],
        indices: NDArray[np.integer],
        edge_ids: NDArray[np.integer] | None = None,
        *,
        copy: bool = False,
    ) -> Topology:
        check_csc(indptr, indices)
        # What comes from PyG is copied: its tensors can be changed in place.
        own = np.array if copy else np.ascontiguousarray
        return cls(
            own(indptr, np.int64),
            own(indices, _dtype_below(len(indptr) - 1)),
            None if edge_ids is None else np.ascontiguousarray(edge_ids, _dtype_below(edge_ids.max(initial=0))),
        )


def _open(kind: type[Topology], source: SharedArrays | TopologyFolder) -> Topology:
    """Map a pickled topology, in the process that got it."""
    return kind(**source.arrays(), source=source)


def _dtype_below(bound: int) -> type[np.signedinteger[Any]]:
    """Type of the integers below `bound`."""
    return np.int32 if bound <= _INT32_MAX else np.int64


def _check_edge_ids(edge_ids: NDArray[np.integer], num_edges: int) -> None:
    if len(edge_ids) != num_edges or edge_ids.min(initial=0) < 0:
        found = f"{len(edge_ids):,}" if len(edge_ids) != num_edges else f"{edge_ids.min():,} among them"
        raise ValueError(
            f"`edge_ids` must hold one number from 0 on for each of the {num_edges:,} edges, but got {found}."
            " HINT: they are the edges' columns in `edge_index`, in the order of `indices`."
        )

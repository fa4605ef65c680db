"""Topology of a heterogeneous graph: one bipartite topology per edge type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.kernels import coo_to_csc
from lightning_gnnopt.sampling.topology import Topology

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import HeteroData

EdgeType = tuple[str, str, str]
"""Source node type, relation, destination node type."""

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class HeteroTopology:
    """A heterogeneous graph's edges: for each edge type the in-neighbours of each node of its destination type.

    Attributes:
        num_nodes: Number of nodes of each node type.
        relations: For each edge type ``(source type, relation, destination type)`` its edges; `num_nodes` of such a
            topology counts its destinations, its `indices` are nodes of the source type.
    """

    num_nodes: dict[str, int]
    relations: dict[EdgeType, Topology]

    @classmethod
    def from_data(cls, data: HeteroData, *, edge_ids: bool = True) -> HeteroTopology:
        """Take the edges of a PyG `HeteroData`.

        Args:
            data: Every edge type needs an `edge_index`, every node type a number of nodes.
            edge_ids: Whether to keep each edge's original number (needed to slice edge attributes).

        Returns:
            The graph's topology, node and edge types in the order of `data`.

        Raises:
            ValueError: If an edge type has no `edge_index`, a node type no number of nodes, or an id is not a node.
        """
        for edge_type in data.edge_types:
            if "edge_index" not in data[edge_type]:
                raise ValueError(
                    f"`data[{edge_type}]` must have an `edge_index`, but has {sorted(data[edge_type].keys())}."
                    " HINT: turn an `adj_t` into an `edge_index`, or remove the edge type."
                )
        num_nodes = {node_type: data[node_type].num_nodes for node_type in data.node_types}
        edges = {edge_type: data[edge_type].edge_index for edge_type in data.edge_types}
        return cls.from_edge_index_dict(edges, num_nodes, edge_ids=edge_ids)

    @classmethod
    def from_edge_index_dict(
        cls, edge_index_dict: Mapping[EdgeType, Tensor], num_nodes_dict: Mapping[str, int], *, edge_ids: bool = False
    ) -> HeteroTopology:
        """Sort each edge type's COO edge list by destination, keeping the given order among a node's in-edges.

        Args:
            edge_index_dict: For each edge type an integer tensor of shape ``(2, E)``: sources, destinations.
            num_nodes_dict: Number of nodes of each node type.
            edge_ids: Whether to keep each edge's original number (needed to slice edge attributes).

        Returns:
            The graph's topology.

        Raises:
            ValueError: If a node type's number of nodes is unknown, a shape is not ``(2, E)``, or an id is negative or
                not below the number of nodes of its type.

        Examples:
            >>> import torch
            >>> writes = ("author", "writes", "paper")
            >>> graph = HeteroTopology.from_edge_index_dict(
            ...     {writes: torch.tensor([[4, 0], [1, 1]])}, {"author": 5, "paper": 2}
            ... )
            >>> graph.relations[writes].indptr, graph.relations[writes].indices
            (array([0, 0, 2]), array([4, 0], dtype=int32))
        """
        for node_type in [*num_nodes_dict, *(end for source, _, target in edge_index_dict for end in (source, target))]:
            if num_nodes_dict.get(node_type) is None:
                raise ValueError(
                    f"`num_nodes_dict` must say how many nodes each type has, but for {node_type!r} it does not."
                    " HINT: give the type features, or set `data[node_type].num_nodes`."
                )
        relations = {
            edge_type: bipartite_topology(
                edge_index,
                num_nodes_dict[edge_type[0]],
                num_nodes_dict[edge_type[2]],
                edge_ids=edge_ids,
                name=f"edge_index of {edge_type}",
            )
            for edge_type, edge_index in edge_index_dict.items()
        }
        return cls(dict(num_nodes_dict), relations)

    @property
    def node_types(self) -> list[str]:
        """Node types in the given order."""
        return list(self.num_nodes)

    @property
    def edge_types(self) -> list[EdgeType]:
        """Edge types in the given order."""
        return list(self.relations)

    @property
    def num_edges(self) -> int:
        """Number of directed edges of all types."""
        return sum(relation.num_edges for relation in self.relations.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(relation.nbytes for relation in self.relations.values())

    def share(self) -> HeteroTopology:
        """Copy the arrays into memory that processes share; see `Topology.share`."""
        return type(self)(self.num_nodes, {name: relation.share() for name, relation in self.relations.items()})

    def __repr__(self) -> str:
        nodes = ", ".join(f"{name}={count:,}" for name, count in self.num_nodes.items())
        edges = ", ".join(f"{'__'.join(name)}={relation.num_edges:,}" for name, relation in self.relations.items())
        return f"{type(self).__name__}(nodes: {nodes}; edges: {edges})"


def bipartite_topology(
    edge_index: Tensor, num_sources: int, num_targets: int, *, edge_ids: bool = False, name: str = "edge_index"
) -> Topology:
    """Sort a COO edge list between two sets of nodes by destination.

    Args:
        edge_index: Integer tensor of shape ``(2, E)``: sources, destinations.
        num_sources: Number of nodes that edges may come from.
        num_targets: Number of nodes that edges may lead to, ``N`` of the topology.
        edge_ids: Whether to keep each edge's original number.
        name: What errors call the edge list.

    Returns:
        The in-neighbours of each destination, in the given order.

    Raises:
        ValueError: If the shape is not ``(2, E)``, or an id is negative or not below its side's number of nodes.
    """
    ids_COO = edge_index.detach().cpu().numpy()
    if ids_COO.ndim != 2 or len(ids_COO) != 2 or ids_COO.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be an integer tensor of shape (2, E), but got {edge_index.dtype} of shape"
            f" {tuple(edge_index.shape)}. HINT: row 0 holds the edges' sources, row 1 their destinations."
        )
    row, col = ids_COO
    for ids, num_nodes, side in ((row, num_sources, "sources"), (col, num_targets, "destinations")):
        if ids.size and (ids.min() < 0 or ids.max() >= num_nodes):
            raise ValueError(
                f"`{name}` must hold {side} from 0 to {num_nodes - 1:,} ({num_nodes:,} nodes), but found"
                f" {ids.min() if ids.min() < 0 else ids.max():,}."
                " HINT: check which end of the edge type is which, and each node type's number of nodes."
            )
    indptr = np.zeros(num_targets + 1, np.int64)
    indices = np.empty(row.size, np.int32 if num_sources <= _INT32_MAX else np.int64)
    numbers: NDArray[np.integer] | None = None
    if edge_ids:
        numbers = np.empty(row.size, np.int32 if row.size <= _INT32_MAX else np.int64)
    coo_to_csc(row, col, indptr, indices, numbers)
    return Topology(indptr, indices, numbers)

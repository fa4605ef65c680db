"""The ends of links, and what a graph has for links of a type: nodes for both ends, and edges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.checks import check_integers
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology
from lightning_gnnopt.sampling.topology import Topology


def relation(topology: Topology | HeteroTopology, edge_type: EdgeType | None) -> Topology:
    """Take the edges that links of a type are.

    Raises:
        ValueError: If a heterogeneous graph has no such edges.
    """
    if isinstance(topology, Topology):
        return topology
    if edge_type not in topology.relations:
        raise ValueError(
            f"`exclude_positives` needs the graph's edges of the links' type, but {edge_type} is none of its"
            f" edge types: {topology.edge_types}. HINT: add them to the graph, with fan-out 0 if need be."
        )
    return topology.relations[edge_type]


def num_ends(topology: Topology | HeteroTopology, edge_type: EdgeType | None) -> tuple[int, int]:
    """Count the nodes that may be sources of links of a type, and destinations.

    Raises:
        ValueError: If the type is none of the graph's, or its absence does not fit.
    """
    if isinstance(topology, Topology):
        if edge_type is not None:
            raise ValueError(
                f"`edge_type` must be None in a homogeneous graph, but got {edge_type}."
                " HINT: heterogeneous links need a `HeteroNeighborSampler`."
            )
        return topology.num_nodes, topology.num_nodes
    if edge_type is None or not {edge_type[0], edge_type[2]} <= topology.num_nodes.keys():
        raise ValueError(
            f"`edge_type` must join two node types of the graph, {topology.node_types}, but got {edge_type}."
            ' HINT: ("author", "writes", "paper") has authors as sources and papers as destinations.'
        )
    return topology.num_nodes[edge_type[0]], topology.num_nodes[edge_type[2]]


def check_ends(
    sources: Any, targets: Any, **per_link: NDArray[Any] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the ends of links as they come and refuse those that do not belong together.

    Args:
        sources: Array, tensor or list of integers, shape ``(P,)``.
        targets: As many.
        per_link: What else there is of each link, by name, shape ``(P, ...)``.

    Returns:
        Sources and destinations.

    Raises:
        ValueError: If there is no link, an end is not a flat array of integers, or lengths differ.
    """
    ends = {"sources": np.asarray(sources), "targets": np.asarray(targets)}
    num_links = len(ends["sources"])
    if num_links == 0:
        raise ValueError("`sources` must hold at least one node, but it is empty. HINT: check the split's links.")
    for name, values in {**ends, **per_link}.items():
        if values is not None and len(values) != num_links:
            raise ValueError(
                f"`{name}` must have one entry per link ({num_links:,}), but got {len(values):,}."
                " HINT: a link is a source and a destination, row 0 and row 1 of `edge_label_index`."
            )
    for name, ids in ends.items():
        check_integers(ids, name, "the ends of links are global ids of nodes.")
    return ends["sources"].astype(np.int64), ends["targets"].astype(np.int64)

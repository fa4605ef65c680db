"""Partitions of a graph's nodes into parts of nearly equal size with few edges between them."""

from __future__ import annotations

import importlib.util
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.partition_kernels import (
    breadth_first,
    count_cut,
    fill_empty_parts,
    is_symmetric,
    stream,
    transpose,
)
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.topology import Topology

PartitionMethod = Literal["auto", "metis", "fennel", "ldg", "random"]
NodeOrder = Literal["bfs", "random", "natural"]
_METHODS = ("auto", "metis", "fennel", "ldg", "random")
_ORDERS = ("bfs", "random", "natural")
_GAMMA = 1.5


def partition_nodes(
    topology: Topology,
    num_parts: int,
    *,
    method: PartitionMethod = "auto",
    seed: int = 0,
    slack: float = 0.1,
    passes: int = 10,
    order: NodeOrder = "bfs",
) -> NDArray[np.int32]:
    """Divide the nodes into parts, so that few edges join two parts.

    Edges count without their direction, self loops not at all, parallel edges as often as they stand.

    * ``"metis"``: multilevel partitioning (Karypis & Kumar, SIAM J. Sci. Comput. 1998); needs ``pymetis``.
    * ``"fennel"``: a stream of nodes, each put where most of its neighbours are, less a price for the part's size
      (Tsourakakis, Gkantsidis, Radunovic & Vojnovic, WSDM 2014).
    * ``"ldg"``: the same with linear weights for the room left (Stanton & Kliot, KDD 2012).
    * ``"random"``: parts that differ by at most one node.
    * ``"auto"``: METIS where it is installed, else Fennel.

    Streams run several times over the nodes, each node then knowing where all others are (Nishimura & Ugander,
    KDD 2013). Their memory is 4 bytes per edge of a graph with one-way edges, next to none for an undirected one.

    Args:
        topology: The graph.
        num_parts: Number of parts; none is empty.
        method: As above.
        seed: Decides the order of the stream; the same seed gives the same parts.
        slack: How far a part of a stream may exceed ``N / num_parts`` nodes: 0.1 means by 10 % (rounded up). METIS
            balances by itself, within about 3 %.
        passes: How often a stream runs over the nodes.
        order: Order of a stream: breadth-first from random nodes, random, or as numbered.

    Returns:
        Int32 array of shape ``(N,)``: the part of each node, 0 to ``num_parts - 1``.

    Raises:
        ValueError: If an argument is out of range, or there are fewer nodes than parts.
        ModuleNotFoundError: If ``method="metis"`` and ``pymetis`` is not installed.

    Examples:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3]])
        >>> two_triangles = Topology.from_edge_index(edge_index, num_nodes=6)
        >>> parts = partition_nodes(two_triangles, 2, method="fennel")
        >>> bool(parts[0] == parts[1] == parts[2] != parts[3]), edge_cut(two_triangles, parts)
        (True, 1)
    """
    _check(topology, num_parts, method, slack, passes, order)
    num_nodes = topology.num_nodes
    if method == "auto":
        method = "fennel" if importlib.util.find_spec("pymetis") is None else "metis"
    if num_parts == 1:
        return np.zeros(num_nodes, np.int32)
    if method == "metis":
        parts = _metis(topology, num_parts, seed)
    elif method == "random":
        parts = np.empty(num_nodes, np.int32)
        parts[SampleKey(seed).permutation(num_nodes)] = np.arange(num_nodes) % num_parts
    else:
        parts = _stream_parts(topology, num_parts, method == "fennel", seed, slack, passes, order)
    fill_empty_parts(parts, num_parts)
    return parts


def edge_cut(topology: Topology, parts: NDArray[np.integer]) -> int:
    """Count the directed edges whose end points are in two parts.

    Args:
        topology: The graph.
        parts: The part of each node, shape ``(N,)``.

    Raises:
        ValueError: If `parts` has another shape.
    """
    if parts.shape != (topology.num_nodes,):
        raise ValueError(
            f"`parts` must have shape ({topology.num_nodes},), one part per node, but got {parts.shape}."
            " HINT: `partition_nodes` returns such an array."
        )
    return int(count_cut(topology.indptr, topology.indices, parts))


def _check(topology: Topology, num_parts: int, method: str, slack: float, passes: int, order: str) -> None:
    if method not in _METHODS:
        raise ValueError(unknown_name("partition method", method, _METHODS))
    if order not in _ORDERS:
        raise ValueError(unknown_name("order", order, _ORDERS))
    if not 1 <= num_parts <= topology.num_nodes:
        raise ValueError(
            f"`num_parts` must be from 1 to the number of nodes, {topology.num_nodes:,}, but got {num_parts:,}."
            " HINT: no part is left empty; parts of some hundreds to thousands of nodes are usual."
        )
    if not slack >= 0:
        raise ValueError(f"`slack` must not be negative, but got {slack}. HINT: 0.1 allows parts 10 % above the mean.")
    if passes < 1:
        raise ValueError(f"`passes` must be at least 1, but got {passes}. HINT: 10 is the default.")


def _metis(topology: Topology, num_parts: int, seed: int) -> NDArray[np.int32]:
    try:
        import pymetis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '`method="metis"` needs pymetis, which is not installed. HINT: `pip install "lightning-gnnopt[partition]"`,'
            ' or `method="fennel"`, which needs nothing.'
        ) from error
    from scipy.sparse import csr_array

    # METIS wants each pair of neighbours once from either side, so parallel edges become an edge's weight.
    num_nodes = topology.num_nodes
    ones = np.ones(topology.num_edges, np.int32)
    adjacency: Any = csr_array((ones, topology.indices, topology.indptr), shape=(num_nodes, num_nodes))
    adjacency = (adjacency + adjacency.T).tocsr()
    adjacency.setdiag(0)
    adjacency.eliminate_zeros()
    _, membership = pymetis.part_graph(
        num_parts,
        adjacency=pymetis.CSRAdjacency(adjacency.indptr, adjacency.indices),
        eweights=adjacency.data,
        options=pymetis.Options(seed=seed),
    )
    return np.asarray(membership, np.int32)


def _stream_parts(
    topology: Topology, num_parts: int, fennel: bool, seed: int, slack: float, passes: int, order: str
) -> NDArray[np.int32]:
    indptr, indices, num_nodes = topology.indptr, topology.indices, topology.num_nodes
    num_edges = int(topology.in_degrees.sum(dtype=np.int64))  # without self loops
    if bool(is_symmetric(indptr, indices)):
        # The in-neighbours are all neighbours.
        out_indptr, out_indices, num_pairs = np.zeros(num_nodes + 1, np.int64), indices[:0], num_edges / 2
    else:
        out_indptr, out_indices = np.zeros(num_nodes + 1, np.int64), np.empty_like(indices)
        transpose(indptr, indices, out_indptr, out_indices)
        num_pairs = num_edges
    both = (indptr, indices, out_indptr, out_indices)
    nodes = np.arange(num_nodes) if order == "natural" else SampleKey(seed).permutation(num_nodes)
    if order == "bfs":
        nodes = breadth_first(*both, nodes)
    capacity = ceil(num_nodes / num_parts * (1 + slack))
    sizes = np.arange(capacity + 1)
    if fennel:
        alpha = num_parts**0.5 * num_pairs / num_nodes**1.5
        factor, price = np.ones(capacity + 1), alpha * _GAMMA * sizes ** (_GAMMA - 1)
    else:
        # Not divided by the capacity: scores are then whole numbers, and equal ones really equal.
        factor, price = (capacity - sizes).astype(np.float64), np.zeros(capacity + 1)
    parts = np.full(num_nodes, -1, np.int32)
    stream(*both, nodes, parts, num_parts, factor, price, passes)
    return parts

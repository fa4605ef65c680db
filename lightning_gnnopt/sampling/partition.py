"""Partitions of a graph's nodes into parts of nearly equal size with few edges between them."""

from __future__ import annotations

import importlib.util
import warnings
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt._units import format_bytes, parse_bytes
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
Objective = Literal["cut", "vol"]
_METHODS = ("auto", "metis", "fennel", "ldg", "random")
_ORDERS = ("bfs", "random", "natural")
_OBJECTIVES = ("cut", "vol")
_GAMMA = 1.5


def partition_nodes(
    topology: Topology,
    num_parts: int,
    *,
    method: PartitionMethod = "auto",
    objective: Objective = "cut",
    seed: int = 0,
    slack: float = 0.1,
    passes: int = 10,
    order: NodeOrder = "bfs",
    max_bytes: int | str | None = None,
) -> NDArray[np.int32]:
    """Divide the nodes into parts, so that few edges join two parts.

    Edges count without their direction, self loops not at all, parallel edges as often as they stand.

    * ``"metis"``: multilevel partitioning (Karypis & Kumar, SIAM J. Sci. Comput. 1998); needs ``pymetis``.
    * ``"fennel"``: a stream of nodes, each put where most of its neighbours are, less a price for the part's size
      (Tsourakakis, Gkantsidis, Radunovic & Vojnovic, WSDM 2014).
    * ``"ldg"``: the same with linear weights for the room left (Stanton & Kliot, KDD 2012).
    * ``"random"``: parts that differ by at most one node.
    * ``"auto"``: METIS where it is installed and has the memory, else Fennel; random parts where Fennel has not.

    Streams run several times over the nodes, each node then knowing where all others are (Nishimura & Ugander,
    KDD 2013). What each method takes beside the graph says :func:`partition_bytes`.

    Args:
        topology: The graph.
        num_parts: Number of parts; none is empty.
        method: As above.
        objective: What METIS makes small: the edges between parts (``"cut"``), or the nodes that parts need of each
            other (``"vol"``), once for each part that does. Streams have but one objective.
        seed: Decides the order of the stream; the same seed gives the same parts.
        slack: How far a part of a stream may exceed ``N / num_parts`` nodes: 0.1 means by 10 % (rounded up). METIS
            balances by itself, within about 3 %.
        passes: How often a stream runs over the nodes.
        order: Order of a stream: breadth-first from random nodes, random, or as numbered.
        max_bytes: The most memory to take beside the graph: a number, or ``"2GiB"``; None for any.

    Returns:
        Int32 array of shape ``(N,)``: the part of each node, 0 to ``num_parts - 1``.

    Raises:
        ValueError: If an argument is out of range, there are fewer nodes than parts, or the method would take more
            than `max_bytes`.
        RuntimeError: If METIS fails on the graph.
        ModuleNotFoundError: If ``method="metis"`` and ``pymetis`` is not installed.

    Examples:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3]])
        >>> two_triangles = Topology.from_edge_index(edge_index, num_nodes=6)
        >>> parts = partition_nodes(two_triangles, 2, method="fennel")
        >>> bool(parts[0] == parts[1] == parts[2] != parts[3]), edge_cut(two_triangles, parts)
        (True, 1)
    """
    if objective not in _OBJECTIVES:
        raise ValueError(unknown_name("objective", objective, _OBJECTIVES))
    _check(topology, num_parts, method, slack, passes, order)
    num_nodes = topology.num_nodes
    chosen = _within(topology, method, None if max_bytes is None else parse_bytes(max_bytes, name="max_bytes"))
    if num_parts == 1:
        return np.zeros(num_nodes, np.int32)
    parts: NDArray[np.int32] | None = None
    if chosen == "metis":
        try:
            parts = _metis(topology, num_parts, objective, seed)
        except RuntimeError as error:
            if method != "auto":
                raise
            warnings.warn(f"{error} The graph is divided with `method='fennel'` instead.", stacklevel=2)
    elif chosen == "random":
        parts = np.empty(num_nodes, np.int32)
        parts[SampleKey(seed).permutation(num_nodes)] = np.arange(num_nodes) % num_parts
    if parts is None:
        parts = _stream_parts(topology, num_parts, chosen != "ldg", seed, slack, passes, order)
    fill_empty_parts(parts, num_parts)
    return parts


def partition_bytes(topology: Topology, method: str) -> int:
    """Say what a method takes beside the graph, at most about so many bytes.

    METIS: 160 an edge, or 320 of a graph with one-way edges, whose other direction it needs, and 200 a node: it has
    copies of the graph, each smaller than the one before. Streams: 40 a node, and a copy of one-way edges. Random
    parts: 24 a node.

    Args:
        topology: The graph.
        method: ``"metis"``, ``"fennel"``, ``"ldg"`` or ``"random"``.
    """
    directions = 1 if bool(is_symmetric(topology.indptr, topology.indices)) else 2
    stream_edge = topology.indices.itemsize * (directions - 1)
    of_node, of_edge = {"metis": (200, 160 * directions), "random": (24, 0)}.get(method, (40, stream_edge))
    return of_node * topology.num_nodes + of_edge * topology.num_edges


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


def _within(topology: Topology, method: PartitionMethod, max_bytes: int | None) -> str:
    """The first of the methods that may be taken whose memory is there."""
    candidates: list[str] = [method]
    if method == "auto":
        candidates = (
            ["fennel", "random"] if importlib.util.find_spec("pymetis") is None else ["metis", "fennel", "random"]
        )
    for candidate in candidates:
        if max_bytes is None or partition_bytes(topology, candidate) <= max_bytes:
            return candidate
    needed = partition_bytes(topology, candidates[-1])
    raise ValueError(
        f"`max_bytes` must be at least about {format_bytes(needed)} for `method={candidates[-1]!r}` on a graph of"
        f" {topology.num_nodes:,} nodes and {topology.num_edges:,} edges, but is {format_bytes(max_bytes or 0)}. HINT:"
        ' `method="auto"` takes what fits, and `method="random"` takes least.'
    )


def _metis(topology: Topology, num_parts: int, objective: str, seed: int) -> NDArray[np.int32]:
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
    try:
        _, membership = pymetis.part_graph(
            num_parts,
            adjacency=pymetis.CSRAdjacency(adjacency.indptr, adjacency.indices),
            eweights=adjacency.data,
            recursive=False if objective == "vol" else None,  # bisection knows cuts only
            options=pymetis.Options(seed=seed, objtype=int(getattr(pymetis.ObjType, objective.upper()))),
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"METIS has failed to divide this graph of {num_nodes:,} nodes and {topology.num_edges:,} edges into"
            f' {num_parts:,} parts with `objective="{objective}"` ({error}). HINT:'
            ' the other objective, or `method="fennel"`.'
        ) from error
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

"""A graph cut by destination: each part owns some nodes and has all of their in-edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GraphPart:
    """What one rank holds of a graph's structure.

    Local ids: its own nodes are ``0 .. n - 1`` in the order of their global ids; the halo, nodes of other ranks that
    send to them, follows as ``n .. n + h - 1``, grouped by owner, in the order of their global ids.

    Attributes:
        rank: Which part it is.
        num_parts: Number of parts, ``P``.
        num_nodes: Nodes of the whole graph, ``N``.
        num_edges: Edges of the whole graph, ``E``.
        inner: Int64, shape ``(n,)``: global ids of its nodes, ascending.
        halo: Int64, shape ``(h,)``: global ids of the halo.
        edge_index: Int64, shape ``(2, e)``: local ids, source above destination; the edges keep their order.
        edge_id: Int64, shape ``(e,)``: places of the edges in the graph's `edge_index`.
        send_index: Int64: local ids of the nodes that others have in their halo, grouped by receiver.
        send_counts: How many each rank is sent, ``P`` numbers.
        recv_counts: How many each rank sends, ``P`` numbers.
        in_degree: Int64, shape ``(n + h,)``: in-degrees in the whole graph.
        out_degree: Int64, shape ``(n + h,)``: out-degrees in the whole graph.
    """

    rank: int
    num_parts: int
    num_nodes: int
    num_edges: int
    inner: NDArray[np.int64]
    halo: NDArray[np.int64]
    edge_index: NDArray[np.int64]
    edge_id: NDArray[np.int64]
    send_index: NDArray[np.int64]
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]
    in_degree: NDArray[np.int64]
    out_degree: NDArray[np.int64]

    ARRAYS = ("inner", "halo", "edge_index", "edge_id", "send_index", "in_degree", "out_degree")

    @property
    def num_inner(self) -> int:
        """Nodes it owns, ``n``."""
        return len(self.inner)

    @property
    def num_halo(self) -> int:
        """Nodes of its halo, ``h``."""
        return len(self.halo)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Its arrays by name."""
        return {name: getattr(self, name) for name in self.ARRAYS}


def cut_graph(edge_index: NDArray[np.int64], owner: NDArray[np.integer], num_parts: int) -> Iterator[GraphPart]:
    """Cut a graph into parts, one after the other.

    Args:
        edge_index: Int64, shape ``(2, E)``, source above destination. Directed; self loops and parallel edges are kept.
        owner: Shape ``(N,)``: the part that owns each node, ``0 .. num_parts - 1``.
        num_parts: Number of parts, ``P``. A part may be empty.

    Yields:
        The parts of rank 0, 1, ...

    Raises:
        ValueError: If a node has no such part, or an edge no such node.

    Examples:
        >>> edges = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> first, second = cut_graph(edges, np.array([0, 0, 1, 1]), 2)
        >>> first.inner.tolist(), first.halo.tolist(), first.edge_index.tolist()
        ([0, 1], [3], [[0, 2], [1, 0]])
        >>> first.send_index.tolist(), first.send_counts, first.recv_counts
        ([1], (0, 1), (0, 1))
    """
    num_nodes, num_edges = len(owner), edge_index.shape[1]
    if num_nodes and not 0 <= int(owner.min()) <= int(owner.max()) < num_parts:
        raise ValueError(
            f"Each node must belong to a part from 0 to {num_parts - 1}, but `owner` goes from {owner.min()} to"
            f" {owner.max()}. HINT: `partition_nodes(topology, num_parts)` makes such an array."
        )
    if num_edges and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ValueError(
            f"`edge_index` must name nodes from 0 to {num_nodes - 1}, but goes from {edge_index.min()} to"
            f" {edge_index.max()}. HINT: check `data.num_nodes`."
        )
    source, target = edge_index
    in_degree, out_degree = np.bincount(target, minlength=num_nodes), np.bincount(source, minlength=num_nodes)
    owners: NDArray[np.int64] = owner.astype(np.int64, copy=False)
    by_owner = np.argsort(owners, kind="stable")  # the inner nodes of rank 0, of rank 1, ...
    first = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_parts))])
    local_id = np.empty(num_nodes, np.int64)
    local_id[by_owner] = np.arange(num_nodes) - np.repeat(first[:-1], np.diff(first))
    target_owner = owners[target]
    halos = [_halo(source[target_owner == rank], owners, rank) for rank in range(num_parts)]
    for rank in range(num_parts):
        inner, halo = by_owner[first[rank] : first[rank + 1]], halos[rank]
        edge_id = np.flatnonzero(target_owner == rank)
        sources, targets = source[edge_id], target[edge_id]
        is_remote = owners[sources] != rank
        local_source = local_id[sources]
        local_source[is_remote] = len(inner) + _places(halo, sources[is_remote])
        sent = [other[owners[other] == rank] for other in halos]
        seen = np.concatenate([inner, halo])
        yield GraphPart(
            rank, num_parts, num_nodes, num_edges, inner, halo,
            edge_index=np.stack([local_source, local_id[targets]]),
            edge_id=edge_id,
            send_index=local_id[np.concatenate(sent)],
            send_counts=tuple(map(len, sent)),
            recv_counts=tuple(np.bincount(owners[halo], minlength=num_parts).tolist()),
            in_degree=in_degree[seen],
            out_degree=out_degree[seen],
        )  # fmt: skip


def _halo(sources: NDArray[np.int64], owner: NDArray[np.int64], rank: int) -> NDArray[np.int64]:
    halo = np.unique(sources[owner[sources] != rank])
    return halo[np.argsort(owner[halo], kind="stable")]


def _places(halo: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(halo)
    places: NDArray[np.int64] = order[np.searchsorted(halo, nodes, sorter=order)]
    return places

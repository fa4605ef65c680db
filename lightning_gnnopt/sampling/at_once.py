"""All hops of a batch, or a whole batch of clusters, by one call that does not hold the GIL.

Hop by hop a batch takes some ten calls. Each lets go of the GIL and must get it back from a training thread that is
busy with it, which costs both of them more than most of the calls take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.draws import MAX_ROOM, count_drawn, draw_uniform
from lightning_gnnopt.sampling.induced import edges_between
from lightning_gnnopt.sampling.kernels import gather_into
from lightning_gnnopt.sampling.node_table import NodeTable, number_nodes, start_numbering
from lightning_gnnopt.sampling.rng import mix64
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

_KEPT_BYTES = 2**26  # scratch above this size is made anew for each batch


def grow_uniform(
    topology: Topology,
    table: NodeTable,
    seeds: NDArray[np.integer],
    sizes: Sequence[int],
    word: np.uint64,
    *,
    replace: bool,
) -> Subgraph:
    """Draw a batch hop by hop, as `HopwiseSampler` does with `UniformDraw`, bit by bit.

    Args:
        topology: The graph.
        table: Numbers the nodes; keeps the scratch memory and its size.
        seeds: Global ids, shape ``(B,)``.
        sizes: Fan-out of each hop; -1 takes all in-edges.
        word: Keys the batch's random numbers.
        replace: Whether an edge can be drawn twice.
    """
    graph = (topology.indptr, topology.indices, np.ascontiguousarray(seeds, topology.indices.dtype))
    fanouts = np.array(sizes, np.int64)
    num_nodes, num_edges = np.zeros(len(sizes) + 1, np.int64), np.zeros(len(sizes), np.int64)
    asked = np.zeros(2, np.int64)
    grow: Any = _grow_uniform  # mypy counts no arguments behind a star
    if len(seeds) > table.room[0]:
        table.room, table.scratch = (len(seeds), table.room[1]), None
    while True:
        scratch = table.scratch or _scratch(topology, *table.room)
        numbering = table.begin(len(scratch[0]))
        found = grow(*graph, fanouts, replace, word, *numbering, *scratch, num_nodes, num_edges, asked)
        table.end(int(num_nodes.sum()))
        if asked[0] <= len(scratch[0]) and asked[1] <= len(scratch[2]):
            table.scratch = scratch if sum(array.nbytes for array in scratch) <= _KEPT_BYTES else None
            n_id, row, col, positions = found
            return Subgraph(n_id, row, col, positions, num_nodes.tolist(), num_edges.tolist())
        # Once more, with room for what the hop that did not fit asked for, and for somewhat larger batches.
        nodes, edges = (int(number) * 9 // 8 for number in asked)
        table.room, table.scratch = (max(table.room[0], nodes), max(table.room[1], edges)), None


def _scratch(topology: Topology, nodes: int, edges: int) -> tuple[NDArray[Any], ...]:
    """Make room for nodes, and for the global sources, sources, destinations and positions of edges."""
    id_type = topology.indices.dtype
    row = np.empty(edges, np.int32)
    # Ids of 32 bits are replaced by the local ones where they stand.
    sources = row if id_type == np.int32 else np.empty(edges, id_type)
    return np.empty(nodes, id_type), sources, row, np.empty(edges, np.int32), np.empty(edges, topology.position_dtype)


@njit(nogil=True, cache=True)
def _grow_uniform(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    seeds: NDArray[np.integer],
    fanouts: NDArray[np.int64],
    replace: bool,
    word: np.uint64,
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    nodes: NDArray[np.integer],
    sources: NDArray[np.integer],
    row: NDArray[np.int32],
    col: NDArray[np.int32],
    positions: NDArray[np.integer],
    num_nodes: NDArray[np.int64],
    num_edges: NDArray[np.int64],
    asked: NDArray[np.int64],
) -> tuple[NDArray[np.integer], NDArray[np.int32], NDArray[np.int32], NDArray[np.integer]]:
    """Draw all hops, or those before the first that does not fit into the scratch.

    Args:
        indptr: Shape ``(N + 1,)``.
        indices: Shape ``(E,)``.
        seeds: Shape ``(B,)``.
        fanouts: Shape ``(L,)``.
        replace: Whether an edge can be drawn twice.
        word: Keys the batch's random numbers.
        keys: Of the numbering table, as `entries` and `base`.
        entries: See there.
        base: See there.
        nodes: Scratch, at least ``B`` places.
        sources: Scratch; may be `row`.
        row: Scratch.
        col: Scratch.
        positions: Scratch.
        num_nodes: Output, shape ``(L + 1,)``: the seeds and the new nodes of each hop that was drawn.
        num_edges: Output, shape ``(L,)``.
        asked: Output, shape ``(2,)``: the most nodes and edges that room was needed for.

    Returns:
        Copies of nodes, row, col and positions.
    """
    n, e, first = len(seeds), 0, 0
    num_nodes[:], num_edges[:], asked[0], asked[1] = 0, 0, n, 0
    num_nodes[0] = n
    nodes[:n] = seeds
    start_numbering(keys, entries, base, seeds)
    for hop in range(len(fanouts)):
        frontier, fanout = nodes[first:n], fanouts[hop]
        colptr = np.empty(len(frontier) + 1, np.int64)
        room = len(frontier) * fanout
        if fanout < 0 or room > MAX_ROOM:
            count_drawn(indptr, frontier, fanout, replace, colptr)
            room = colptr[-1]
        # The numbering writes every node to the next place and keeps the new ones: one place more.
        asked[0], asked[1] = max(asked[0], n + room + 1), max(asked[1], e + room)
        if asked[0] > len(nodes) or asked[1] > len(row):
            break
        key = mix64(word ^ np.uint64(hop))
        drawn = int(
            draw_uniform(indptr, frontier, fanout, replace, key, np.int32(first), colptr, positions[e:], col[e:])
        )
        gather_into(indices, positions[e : e + drawn], sources[e : e + drawn])
        new = int(number_nodes(keys, entries, base, n, sources[e : e + drawn], nodes[n:], row[e : e + drawn]))
        first, n, e = n, n + new, e + drawn
        num_nodes[hop + 1], num_edges[hop] = new, drawn
    return nodes[:n].copy(), row[:e].copy(), col[:e].copy(), positions[:e].copy()


def join_clusters(
    topology: Topology,
    table: NodeTable,
    seeds: NDArray[np.integer],
    members: NDArray[np.integer],
    starts: NDArray[np.int64],
    clusters: NDArray[np.integer],
) -> Subgraph:
    """Join the clusters of a batch, the seeds first, and find all edges between their nodes.

    Args:
        topology: The graph.
        table: Numbers the nodes.
        seeds: Global ids, shape ``(B,)``; in the clusters.
        members: The nodes of all clusters, one behind the other, shape ``(N,)``.
        starts: Where each cluster's nodes start, shape ``(num_clusters + 1,)``.
        clusters: Which clusters.
    """
    seeds = np.ascontiguousarray(seeds, members.dtype)
    count = sum([int(starts[cluster + 1] - starts[cluster]) for cluster in clusters])
    numbering = table.begin(len(seeds) + count)
    n_id, row, col, positions = _join_clusters(
        topology.indptr,
        topology.indices,
        seeds,
        members,
        starts,
        clusters,
        *numbering,
        np.empty(len(seeds) + count + 1, members.dtype),
        np.empty(0, topology.position_dtype),
    )
    table.end(len(n_id))
    return Subgraph(n_id, row, col, positions, None, None, len(seeds))


@njit(nogil=True, cache=True)
def _join_clusters(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    seeds: NDArray[np.integer],
    members: NDArray[np.integer],
    starts: NDArray[np.int64],
    clusters: NDArray[np.integer],
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    nodes: NDArray[np.integer],
    no_positions: NDArray[np.integer],
) -> tuple[NDArray[np.integer], NDArray[np.int32], NDArray[np.int32], NDArray[np.integer]]:
    n = len(seeds)
    nodes[:n] = seeds
    start_numbering(keys, entries, base, seeds)
    locals_ = np.empty(len(nodes), np.int32)
    for cluster in clusters:
        own = members[starts[cluster] : starts[cluster + 1]]
        n += int(number_nodes(keys, entries, base, n, own, nodes[n:], locals_[: len(own)]))
    n_id = nodes[:n].copy()
    none = np.empty(0, np.int32)
    num_edges = edges_between(indptr, indices, n_id, keys, entries, base, none, none, no_positions)
    row, col = np.empty(num_edges, np.int32), np.empty(num_edges, np.int32)
    positions = np.empty(num_edges, no_positions.dtype)
    edges_between(indptr, indices, n_id, keys, entries, base, row, col, positions)
    return n_id, row, col, positions

"""The numba kernels behind `structure` and `counting`: what of a batch a choice of edges and seeds leaves.

Callers validate. Ids that are used as places become unsigned: of signed ones numba asks if they count from the end.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_NEVER = np.int32(2**31 - 1)


@njit(nogil=True, cache=True)
def in_edges(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    indptr: NDArray[np.int32],
    sources: NDArray[np.int32],
    edges: NDArray[np.int32],
) -> None:
    """Group edges by destination, those of one destination in the order they had.

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        indptr: Output, zeros of shape ``(N + 1,)``; on return ``indptr[v]:indptr[v + 1]`` are the in-edges of ``v``.
        sources: Output, shape ``(E,)``: the sources, grouped.
        edges: Output, shape ``(E,)``: the edges' places in `row`, grouped.
    """
    is_sorted = True
    for e in range(1, len(col)):
        is_sorted &= col[e - 1] <= col[e]
    if is_sorted:  # what hop-wise samplers yield: nothing moves
        for e in range(len(col)):
            indptr[np.uintp(col[e]) + np.uintp(1)] = e + 1
        end = np.int32(0)
        for v in range(1, len(indptr)):
            end = max(end, indptr[v])
            indptr[v] = end
        for e in range(len(row)):
            sources[e] = row[e]
        for e in range(len(row)):
            edges[e] = e
        return
    for e in range(len(col)):
        indptr[np.uintp(col[e]) + np.uintp(1)] += 1
    # `indptr[v + 1]` becomes the start of `v`, then serves as its cursor, and so ends as the end of `v`.
    start = np.int32(0)
    for v in range(1, len(indptr)):
        size = indptr[v]
        indptr[v] = start
        start += size
    for e in range(len(col)):
        cursor = np.uintp(col[e]) + np.uintp(1)
        place = np.uintp(indptr[cursor])
        indptr[cursor] = place + 1
        sources[place] = row[e]
        edges[place] = e


@njit(nogil=True, cache=True)
def walk_hops(
    indptr: NDArray[np.int32],
    sources: NDArray[np.int32],
    edges: NDArray[np.int32],
    keep: NDArray[np.bool_],
    place: NDArray[np.int32],
    nodes: NDArray[np.int64],
    picked: NDArray[np.int64],
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    node_counts: NDArray[np.int64],
    edge_counts: NDArray[np.int64],
) -> None:
    """Walk from the seeds against the edges, breadth first, and number what is met.

    Args:
        indptr: As `in_edges` makes it, with `sources` and `edges`.
        sources: Sources, grouped by destination.
        edges: Places of the edges, grouped by destination.
        keep: The edges that exist, shape ``(E,)``.
        place: New ids, int32 of shape ``(N,)``: those of the seeds, and -1. On return those of all nodes met.
        nodes: Output with room for all nodes, one more than there are: the old ids in the new order; starts with the
            seeds.
        picked: Output with room for all edges, one more than there are: the old places of the edges in the new order.
        row: Output of the same length: new sources.
        col: Output of the same length: new destinations.
        node_counts: Nodes of each hop, shape ``(L + 1,)``: the seeds, and zeros. On return all.
        edge_counts: Output: edges of each hop, shape ``(L,)``.
    """
    first, num_nodes, num_edges = np.uintp(0), np.uintp(node_counts[0]), np.uintp(0)
    for hop in range(len(edge_counts)):
        end, edges_before = num_nodes, num_edges
        for target in range(first, end):
            node = np.uintp(nodes[target])
            for p in range(np.uintp(indptr[node]), np.uintp(indptr[node + np.uintp(1)])):
                # Written in any case, and counted if kept: which edges are kept is what no processor can guess.
                edge, source = np.uintp(edges[p]), np.uintp(sources[p])
                kept, local = keep[edge], place[source]
                new = kept & (local < 0)
                local = np.int32(num_nodes) if new else local
                place[source] = local
                nodes[num_nodes] = source
                num_nodes += np.uintp(new)
                picked[num_edges] = edge
                row[num_edges] = local
                col[num_edges] = target
                num_edges += np.uintp(kept)
        node_counts[hop + 1] = num_nodes - end
        edge_counts[hop] = num_edges - edges_before
        first = end


@njit(nogil=True, cache=True)
def walk_steps(
    indptr: NDArray[np.int32],
    sources: NDArray[np.int32],
    edges: NDArray[np.int32],
    keep: NDArray[np.bool_],
    seeds: NDArray[np.int64],
    depth: int,
    inside: NDArray[np.bool_],
    expanded: NDArray[np.bool_],
) -> None:
    """Find what lies within some steps of the seeds, against the edges.

    Args:
        indptr: As `in_edges` makes it, with `sources` and `edges`.
        sources: Sources, grouped by destination.
        edges: Places of the edges, grouped by destination.
        keep: The edges that exist, shape ``(E,)``.
        seeds: Where to start, shape ``(B,)``.
        depth: Number of steps.
        inside: Output, False of shape ``(N,)``: the nodes within `depth` steps.
        expanded: Output, False of shape ``(N,)``: those within fewer.
    """
    met = np.empty(len(inside), np.int32)
    for i in range(len(seeds)):
        inside[seeds[i]] = True
        met[i] = seeds[i]
    first, num_nodes = 0, len(seeds)
    for _ in range(depth):
        end = num_nodes
        if first == end:
            break
        for i in range(first, end):
            node = met[i]
            expanded[node] = True
            for p in range(indptr[node], indptr[node + 1]):
                source = sources[p]
                if keep[edges[p]] and not inside[source]:
                    inside[source] = True
                    met[num_nodes] = source
                    num_nodes += 1
        first = end


@njit(nogil=True, cache=True)
def touch(
    row: NDArray[np.integer], col: NDArray[np.integer], keep: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> None:
    """Add the ends of the kept edges to `inside`, bool of shape ``(N,)``."""
    for e in range(len(row)):
        inside[np.uintp(row[e])] |= keep[e]
        inside[np.uintp(col[e])] |= keep[e]


@njit(nogil=True, cache=True)
def renumber(
    row_of: NDArray[np.integer],
    col_of: NDArray[np.integer],
    keep: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    expanded: NDArray[np.bool_],
    seeds: NDArray[np.int64],
    nodes: NDArray[np.int64],
    picked: NDArray[np.int64],
    row: NDArray[np.integer],
    col: NDArray[np.integer],
) -> tuple[int, int]:
    """Number nodes and edges without hops: the seeds first, all else in the order it had.

    Args:
        row_of: Old sources, shape ``(E,)``.
        col_of: Old destinations, shape ``(E,)``.
        keep: The edges that exist, shape ``(E,)``.
        inside: The nodes that stay, shape ``(N,)``.
        expanded: The nodes whose in-edges stay, shape ``(N,)``.
        seeds: Old ids of the seeds, shape ``(B,)``.
        nodes: Output, shape ``(N,)``: old ids in the new order.
        picked: Output with room for all edges, one more than there are: old places in the new order.
        row: Output of the same length: new sources.
        col: Output of the same length: new destinations.

    Returns:
        The numbers of nodes and edges.
    """
    place = np.full(len(inside), -1, np.int32)
    num_nodes, num_edges = 0, 0
    for seed in seeds:
        place[seed] = num_nodes
        nodes[num_nodes] = seed
        num_nodes += 1
    for v in range(len(inside)):
        if inside[v] and place[v] < 0:
            place[v] = num_nodes
            nodes[num_nodes] = v
            num_nodes += 1
    for e in range(len(row_of)):
        picked[num_edges] = e
        row[num_edges], col[num_edges] = place[np.uintp(row_of[e])], place[np.uintp(col_of[e])]
        num_edges += keep[e] & expanded[np.uintp(col_of[e])]
    return num_nodes, num_edges


@njit(nogil=True, cache=True)
def births_by_hop(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    ranks: NDArray[np.int32],
    num_seeds: int,
    of_nodes: NDArray[np.int32],
    of_edges: NDArray[np.int32],
) -> None:
    """Find from how many leading edges on a node is within ``d`` steps of the seeds, and an edge leads to such a node.

    A path is there as soon as the last of its edges is: a node's number is the smallest over all paths of at most ``d``
    edges of the largest along the path (a bottleneck path, found as Bellman and Ford find a shortest one).

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        ranks: How many edges come before each edge, shape ``(E,)``.
        num_seeds: The first nodes are seeds.
        of_nodes: Output, shape ``(L + 1, N)``: from which number of edges on a node is within ``d = 0 .. L`` steps; the
            largest int32 for never.
        of_edges: Output, shape ``(L, E)``: from which number on an edge is there, and its destination within
            ``d = 0 .. L - 1`` steps.
    """
    of_nodes[0, :] = _NEVER
    of_nodes[:, :num_seeds] = 0
    for d in range(len(of_edges)):
        closer, nodes, edges = of_nodes[d], of_nodes[d + 1], of_edges[d]
        nodes[:] = closer
        for e in range(len(row)):
            reached = closer[np.uintp(col[e])]
            if reached == _NEVER:  # so are most others of its hop
                edges[e] = _NEVER
                continue
            birth = max(np.int32(ranks[e] + 1), reached)
            edges[e] = birth
            source = np.uintp(row[e])
            nodes[source] = min(nodes[source], birth)


@njit(nogil=True, cache=True)
def births_of_ends(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    ranks: NDArray[np.int32],
    num_seeds: int,
    of_nodes: NDArray[np.int32],
    of_edges: NDArray[np.int32],
) -> None:
    """Find the same where there are no hops: a node is there with the first of its edges.

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        ranks: How many edges come before each edge, shape ``(E,)``.
        num_seeds: The first nodes are seeds.
        of_nodes: Output, shape ``(2, N)``: the seeds alone; all nodes.
        of_edges: Output, shape ``(1, E)``.
    """
    of_nodes[:] = _NEVER
    of_nodes[:, :num_seeds] = 0
    nodes = of_nodes[1]
    for e in range(len(row)):
        birth = np.int32(ranks[e] + 1)
        of_edges[0, e] = birth
        source, target = np.uintp(row[e]), np.uintp(col[e])
        nodes[source] = min(nodes[source], birth)
        nodes[target] = min(nodes[target], birth)


@njit(nogil=True, cache=True)
def count_born(births: NDArray[np.int32], now: int, out: NDArray[np.int64]) -> None:
    """Count in each row of `births` the numbers up to `now`, less those of the row before, into `out`."""
    limit = np.int32(now)
    for d in range(len(births)):
        numbers = births[d]
        born = np.int32(0)
        for i in range(len(numbers)):
            born += np.int32(numbers[i] <= limit)
        out[d] = born
    for d in range(len(births) - 1, 0, -1):
        out[d] -= out[d - 1]

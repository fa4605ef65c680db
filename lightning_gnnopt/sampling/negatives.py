"""Negative links: pairs of nodes drawn at random, by weight, and at will only pairs that no edge joins."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lightning_gnnopt.sampling.edge_lookup import EdgeLookup, is_edge
from lightning_gnnopt.sampling.rng import mix64, uniform_below

MAX_TRIES = 32
"""How often a negative that turns out to be an edge is drawn anew; what the last try gives is kept."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_11 = np.uint64(11)
_NO_NODES = np.empty(0, np.int64)
_NO_WEIGHTS = np.empty(0, np.float64)


class NodePool:
    """The nodes that one end of a negative link is drawn from.

    Args:
        num_nodes: Number of nodes ``N``.
        weight: How likely each node is, up to a common factor, shape ``(N,)``; all alike by default.
        node_time: When each node came to be, shape ``(N,)``: a link of time ``t`` then has ends of time up to ``t``.

    Raises:
        ValueError: If `weight` or `node_time` has another length than ``N``, a weight is negative or not finite, or
            all are 0.
    """

    def __init__(
        self, num_nodes: int, *, weight: ArrayLike | None = None, node_time: NDArray[np.number] | None = None
    ) -> None:
        self.num_nodes = num_nodes
        self.order, self.cumulative = _NO_NODES, _NO_WEIGHTS
        self._sorted_time: NDArray[np.number] | None = None
        weights = None if weight is None else check_weight(weight, num_nodes)
        if node_time is not None:
            if len(node_time) != num_nodes:
                raise ValueError(
                    f"`node_time` must hold one time per node ({num_nodes:,}), but got {len(node_time):,}."
                    " HINT: give nodes that always existed the earliest time."
                )
            # The nodes that exist at a time are a head of this order: no draw is ever thrown away.
            self.order = np.argsort(node_time, kind="stable")
            self._sorted_time = node_time[self.order]
            weights = None if weights is None else weights[self.order]
        if weights is not None:
            self.cumulative = np.cumsum(weights)

    def counts(self, time: NDArray[np.number] | None) -> NDArray[np.int64]:
        """Count the nodes to choose from.

        Args:
            time: Time of each link, shape ``(P,)``; None for links of no time, which may have any node.

        Returns:
            Int64 array of shape ``(P,)``, or ``(1,)`` if it is the same for all.

        Raises:
            ValueError: If for one of the times there is no node, or only nodes of weight 0.
        """
        counts = np.array([self.num_nodes])
        if time is not None and self._sorted_time is not None:
            counts = np.searchsorted(self._sorted_time, time, side="right")
        available = counts > 0
        if len(self.cumulative):
            available &= self.cumulative[counts - 1] > 0
        if not available.all():
            place = int(np.argmin(available))
            when = "" if time is None else f" at the time {time[place]!s} of link {place}"
            raise ValueError(
                f"A negative must be drawn, but no node (of positive weight) exists{when}."
                " HINT: a link should not be older than its own ends; check `node_time`, `time` and the weights."
            )
        return counts.astype(np.int64)


def negative_pairs(
    word: np.uint64,
    size: int,
    source_pool: NodePool,
    target_pool: NodePool,
    *,
    time: NDArray[np.number] | None = None,
    lookup: EdgeLookup | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw pairs of nodes, both ends independently.

    Args:
        word: Keys the random numbers.
        size: Number of pairs ``M``.
        source_pool: What sources are drawn from.
        target_pool: What destinations are drawn from.
        time: Times, shape ``(P,)``; pair ``j`` has that of place ``j % P``.
        lookup: Pairs that are edges here are drawn anew, up to `MAX_TRIES` times in all.

    Returns:
        Sources and destinations, int64 of shape ``(M,)``.
    """
    sources, targets = np.empty(size, np.int64), np.empty(size, np.int64)
    indptr, rows, tries = _search(lookup)
    source_arrays = (source_pool.counts(time), source_pool.cumulative, source_pool.order)
    target_arrays = (target_pool.counts(time), target_pool.cumulative, target_pool.order)
    _draw_pairs(word, tries, *source_arrays, *target_arrays, indptr, rows, sources, targets)
    return sources, targets


def negative_targets(
    word: np.uint64,
    sources: NDArray[np.integer],
    targets: NDArray[np.integer],
    amount: int,
    pool: NodePool,
    *,
    time: NDArray[np.number] | None = None,
    lookup: EdgeLookup | None = None,
) -> NDArray[np.int64]:
    """Draw other destinations for links.

    Args:
        word: Keys the random numbers.
        sources: The links' sources, shape ``(P,)``.
        targets: The links' own destinations, shape ``(P,)``.
        amount: Destinations per link ``K``.
        pool: What they are drawn from.
        time: Times of the links, shape ``(P,)``.
        lookup: Destinations to which an edge leads from the link's source, and the link's own one, are drawn anew, up
            to `MAX_TRIES` times in all.

    Returns:
        Int64 array of shape ``(K * P,)``: the first of every link, then the second of every link, and so on.
    """
    drawn = np.empty(amount * len(sources), np.int64)
    indptr, rows, tries = _search(lookup)
    _draw_targets(word, tries, sources, targets, pool.counts(time), pool.cumulative, pool.order, indptr, rows, drawn)
    return drawn


def check_weight(weight: ArrayLike, num_nodes: int) -> NDArray[np.float64]:
    """Refuse weights that are no distribution; return them as float64.

    Raises:
        ValueError: As said of `NodePool`.
    """
    weights = np.asarray(weight, np.float64)
    if weights.shape != (num_nodes,):
        raise ValueError(
            f"The weight of negatives must have the shape ({num_nodes},), one number per node, but got"
            f" {weights.shape}. HINT: in heterogeneous graphs it is for the nodes of the end's own type."
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size or not weights.any():
        found = f"{weights[wrong[0]]} of node {wrong[0]}" if wrong.size else "zeros only"
        raise ValueError(
            f"The weight of negatives must be finite, not negative and somewhere positive, but found {found}."
            " HINT: leave the weight away to draw all nodes alike."
        )
    return weights


def _search(lookup: EdgeLookup | None) -> tuple[NDArray[np.int64], NDArray[np.integer], int]:
    """In-neighbours to search and number of tries; with nothing to search the first try stands."""
    if lookup is None:
        return _NO_NODES, _NO_NODES, 1
    return lookup.indptr, lookup.sources, MAX_TRIES


@njit(nogil=True, cache=True)
def _draw_node(
    state: np.uint64, count: int | np.int64, cumulative: NDArray[np.float64], order: NDArray[np.int64]
) -> tuple[np.int64, np.uint64]:
    """Draw one of the first `count` nodes of a pool; return it and the stream's next state."""
    if len(cumulative) == 0:
        draw, state = uniform_below(state, np.uint64(count))
        place = np.int64(draw)
    else:
        state = state + _GOLDEN
        # 53 random bits: below 1 by at least half a unit in the last place, so that the aim is below the sum.
        aim = np.float64(mix64(state) >> _11) * 2.0**-53 * cumulative[count - 1]
        place, high = np.int64(0), np.int64(count - 1)
        while place < high:  # the first node whose sum exceeds the aim: never one of weight 0
            middle = (place + high) // 2
            if cumulative[middle] > aim:
                high = middle
            else:
                place = middle + 1
    return np.int64(order[place] if len(order) > 0 else place), state


@njit(nogil=True, cache=True)
def _draw_pairs(
    word: np.uint64,
    tries: int,
    source_counts: NDArray[np.int64],
    source_cumulative: NDArray[np.float64],
    source_order: NDArray[np.int64],
    target_counts: NDArray[np.int64],
    target_cumulative: NDArray[np.float64],
    target_order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    rows: NDArray[np.integer],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> None:
    for j in range(len(targets)):
        state = mix64(word ^ np.uint64(j))
        num_sources = source_counts[j % len(source_counts)]
        num_targets = target_counts[j % len(target_counts)]
        for _ in range(tries):
            sources[j], state = _draw_node(state, num_sources, source_cumulative, source_order)
            targets[j], state = _draw_node(state, num_targets, target_cumulative, target_order)
            if tries == 1 or not is_edge(indptr, rows, sources[j], targets[j]):
                break


@njit(nogil=True, cache=True)
def _draw_targets(
    word: np.uint64,
    tries: int,
    sources: NDArray[np.integer],
    targets: NDArray[np.integer],
    counts: NDArray[np.int64],
    cumulative: NDArray[np.float64],
    order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    rows: NDArray[np.integer],
    drawn: NDArray[np.int64],
) -> None:
    for j in range(len(drawn)):
        state = mix64(word ^ np.uint64(j))
        link = j % len(sources)
        for _ in range(tries):
            drawn[j], state = _draw_node(state, counts[j % len(counts)], cumulative, order)
            own = drawn[j] == np.int64(targets[link])
            if tries == 1 or not (own or is_edge(indptr, rows, np.int64(sources[link]), drawn[j])):
                break

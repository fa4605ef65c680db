"""Which nodes' feature rows are worth a place in a static cache on the device.

A policy gives every node a score, higher is hotter: :func:`degree_scores` looks at the graph only,
:func:`inclusion_probabilities` at graph, seeds and fan-outs, and :func:`presample_scores` at real batches, whatever
sampler drew them. :func:`hot_nodes` takes the hottest, and :func:`hit_rate` tells how well that went.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.loading.hotness_kernels import count_ids, spread_uniform, spread_weighted
from lightning_gnnopt.sampling import Topology, check_fanouts
from lightning_gnnopt.sampling.checks import check_integers, first_outside


def degree_scores(topology: Topology) -> NDArray[np.float64]:
    """Score each node by how many edges it is the source of, self loops and parallel edges counted.

    The more nodes can draw a node, the more often it is drawn: PaGraph's policy (Lin, Li, Miao, Liu & Xu, "PaGraph:
    Scaling GNN training on large graphs via computation-aware caching", SoCC 2020).

    Args:
        topology: The graph.

    Returns:
        Float64 array of shape ``(N,)``.

    Examples:
        >>> degree_scores(Topology.from_csc([0, 1, 3, 3], [1, 2, 1]))
        array([0., 2., 1.])
    """
    scores = np.zeros(topology.num_nodes)
    count_ids(topology.indices, scores)
    return scores


def presample_scores(batches: Iterable[NDArray[np.integer]], num_nodes: int) -> NDArray[np.float64]:
    """Count how often each node's row is read by some batches.

    Batches of an epoch or more, drawn by the sampler that training uses, foretell those of other epochs: GNNLab's
    PreSC (Yang, Tang, Song, Wang, Yin, Chen, Yu & Zhou, "GNNLab: A factored system for sample-based GNN training over
    GPUs", EuroSys 2022). It fits every sampler.

    Args:
        batches: The `n_id` of each batch, of any length. A node that stands twice in a batch counts twice, since its
            row is read twice.
        num_nodes: Number of nodes ``N`` of the graph.

    Returns:
        Float64 array of shape ``(N,)``.

    Raises:
        ValueError: If a batch is not a one-dimensional array of integers, or holds what is not a node.

    Examples:
        >>> from lightning_gnnopt.sampling import NeighborSampler, SampleKey
        >>> sampler = NeighborSampler(Topology.from_csc([0, 1, 3, 3], [1, 0, 2]), num_neighbors=[-1])
        >>> seeds = np.array([[0], [1]])
        >>> presample_scores((sampler.sample(seeds[i], SampleKey(0, batch=i)).n_id for i in range(2)), num_nodes=3)
        array([2., 2., 1.])
    """
    scores = np.zeros(num_nodes)
    for n_id in batches:
        ids = np.asarray(n_id)
        _check_ids(ids, num_nodes, name="batches")
        count_ids(ids, scores)
    return scores


def inclusion_probabilities(
    topology: Topology,
    seed_probability: NDArray[np.floating],
    num_neighbors: Sequence[int],
    *,
    replace: bool = False,
    edge_weight: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """Estimate the chance that a node is in a batch of `NeighborSampler`, without drawing one.

    The method is SALIENT++'s vertex inclusion probability analysis (Kaler, Iliopoulos, Murzynowski, Schardl, Leiserson
    & Chen, "Communication-efficient graph neural networks with probabilistic neighborhood expansion analysis and
    caching", MLSys 2023), for a sampler that expands a node once: in the hop after the one that found it first. With
    ``f_h(v)`` the chance that hop ``h`` finds ``v`` first (``f_0`` is `seed_probability`) and ``t_h(v, u)`` the chance
    that the draw of ``v`` in hop ``h`` holds ``u``, node ``u`` is in the batch after hop ``h`` with chance::

        P_h(u) = 1 - (1 - f_0(u)) * product over v of (1 - sum over j = 1 .. h of f_(j-1)(v) * t_j(v, u))

    and ``f_h = P_h - P_(h-1)``. The hops of one ``v`` are added, since they exclude each other; SALIENT++ multiplies
    over hops, as a node is expanded there in each hop that finds it. ``t_h(v, u)`` is 1 if the draw takes all
    in-edges of ``v``, else ``fanout / degree`` for a single edge, or ``1 - (1 - 1 / degree)**fanout`` with `replace`;
    both exactly so for parallel edges where they stand side by side (`Topology.rows_sorted`). Self loops find nothing
    but count in the degree.

    What is assumed: that the nodes which could draw ``u`` are in the batch independently of each other and of ``u``. It
    holds if seeds are drawn independently and the graph is a forest when the edges' directions are ignored. In a graph
    with edges in both directions a node also counts the chance of being found from the nodes it has found itself,
    and scores too high by that.

    One pass over the edges per hop, on one thread and without the GIL; it takes ``8 * (hops + 4)`` bytes per node.

    Args:
        topology: The graph.
        seed_probability: The chance that a node is a seed of a batch, shape ``(N,)``: ``batch_size / len(train)`` for
            the training nodes, 0 for others.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all in-neighbours.
        replace: Whether an edge can be drawn several times.
        edge_weight: Weight of each edge in the topology's CSC order, shape ``(E,)``, for draws in proportion to them.
            An in-edge with the share ``s`` of its node's weight is then taken with ``1 - (1 - s)**fanout``, which is
            exact with `replace` and otherwise somewhat too low.

    Returns:
        Float64 array of shape ``(N,)``.

    Raises:
        ValueError: If there is not one chance from 0 to 1 per node, a fan-out is 0 or below -1, or weights are not one
            finite number from 0 on per edge.

    Examples:
        Of a star's three leaves two are drawn whenever the centre is a seed:

        >>> star = Topology.from_csc([0, 3, 3, 3, 3], [1, 2, 3])
        >>> inclusion_probabilities(star, np.array([0.3, 0.0, 0.0, 0.0]), num_neighbors=[2]).round(3)
        array([0.3, 0.2, 0.2, 0.2])
    """
    fanouts = np.array(check_fanouts(num_neighbors), np.int64)
    chance = np.asarray(seed_probability, np.float64)
    if chance.shape != (topology.num_nodes,) or not ((chance >= 0) & (chance <= 1)).all():
        span = f" with values from {chance.min():g} to {chance.max():g}" if chance.size else ""
        raise ValueError(
            f"`seed_probability` must hold a chance from 0 to 1 for each of the graph's {topology.num_nodes:,} nodes,"
            f" but got shape {chance.shape}{span}."
            " HINT: it is `batch_size / len(train)` for training nodes, at most 1, and 0 for others."
        )
    weight = None if edge_weight is None else _checked_weights(edge_weight, topology.num_edges)
    found_HN = np.empty((len(fanouts), topology.num_nodes))
    with np.errstate(divide="ignore"):
        log_unseeded = np.log1p(-chance)  # -inf for a certain seed, and so to the end
    found_HN[0] = chance
    log_missed = np.empty_like(chance)
    for hop in range(1, len(fanouts) + 1):
        log_missed[:] = log_unseeded
        so_far = fanouts, replace, found_HN[:hop], log_missed
        if weight is None:
            spread_uniform(topology.indptr, topology.indices, *so_far)
        else:
            spread_weighted(topology.indptr, topology.indices, weight, *so_far)
        reached = np.expm1(log_missed)
        np.negative(reached, out=reached)
        if hop < len(fanouts):
            np.subtract(reached, chance, out=found_HN[hop])
            np.maximum(found_HN[hop], 0, out=found_HN[hop])  # rounding can take a node's chance down
        chance = reached
    return chance


def hot_nodes(scores: NDArray[Any], budget_rows: int) -> NDArray[np.int64]:
    """Choose the nodes whose rows a cache of `budget_rows` rows should hold.

    Args:
        scores: Score of each node, higher is hotter, shape ``(N,)``.
        budget_rows: How many rows there is room for.

    Returns:
        Their ids in ascending order: the hottest, of equally hot ones the lower ids. They are fewer than `budget_rows`
        if there are not so many nodes of a score above 0.

    Raises:
        ValueError: If `scores` is not one-dimensional, or holds what is not a number, or `budget_rows` is negative.

    Examples:
        >>> hot_nodes(np.array([2.0, 0.0, 3.0, 2.0, 1.0]), budget_rows=2)
        array([0, 2])
    """
    scores = _checked_scores(scores, name="scores")
    if budget_rows < 0:
        raise ValueError(
            f"`budget_rows` must be at least 0, but got {budget_rows:,}."
            " HINT: it is the cache's bytes divided by the bytes of a row."
        )
    warm: NDArray[np.int64] = np.flatnonzero(scores > 0)
    if len(warm) <= budget_rows:
        return warm
    if budget_rows == 0:
        return warm[:0]
    of_warm = scores[warm]
    place = len(warm) - budget_rows
    least = np.partition(of_warm, place)[place]
    taken = of_warm > least
    ties = np.flatnonzero(of_warm == least)
    taken[ties[: budget_rows - np.count_nonzero(taken)]] = True
    hot: NDArray[np.int64] = warm[taken]
    return hot


def hit_rate(counts: NDArray[Any], cached: NDArray[np.integer]) -> float:
    """Tell which share of row accesses a static cache serves.

    Args:
        counts: How often each node's row was read, shape ``(N,)``; :func:`presample_scores` counts it.
        cached: Ids of the nodes whose rows are cached.

    Returns:
        A number from 0 to 1; 0 if nothing was read.

    Raises:
        ValueError: If a count is negative or not finite, or `cached` holds what is not a node.

    Examples:
        >>> hit_rate(np.array([5, 1, 0, 4]), cached=np.array([0, 2]))
        0.5
    """
    counts = _checked_scores(counts, name="counts")
    if not (np.isfinite(counts).all() and counts.min(initial=0) >= 0):
        raise ValueError(
            f"`counts` must be finite and not negative, but got values from {counts.min():g} to {counts.max():g}."
            " HINT: `presample_scores` counts the rows of batches."
        )
    ids = np.asarray(cached)
    if ids.size == 0:
        return 0.0
    _check_ids(ids, len(counts), name="cached")
    is_cached = np.zeros(len(counts), np.bool_)
    is_cached[ids] = True
    total = counts.sum()
    return float(counts[is_cached].sum() / total) if total > 0 else 0.0


def best_hit_rate(counts: NDArray[Any], budget_rows: int) -> float:
    """Tell which share of row accesses the best static cache of `budget_rows` rows would have served.

    Args:
        counts: How often each node's row was read, shape ``(N,)``.
        budget_rows: How many rows there is room for.

    Returns:
        A number from 0 to 1; 0 if nothing was read.

    Raises:
        ValueError: As :func:`hot_nodes` and :func:`hit_rate`.

    Examples:
        >>> best_hit_rate(np.array([5, 1, 0, 4]), budget_rows=2)
        0.9
    """
    return hit_rate(counts, hot_nodes(counts, budget_rows))


def _check_ids(ids: NDArray[Any], num_nodes: int, *, name: str) -> None:
    check_integers(ids, name, "it takes ids of nodes, such as a batch's `n_id`.")
    place = int(first_outside(ids, num_nodes))
    if place >= 0:
        raise ValueError(
            f"`{name}` must hold node ids from 0 to {num_nodes - 1:,} ({num_nodes:,} nodes), but found {ids[place]:,}."
            " HINT: they are global ids of the graph that is sampled."
        )


def _checked_scores(scores: NDArray[Any], *, name: str) -> NDArray[Any]:
    array = np.asarray(scores)
    if array.ndim != 1 or array.dtype.kind not in "biuf" or np.isnan(array).any():
        what = "a NaN" if array.ndim == 1 and array.dtype.kind == "f" else f"{array.dtype} of shape {array.shape}"
        raise ValueError(
            f"`{name}` must be a one-dimensional array with a number per node, but got {what}."
            " HINT: the policies in this module return such arrays."
        )
    return array


def _checked_weights(edge_weight: NDArray[Any], num_edges: int) -> NDArray[np.floating]:
    """Refuse what is no weight; keep float32 and make float64 of the rest."""
    weight = np.asarray(edge_weight)
    if weight.shape != (num_edges,) or weight.dtype.kind not in "biuf":
        raise ValueError(
            f"`edge_weight` must hold one number for each of the graph's {num_edges:,} edges, but got {weight.dtype}"
            f" of shape {weight.shape}. HINT: it stands in the topology's CSC order."
        )
    if weight.dtype != np.float32:
        weight = weight.astype(np.float64, copy=False)
    if not (np.isfinite(weight.sum(dtype=np.float64)) and weight.min(initial=0) >= 0):
        raise ValueError(
            f"`edge_weight` must be finite and not negative, but got values from {weight.min():g} to {weight.max():g}."
            " HINT: an edge of weight 0 is never drawn."
        )
    return np.ascontiguousarray(weight)

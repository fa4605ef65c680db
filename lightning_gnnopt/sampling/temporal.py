"""In-edges drawn from a node's past."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.draws import Draw, Drawn, draw_positions, words_of
from lightning_gnnopt.sampling.kernels import gather
from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.rng import GOLDEN, bounded, mix64
from lightning_gnnopt.sampling.topology import Topology

_32 = np.uint64(32)

TemporalStrategy = Literal["uniform", "last"]
_TEMPORAL_STRATEGIES = ("uniform", "last")
_INT64 = np.iinfo(np.int64)


class TemporalDraw(Draw):
    """Up to `size` of each node's in-edges that are not from after the node's time.

    An edge counts if its source's time, or its own, is at most the `time` that the draw is given for the node: the
    time of the seed whose tree the node stands in. Each row's in-edges are sorted by time once, so that what counts is
    the beginning of the row, found by bisection. Edges of the same time keep the topology's order. The sorted times and
    positions take the bytes of a time and 4 more per edge.

    No `edge_norm` is given: ``"uniform"`` stands for the past alike, and ``"last"`` leans towards its end on purpose.

    Args:
        topology: The graph.
        node_time: Time of each node, shape ``(N,)``, integers or floats in any unit.
        edge_time: Time of each edge in the topology's CSC order, shape ``(E,)``; instead of `node_time`.
        strategy: ``"uniform"``: every set of `size` edges is equally likely. ``"last"``: the latest `size` edges; of
            those of the same time the ones that stand last.
        replace: Draw `size` times independently instead, so that an edge can be drawn twice; not with ``"last"``.

    Raises:
        ValueError: If not exactly one of the times is given, it has the wrong shape or type or holds NaN, the strategy
            is unknown, or `replace` is asked of ``"last"``. When called: if there is no `time`.

    Examples:
        >>> import torch
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> draw = TemporalDraw(star, edge_time=np.array([2030, 2010, 2020]), strategy="last")
        >>> draw(np.array([0, 0, 0]), 1, np.uint64(7), time=np.array([2025, 2010, 2000]))
        Drawn(positions=array([2, 1], dtype=int32), colptr=array([0, 1, 2, 2]), edge_norm=None)
    """

    def __init__(
        self,
        topology: Topology,
        node_time: NDArray[Any] | None = None,
        edge_time: NDArray[Any] | None = None,
        *,
        strategy: TemporalStrategy = "uniform",
        replace: bool = False,
    ) -> None:
        if strategy not in _TEMPORAL_STRATEGIES:
            raise ValueError(unknown_name("temporal_strategy", strategy, _TEMPORAL_STRATEGIES))
        if strategy == "last" and replace:
            raise ValueError(
                "`replace` must be False with the temporal strategy 'last', but got True: nothing is left to chance."
                " HINT: drop `replace`, or use the strategy 'uniform'."
            )
        if (node_time is None) == (edge_time is None):
            raise ValueError(
                "One of `node_time` and `edge_time` must be given, but got"
                f" {'neither' if node_time is None else 'both'}."
                " HINT: with the time of its source as the time of an edge, `edge_time` says everything."
            )
        if edge_time is not None:
            times = check_times(edge_time, topology.num_edges, name="edge_time")
        else:
            assert node_time is not None
            times = check_times(node_time, topology.num_nodes, name="node_time")[topology.indices]
        self.topology = topology
        self.strategy = strategy
        self.replace = replace
        self._order = np.empty(topology.num_edges, topology.position_dtype)
        self._times = np.empty_like(times)
        _sort_rows(topology.indptr, times, self._order, self._times)

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        if time is None:
            raise ValueError(
                "`time` must be given to a temporal draw, but got None."
                " HINT: `NeighborSampler.sample` takes the time of each seed."
            )
        indptr, latest = self.topology.indptr, self._comparable(time)
        lengths = np.empty(len(frontier), np.int64)
        colptr = np.empty(len(frontier) + 1, np.int64)
        _count_past(indptr, self._times, frontier, latest, size, self.replace, lengths, colptr)
        slots = np.empty(colptr[-1], self.topology.position_dtype)
        last = self.strategy == "last"
        _draw_past(indptr, frontier, lengths, size, last, self.replace, key, colptr, slots)
        return Drawn(gather(self._order, slots), colptr)

    def _comparable(self, time: NDArray[np.number]) -> NDArray[np.number]:
        """Bring `time` to the kind of the edges' times; between integers and floats a kernel would round."""
        latest = check_times(time, len(time), name="time")
        if latest.dtype.kind == self._times.dtype.kind or "f" not in (latest.dtype.kind, self._times.dtype.kind):
            return latest
        if self._times.dtype.kind == "f":
            return latest.astype(np.float64)
        # An integer is at most t where it is at most t rounded down; beyond int64 all are, or none.
        below = np.floor(latest.astype(np.float64))
        whole = np.where(np.abs(below) < 2.0**63, below, 0.0).astype(np.int64)
        return np.where(below >= 2.0**63, _INT64.max, np.where(below <= -(2.0**63), _INT64.min, whole))


def check_times(times: NDArray[Any], length: int, *, name: str) -> NDArray[Any]:
    """Refuse what is no time, and bring it to a type that kernels compare exactly.

    Args:
        times: Integers or floats, shape ``(length,)``.
        length: How many there must be.
        name: What the user calls them.

    Returns:
        The times, float16 as float32 and uint64 as int64.

    Raises:
        ValueError: If the shape is another, the type is neither integer nor float, or a time is NaN or above int64.
    """
    array = np.ascontiguousarray(times)
    if array.shape != (length,) or array.dtype.kind not in "iuf":
        raise ValueError(
            f"`{name}` must hold {length:,} integers or floats, but got {array.dtype} of shape {array.shape}."
            " HINT: `datetime64` values become integers by `.astype('int64')`."
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(
            f"`{name}` must not hold NaN, but {int(np.isnan(array).sum()):,} of its {length:,} values are."
            " HINT: an edge or node that is always there has the time -inf, one that never is has inf."
        )
    if array.dtype == np.uint64:
        if length and int(array.max()) > _INT64.max:
            raise ValueError(
                f"`{name}` must fit in int64, but found {int(array.max())}. HINT: count from a later time, or coarser."
            )
        return array.astype(np.int64)
    return array.astype(np.float32) if array.dtype == np.float16 else array


@njit(nogil=True, cache=True)
def _sort_rows(
    indptr: NDArray[np.int64], times: NDArray[np.number], order: NDArray[np.integer], sorted_: NDArray[np.number]
) -> None:
    """Sort each row's positions by time, stably, and its times with them."""
    for v in range(len(indptr) - 1):
        first = indptr[v]
        # Merge sort is the stable one.
        places = np.argsort(times[first : indptr[v + 1]], kind="mergesort")
        for k in range(len(places)):
            order[first + k] = first + places[k]
            sorted_[first + k] = times[first + places[k]]


@njit(nogil=True, cache=True)
def _count_past(
    indptr: NDArray[np.int64],
    times: NDArray[np.number],
    frontier: NDArray[np.integer],
    latest: NDArray[np.number],
    fanout: int,
    replace: bool,
    lengths: NDArray[np.int64],
    colptr: NDArray[np.int64],
) -> None:
    """Count each node's edges up to its time into `lengths`, and those to draw into `colptr`."""
    n = len(frontier)
    colptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(indptr, frontier[i + AHEAD])
        if i + AHEAD // 2 < n:  # its row's bounds have come by now: ask for where the bisection starts
            later = frontier[i + AHEAD // 2]
            prefetch(times, (indptr[later] + indptr[later + 1]) // 2)
        v = frontier[i]
        low, high = indptr[v], indptr[v + 1]
        while low < high:
            middle = (low + high) // 2
            if times[middle] <= latest[i]:
                low = middle + 1
            else:
                high = middle
        length = low - indptr[v]
        lengths[i] = length
        if fanout < 0 or (length < fanout and not (replace and length > 0)):
            colptr[i + 1] = colptr[i] + length
        else:
            colptr[i + 1] = colptr[i] + fanout


@njit(nogil=True, cache=True)
def _draw_past(
    indptr: NDArray[np.int64],
    frontier: NDArray[np.integer],
    lengths: NDArray[np.int64],
    fanout: int,
    last: bool,
    replace: bool,
    key: np.uint64,
    colptr: NDArray[np.int64],
    slots: NDArray[np.integer],
) -> None:
    """Draw from the first ``lengths[i]`` places of each node's row, into `slots` at the node's place in `colptr`."""
    words = words_of(fanout, replace)
    for i in range(len(frontier)):
        first, length = indptr[frontier[i]], lengths[i]
        state = key + np.uint64(i) * words * GOLDEN
        out = slots[colptr[i] : colptr[i + 1]]
        if fanout < 0 or last or (length <= fanout and not replace):
            for k in range(len(out)):
                out[k] = first + length - len(out) + k
        elif replace:
            for k in range(len(out)):
                state += GOLDEN
                word = mix64(state)
                out[k] = first + np.int64(bounded(word >> _32, np.uint64(length), word))
        else:
            draw_positions(np.uint64(length), np.uint64(fanout), np.uint64(first), state, np.uint64(colptr[i]), slots)

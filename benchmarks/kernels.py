"""What each trick in the sampling kernels is worth: every pass as shipped, and with one thing taken away.

The passes run on the last hop of node-wise batches with fan-outs 15/10/5 and 1024 seeds on an R-MAT graph: draw 5
in-edges of each node, read the sources, number them. A figure is the time of the variant over that of the pass as
shipped, in the same round.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.harness import Figure, Measured, alternate, median, ratios, run_benchmark
from benchmarks.sampling import DEEP, FULL, QUICK, rmat
from benchmarks.sides import SeedStream
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from lightning_gnnopt.sampling.draws import draw_uniform
from lightning_gnnopt.sampling.kernels import gather
from lightning_gnnopt.sampling.node_table import NodeTable
from lightning_gnnopt.sampling.prefetch import prefetch
from lightning_gnnopt.sampling.rng import GOLDEN, LOW_32, ONE, bounded, mix64, uniform_below

FANOUT = DEEP[-1]
_32, _63 = np.uint64(32), np.uint64(63)


class Hop:
    """The last hop of one batch: its nodes to expand, and what the shipped passes make of them."""

    def __init__(self, topology: Topology, sampler: NeighborSampler, seeds: NDArray[np.int64], number: int) -> None:
        batch = sampler.sample(seeds, SampleKey(0, batch=number))
        assert batch.num_sampled_nodes is not None
        start, end = sum(batch.num_sampled_nodes[:-2]), sum(batch.num_sampled_nodes[:-1])
        self.known, self.frontier = batch.n_id[:end], batch.n_id[start:end]
        self.key = np.uint64(number)
        self.colptr = np.empty(len(self.frontier) + 1, np.int64)
        room = np.empty(len(self.frontier) * FANOUT, topology.position_dtype)
        arguments = (topology.indptr, self.frontier, FANOUT, False, self.key, np.int32(0), self.colptr)
        self.positions = room[: draw_uniform(*arguments, room, np.empty(len(room), np.int32))].copy()
        self.sources = gather(topology.indices, self.positions)


def measure(quick: bool) -> Measured:
    """Time all variants, pass by pass.

    Args:
        quick: Whether to take a smaller graph and fewer rounds.
    """
    scale = QUICK if quick else FULL
    graph = rmat(scale.nodes, 50)
    sampler = NeighborSampler(graph, DEEP)
    hops = [Hop(graph, sampler, seeds, number) for number, seeds in enumerate(SeedStream(graph, 24).run(0))]
    figures: list[Figure] = []
    for name, sides in {"draw": _draws(graph), "read": _reads(graph), "number": _numbers(graph)}.items():
        runs = alternate({side: _side(run, hops) for side, run in sides.items()}, rounds=3 * scale.rounds)
        shipped = next(iter(sides))
        figures.append(Figure.of_runs(f"{name}: {shipped}", runs[shipped], unit="ns/edge"))
        figures += [
            Figure.of_runs(f"{name}: {side}, over shipped", ratios(runs[side], runs[shipped]), unit="x")
            for side in list(sides)[1:]
        ]
    edges = median([float(len(hop.positions)) for hop in hops])
    return figures, [{"graph": repr(graph), "nodes_expanded": len(hops[0].frontier), "edges": edges}]


def _side(run: Callable[[Hop], Any], hops: Sequence[Hop]) -> Callable[[], float]:
    turn = itertools.count()

    def timed() -> float:
        seconds, edges = 0.0, 0
        for _ in range(4):  # some of the hops each time, so that none is still in the cache
            hop = hops[next(turn) % len(hops)]
            start = time.perf_counter()
            run(hop)
            seconds += time.perf_counter() - start
            edges += len(hop.positions)
        return 1e9 * seconds / edges

    return timed


def _draws(graph: Topology) -> dict[str, Callable[[Hop], Any]]:
    room, colptr = np.empty(FANOUT * graph.num_nodes, graph.position_dtype), np.empty(graph.num_nodes + 1, np.int64)
    cols = np.empty(len(room), np.int32)

    def shipped(hop: Hop) -> None:
        draw_uniform(graph.indptr, hop.frontier, FANOUT, False, hop.key, np.int32(0), colptr, room, cols)

    def variant(ahead: int, mask: bool, two_per_word: bool, *, own_stream: bool = False) -> Callable[[Hop], Any]:
        how = (ahead, mask, two_per_word, own_stream)
        return lambda hop: _draw(graph.indptr, hop.frontier, FANOUT, hop.key, colptr, room, cols, *how)

    return {
        "as shipped": shipped,
        "rewritten here, nothing taken away": variant(64, True, True),
        "without prefetch": variant(0, True, True),
        "prefetch 16 nodes ahead": variant(16, True, True),
        "prefetch 256 nodes ahead": variant(256, True, True),
        "looking back at every draw": variant(64, False, True),
        "a random word for each draw": variant(64, True, False),
        "a stream for each node": variant(64, True, True, own_stream=True),
    }


@njit(nogil=True, cache=True)
def _draw(
    indptr: Any,
    frontier: Any,
    fanout: int,
    key: Any,
    colptr: Any,
    positions: Any,
    cols: Any,
    ahead: int,
    mask: bool,
    two_per_word: bool,
    own_stream: bool,
) -> Any:
    words = np.uint64((fanout + 1) // 2 if two_per_word else fanout)
    n, limit, at = np.uint64(len(frontier)), np.uint64(fanout), np.uint64(0)
    for i in range(n):
        if ahead > 0 and i + np.uint64(ahead) < n:
            prefetch(indptr, frontier[i + np.uint64(ahead)])
            prefetch(indptr, frontier[i + np.uint64(ahead)] + 1)
        v = np.uint64(frontier[i])
        first = np.uint64(indptr[v])
        degree = np.uint64(indptr[v + ONE]) - first
        if degree <= limit:
            for k in range(degree):
                positions[at + k] = first + k
                cols[at + k] = i
            at += degree
            colptr[i + ONE] = at
            continue
        state = mix64(key ^ i) if own_stream else key + i * words * GOLDEN
        seen = word = np.uint64(0)
        for k in range(limit):
            j = degree - limit + k
            if not two_per_word:
                draw, state = uniform_below(state, j + ONE)
            elif k & ONE == 0:
                state += GOLDEN
                word = mix64(state)
                draw = bounded(word >> _32, j + ONE, word ^ k)
            else:
                draw = bounded(word & LOW_32, j + ONE, word ^ k)
            bit = ONE << (draw & _63)
            if seen & bit or not mask:
                for q in range(at, at + k):
                    if np.uint64(positions[q]) == first + draw:
                        draw = j
                        bit = ONE << (draw & _63)
                        break
            seen |= bit
            positions[at + k] = first + draw
        for k in range(limit):
            cols[at + k] = i
        at += limit
        colptr[i + ONE] = at
    return at


def _reads(graph: Topology) -> dict[str, Callable[[Hop], Any]]:
    room = np.empty(FANOUT * graph.num_nodes, graph.indices.dtype)

    def variant(ahead: int) -> Callable[[Hop], Any]:
        return lambda hop: _read(graph.indices, hop.positions, room, ahead)

    return {
        "as shipped": lambda hop: gather(graph.indices, hop.positions, out=room[: len(hop.positions)]),
        "without prefetch": variant(0),
        "prefetch 16 edges ahead": variant(16),
        "prefetch 64 edges ahead": variant(64),
        "prefetch 1024 edges ahead": variant(1024),
    }


@njit(nogil=True, cache=True)
def _read(indices: Any, positions: Any, out: Any, ahead: int) -> None:
    n = np.uint64(len(positions))
    for e in range(n):
        if ahead > 0 and e + np.uint64(ahead) < n:
            prefetch(indices, positions[e + np.uint64(ahead)])
        out[e] = indices[np.uint64(positions[e])]


def _numbers(graph: Topology) -> dict[str, Callable[[Hop], Any]]:
    edges = FANOUT * graph.num_nodes
    new, locals_ = np.empty(edges + 1, graph.indices.dtype), np.empty(edges, np.int32)
    dense, hashed = NodeTable(graph.num_nodes), NodeTable(graph.num_nodes, dense_limit_bytes=0)
    stamps, places = np.zeros(graph.num_nodes, np.int32), np.empty(graph.num_nodes, np.int32)
    stamp = itertools.count(1)

    def through(table: NodeTable) -> Callable[[Hop], int]:
        def run(hop: Hop) -> int:
            table.start(hop.known)
            return table.number_into(hop.sources, new, locals_[: len(hop.sources)])

        return run

    def two_arrays(hop: Hop) -> int:
        return int(_number_stamped(stamps, places, next(stamp), hop.known, hop.sources, new, locals_))

    return {
        "as shipped": through(dense),
        "hashed": through(hashed),
        "stamps and places in two arrays, with branches, without prefetch": two_arrays,
    }


@njit(nogil=True, cache=True)
def _number_stamped(stamps: Any, places: Any, stamp: int, known: Any, nodes: Any, new: Any, locals_: Any) -> int:
    for i in range(len(known)):
        stamps[known[i]] = stamp
        places[known[i]] = i
    num_new = 0
    for e in range(len(nodes)):
        u = nodes[e]
        if stamps[u] != stamp:
            stamps[u] = stamp
            places[u] = len(known) + num_new
            new[num_new] = u
            num_new += 1
        locals_[e] = places[u]
    return num_new


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("kernels", measure, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

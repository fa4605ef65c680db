"""Edges per second of every sampler, beside other libraries' and beside what the machine's memory allows.

Node-wise sampling runs on a large R-MAT graph and on real ones, with 1024 seeds and fan-outs 15/10/5, 10/10 and 25/10,
on one thread and on two; peers that are installed sample the same seeds with the same fan-outs in the same rounds.
The bound is the rate of the bare random accesses that a sampled edge cannot avoid, at the best prefetch distance
(``benchmarks/access.py``). Every further sampler runs on a smaller R-MAT graph.

Seeds are nodes with an in-edge. Peers return what they return: torch-sparse and pyg-lib nodes, edges and edge ids.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.access import RandomAccess
from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from benchmarks.peers import PACKAGES, installed_peers
from benchmarks.sides import OurFunction, Run, SeedStream, Side, edge_types, links, our_side, peer_side
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.sampling import (
    ClusterSampler,
    FastGCNSampler,
    LaborSampler,
    LadiesSampler,
    NeighborSampler,
    NodeSampler,
    SaintEdgeSampler,
    SaintNodeSampler,
    SaintWalkSampler,
    ShadowSampler,
    Topology,
)

DEEP, WIDE, WIDER = (15, 10, 5), (10, 10), (25, 10)
REAL_GRAPHS = ("facebook-cornell5", "facebook-johns-hopkins55", "amazon-photo")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        nodes: Nodes of the large R-MAT graph.
        rounds: Rounds of each comparison.
        batches: Batches per side and round.
    """

    nodes: int
    rounds: int
    batches: int


FULL, QUICK = Scale(nodes=2**21, rounds=9, batches=8), Scale(nodes=2**17, rounds=2, batches=2)


def measure(quick: bool) -> Measured:
    """Sample everywhere.

    Args:
        quick: Whether to take a graph a sixteenth as large, and fewer rounds.

    Returns:
        The figures, and a row per graph and side.
    """
    scale = QUICK if quick else FULL
    figures, rows = _bound(scale)
    for part in (
        _large_graph(scale),
        _growth(scale),
        _every_sampler(scale),
        *(_real_graph(name, scale) for name in REAL_GRAPHS),
    ):
        figures += part[0]
        rows += part[1]
    return figures, rows


def _large_graph(scale: Scale) -> tuple[list[Figure], list[Mapping[str, Cell]]]:
    graph = rmat(scale.nodes, 50)
    seeds = SeedStream(graph, scale.batches)
    peers, missing = installed_peers(graph)
    generator = np.random.default_rng(0)
    sides: dict[str, Side] = {
        "node-wise 15/10/5": our_side(NeighborSampler(graph, DEEP), seeds),
        "node-wise 10/10": our_side(NeighborSampler(graph, WIDE), seeds),
        "node-wise 25/10": our_side(NeighborSampler(graph, WIDER), seeds),
        "weighted 15/10/5": our_side(_weighted(graph, generator.random(graph.num_edges)), seeds),
        "weighted (lognormal) 15/10/5": our_side(_weighted(graph, generator.lognormal(0, 2, graph.num_edges)), seeds),
        "LABOR 15/10/5": our_side(LaborSampler(graph, DEEP), seeds),
    }
    for name, sample in peers.items():
        for fanouts in (DEEP, WIDE, WIDER):
            sides[f"{name} {_label(fanouts)}"] = peer_side(sample, fanouts, seeds)
    runs = alternate(sides, rounds=scale.rounds)
    rates = {name: [run.rate for run in of_side] for name, of_side in runs.items()}
    deep = rates["node-wise 15/10/5"]
    figures = [
        Figure.of_runs(
            "uniform over weighted", ratios(deep, rates["weighted 15/10/5"]), unit="x", reach=3.0, sense="<="
        ),
        Figure.of_runs(
            "uniform over weighted, lognormal", ratios(deep, rates["weighted (lognormal) 15/10/5"]), unit="x"
        ),
        Figure.of_runs("LABOR's nodes over node-wise's, R-MAT", _node_ratio(runs), unit="x"),
    ]
    for name in peers:
        reach = {"torch-sparse": 40.0, "pyg-lib": 10.0}.get(name)
        for fanouts in (DEEP, WIDE, WIDER):
            over = ratios(rates[f"node-wise {_label(fanouts)}"], rates[f"{name} {_label(fanouts)}"])
            goal: dict[str, Any] = {"reach": reach, "sense": ">="} if reach and fanouts == DEEP else {}
            figures.append(Figure.of_runs(f"{_label(fanouts)} over {name}", over, unit="x", **goal))
    rows = _rows(f"R-MAT, {graph.num_nodes:,} nodes, {graph.num_edges:,} edges", runs)
    rows += [{"graph": "-", "side": name, "note": f"not measured: {why}"} for name, why in missing.items()]
    return figures, rows


def _bound(scale: Scale) -> tuple[list[Figure], list[Mapping[str, Cell]]]:
    """Compare sampling with only reading memory, on one and on two threads, in runs of about a second.

    In short runs two threads that wake on one core are still there at the end.
    """
    graph = rmat(scale.nodes, 50)
    sampler, seeds = NeighborSampler(graph, DEEP), SeedStream(graph, 64 * scale.batches)
    edges_per_batch = our_side(sampler, SeedStream(graph, 1))().edges
    reads = [RandomAccess(graph, edges_per_batch, num_runs=16 * scale.batches, seed=seed) for seed in range(2)]
    ahead = reads[0].best_distance()
    pool = ThreadPoolExecutor(2)

    def read(distance: int, threads: int) -> Run:
        start = time.perf_counter()
        list((pool.map if threads == 2 else map)(partial(RandomAccess.edges_per_s, distance=distance), reads))
        edges = len(reads) * edges_per_batch * 16 * scale.batches
        return Run(batches=1, nodes=0, edges=edges, seconds=time.perf_counter() - start)

    sides: dict[str, Side] = {
        "node-wise 15/10/5": our_side(sampler, seeds),
        "bound": partial(read, ahead, 1),
        "bound without prefetch": partial(read, 0, 1),
    }
    if (os.cpu_count() or 1) > 1:
        sides["node-wise 15/10/5, 2 threads"] = our_side(sampler, seeds, threads=2)
        sides["bound, 2 threads"] = partial(read, ahead, 2)
    runs = alternate(sides, rounds=scale.rounds)
    rates = {name: [run.rate for run in of_side] for name, of_side in runs.items()}
    one, plain = rates["node-wise 15/10/5"], rates["bound without prefetch"]
    figures = [
        Figure.of_runs("node-wise 15/10/5", one, unit="edges/s"),
        Figure.of_runs("node-wise over the bound", ratios(one, rates["bound"]), unit="x", reach=0.6, sense=">="),
        Figure.of_runs("node-wise over the bound without prefetch", ratios(one, plain), unit="x"),
    ]
    rows = _rows(f"R-MAT, {graph.num_nodes:,} nodes, {graph.num_edges:,} edges, long runs", runs)
    if "bound, 2 threads" not in rates:
        return figures, [*rows, {"graph": "-", "side": "two threads", "note": "not measured: there is one core"}]
    two, bound = ratios(rates["node-wise 15/10/5, 2 threads"], one), ratios(rates["bound, 2 threads"], rates["bound"])
    figures += [
        Figure.of_runs("two threads over one", two, unit="x", reach=1.85, sense=">="),
        Figure.of_runs("two threads over one, bound", bound, unit="x"),
    ]
    return figures, rows


def _growth(scale: Scale) -> tuple[list[Figure], list[Mapping[str, Cell]]]:
    """Compare the time per edge on two R-MAT graphs of one density, the larger with four times the edges."""
    runs = {}
    graphs = {"small": rmat(scale.nodes // 4, 50), "large": rmat(scale.nodes, 50)}
    sides = {
        name: our_side(NeighborSampler(graph, DEEP), SeedStream(graph, scale.batches)) for name, graph in graphs.items()
    }
    runs = alternate(sides, rounds=scale.rounds)
    growth = ratios([run.rate for run in runs["small"]], [run.rate for run in runs["large"]])
    figure = Figure.of_runs("time per edge at four times the edges", growth, unit="x", reach=1.3, sense="<=")
    named = {f"node-wise 15/10/5, {graphs[name].num_edges:,} edges": of_side for name, of_side in runs.items()}
    return [figure], _rows("R-MAT of two sizes", named)


def _every_sampler(scale: Scale) -> tuple[list[Figure], list[Mapping[str, Cell]]]:
    graph = _with_edge_ids(rmat(scale.nodes // 16, 50))
    seeds = SeedStream(graph, scale.batches)
    times = np.random.default_rng(0).integers(0, 2**31, graph.num_nodes)
    samplers: dict[str, NodeSampler | OurFunction] = {
        "node-wise 15/10/5": NeighborSampler(graph, DEEP),
        "with replacement 15/10/5": NeighborSampler(graph, DEEP, replace=True),
        "disjoint 15/10": NeighborSampler(graph, (15, 10), disjoint=True),
        "induced 15/10": NeighborSampler(graph, (15, 10), subgraph_type="induced"),
        "weighted 15/10/5": _weighted(graph, np.random.default_rng(0).random(graph.num_edges)),
        "temporal uniform 15/10": NeighborSampler(graph, (15, 10), disjoint=True, node_time=times),
        "temporal last 15/10": NeighborSampler(
            graph, (15, 10), disjoint=True, node_time=times, temporal_strategy="last"
        ),
        "LABOR-0 15/10/5": LaborSampler(graph, DEEP),
        "LABOR-1 15/10/5": LaborSampler(graph, DEEP, importance_iterations=1),
        "FastGCN 4096/4096/4096": FastGCNSampler(graph, (4096, 4096, 4096)),
        "LADIES 4096/4096/4096": LadiesSampler(graph, (4096, 4096, 4096)),
        "ShaDow 10/5": ShadowSampler(graph, (10, 5)),
        "links and negatives 15/10/5": links(graph, DEEP),
        "two edge types 15/10/5 each": edge_types(graph, DEEP),
        "SAINT node 1024": SaintNodeSampler(graph),
        "SAINT edge 1024": SaintEdgeSampler(graph),
        "SAINT walk 1024 x 2": SaintWalkSampler(graph, 2, coverage=10),
    }
    sides = {name: our_side(sampler, seeds) for name, sampler in samplers.items()}
    cluster = ClusterSampler(graph, 64, method="fennel")
    sides["Cluster-GCN, 1 of 64"] = our_side(cluster, _ClusterSeeds(cluster, scale.batches))
    runs = alternate(sides, rounds=scale.rounds)
    return [], _rows(f"R-MAT, {graph.num_nodes:,} nodes, {graph.num_edges:,} edges", runs)


class _ClusterSeeds(SeedStream):
    """One cluster after the other."""

    def __init__(self, sampler: ClusterSampler, batches: int) -> None:
        super().__init__(sampler.topology, batches)
        order = np.argsort(sampler.seed_groups, kind="stable")
        self._clusters = np.split(order, np.flatnonzero(np.diff(sampler.seed_groups[order])) + 1)

    def run(self, number: int) -> list[NDArray[np.int64]]:
        first = number * self._batches
        return [self._clusters[(first + batch) % len(self._clusters)] for batch in range(self._batches)]


def _real_graph(name: str, scale: Scale) -> tuple[list[Figure], list[Mapping[str, Cell]]]:
    try:
        data = load_dataset(name, download=False)
    except (FileNotFoundError, RuntimeError, OSError) as error:
        # Its words name a folder, which is no business of a report.
        why = f"{type(error).__name__}: its files are not where GNNOPT_DATA says"
        return [], [{"graph": name, "side": "-", "note": f"not measured: {why}"}]
    graph = Topology.from_edge_index(data.edge_index, data.num_nodes)
    seeds = SeedStream(graph, scale.batches)
    peers, _ = installed_peers(graph)
    sides = {f"node-wise {_label(f)}": our_side(NeighborSampler(graph, f), seeds) for f in (DEEP, WIDE, WIDER)}
    sides["LABOR 15/10/5"] = our_side(LaborSampler(graph, DEEP), seeds)
    for peer, sample in peers.items():
        sides[f"{peer} 15/10/5"] = peer_side(sample, DEEP, seeds)
    runs = alternate(sides, rounds=scale.rounds)
    figures = [Figure.of_runs(f"LABOR's nodes over node-wise's, {name}", _node_ratio(runs), unit="x")]
    deep = [run.rate for run in runs["node-wise 15/10/5"]]
    for peer in peers:
        over = ratios(deep, [run.rate for run in runs[f"{peer} 15/10/5"]])
        figures.append(Figure.of_runs(f"{name}, 15/10/5 over {peer}", over, unit="x"))
    return figures, _rows(f"{name}, {graph.num_nodes:,} nodes, {graph.num_edges:,} edges", runs)


@functools.cache
def rmat(num_nodes: int, avg_degree: float) -> Topology:
    """Make an R-MAT graph with ``num_nodes * avg_degree`` directed edges."""
    data = load_dataset("rmat", num_nodes=num_nodes, avg_degree=avg_degree, num_features=1, num_classes=2)
    return Topology.from_edge_index(data.edge_index, num_nodes)


def _weighted(graph: Topology, weight: NDArray[np.float64]) -> NeighborSampler:
    return NeighborSampler(_with_edge_ids(graph), DEEP, edge_weight=weight.astype(np.float32))


def _with_edge_ids(graph: Topology) -> Topology:
    """Number the edges by their place, so that weights can be given in that order."""
    return Topology(graph.indptr, graph.indices, np.arange(graph.num_edges, dtype=graph.position_dtype))


def _label(fanouts: Sequence[int]) -> str:
    return "/".join(map(str, fanouts))


def _node_ratio(runs: Mapping[str, Sequence[Run]]) -> list[float]:
    """Divide the nodes of LABOR's batches by those of node-wise's, with the same seeds."""
    return ratios(
        [float(run.nodes) for run in runs["LABOR 15/10/5"]], [float(run.nodes) for run in runs["node-wise 15/10/5"]]
    )


def _rows(graph: str, runs: Mapping[str, Sequence[Run]]) -> list[Mapping[str, Cell]]:
    return [
        {
            "graph": graph,
            "side": name,
            "medges_per_s": round(median([run.rate for run in of_side]) / 1e6, 2),
            "edges_per_batch": round(statistics.mean(run.edges / run.batches for run in of_side))
            if of_side[0].nodes
            else None,
            "nodes_per_batch": round(statistics.mean(run.nodes / run.batches for run in of_side))
            if of_side[0].nodes
            else None,
        }
        for name, of_side in runs.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("sampling", measure, description=__doc__, peers=PACKAGES, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

"""How long it takes to choose and cut edges."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_gnnopt.memory.counting import Counts
from lightning_gnnopt.memory.cutting import cut_subgraph
from lightning_gnnopt.memory.pruning import prune
from lightning_gnnopt.memory.structure import BatchStructure
from lightning_gnnopt.sampling import SampleKey, Subgraph
from lightning_gnnopt.studies.memory_control.accuracy import score_order
from lightning_gnnopt.studies.memory_control.setup import Setup

_WARM = 2
_OF_BATCH = 2  # a batch has twice the edges that go, where the graph has so many


def measure_pruning(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    """Prune one large batch until so many of its edges are gone: read it, score, order, search and cut.

    Args:
        setup: The graph.
        options: `score`; `edges` to cut, half of the batch's where it has less than twice as many; `rounds`.

    Returns:
        ``edges`` of the batch, ``cut`` of them, and the medians of the seconds ``order_s`` (scores and their order),
        ``cut_s`` (search and cut) and ``s`` (all of it).
    """
    batch = _batch_of(setup, _OF_BATCH * int(options["edges"]))
    num_cut = min(int(options["edges"]), batch.num_edges // _OF_BATCH)
    budget = batch.num_edges - num_cut
    times: list[tuple[float, float]] = []
    left = batch
    for number in range(-_WARM, int(options["rounds"])):
        started_s = time.perf_counter()
        structure = BatchStructure.of_subgraph(batch)
        order = score_order(structure, options["score"], SampleKey(seed=0), True)
        ordered_s = time.perf_counter()
        left = cut_subgraph(batch, prune(structure, order, _num_edges, budget))
        if number >= 0:
            times.append((ordered_s - started_s, time.perf_counter() - ordered_s))
    return {
        "edges": batch.num_edges,
        "cut": batch.num_edges - left.num_edges,
        "order_s": statistics.median(order_s for order_s, _ in times),
        "cut_s": statistics.median(cut_s for _, cut_s in times),
        "s": statistics.median(sum(pair) for pair in times),
    }


def _num_edges(counts: Counts) -> float:
    return float(counts.edges.sum())


def _batch_of(setup: Setup, num_edges: int) -> Subgraph:
    """Draw a batch of about so many edges: all in-edges of as many nodes as it takes."""
    data = setup.data
    degrees = np.bincount(data.edge_index[1].numpy(), minlength=setup.graph["nodes"])
    nodes = np.random.default_rng(setup.seed).permutation(len(degrees))
    number = int(np.searchsorted(np.cumsum(degrees[nodes]), num_edges)) + 1
    datamodule = setup.datamodule(num_neighbors=[-1], batch_size=1)
    datamodule.setup("fit")
    sampler: Any = datamodule.sampler
    batch: Subgraph = sampler.sample(nodes[:number], SampleKey(seed=setup.seed))
    return batch

"""What a spawned process does with a topology; apart from the tests, so that it imports no more than it needs."""

from __future__ import annotations

import re
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology


def private_bytes() -> int:
    """Memory that this process shares with nobody, as the kernel counts it."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))


def sample(graph: Topology, batch: int) -> list[list[int]]:
    drawn = NeighborSampler(graph, [5, -1]).sample(np.arange(10), SampleKey(3, batch=batch))
    return [drawn.n_id.tolist(), drawn.row.tolist(), drawn.col.tolist(), drawn.positions.tolist()]


def child(pipe: Connection) -> None:
    """Warm up, say so, take a topology, read all of it, and report the sampled batch and the memory it took."""
    warm = Topology.from_csc([0, 1, *[1] * 9], [0])
    sample(warm, 0)
    pipe.send("ready")
    before = private_bytes()
    graph = pipe.recv()
    total = int(sum(int(array.sum()) for array in graph.arrays.values()))
    grown = private_bytes() - before
    pipe.send((total, grown, sample(graph, 7)))

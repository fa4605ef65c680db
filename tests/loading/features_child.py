"""What a spawned process does with stores; apart from the tests, so that it imports no more than it needs."""

from __future__ import annotations

import re
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from lightning_gnnopt.loading.features import FeatureStore, feature_store


def private_dirty_bytes() -> int:
    """Memory that this process has written to and shares with nobody, as the kernel counts it."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_Dirty:\s+(\d+) kB", rollup, re.MULTILINE))


def read_all(store: FeatureStore, chunk: int = 200) -> tuple[float, list[float]]:
    """Read every row, a few at a time; return the sum and the start of the last row."""
    total = 0.0
    for first in range(0, store.num_rows, chunk):
        rows = store.rows(np.arange(first, min(first + chunk, store.num_rows)))
        total += float(rows.sum(dtype=torch.float64))
    return total, rows[-1].flatten()[:5].tolist()


def child(pipe: Connection) -> None:
    """Warm up, say so, take a number of stores, read all of each, and report what was read and the memory it took."""
    torch.set_num_threads(1)
    for like in (torch.eye(400), torch.eye(400).to_sparse_coo()):
        for stored_as in (None, "int8"):
            read_all(feature_store(like, stored_as=stored_as).share())
    pipe.send("ready")
    stores = []
    for _ in range(pipe.recv()):
        before = private_dirty_bytes()
        stores.append(pipe.recv())
        read = read_all(stores[-1])
        pipe.send((*read, private_dirty_bytes() - before))

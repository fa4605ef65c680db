from __future__ import annotations

import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gnnopt.loading.features import FeatureStore, feature_store
from tests.loading.features_child import child, read_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="smaps are Linux's")


def test_shared_rows_take_no_memory_in_another_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = torch.from_numpy(rng.standard_normal((40_000, 200), dtype=np.float32))
    np.save(tmp_path / "x.npy", dense.numpy())
    columns = torch.from_numpy(rng.integers(0, 300, 4_000_000))
    rows = torch.from_numpy(rng.integers(0, 40_000, 4_000_000))
    sparse = torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.rand(4_000_000), check_invariants=True)
    originals: list[FeatureStore] = [
        feature_store(dense),
        feature_store(dense, stored_as="int8"),
        feature_store(sparse),
        feature_store(sparse, stored_as="int8"),
        feature_store(tmp_path / "x.npy"),
    ]
    shared = [store.share() for store in originals]
    # Reading them here maps their pages here: the kernel calls private what a single process has mapped.
    expected = [read_all(store) for store in shared]
    assert expected == [read_all(store) for store in originals]
    assert [len(pickle.dumps(store)) < 2000 for store in shared] == [True] * 5

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    try:
        assert ours.recv() == "ready"
        ours.send(len(shared))
        for store, read in zip(shared, expected, strict=True):
            ours.send(store)
            total, last, grown = ours.recv()
            assert (total, last) == read
            assert grown < 2 << 20, f"{grown:,} bytes of {store}"  # the smallest holds 8 MB
    finally:
        ours.close()
        process.join()

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch_geometric.datasets

from lightning_gnnopt.datasets import load_dataset


def write_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    arrays = {
        "feature": np.arange(8.0).reshape(4, 2),
        "label": np.array([2, 0, 1, 2]),
        "node_types": np.array([1, 3, 2, 1]),
        "node_ids": np.arange(4),
    }
    np.savez(folder / "reddit_data.npz", **arrays)
    edges = (np.array([0, 1, 3, 2]), np.array([1, 0, 2, 2]))
    sp.save_npz(folder / "reddit_graph.npz", sp.coo_matrix((np.ones(4), edges), shape=(4, 4)))


def test_the_graph_is_read_with_its_split(tmp_path: Path) -> None:
    write_files(tmp_path / "Reddit" / "raw")
    data = load_dataset("reddit", root=tmp_path, download=False)
    assert data.x.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert data.x.dtype == torch.float32
    assert data.y.tolist() == [2, 0, 1, 2]
    assert data.edge_index.tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert data.train_mask.tolist() == [True, False, False, True]
    assert data.val_mask.tolist() == [False, False, True, False]
    assert data.test_mask.tolist() == [False, True, False, False]


def test_pyg_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str) -> None:
            assert root == str(tmp_path / "reddit")
            write_files(Path(root) / "raw")

    monkeypatch.setattr(torch_geometric.datasets, "Reddit", Fake)
    assert load_dataset("reddit", root=tmp_path).num_edges == 4

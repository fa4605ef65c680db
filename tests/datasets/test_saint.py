from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch_geometric.datasets

from lightning_gnnopt.datasets import load_dataset

FEATURES = np.arange(10, dtype=np.float64).reshape(5, 2)


def write_files(folder: Path, classes: dict[str, Any]) -> None:
    """Write what GraphSAINT publishes: one edge each way and one only one way, a self loop, and a node of no role."""
    folder.mkdir(parents=True)
    row, col = np.array([0, 1, 2, 3]), np.array([1, 0, 1, 3])
    sp.save_npz(folder / "adj_full.npz", sp.csr_matrix((np.ones(4, dtype=bool), (row, col)), shape=(5, 5)))
    np.save(folder / "feats.npy", FEATURES)
    (folder / "class_map.json").write_text(json.dumps(classes))
    (folder / "role.json").write_text(json.dumps({"tr": [0, 3], "va": [1], "te": [2]}))


def test_flickr_is_read_with_its_split(tmp_path: Path) -> None:
    write_files(tmp_path / "flickr" / "raw", {"0": 3, "2": 1, "1": 6, "3": 0})
    data = load_dataset("flickr", root=tmp_path, download=False)
    assert data.x.tolist() == FEATURES.tolist()
    assert data.x.dtype == torch.float32
    assert data.y.tolist() == [3, 6, 1, 0, -1]
    assert data.y.dtype == torch.long
    assert data.edge_index.tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]
    assert data.train_mask.tolist() == [True, False, False, True, False]
    assert data.val_mask.tolist() == [False, True, False, False, False]
    assert data.test_mask.tolist() == [False, False, True, False, False]


def test_yelp_is_multilabel(tmp_path: Path) -> None:
    classes = {str(node): [node % 2, 1, 0] for node in range(5)}
    write_files(tmp_path / "Yelp", classes)
    data = load_dataset("yelp", root=tmp_path, download=False)
    assert data.y.tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert data.y.dtype == torch.float32
    random = load_dataset("yelp", root=tmp_path, split="random")
    assert [int(random[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")] == [2, 1, 2]


def test_one_set_is_not_taken_for_the_other(tmp_path: Path) -> None:
    write_files(tmp_path / "flickr", {str(node): 0 for node in range(5)})
    with pytest.raises(FileNotFoundError, match="`yelp` was not found"):
        load_dataset("yelp", root=tmp_path, download=False)


@pytest.mark.parametrize("name", ["flickr", "yelp"])
def test_pyg_downloads_into_a_folder_of_the_sets_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    roots = []

    class Fake:
        def __init__(self, root: str) -> None:
            roots.append(root)
            write_files(Path(root) / "raw", {str(node): 0 for node in range(5)})

    monkeypatch.setattr(torch_geometric.datasets, name.capitalize(), Fake)
    assert load_dataset(name, root=tmp_path).num_edges == 4
    assert roots == [str(tmp_path / name)]

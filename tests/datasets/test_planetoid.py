from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.datasets
from torch_geometric.io import read_planetoid_data

from lightning_gnnopt.datasets import load_dataset


@pytest.mark.parametrize("name", ["cora", "citeseer"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_graph_equals_what_pyg_reads(name: str, real_data_root: Path) -> None:
    data = load_dataset(name, root=real_data_root, download=False)
    reference = read_planetoid_data(str(real_data_root / "planetoid"), name)
    for key in ("x", "edge_index", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(data[key], reference[key]), key
    labelled = data.y >= 0
    assert torch.equal(data.y[labelled], reference.y[labelled])
    assert int((~labelled).sum()) == {"cora": 0, "citeseer": 15}[name]  # nodes that no file describes; PyG says class 0
    assert not data.x[~labelled].any()


def test_a_random_split_leaves_unlabelled_nodes_out(real_data_root: Path) -> None:
    data = load_dataset("citeseer", root=real_data_root, split="random")
    masks = (data.train_mask, data.val_mask, data.test_mask)
    assert [int(mask.sum()) for mask in masks] == [1_656, 828, 828]
    assert not any(bool(mask[data.y < 0].any()) for mask in masks)


def test_pubmed_without_its_features_is_an_error_and_not_invented(real_data_root: Path, tmp_path: Path) -> None:
    for path in (real_data_root / "planetoid").glob("ind.pubmed.*"):
        if path.name != "ind.pubmed.allx":
            shutil.copy(path, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"`pubmed` is incomplete: `ind.pubmed.allx` is missing in {tmp_path}"):
        load_dataset("pubmed", root=tmp_path, download=False)


def test_a_download_goes_through_pyg_and_is_read_like_local_files(
    real_data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Fake:
        def __init__(self, root: str, name: str) -> None:
            calls.append((root, name))
            raw = Path(root) / name / "raw"
            raw.mkdir(parents=True)
            for path in (real_data_root / "planetoid").glob("ind.cora.*"):
                shutil.copy(path, raw)

    monkeypatch.setattr(torch_geometric.datasets, "Planetoid", Fake)
    downloaded = load_dataset("cora", root=tmp_path)
    again = load_dataset("cora", root=tmp_path)
    local: Any = load_dataset("cora", root=real_data_root)
    assert calls == [(str(tmp_path), "Cora")]
    for key in ("x", "y", "edge_index", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(downloaded[key], local[key])
        assert torch.equal(again[key], local[key])

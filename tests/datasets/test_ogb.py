from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_gnnopt.datasets import load_dataset


def write_files(folder: Path) -> None:
    """Write four nodes the way ogb publishes its sets."""
    texts = {
        "raw/edge": "0,1\n1,2\n3,0\n2,2\n",
        "raw/node-feat": "0.5,1\n-2,3\n4,5e-1\n6,7\n",
        "raw/node-label": "4\n0\n46\n0\n",
        "split/sales_ranking/train": "3\n",
        "split/sales_ranking/valid": "0\n",
        "split/sales_ranking/test": "1\n2\n",
    }
    for name, text in texts.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize("folder", ["ogbn_products", "products", "ogbn_products_pyg"])
def test_the_csv_files_are_read_without_ogb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setitem(sys.modules, "ogb", None)
    write_files(tmp_path / folder)
    data = load_dataset("ogbn-products", root=tmp_path)
    assert data.x.tolist() == [[0.5, 1], [-2, 3], [4, 0.5], [6, 7]]
    assert data.x.dtype == torch.float32
    assert data.y.tolist() == [4, 0, 46, 0]
    assert data.edge_index.tolist() == [[1, 3, 0, 2, 1, 0], [0, 0, 1, 1, 2, 3]]
    assert data.train_mask.tolist() == [False, False, False, True]
    assert data.val_mask.tolist() == [True, False, False, False]
    assert data.test_mask.tolist() == [False, True, True, False]


def test_ogb_downloads_and_its_own_processed_file_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed = []

    class PygNodePropPredDataset:
        def __init__(self, name: str, root: str) -> None:
            assert (name, root) == ("ogbn-products", str(tmp_path))
            write_files(Path(root) / "ogbn_products")
            self.process()
            raise FileNotFoundError("geometric_data_processed.pt")

        def process(self) -> None:
            processed.append(True)

    modules: dict[str, Any] = {name: ModuleType(name) for name in ("ogb", "ogb.nodeproppred")}
    modules["ogb.nodeproppred"].PygNodePropPredDataset = PygNodePropPredDataset
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert load_dataset("ogbn-products", root=tmp_path).num_edges == 6
    assert processed == []


def test_without_ogb_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogb", None)
    with pytest.raises(FileNotFoundError, match=r"failed \(ModuleNotFoundError.*pip install lightning-gnnopt\[data\]"):
        load_dataset("ogbn-products", root=tmp_path)

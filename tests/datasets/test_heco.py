from __future__ import annotations

import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from lightning_gnnopt.datasets import load_dataset


@pytest.mark.parametrize(("split", "per_class"), [(None, 20), ("train_20", 20), ("train_40", 40), ("train_60", 60)])
def test_the_published_splits_are_read(real_data_root: Path, split: str | None, per_class: int) -> None:
    data = load_dataset("heco-acm-psp", root=real_data_root, split=split)
    assert data.y[data.train_mask].bincount().tolist() == [per_class] * 3
    for part in ("train", "val", "test"):
        nodes = np.load(real_data_root / "heco_acm" / f"{part}_{per_class}.npy")
        assert data[f"{part}_mask"].nonzero().view(-1).tolist() == sorted(nodes.tolist())


def test_the_published_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        folder, file = address.rsplit("/", 2)[1:]
        asked.append(f"{folder}/{file}")
        stream = io.BytesIO()
        if file.endswith(".npz"):
            sp.save_npz(stream, sp.coo_matrix(np.array([[1, 1], [0, 0]])))
        else:
            np.save(stream, np.array([0, 1]) if file == "labels.npy" else np.array([int(file.startswith("val"))]))
        stream.seek(0)
        return stream

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    data = load_dataset("heco-dblp-apcpa", root=tmp_path)
    assert data.edge_index.tolist() == [[1, 0], [0, 1]]
    assert data.val_mask.tolist() == [False, True]
    splits = [f"dblp/{part}_{size}.npy" for size in (20, 40, 60) for part in ("train", "val", "test")]
    assert sorted(asked) == sorted(["dblp/apcpa.npz", "dblp/a_feat.npz", "dblp/labels.npy", *splits])

from __future__ import annotations

import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_gnnopt.datasets import describe, load_dataset


@pytest.mark.parametrize("split", [None, 0, 3, 9])
def test_a_published_split_is_read_by_its_number(real_data_root: Path, split: int | None) -> None:
    data = load_dataset("chameleon", root=real_data_root, split=split)
    with np.load(real_data_root / "heterophilous" / "chameleon.npz") as arrays:
        for part in ("train", "val", "test"):
            assert data[f"{part}_mask"].tolist() == arrays[f"{part}_masks"][split or 0].tolist()
        assert torch.equal(data.x, torch.from_numpy(arrays["node_features"]))
        assert data.y.tolist() == arrays["node_labels"].tolist()


def test_a_random_split_is_to_be_had_as_well(real_data_root: Path) -> None:
    data = load_dataset("chameleon", root=real_data_root, split="random")
    assert [int(data[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")] == [1_138, 569, 570]
    assert describe("chameleon").splits == tuple(range(10))


def test_the_published_file_is_downloaded(
    real_data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO((real_data_root / "heterophilous" / "chameleon_filtered.npz").read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load_dataset("chameleon-filtered", root=tmp_path).num_edges == 17_708
    (address,) = asked
    assert address.startswith("https://raw.githubusercontent.com/yandex-research/heterophilous-graphs/")
    assert address.endswith("/data/chameleon_filtered.npz")

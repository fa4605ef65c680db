from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import torch
import torch_geometric.datasets

from lightning_gnnopt.datasets import load_dataset

#            status gender major minor dorm year school
INFO = [
    [1, 1, 5, 0, 2, 2006, 9],
    [1, 2, 5, 0, 0, 2005, 8],
    [2, 1, 7, 0, 2, 2006, 9],
    [1, 0, 5, 0, 2, 0, 7],
    [1, 1, 5, 0, 2, 1999, 9],
    [1, 2, 5, 0, 0, 2005, 8],
]


def write_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    edges = sp.csc_matrix((np.ones(3), (np.array([0, 1, 4]), np.array([1, 0, 5]))), shape=(6, 6))
    scipy.io.savemat(str(path), {"A": edges, "local_info": np.array(INFO, dtype=np.uint16)})


@pytest.mark.parametrize("file", ["Reed98.mat", "reed98/raw/data.mat"])
def test_the_year_is_the_class_and_the_other_columns_are_one_hot(tmp_path: Path, file: str) -> None:
    write_file(tmp_path / file)
    data = load_dataset("facebook-reed98", root=tmp_path, min_class_size=2, download=False)
    assert data.y.tolist() == [1, 0, 1, -1, -1, 0]  # 2005 and 2006; no year and 1999 are no class
    codes = [  # status, gender, major, minor, dorm, school; minor has but one code
        "10 010 10 1 01 001",
        "10 001 10 1 10 010",
        "01 010 01 1 01 001",
        "10 100 10 1 01 100",
        "10 010 10 1 01 001",
        "10 001 10 1 10 010",
    ]
    assert data.x.tolist() == [[int(bit) for bit in row.replace(" ", "")] for row in codes]
    assert data.edge_index.tolist() == [[1, 0, 5, 4], [0, 1, 4, 5]]
    assert not bool((data.train_mask | data.val_mask | data.test_mask)[3:5].any())


def test_smaller_years_become_classes_when_asked(tmp_path: Path) -> None:
    write_file(tmp_path / "Reed98.mat")
    assert load_dataset("facebook-reed98", root=tmp_path, min_class_size=1).y.tolist() == [2, 1, 2, -1, 0, 1]
    with pytest.raises(ValueError, match="`min_class_size` is 100, but the largest year has 2 students. HINT"):  # noqa: RUF043
        load_dataset("facebook-reed98", root=tmp_path)
    with pytest.raises(ValueError, match="`min_class_size` must be a whole number of at least 1"):
        load_dataset("facebook-reed98", root=tmp_path, min_class_size=0)


@pytest.mark.parametrize("name", ["cornell5", "johns-hopkins55", "amherst41", "reed98"])
def test_pyg_knows_the_name_it_is_asked_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def download(self: torch_geometric.datasets.LINKXDataset) -> None:
        (path,) = self.raw_paths
        write_file(Path(path))

    monkeypatch.setattr(torch_geometric.datasets.LINKXDataset, "download", download)
    assert load_dataset(f"facebook-{name}", root=tmp_path, min_class_size=2).num_edges == 4


def test_edges_matter_and_the_year_is_not_among_the_features(real_data_root: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    data = load_dataset("facebook-reed98", root=real_data_root)
    train, test = data.train_mask, data.test_mask
    neighbors = torch.zeros_like(data.x).index_add_(0, data.edge_index[1], data.x[data.edge_index[0]])
    years = torch.nn.functional.one_hot(data.y + 1).float()
    years[~train] = 0
    seen = torch.zeros_like(years).index_add_(0, data.edge_index[1], years[data.edge_index[0]])
    alone, together = (
        LogisticRegression(max_iter=200).fit(x[train], data.y[train]).score(x[test], data.y[test])
        for x in (data.x, torch.cat([data.x, torch.nn.functional.normalize(torch.cat([neighbors, seen], 1))], 1))
    )
    assert alone < 0.6
    assert together > alone + 0.1

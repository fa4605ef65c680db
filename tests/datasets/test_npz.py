from __future__ import annotations

import io
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch_geometric.datasets
from torch_geometric.io import read_npz

from lightning_gnnopt.datasets import load_dataset


def toy() -> tuple[Any, Any, np.ndarray]:
    generator = np.random.default_rng(0)
    adjacency = sp.random(12, 12, density=0.2, format="csr", random_state=0, dtype=np.float32)
    attributes = sp.csr_array((generator.random((12, 5)) < 0.4).astype(np.float32))
    return adjacency, attributes, generator.integers(0, 3, 12)


def write_shchur(path: Path) -> None:
    adjacency, attributes, labels = toy()
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {
        f"{prefix}_{part}": getattr(matrix, part)
        for prefix, matrix in (("adj", adjacency), ("attr", attributes))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(path, labels=labels, node_names=np.array(["a", None], dtype=object), **parts)


def write_graphdata(path: Path, *, with_features: bool = True) -> None:
    adjacency, attributes, labels = toy()
    boxes = {"adj_matrix": sp.csr_matrix(adjacency)}
    if with_features:
        boxes["node_attr"] = sp.csr_matrix(attributes)
    objects = {name: np.empty((), dtype=object) for name in boxes}
    for name, matrix in boxes.items():
        objects[name][()] = matrix
    np.savez(path, node_label=labels.astype(np.int32), **objects)


@pytest.mark.parametrize(
    ("name", "shchur", "graphdata"),
    [
        ("amazon-photo", "amazon_electronics_photo", "amazon_photo"),
        ("amazon-computers", "amazon_electronics_computers", "amazon_cs"),
        ("coauthor-cs", "ms_academic_cs", "coauthor_cs"),
        ("coauthor-physics", "ms_academic_phy", "coauthor_phy"),
    ],
)
def test_both_layouts_equal_what_pyg_reads(tmp_path: Path, name: str, shchur: str, graphdata: str) -> None:
    write_shchur(tmp_path / "a" / f"{shchur}.npz")
    (tmp_path / "b").mkdir()
    write_graphdata(tmp_path / "b" / f"{graphdata}.npz")
    reference = read_npz(str(tmp_path / "a" / f"{shchur}.npz"))
    for folder in ("a", "b"):
        data = load_dataset(name, root=tmp_path / folder, download=False)
        assert torch.equal(data.x, reference.x)
        assert torch.equal(data.y, reference.y)
        assert sorted(data.edge_index.t().tolist()) == sorted(reference.edge_index.t().tolist())


def test_published_weights_of_features_are_kept(tmp_path: Path) -> None:
    write_shchur(tmp_path / "dblp.npz")
    with np.load(tmp_path / "dblp.npz", allow_pickle=True) as arrays:
        parts = dict(arrays)
    parts["attr_data"] = parts["attr_data"] * 2.5
    np.savez(tmp_path / "dblp.npz", **parts)
    assert load_dataset("dblp", root=tmp_path).x.unique().tolist() == [0, 2.5]


def test_a_graph_without_features_gets_the_identity(tmp_path: Path) -> None:
    write_graphdata(tmp_path / "polblogs.npz", with_features=False)
    assert torch.equal(load_dataset("polblogs", root=tmp_path).x, torch.eye(12))


def test_a_matrix_that_points_outside_is_refused(tmp_path: Path) -> None:
    write_shchur(tmp_path / "dblp.npz")
    with np.load(tmp_path / "dblp.npz", allow_pickle=True) as arrays:
        parts = dict(arrays)
    parts["attr_indices"][0] = 99
    np.savez(tmp_path / "dblp.npz", **parts)
    with pytest.raises(ValueError, match="indices"):
        load_dataset("dblp", root=tmp_path)


def test_the_citeseer_of_graphdata_is_not_taken_for_the_full_one(tmp_path: Path) -> None:
    write_shchur(tmp_path / "citeseer.npz")
    with pytest.raises(FileNotFoundError, match="`citeseer-full` was not found"):
        load_dataset("citeseer-full", root=tmp_path, download=False)
    write_shchur(tmp_path / "citeseer" / "raw" / "citeseer.npz")
    assert load_dataset("citeseer-full", root=tmp_path, download=False).num_nodes == 12


@pytest.mark.parametrize(
    ("name", "pyg_class", "argument", "file"),
    [
        ("amazon-photo", "Amazon", "Photo", "Photo/raw/amazon_electronics_photo.npz"),
        ("amazon-computers", "Amazon", "Computers", "Computers/raw/amazon_electronics_computers.npz"),
        ("coauthor-cs", "Coauthor", "CS", "CS/raw/ms_academic_cs.npz"),
        ("coauthor-physics", "Coauthor", "Physics", "Physics/raw/ms_academic_phy.npz"),
        ("cora-ml", "CitationFull", "cora_ml", "cora_ml/raw/cora_ml.npz"),
        ("dblp", "CitationFull", "dblp", "dblp/raw/dblp.npz"),
        ("citeseer-full", "CitationFull", "citeseer", "citeseer/raw/citeseer.npz"),
    ],
)
def test_pyg_downloads_where_it_has_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pyg_class: str, argument: str, file: str
) -> None:
    # PyG's own class decides folder and file name; only the transfer is replaced.
    def download(self: Any) -> None:
        assert self.raw_paths == [str(tmp_path / file)]
        assert self.name.lower() == argument.lower()
        write_shchur(tmp_path / file)

    monkeypatch.setattr(getattr(torch_geometric.datasets, pyg_class), "download", download)
    assert load_dataset(name, root=tmp_path).num_nodes == 12


@pytest.mark.parametrize("name", ["acm", "uai", "polblogs"])
def test_the_others_come_from_graphdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_graphdata(tmp_path / "served.npz")
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO((tmp_path / "served.npz").read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load_dataset(name, root=tmp_path / "data").num_nodes == 12
    (address,) = asked
    assert address.startswith("https://raw.githubusercontent.com/EdisonLeeeee/GraphData/")
    assert address.endswith(f"/datasets/{name}.npz")

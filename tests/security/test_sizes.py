"""Folders and files of this package's own kinds, from someone else: sizes that cannot be, names that lead away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.loading.features import feature_store
from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.studies.cells import Cell, is_complete, load_cells, save_cell

from .evil import claiming, evil_pickle, objects

TOO_MANY = 2**60


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A topology's folder."""
    Topology.from_csc([0, 1, 3, 3], [1, 2, 0]).save(tmp_path / "graph")
    return tmp_path / "graph"


def change_header(folder: Path, **changes: Any) -> None:
    header = json.loads((folder / "topology.json").read_text())
    (folder / "topology.json").write_text(json.dumps(header | changes))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_nodes": TOO_MANY},
        {"num_edges": TOO_MANY},
        {"num_nodes": -1},
        {"num_nodes": float("inf")},
        {"num_nodes": None},
        {"arrays": ["indptr", "indices", "../../indices"]},
        {"arrays": ["indptr", "indices", ["edge_ids"]]},
        {"arrays": 5},
        {"version": "__import__('os')"},
    ],
    ids=str,
)
def test_a_header_that_cannot_be_is_refused(changes: dict[str, Any], mmap: bool, saved: Path) -> None:
    change_header(saved, **changes)
    with pytest.raises(ValueError, match="HINT: write the folder anew"):
        Topology.load(saved, mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
def test_both_may_claim_the_same(mmap: bool, saved: Path) -> None:
    change_header(saved, num_edges=TOO_MANY)
    (saved / "indices.npy").write_bytes(claiming((TOO_MANY,), "<i4", bytes(12)))
    with pytest.raises(ValueError, match=r"indices.npy' has .* bytes instead of 4,611,686,018,427,388,0\d\d"):
        Topology.load(saved, mmap=mmap)


@pytest.mark.parametrize("mmap", [True, False])
def test_objects_are_not_unpickled(mmap: bool, saved: Path, trace: Path) -> None:
    np.save(saved / "indices.npy", objects(trace, (3,)), allow_pickle=True)
    with pytest.raises(ValueError, match="holds object instead of int32 or int64"):
        Topology.load(saved, mmap=mmap)
    (saved / "indices.npy").write_bytes(evil_pickle(trace))
    with pytest.raises(ValueError, match=r"is not a .npy file"):
        Topology.load(saved, mmap=mmap)
    assert not trace.exists()


def test_edges_that_point_outside_are_refused_on_demand(saved: Path) -> None:
    np.save(saved / "indices.npy", np.array([1, 2**20, 0], np.int32))
    with pytest.raises(ValueError, match=f"'{saved}' does not hold a graph"):
        Topology.load(saved, validate=True)


@pytest.mark.parametrize("shape", [(TOO_MANY,), (2**31, 2**31), (3, TOO_MANY), (TOO_MANY, TOO_MANY), (-2, -3), (4, -1)])
def test_features_that_claim_too_much_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(claiming(shape, content=bytes(24)))
    with pytest.raises(ValueError, match=r"x.npy' .*HINT"):
        feature_store(tmp_path / "x.npy")


def test_features_that_are_objects_are_not_unpickled(tmp_path: Path, trace: Path) -> None:
    np.save(tmp_path / "x.npy", objects(trace), allow_pickle=True)
    with pytest.raises(ValueError, match="holds object instead of numbers"):
        feature_store(tmp_path / "x.npy")
    assert not trace.exists()


def test_rows_outside_of_a_file_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    for row in (-1, 3, TOO_MANY):
        with pytest.raises(IndexError, match=r"`ids` must be in 0 .. 2"):
            feature_store(tmp_path / "x.npy").rows(torch.tensor([row]))


# Tables of a profile, and cells of a study


@pytest.mark.parametrize("text", ["__import__('os').getpid()", "1e999999", "9" * 5000, "[1]"])
def test_a_cell_of_a_table_is_a_number_or_text(text: str, tmp_path: Path) -> None:
    records = Records(info={})
    records.save(tmp_path)
    header = "sampler,batch_size,peak_bytes,loaded_bytes"
    (tmp_path / "peaks.csv").write_text(f"{header}\n__import__('os'),{text},1,1\n")
    with pytest.raises(ValueError, match=r"peaks.csv` holds"):
        Records.load(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", ".", ""])
def test_a_study_is_written_within_its_folder(name: str, tmp_path: Path) -> None:
    study = tmp_path / "study"
    with pytest.raises(ValueError, match="must lie within the study's folder"):
        save_cell(study, Cell(name, {}, {}))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"[]", b'{"config": 5}', b'{"config": "ab"}', b"\xff\xfe"])
def test_what_is_no_cell_is_not_complete(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cell.json").write_bytes(content)
    assert not is_complete(tmp_path, "a", {})
    with pytest.raises(ValueError, match=r"."):
        load_cells(tmp_path)

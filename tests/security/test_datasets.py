"""Graphs in files from someone else."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.datasets._arrays import read_npy, read_npz, read_sparse
from lightning_gnnopt.datasets._unpickle import load_object_npz, load_pickle

from .evil import claiming, evil_pickle, objects

TOO_MANY = 2**60
REFUSED = "is damaged or asks for more than arrays and sparse matrices.*HINT"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def planetoid(root: Path, **instead: bytes) -> Path:
    """Four nodes as Planetoid publishes them: two of ``allx``, two of ``tx``."""
    eye = sp.csr_matrix(np.eye(2, dtype=np.float32))
    parts: dict[str, Any] = dict.fromkeys(("x", "tx", "allx"), eye)
    parts |= dict.fromkeys(("y", "ty", "ally"), np.eye(2, dtype=np.int32))
    parts["graph"] = {0: [1], 1: [0], 2: [3], 3: [2]}
    files = {name: pickle.dumps(content, 4) for name, content in parts.items()} | {"test.index": b"2\n3\n"}
    for name, content in (files | instead).items():
        (root / f"ind.cora.{name}").write_bytes(content)
    return root


def test_the_traces_are_left_where_a_file_is_trusted(tmp_path: Path) -> None:
    """Else the tests below would say nothing."""
    pickle.loads(evil_pickle(tmp_path / "a"))
    np.save(tmp_path / "b.npy", objects(tmp_path / "b"), allow_pickle=True)
    np.load(tmp_path / "b.npy", allow_pickle=True)
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").is_dir()
    # All files are read; but four nodes are too few for its 500 validation nodes.
    with pytest.raises(
        ValueError, match=r"cora.* do not hold what was published .*IndexError: index 4 is out of bounds"
    ):
        load_dataset("cora", root=planetoid(tmp_path), download=False)


@pytest.mark.parametrize("part", ["x", "y", "tx", "ty", "allx", "ally", "graph"])
def test_planetoids_pickles_run_nothing(part: str, tmp_path: Path, trace: Path) -> None:
    planetoid(tmp_path, **{part: evil_pickle(trace)})
    with pytest.raises(ValueError, match=f"`ind.cora.{part}` {REFUSED}"):
        load_dataset("cora", root=tmp_path, download=False)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_leads_around_it(protocol: int, tmp_path: Path, trace: Path) -> None:
    (tmp_path / "file").write_bytes(evil_pickle(trace, protocol))
    with pytest.raises(ValueError, match="`file` " + REFUSED):
        load_pickle(tmp_path / "file")
    assert not trace.exists()


def test_what_an_allowed_class_is_told_changes_no_class(tmp_path: Path) -> None:
    """BUILD on a class instead of an object sets attributes of the class, which later files would be read with."""
    for module, name in (("numpy", "ndarray"), ("collections", "defaultdict"), ("scipy.sparse._csr", "csr_matrix")):
        (tmp_path / "file").write_bytes(f"c{module}\n{name}\n(N(dVbuild\nI1\nstb.".encode())
        with pytest.raises(ValueError, match=REFUSED):
            load_pickle(tmp_path / "file")
    (tmp_path / "file").write_bytes(pickle.dumps(np.arange(3), 4))
    assert load_pickle(tmp_path / "file").tolist() == [0, 1, 2]


NAMES = {
    "cora-ml": ("cora_ml.npz", ("adj_data", "labels")),
    "polblogs": ("polblogs.npz", ("adj_matrix", "node_label")),
    "minesweeper": ("minesweeper.npz", ("node_features", "node_labels", "edges")),
}


@pytest.mark.parametrize("name", list(NAMES))
def test_objects_in_an_npz_run_nothing(name: str, tmp_path: Path, trace: Path) -> None:
    file, members = NAMES[name]
    contents = {member: objects(trace, ()) for member in members}
    np.savez(tmp_path / file, **contents)
    with pytest.raises(ValueError, match=REFUSED):
        load_dataset(name, root=tmp_path, download=False)
    assert not trace.exists()


def test_objects_in_an_npy_run_nothing(tmp_path: Path, trace: Path) -> None:
    np.save(tmp_path / "labels.npy", objects(trace), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Python objects, which are not read.*HINT"):
        read_npy(tmp_path / "labels.npy")
    assert not trace.exists()


def test_an_npz_may_be_a_pickle_by_another_name(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "cora_ml.npz").write_bytes(evil_pickle(trace))
    with pytest.raises(ValueError, match=REFUSED):
        load_dataset("cora-ml", root=tmp_path, download=False)
    (tmp_path / "a.npy").write_bytes(evil_pickle(trace))
    with pytest.raises(ValueError, match=REFUSED):
        read_npy(tmp_path / "a.npy")
    assert not trace.exists()


def test_files_of_other_contents_are_refused_in_one_sentence(tmp_path: Path) -> None:
    planetoid(tmp_path, graph=pickle.dumps([0, 1, 2, 3], 4))
    with pytest.raises(ValueError, match=r"`cora` in .* do not hold what was published.*HINT: remove them"):
        load_dataset("cora", root=tmp_path, download=False)


# Sizes that cannot be


@pytest.mark.parametrize("shape", [(TOO_MANY,), (2**31, 2**31), (TOO_MANY, 0, 7), (-1,), (-2, -2), (2**40, 2**40, 4)])
def test_an_npy_that_claims_too_much_is_refused_before_memory_is_asked_for(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(claiming(shape, content=bytes(16)))
    with pytest.raises(ValueError, match="`a.npy` " + REFUSED):
        read_npy(tmp_path / "a.npy")


def test_a_member_of_an_npz_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", claiming((TOO_MANY,), content=bytes(16)))
    for read in (read_npz, load_object_npz):
        with pytest.raises(ValueError, match=rf"`a.npz: x` .* bytes for an array of float32 and shape \({TOO_MANY},\)"):
            read(tmp_path / "a.npz", "x")


def test_an_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.index(b"PK\1\2")  # the central directory, where the size is at 24
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"`x` cannot have 4,294,967,294 bytes.*HINT"):
        read_npz(tmp_path / "a.npz", "x")


def test_a_header_is_no_expression(tmp_path: Path, trace: Path) -> None:
    text = f"{{'descr': __import__('os').mkdir({str(trace)!r}), 'fortran_order': False, 'shape': (1,)}}\n".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
    with pytest.raises(ValueError, match=REFUSED):
        read_npy(tmp_path / "a.npy")
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_a_sparse_matrix_of_too_many_rows_is_refused(kind: str, tmp_path: Path) -> None:
    shape = (TOO_MANY, 2) if kind != "csr" else (2, TOO_MANY)
    matrix = sp.coo_matrix(([1.0], ([0], [0])), shape=shape).asformat(kind)
    other = sp.csr_matrix(np.eye(2))
    for name, adjacency, x in (("adjacency", matrix, other), ("features", other, matrix)):
        if (name, kind) == ("features", "csr"):
            continue  # columns may be as many as they like: they take no memory
        boxes = {"adj_matrix": np.empty((), object), "node_attr": np.empty((), object)}
        boxes["adj_matrix"][()], boxes["node_attr"][()] = adjacency, x
        np.savez(tmp_path / "acm.npz", node_label=np.array([0, 1]), **boxes)
        with pytest.raises(ValueError, match=r"`acm.npz` .* it has shape .* is expected"):
            load_dataset("acm", root=tmp_path, download=False)


def test_a_test_node_of_too_large_a_number_is_refused(tmp_path: Path) -> None:
    planetoid(tmp_path, **{"test.index": f"2\n{TOO_MANY}\n".encode()})
    with pytest.raises(ValueError, match=r"`ind.cora.test.index` .* nodes from 0 to 3"):
        load_dataset("cora", root=tmp_path, download=False)


# Indices that point outside: scipy's conversions and the kernels would write there


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"indptr": np.array([0, 2**20, 2])}, "index|indptr|indices"),
        ({"indptr": np.array([0, -5, 2])}, "index|indptr|indices"),
        ({"indices": np.array([0, 2**20])}, "index|indices"),
        ({"indices": np.array([0, -7])}, "index|indices"),
        ({"format": np.array(b"bsr")}, "format is 'bsr'"),
        ({"format": np.array(["csr", "csc"])}, "format is None"),
        ({"shape": np.array([TOO_MANY, TOO_MANY])}, "index pointer"),
    ],
)
@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_a_sparse_matrix_that_points_outside_is_refused(
    kind: str, change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    parts = {"indptr": np.array([0, 1, 2]), "indices": np.array([0, 1]), "data": np.ones(2), "shape": np.array([2, 2])}
    np.savez(tmp_path / "a.npz", **(parts | {"format": np.array(kind.encode())} | change))
    with pytest.raises(ValueError, match=f"`a.npz` is damaged .*({what})"):
        read_sparse(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_a_sparse_matrix_as_scipy_writes_it_is_read(kind: str, tmp_path: Path) -> None:
    matrix = sp.random(7, 5, density=0.3, format=kind, random_state=0)
    sp.save_npz(tmp_path / "a.npz", matrix)
    read = read_sparse(tmp_path / "a.npz")
    assert read.format == kind
    assert (read != matrix).nnz == 0


def test_a_matlab_file_that_points_outside_is_refused(tmp_path: Path) -> None:
    matrix = sp.csc_matrix(np.eye(3))
    matrix.indices[1] = 2**20
    scipy.io.savemat(tmp_path / "Reed98.mat", {"A": matrix, "local_info": np.ones((3, 7))})
    with pytest.raises(ValueError, match=r"`Reed98.mat` is damaged"):
        load_dataset("facebook-reed98", root=tmp_path, download=False)


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: content[:60] + bytes(60)])
def test_a_damaged_archive_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(1000))
    (tmp_path / "a.npz").write_bytes(damage(stream.getvalue()))
    with pytest.raises(ValueError, match=REFUSED):
        read_npz(tmp_path / "a.npz", "x")

from __future__ import annotations

import os
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from lightning_gnnopt.datasets._unpickle import load_object_npz, load_pickle


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1.5, -2.0], dtype=">f8"),
        np.array([True, False]),
        np.zeros((0, 4), dtype=np.float32),
    ],
)
def test_arrays_come_back_equal_and_writable(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    read = load_pickle(write(tmp_path / "array", array, protocol))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.flags.writeable


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
def test_sparse_matrices_come_back_equal(tmp_path: Path, kind: Any) -> None:
    matrix = kind(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
    read = load_pickle(write(tmp_path / "matrix", matrix))
    assert type(read) is kind
    np.testing.assert_array_equal(read.toarray(), matrix.toarray())


def test_the_graph_of_planetoid_comes_back_equal(tmp_path: Path) -> None:
    graph = defaultdict(list, {0: [1, 2], 1: [0]})
    assert load_pickle(write(tmp_path / "graph", graph, protocol=2)) == graph


def test_a_python_2_array_is_read_as_latin1(tmp_path: Path) -> None:
    # What Python 2's `pickle.dumps(numpy.array([1, 200], dtype="<i4"), 2)` writes: the bytes are a `str`.
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
        b"cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x01\x00\x00\x00\xc8\x00\x00\x00tb."
    )
    (tmp_path / "old").write_bytes(content)
    assert load_pickle(tmp_path / "old").tolist() == [1, 200]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch pwned"), "system"),
        (Calls(eval, "1 + 1"), "eval"),
        (Calls(getattr, "text", "upper"), "getattr"),
        (Calls(np.load, "file"), "load"),
        (Calls(np.frombuffer, b"\1" * 8, "O"), "frombuffer"),
        (np.dtype([("a", "i4")]), "dtype 'V4'"),
    ],
)
def test_a_pickle_that_asks_for_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"`evil` is damaged or asks for more than arrays.*{named}.*HINT"):
        load_pickle(write(tmp_path / "evil", content))
    assert not (tmp_path / "pwned").exists()


def test_an_array_over_foreign_pointers_is_not_built(tmp_path: Path) -> None:
    # An unpickler that allows `numpy.ndarray` and `numpy.dtype` builds this, and crashes on the first access.
    evil = Calls(np.ndarray, (1,), np.dtype("O"), b"\1" * 8)
    with pytest.raises(ValueError, match="damaged or asks for more"):
        load_pickle(write(tmp_path / "evil", evil))


def test_an_object_array_of_bytes_is_not_built(tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            reconstruct = np.zeros(0).__reduce__()[0]
            return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"\1" * 8)

    with pytest.raises(ValueError, match="an array of objects"):
        load_pickle(write(tmp_path / "evil", Forged()))


def test_a_matrix_that_points_outside_is_refused(tmp_path: Path) -> None:
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indices[1] = 1_000_000
    with pytest.raises(ValueError, match=r"`matrix` is damaged.*indices"):
        load_pickle(write(tmp_path / "matrix", matrix))


def test_a_coordinate_matrix_that_points_outside_is_refused(tmp_path: Path) -> None:
    matrix = sp.coo_matrix(np.eye(3))
    matrix.row[1] = 7
    with pytest.raises(ValueError, match=r"`matrix` is damaged.*exceeds"):
        load_pickle(write(tmp_path / "matrix", matrix))


def test_an_array_with_bytes_missing_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(4, dtype=np.int64), protocol=4)
    shape = pickle.dumps((4,), protocol=4)[11:-2]  # `K\x04\x85` and what memoises it
    assert content.count(shape[:3]) == 1
    (tmp_path / "short").write_bytes(content.replace(shape[:3], b"K\x05\x85"))
    with pytest.raises(ValueError, match=r"32 bytes for an array of shape \(5,\)"):
        load_pickle(tmp_path / "short")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(100), protocol=4)
    (tmp_path / "half").write_bytes(content[:60])
    with pytest.raises(ValueError, match="`half` is damaged"):
        load_pickle(tmp_path / "half")


def test_a_persistent_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "persistent").write_bytes(b"Pname\n.")
    with pytest.raises(ValueError, match="a persistent object"):
        load_pickle(tmp_path / "persistent")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_objects_and_plain_arrays_are_read_from_an_npz(tmp_path: Path, version: tuple[int, int]) -> None:
    matrix = sp.csr_matrix(np.array([[0.0, 2.0], [1.0, 0.0]]))
    boxed = np.empty((), dtype=object)
    boxed[()] = matrix
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name, array in (("plain", np.arange(3)), ("boxed", boxed)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, version=version)
    assert load_object_npz(tmp_path / "set.npz", "plain").tolist() == [0, 1, 2]
    np.testing.assert_array_equal(load_object_npz(tmp_path / "set.npz", "boxed").toarray(), matrix.toarray())


def test_a_malicious_npz_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boxed = np.empty((), dtype=object)
    boxed[()] = Calls(os.system, "touch pwned")
    np.savez(tmp_path / "evil.npz", adj_matrix=boxed)
    with pytest.raises(ValueError, match=r"`evil.npz` .*system"):
        load_object_npz(tmp_path / "evil.npz", "adj_matrix")
    assert not (tmp_path / "pwned").exists()

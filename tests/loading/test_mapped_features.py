from __future__ import annotations

import gc
import io
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from lightning_gnnopt.loading.features import feature_store
from lightning_gnnopt.loading.mapped_features import MappedFeatures

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

DTYPES = ["?", "i1", "u1", "i2", "f2", "i4", "f4", "i8", "f8", "c8", "c16"]


def save(path: Path, array: np.ndarray, version: tuple[int, int] | None = None) -> Path:
    with path.open("wb") as stream:
        npy.write_array(stream, array, version=version)
    return path


def soon(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Wait for what other threads are about to do."""
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rows of")]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_equal_indexing(dtype: str, version: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((300,), (300, 7), (300, 3, 5)):
        array = rng.integers(0, 2, shape).astype(dtype)
        store = MappedFeatures(save(tmp_path / "x.npy", array, version))
        for num_ids in (0, 1, 50, 128, 777):  # a few, and more than are worth threads
            for ids_dtype in (np.int32, np.int64):
                ids = rng.integers(0, 300, num_ids).astype(ids_dtype)
                np.testing.assert_array_equal(store.rows(ids).numpy(), array[ids])
        assert (store.shape, store.dtype, store.nbytes) == (shape, torch.from_numpy(array).dtype, 0)
        assert store.share() is store
        store.close()


@pytest.mark.parametrize("io_threads", [1, 2, 3, 16])
def test_any_number_of_threads_reads_the_same(io_threads: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((500, 9))
    store = MappedFeatures(save(tmp_path / "x.npy", array), io_threads=io_threads)

    def work(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, 500, 400 + seed)
        return np.array_equal(store.rows(ids).numpy(), array[ids])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(60)))
    assert len(names_of_threads()) == min(io_threads - 1, 15)
    store.close()
    assert not names_of_threads()


def test_small_batches_start_no_thread(tmp_path: Path) -> None:
    store = MappedFeatures(save(tmp_path / "x.npy", np.ones((10, 2))))
    store.rows(np.zeros(100, np.int64))
    assert not names_of_threads()


@linux
def test_no_thread_and_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.ones((200, 2)))

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = open_files()
    for _ in range(5):
        store = MappedFeatures(path)
        store.rows(np.arange(200))
        assert names_of_threads()
        del store
        assert soon(lambda: not names_of_threads() and open_files() == before)
    stores = [MappedFeatures(path) for _ in range(5)]
    for store in stores:
        store.rows(np.arange(200))
        store.close()
    assert not names_of_threads()
    assert open_files() == before


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = MappedFeatures(save(tmp_path / "x.npy", np.ones((200, 2))))
    store.close()
    store.close()
    for num_ids in (1, 200):
        with pytest.raises(ValueError, match=r"The store of '.*x\.npy' is closed\. HINT"):
            store.rows(np.zeros(num_ids, np.int64))


@linux
def test_a_file_larger_than_the_memory_takes_none(tmp_path: Path) -> None:
    path, num_rows, width = tmp_path / "large.npy", 25_000_000, 200
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)})
    offset, row_bytes = len(header.getvalue()), 4 * width
    ids = np.random.default_rng(0).integers(0, num_rows, 500)
    ids[:2] = 0, num_rows - 1
    with path.open("wb") as stream:
        stream.write(header.getvalue())
        stream.truncate(offset + num_rows * row_bytes)  # 20 GB, of which the file system holds almost nothing
        for row in ids:
            stream.seek(offset + int(row) * row_bytes)
            stream.write(np.full(width, row, np.float32).tobytes())
    store = feature_store(path)
    assert store.num_rows * store.row_bytes == 20_000_000_000
    store.rows(ids[:1])

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    rows = store.rows(ids)
    grown = resident_bytes() - before

    np.testing.assert_array_equal(rows.numpy(), np.repeat(ids.astype(np.float32)[:, None], width, 1))
    assert grown < 16 << 20, f"{grown:,} bytes for {rows.nbytes:,}"  # a page or two for each row, and what threads take


def not_npy(path: Path) -> None:
    path.write_bytes(b"no numpy here" * 10)


def fortran(path: Path) -> None:
    np.save(path, np.asfortranarray(np.ones((3, 2))))


def truncated(path: Path) -> None:
    np.save(path, np.ones((30, 2)))
    os.truncate(path, path.stat().st_size - 1)


def short_header(path: Path) -> None:
    np.save(path, np.ones(3))
    os.truncate(path, 20)


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b""), "is empty"),
    (not_npy, "is not a .npy file whose rows can be read"),
    (short_header, "is not a .npy file whose rows can be read"),
    (fortran, r"is not a .npy file whose rows can be read \(holds an array column by column"),
    (truncated, "is truncated: it has 607 bytes instead of 608"),
    (lambda path: np.save(path, np.array([None]), allow_pickle=True), "holds object instead of numbers"),
    (lambda path: np.save(path, np.array(["a"])), "holds <U1 instead of numbers"),
    (lambda path: np.save(path, np.ones(2, ">f4")), "holds >f4 instead of numbers in this machine's byte order"),
    (lambda path: np.save(path, np.ones(2, np.longdouble)), r"holds float\d+, which torch has not"),
    (lambda path: np.save(path, np.ones((0, 3))), r"holds an array of shape \(0, 3\), which has no rows"),
    (lambda path: np.save(path, np.float32(1)), r"holds an array of shape \(\), which has no rows"),
    (lambda path: path.mkdir(), "is a folder"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_other_files_are_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    make(path)
    with pytest.raises(ValueError, match=rf"x\.npy' {message}.* HINT: write it anew"):
        feature_store(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path` must be an .npy file, but there is none at '.*x\.npy'\. HINT"):
        feature_store(tmp_path / "x.npy")


def test_at_least_one_thread_reads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`io_threads` must be at least 1, but got 0\. HINT"):
        MappedFeatures(tmp_path / "x.npy", io_threads=0)


def test_one_column_in_fortran_order_is_in_c_order_too(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": True, "shape": (3,)}
    with (tmp_path / "x.npy").open("wb") as stream:
        npy.write_array_header_1_0(stream, header)
        stream.write(np.arange(3.0).tobytes())
    assert feature_store(tmp_path / "x.npy").rows(np.array([2, 0])).tolist() == [2.0, 0.0]


def test_a_file_that_holds_something_else_by_now_is_noticed(tmp_path: Path) -> None:
    store = MappedFeatures(save(tmp_path / "x.npy", np.ones((4, 2))), io_threads=2)
    again = pickle.loads(pickle.dumps(store))
    assert (again.path, again.io_threads, again.shape) == (store.path, 2, (4, 2))
    pickled = pickle.dumps(store)
    (tmp_path / "x.npy").unlink()
    save(tmp_path / "x.npy", np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"must hold torch.float64 of shape \(4, 2\) as it did, but holds .* \(5, 2\)"):
        pickle.loads(pickled)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@linux
def test_a_forked_process_starts_threads_of_its_own(tmp_path: Path) -> None:
    store = MappedFeatures(save(tmp_path / "x.npy", np.arange(400.0).reshape(200, 2)))
    store.rows(np.arange(200))  # its threads are not in the fork
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(float(store.rows(np.arange(200)).numpy().sum())))
    process.start()
    assert ours.poll(30)
    assert ours.recv() == 399 * 200
    process.join()

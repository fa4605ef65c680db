from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import numpy as np

from lightning_gnnopt.sampling.shared_arrays import SharedArrays, find_shared


def _num_open() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


def test_memory_that_is_shared_is_found_and_maps_the_same_file() -> None:
    mapped = SharedArrays({"a": np.arange(1000), "b": np.arange(5.0)}).arrays()  # the owner is not kept
    found = find_shared(mapped["a"].ctypes.data, mapped["a"].nbytes)
    assert found is not None
    file, owner = found
    assert owner.files["a"] is file
    assert np.array_equal(file.map(), np.arange(1000))  # still open, because the array is mapped
    assert find_shared(mapped["a"].ctypes.data, 8) is None  # a part of it
    assert find_shared(mapped["a"][1:].ctypes.data, mapped["a"].nbytes - 8) is None
    own = np.arange(1000)
    assert find_shared(own.ctypes.data, own.nbytes) is None


def test_what_another_process_shared_is_not_found() -> None:
    source = SharedArrays({"a": np.arange(1000)})
    received = pickle.loads(pickle.dumps(source))
    received._pid = source._pid + 1  # as in a process of its own
    array = received.arrays()["a"]
    assert np.array_equal(array, np.arange(1000))
    assert find_shared(array.ctypes.data, array.nbytes) is None


def test_files_close_with_the_last_array() -> None:
    gc.collect()
    before = _num_open()
    arrays = SharedArrays({"a": np.arange(1000)}).arrays()
    address, nbytes = arrays["a"].ctypes.data, arrays["a"].nbytes
    assert find_shared(address, nbytes) is not None
    del arrays
    gc.collect()
    assert _num_open() == before
    assert find_shared(address, nbytes) is None


def test_shared_memory_is_adopted_not_copied() -> None:
    mapped = SharedArrays({"a": np.arange(1000)}).arrays()["a"]
    other = SharedArrays({})
    assert not other.adopt("own", np.arange(1000).ctypes.data, 8000)
    assert other.adopt("bytes", mapped.ctypes.data, mapped.nbytes)
    received = pickle.loads(pickle.dumps(other)).arrays()
    assert list(received) == ["bytes"]
    assert np.array_equal(received["bytes"].view(mapped.dtype), np.arange(1000))
    file = other.files["bytes"]
    assert (Path(file.path).stat().st_dev, Path(file.path).stat().st_ino) == file.identity

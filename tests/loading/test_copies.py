from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.loading.copies import Copy, write_copies

GUARD = 16


def test_copies_of_every_kind_in_one_call() -> None:
    """Each at its place, and nothing beside it."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, 50 * 12, dtype=np.uint8)
    ids, wide_ids = rng.integers(0, 50, 7).astype(np.int32), rng.integers(0, 50, 9)
    array, numbers = rng.random((3, 5)), np.array([0, -1, 2**31 - 1, -(2**31)], np.int32)
    copies = [
        Copy.of_rows(table, ids, 12),
        Copy.of_rows(table, wide_ids, 12),
        Copy.of_array(array),
        Copy.widened(numbers),
        Copy.of_array(np.empty(0, np.float32)),
        Copy.of_rows(table, np.empty(0, np.int32), 12),
        Copy.widened(np.empty(0, np.int32)),
    ]
    expected = [
        table.reshape(50, 12)[ids].tobytes(),
        table.reshape(50, 12)[wide_ids].tobytes(),
        array.tobytes(),
        numbers.astype(np.int64).tobytes(),
        b"",
        b"",
        b"",
    ]
    assert [copy.nbytes for copy in copies] == [len(content) for content in expected]
    memory = np.full(sum(len(content) + GUARD for content in expected), 0xAB, np.uint8)
    places, at = [], memory.ctypes.data
    for copy in copies:
        places.append((copy, at))
        at += copy.nbytes + GUARD
    write_copies(places)
    assert memory.tobytes() == b"".join(content + b"\xab" * GUARD for content in expected)


def test_nothing_to_copy() -> None:
    out = np.full(8, 0xAB, np.uint8)
    write_copies([])
    write_copies([(Copy.of_array(np.empty(0)), 0), (Copy.of_array(np.empty(0)), out.ctypes.data)])
    assert out.tolist() == [0xAB] * 8  # and address 0 was not looked at: the process is alive


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.lists(st.integers(0, 19), max_size=200),
    st.sampled_from([np.int32, np.int64]),
    st.integers(0, 3),
)
def test_rows_of_any_width(row_bytes: int, ids: list[int], id_type: Any, offset: int) -> None:
    table = np.random.default_rng(row_bytes).integers(0, 256, 20 * row_bytes, dtype=np.uint8)
    wanted = np.array(ids, id_type)
    out = np.zeros(len(ids) * row_bytes + offset + 1, np.uint8)
    write_copies([(Copy.of_rows(table, wanted, row_bytes), out.ctypes.data + offset)])
    assert np.array_equal(out[offset:-1].reshape(-1, row_bytes), table.reshape(20, row_bytes)[wanted])
    assert out[:offset].tolist() == [0] * offset
    assert out[-1] == 0


@pytest.mark.parametrize("kind", ["rows", "array", "widened"])
def test_it_lets_go_of_the_gil(kind: str) -> None:
    table = np.zeros(1 << 26, np.uint8)
    copy = {
        "rows": Copy.of_rows(table, np.zeros(1 << 16, np.int32), 1 << 10),
        "array": Copy.of_array(table),
        "widened": Copy.widened(table.view(np.int32)[: 1 << 23]),
    }[kind]
    out = np.empty(1 << 26, np.uint8)
    write_copies([(copy, out.ctypes.data)])
    counted, stop = 0, threading.Event()

    def write() -> None:
        for _ in range(5):
            write_copies([(copy, out.ctypes.data)])
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        counted += 1
    thread.join()
    assert counted > 1000  # this thread went on meanwhile

from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.loading.gather import gather_rows

WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20, 31, 32, 63, 64, 65, 100, 101, 400, 602, 1000, 1199, 1204, 1999, 2000]


def at(address_modulo: int, length: int) -> np.ndarray:
    """Give zeros whose first byte lies at an address with this remainder by 64, and 64 more of them behind."""
    memory = np.zeros(length + 192, np.uint8)
    first = (address_modulo - memory.ctypes.data) % 64
    return memory[first : first + length + 64]


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_any_width(width: int, ids_dtype: type) -> None:
    rng = np.random.default_rng(width)
    for num_rows, num_ids in ((1, 1), (1, 5), (50, 300)):
        ids = rng.integers(0, num_rows, num_ids).astype(ids_dtype)
        for table_at, out_at in ((0, 0), (16, 0), (0, 16), (1, 0), (3, 48), (0, 1), (5, 4)):
            table, out = at(table_at, num_rows * width)[:-64], at(out_at, num_ids * width)
            table[:] = rng.integers(1, 256, len(table))

            gather_rows(table, ids, out[:-64], row_bytes=width)

            np.testing.assert_array_equal(out[:-64].reshape(-1, width), table.reshape(-1, width)[ids])
            assert not out[-64:].any()  # nothing behind it


def test_nothing_to_copy() -> None:
    table, out = np.ones(4, np.uint8), np.zeros(4, np.uint8)
    gather_rows(table, np.empty(0, np.int64), out[:0], row_bytes=4)
    gather_rows(table[:0], np.zeros(3, np.int64), out[:0], row_bytes=0)
    assert not out.any()


def test_places_beyond_32_bits() -> None:
    width, num_rows = 1 << 20, 5000  # 5 GB of address space, of which a few pages are touched
    try:
        table = np.zeros(num_rows * width, np.uint8)
    except MemoryError:
        pytest.skip("no 5 GB of address space")
    last = table[-width:]
    last[:3], last[-3:] = 7, 9
    out = np.zeros(2 * width, np.uint8)
    gather_rows(table, np.array([num_rows - 1, 0], np.int32), out, row_bytes=width)
    np.testing.assert_array_equal(out[:width], last)
    assert not out[width:].any()

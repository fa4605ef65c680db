from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from lightning_gnnopt._units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (4096, 4096),
        (1.5, 1),
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("3 kB", 3_000),
        ("3KB", 3_000),
        ("3MB", 3_000_000),
        ("2GB", 2_000_000_000),
        ("1TB", 1_000_000_000_000),
        ("3KiB", 3 * 1024),
        ("3MiB", 3 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("1TiB", 1024**4),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("1.GiB", 1024**3),
        ("  2  gib ", 2 * 1024**3),
        ("0.5 B", 0),
        ("9007199254740993", 9_007_199_254_740_993),  # no float holds it
        (np.int64(4096), 4096),
        (np.float32(4096), 4096),
    ],
)
def test_sizes_are_read(size: int | float | str, expected: int) -> None:
    found = parse_bytes(size, name="cache")
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    "size",
    [-1, -0.5, float("nan"), float("inf"), True, None, [2], "", "GiB", "-1", "-2GiB", "2 XB", "1.5.2", "1e9", ".5GiB"],
)
def test_what_is_no_size_is_refused(size: Any) -> None:
    message = f"`cache` must be a number of bytes, but got {size!r}. HINT: 2147483648 or '2GiB', say."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_bytes(size, name="cache")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40 * 3, "3,072.0 GiB"),
    ],
)
def test_sizes_are_written(size: int, expected: str) -> None:
    assert format_bytes(size) == expected

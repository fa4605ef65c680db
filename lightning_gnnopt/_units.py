"""Sizes as people write them."""

from __future__ import annotations

import math
import re
from numbers import Real

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: int | str, *, name: str) -> int:
    """Read a number of bytes.

    Args:
        size: A number, or a number with a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).
        name: The argument it was given for, for error messages.

    Returns:
        The number of bytes, at least 0.

    Raises:
        ValueError: If it is negative or cannot be read.

    Examples:
        >>> parse_bytes("1.5 GiB", name="budget"), parse_bytes(4096, name="budget")
        (1610612736, 4096)
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", size)
        unit = _UNITS.get(match[2].upper() or "B") if match else None
        if match is None or unit is None:
            raise _refused(size, name)
        return int(match[1]) * unit if match[1].isdecimal() else int(float(match[1]) * unit)
    if isinstance(size, bool) or not isinstance(size, Real) or not math.isfinite(size) or size < 0:
        raise _refused(size, name)
    return int(size)


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes for people.

    Examples:
        >>> format_bytes(512), format_bytes(3 * 2**20), format_bytes(1.5 * 2**30)
        ('512 B', '3.0 MiB', '1.5 GiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:.0f} B"


def _refused(size: object, name: str) -> ValueError:
    return ValueError(f"`{name}` must be a number of bytes, but got {size!r}. HINT: 2147483648 or '2GiB', say.")

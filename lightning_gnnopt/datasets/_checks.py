"""Checks of a dataset's options; each raises a `ValueError` that names the option."""

from __future__ import annotations

import math
from typing import Any


def check_count(smallest: int, **options: Any) -> None:
    """Every option must be a whole number of at least `smallest`.

    Examples:
        >>> check_count(1, num_classes=0)
        Traceback (most recent call last):
        ValueError: `num_classes` must be a whole number of at least 1, but got 0. HINT: leave it out for the default.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise _error(name, f"a whole number of at least {smallest}", value)


def check_at_least(low: float, **options: Any) -> None:
    """Every option must be a finite number of at least `low`."""
    for name, value in options.items():
        if not _is_finite(value) or value < low:
            raise _error(name, f"a number of at least {low}", value)


def check_above(low: float, **options: Any) -> None:
    """Every option must be a finite number above `low`."""
    for name, value in options.items():
        if not _is_finite(value) or value <= low:
            raise _error(name, f"a number above {low}", value)


def check_fraction(**options: Any) -> None:
    """Every option must be a number from 0 to 1."""
    for name, value in options.items():
        if not _is_finite(value) or not 0 <= value <= 1:
            raise _error(name, "a number from 0 to 1", value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _error(name: str, wanted: str, value: object) -> ValueError:
    return ValueError(f"`{name}` must be {wanted}, but got {value!r}. HINT: leave it out for the default.")

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lightning_gnnopt.datasets._checks import check_above, check_at_least, check_count, check_fraction


@pytest.mark.parametrize(
    ("check", "good", "bad", "wanted"),
    [
        (partial(check_count, 2), [2, 10**9], [1, -3, 2.0, True, "2", None], "a whole number of at least 2"),
        (partial(check_at_least, 0), [0, 1.5, 3], [-0.1, math.nan, math.inf, False, "0"], "a number of at least 0"),
        (partial(check_above, 2), [2.001, 3], [2, 1, math.nan, math.inf, "3"], "a number above 2"),
        (check_fraction, [0, 1, 0.5], [-0.01, 1.01, math.nan, True, None], "a number from 0 to 1"),
    ],
)
def test_values_in_range_pass_and_others_are_named(
    check: Callable[..., None], good: list[Any], bad: list[Any], wanted: str
) -> None:
    for value in good:
        check(option=value)
    for value in bad:
        with pytest.raises(ValueError, match=f"`option` must be {wanted}, but got {value!r}. HINT: leave it out"):
            check(option=value)

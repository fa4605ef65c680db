from __future__ import annotations

import platform

import numpy as np
import pytest
from numba import njit

from lightning_gnnopt.sampling.prefetch import HAS_PREFETCH, _no_prefetch, prefetch


@njit
def sum_with_hint(values: np.ndarray, ahead: int) -> int:
    total = 0
    for i in range(len(values)):
        prefetch(values, i + ahead)
        total += values[i]
    return total


@njit
def sum_without_hint(values: np.ndarray, ahead: int) -> int:
    total = 0
    for i in range(len(values)):
        _no_prefetch(values, i + ahead)
        total += values[i]
    return total


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_the_hint_changes_no_result_even_beyond_the_array(dtype: type) -> None:
    values = np.arange(1000, dtype=dtype)
    for ahead in (0, 16, 10**6):
        assert sum_with_hint(values, ahead) == sum_without_hint(values, ahead) == 499_500


@pytest.mark.skipif(not HAS_PREFETCH, reason="this numba's LLVM does not take the intrinsic: kernels go without")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for the instruction of x86-64")
def test_the_hint_is_an_instruction_and_its_stand_in_is_none() -> None:
    sum_with_hint(np.arange(3), 1)
    sum_without_hint(np.arange(3), 1)
    (with_hint, *_), (without, *_) = sum_with_hint.inspect_asm().values(), sum_without_hint.inspect_asm().values()
    assert "prefetcht0" in with_hint
    assert "prefetcht0" not in without

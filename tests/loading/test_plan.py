from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gnnopt.loading.copies import Copy
from lightning_gnnopt.loading.plan import ALIGNMENT, BatchPlan, Field, Layout, Packed, Part

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.int32, torch.float32, torch.int64]
DTYPES += [torch.float64, torch.complex64, torch.complex128]

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), max_size=8), st.integers(0, 300), st.booleans())
def test_tensors_lie_apart_aligned_and_within_the_buffer(
    wanted: list[tuple[torch.dtype, tuple[int, ...]]], spare: int, on_host: bool
) -> None:
    layout = Layout()
    assert [layout.add(dtype, shape) for dtype, shape in wanted] == list(range(len(wanted)))
    memory = torch.full((layout.nbytes + spare,), 255, dtype=torch.uint8)
    tensors = layout.host_tensors(memory) if on_host else layout.tensors(memory)
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors] == wanted
    taken: set[int] = set()
    for tensor in tensors:
        assert tensor.is_contiguous()
        assert on_host or tensor.untyped_storage().data_ptr() == memory.data_ptr()
        if not tensor.numel():
            continue
        begin = tensor.data_ptr() - memory.data_ptr()
        here = set(range(begin, begin + tensor.numel() * tensor.element_size()))
        assert begin % ALIGNMENT == 0
        assert not here & taken
        taken |= here
    assert max(taken, default=-1) < layout.nbytes

    for tensor in tensors:
        tensor.zero_()
    assert (memory == 0).nonzero().flatten().tolist() == sorted(taken)  # nothing else was written


def test_the_first_tensors_alone() -> None:
    layout = Layout()
    for size in (3, 4, 5):
        layout.add(torch.float32, (size,))
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    assert [len(tensor) for tensor in layout.tensors(memory, 2)] == [3, 4]
    assert layout.tensors(memory, 0) == []
    assert [len(tensor) for tensor in layout.host_tensors(memory, 2)] == [3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tensor_keeps_the_memory_of_all(dtype: torch.dtype) -> None:
    layout = Layout()
    for _ in range(2):
        layout.add(dtype, (1024,))
    array = np.zeros(layout.nbytes, np.uint8)
    gone = weakref.ref(array)
    memory = torch.from_numpy(array)
    first, second = layout.host_tensors(memory)
    first.fill_(1.0)
    del array, memory, first
    gc.collect()
    assert gone() is not None
    assert second.tolist() == [0.0] * 1024
    del second
    gc.collect()
    assert gone() is None


def test_an_empty_layout_needs_no_memory() -> None:
    assert (Layout().nbytes, Layout().tensors(torch.empty(0, dtype=torch.uint8))) == (0, [])


def test_a_tensor_that_is_changed_in_place_leaves_what_autograd_saved_of_another() -> None:
    layout = Layout()
    layout.add(torch.float32, (4,))
    layout.add(torch.float32, (4,))
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)

    def backward(a: Tensor, b: Tensor) -> list[float]:
        weight = torch.ones(4, requires_grad=True)
        loss = (a.fill_(3.0) * weight).sum()
        b.add_(1.0)
        loss.backward()
        assert weight.grad is not None
        return weight.grad.tolist()

    assert backward(*layout.tensors(memory)) == [3.0] * 4
    assert backward(*layout.host_tensors(memory)) == [3.0] * 4
    views = memory[:16].view(torch.float32), memory[128:144].view(torch.float32)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # else the test would prove nothing
        backward(*views)


def test_copies_that_are_not_a_parts_bytes_are_refused() -> None:
    numbers = np.arange(4, dtype=np.int32)
    with pytest.raises(ValueError, match=r"must be 32 bytes, those of torch.int64 of shape \(4,\), but .* are 16"):
        Part(torch.int64, (4,), (Copy.of_array(numbers),))
    part = Part(torch.int64, (4,), (Copy.widened(numbers),))
    out = torch.zeros(4, dtype=torch.int64)
    part.write(out)
    assert out.tolist() == [0, 1, 2, 3]
    for wrong in (out[:3], out.int(), torch.zeros(8, dtype=torch.int64)[::2]):
        with pytest.raises(ValueError, match=r"`out` must be a contiguous torch.int64 of shape \(4,\) in host memory"):
            part.write(wrong)


def test_sizes_and_counts_add_up() -> None:
    def write(out: Tensor) -> None:
        raise AssertionError("nothing is written to count bytes")

    whole, half = Part(torch.float64, (3, 5), write), Part(torch.float16, (3, 5), write)
    single = Part(torch.int32, (), write)
    assert (whole.nbytes, half.nbytes, single.nbytes) == (120, 30, 4)
    packed = Packed((half,), lambda parts, out: None, lookups=7, hits=3)
    again = Packed((half,), lambda parts, out: None, lookups=5, hits=5)
    fields = [Field(whole, lambda: packed), Field(single), Field(half, lambda: again)]
    plan = BatchPlan(fields, list, num_nodes=1, num_edges=1)
    assert (plan.nbytes, plan.cache_lookups, plan.cache_hits) == (154, 0, 0)  # it has not travelled
    assert [field.packed for field in fields] == [packed, None, again]
    assert (plan.cache_lookups, plan.cache_hits) == (12, 8)
    assert math.prod(whole.shape) == 15

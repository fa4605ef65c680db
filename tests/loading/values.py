"""Batches that are full of one number, so that a byte of another batch in them shows; pipelines and late readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading import SimulatedDevice
from lightning_gnnopt.loading.pipeline import BatchPipeline, PipelineOptions, Stages
from lightning_gnnopt.loading.placement import Placement
from lightning_gnnopt.loading.plan import BatchPlan, Field, Packed, Part
from lightning_gnnopt.loading.slabs import SlabPool

DEADLINE_S = 20.0
"""When a test gives up on what should have happened."""


def value_plan(
    value: int,
    *,
    numel: int = 1000,
    write: Callable[[int], object] = lambda value: None,
    unpack: Callable[[int], object] = lambda value: None,
) -> BatchPlan:
    """A batch of three tensors full of `value`: float32, bytes, and int64 that travels as int32.

    Args:
        value: Below 255.
        numel: Numbers in the largest tensor.
        write: Called when its host memory is written.
        unpack: Called when it is unpacked on the device.
    """

    def fill(out: Tensor) -> None:
        write(value)
        out.fill_(value)

    def widen(parts: Sequence[Tensor], out: Tensor) -> None:
        unpack(value)
        out.copy_(parts[0])

    rows = Field(Part(torch.float32, (numel,), fill))
    few = Field(Part(torch.uint8, (numel % 7 + 1,), fill))
    ids_shape = (numel // 2,)
    ids = Field(Part(torch.int64, ids_shape, fill), lambda: Packed((Part(torch.int32, ids_shape, fill),), widen))
    return BatchPlan([rows, few, ids], list, num_nodes=numel, num_edges=2 * numel)


class ValueSource:
    """Input ``i`` is the batch full of ``i``; a loader with one input per batch delivers them."""

    def __init__(self, num_inputs: int, plan: Callable[[int], BatchPlan] = value_plan) -> None:
        self.num_inputs = num_inputs
        self._plan = plan

    def sample(self, input_id: NDArray[np.int64], key: Any) -> int:
        (value,) = input_id.tolist()
        return int(value)

    def plan(self, sampled: int, input_id: NDArray[np.int64]) -> BatchPlan:
        assert input_id.tolist() == [sampled]
        return self._plan(sampled)


class SlowReader:
    """Submits a kernel for each batch that reads it twice, some time apart, and notes all that it saw.

    Attributes:
        seen: The different numbers in each batch, in the order of the kernels.
    """

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.seen: list[set[float]] = []

    def read(self, tensors: Sequence[Tensor], *, seconds: float = 0.0, gate: Callable[[], Any] = lambda: None) -> None:
        def kernel(*bare: Tensor) -> None:
            numbers = numbers_in(bare)
            gate()
            time.sleep(seconds)
            self.seen.append(numbers | numbers_in(bare))

        self._device.compute(kernel, *tensors)


def numbers_in(tensors: Sequence[Tensor]) -> set[float]:
    """Which numbers stand in some tensors."""
    return {float(number) for tensor in tensors for number in np.unique(tensor.numpy())}


def make_pipeline(
    num: int,
    *,
    plan: Callable[[int], BatchPlan] = value_plan,
    sample: Callable[[int], Any] = lambda i: i,
    placement: Placement | None = None,
    **options: Any,
) -> BatchPipeline:
    stages = Stages(sample=sample, plan=lambda i, sampled: plan(sampled), describe=lambda i: f"batch {i} of epoch 9")
    return BatchPipeline(stages, range(num), options=PipelineOptions(**options), placement=placement)


def taken(pipeline: BatchPipeline) -> Iterator[list[Tensor]]:
    with closing(iter(pipeline)) as batches:
        for placed, _ in batches:
            yield placed.take()
    pipeline.transfers_s(wait=True)


def in_time(work: Callable[[], object]) -> None:
    """Fail, rather than wait for ever, if it comes to a deadlock."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "a deadlock"
    if errors:
        raise errors[0]


class Gate:
    """Holds up a stream until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self) -> None:
        assert self._open.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()


def only_one_slab(pool: SlabPool) -> None:
    pool.target = 1

"""What a batch will hold, before a byte of it is copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 128
"""Bytes to which every tensor in a slab is aligned: two cache lines, and more than any vector load asks for."""


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor to be written in host memory.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        write: Fills a contiguous CPU tensor of that type and shape.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    write: Callable[[Tensor], None]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Packed:
    """Another form of a tensor, in which it travels to a device.

    Attributes:
        parts: What travels.
        unpack: Fills the tensor from the parts, with operators on the device that all of them are on.
        lookups: Rows of the tensor, where the device keeps some of them; else 0.
        hits: Rows that need not travel.
    """

    parts: tuple[Part, ...]
    unpack: Callable[[Sequence[Tensor], Tensor], None]
    lookups: int = 0
    hits: int = 0


@dataclass(frozen=True, eq=False)
class Field:
    """One tensor of a batch.

    Attributes:
        part: The tensor as it is in the batch.
        packed: How it travels to a device, if not as it is.
    """

    part: Part
    packed: Packed | None = None


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """A batch whose sizes are known and whose tensors are not there yet.

    Attributes:
        fields: Its tensors.
        assemble: Makes the batch from them, in the order of `fields`.
        num_nodes: Its number of nodes, of all types.
        num_edges: Its number of edges, of all types.
    """

    fields: Sequence[Field]
    assemble: Callable[[Sequence[Tensor]], Any]
    num_nodes: int
    num_edges: int

    @property
    def cache_lookups(self) -> int:
        """Rows asked for where the device keeps some of them."""
        return sum(field.packed.lookups for field in self.fields if field.packed is not None)

    @property
    def cache_hits(self) -> int:
        """Rows of them that need not travel."""
        return sum(field.packed.hits for field in self.fields if field.packed is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the batch's tensors."""
        return sum(field.part.nbytes for field in self.fields)

    def write(self) -> Any:
        """Make the batch in host memory of its own."""
        tensors = [torch.empty(field.part.shape, dtype=field.part.dtype, device="cpu") for field in self.fields]
        for field, tensor in zip(self.fields, tensors, strict=True):
            field.part.write(tensor)
        return self.assemble(tensors)


class Layout:
    """Where tensors lie in a buffer, one behind the other.

    Examples:
        >>> layout = Layout()
        >>> layout.add(torch.int8, (3,)), layout.add(torch.float32, (2, 2)), layout.nbytes
        (0, 1, 144)
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, torch.dtype, tuple[int, ...]]] = []
        self.nbytes = 0

    def add(self, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
        """Find the next tensor a place; return its number."""
        offset = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        self._places.append((offset, dtype, shape))
        self.nbytes = offset + math.prod(shape) * dtype.itemsize
        return len(self._places) - 1

    def tensors(self, memory: Tensor, num: int | None = None) -> list[Tensor]:
        """Make the tensors in a buffer.

        They share its storage and are no views of each other: one that is changed in place leaves what autograd saved
        of the others valid.

        Args:
            memory: Uint8 tensor at its storage's start, with room for the tensors.
            num: How many to make, the first ones; all by default.
        """
        storage, device = memory.untyped_storage(), memory.device
        return [
            torch.empty(0, dtype=dtype, device=device).set_(storage, offset // dtype.itemsize, shape)  # type: ignore[call-overload]
            for offset, dtype, shape in self._places[:num]
        ]

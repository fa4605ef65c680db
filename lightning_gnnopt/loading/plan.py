"""What a batch will hold, before a byte of it is copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gnnopt.loading.copies import Copy, write_copies

ALIGNMENT = 128
"""Bytes to which every tensor in a slab is aligned: two cache lines, and more than any vector load asks for."""

_NUMPY = {
    torch.from_numpy(np.empty(0, dtype)).dtype: np.dtype(dtype)
    for dtype in ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16")
}
"""What numpy calls the types that it has."""


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor to be written in host memory.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        content: What it holds: copies, one behind the other; or a function that fills a contiguous CPU tensor of that
            type and shape.
        nbytes: Bytes that it takes.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: tuple[Copy, ...] | Callable[[Tensor], None]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", math.prod(self.shape) * self.dtype.itemsize)
        if isinstance(self.content, tuple) and sum([copy.nbytes for copy in self.content]) != self.nbytes:
            raise ValueError(  # they are written without a look at where the tensor ends
                f"`content` must be {self.nbytes:,} bytes, those of {self.dtype} of shape {self.shape}, but the copies"
                f" are {', '.join(f'{copy.nbytes:,}' for copy in self.content)}. HINT: `Copy.widened` makes int64."
            )

    def write(self, out: Tensor) -> None:
        """Fill a contiguous CPU tensor of this type and shape.

        Raises:
            ValueError: If it is another one.
        """
        if out.dtype != self.dtype or out.shape != self.shape or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(
                f"`out` must be a contiguous {self.dtype} of shape {self.shape} in host memory, but got {out.dtype} of"
                f" shape {tuple(out.shape)} on {out.device}. HINT: `host_tensor` makes one."
            )
        write_parts([self], [out])


def write_parts(parts: Iterable[Part], tensors: Iterable[Tensor]) -> None:
    """Write parts into contiguous CPU tensors of their types and shapes: all copies in one call."""
    copies: list[tuple[Copy, int]] = []
    for part, tensor in zip(parts, tensors, strict=True):
        if not isinstance(part.content, tuple):
            part.content(tensor)
            continue
        address = tensor.data_ptr()
        for copy in part.content:
            copies.append((copy, address))
            address += copy.nbytes
    write_copies(copies)


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


class Field:
    """One tensor of a batch.

    Args:
        part: The tensor as it is in the batch.
        pack: Finds out how it travels to a device, if not as it is; called when that is asked for, once.

    Attributes:
        part: As given.
    """

    def __init__(self, part: Part, pack: Callable[[], Packed] | None = None) -> None:
        self.part = part
        self._pack = pack
        self._packed: Packed | None = None

    @property
    def packed(self) -> Packed | None:
        """How it travels to a device, if not as it is."""
        if self._packed is None and self._pack is not None:
            self._packed = self._pack()
        return self._packed

    @property
    def lookups(self) -> int:
        """Rows of it that were looked up in what the device keeps, so far."""
        return 0 if self._packed is None else self._packed.lookups

    @property
    def hits(self) -> int:
        """Rows of those that need not travel."""
        return 0 if self._packed is None else self._packed.hits


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """A batch whose sizes are known and whose tensors are not there yet.

    Attributes:
        fields: Its tensors.
        assemble: Makes the batch from them, in the order of `fields`.
        num_nodes: Its number of nodes, of all types.
        num_edges: Its number of edges, of all types.
        nbytes: Bytes of its tensors.
    """

    fields: Sequence[Field]
    assemble: Callable[[Sequence[Tensor]], Any]
    num_nodes: int
    num_edges: int
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", sum([field.part.nbytes for field in self.fields]))

    @property
    def cache_lookups(self) -> int:
        """Rows asked for where the device keeps some of them; none before the batch travels."""
        return sum([field.lookups for field in self.fields])

    @property
    def cache_hits(self) -> int:
        """Rows of them that need not travel."""
        return sum([field.hits for field in self.fields])

    def write(self) -> Any:
        """Make the batch in host memory of its own."""
        parts = [field.part for field in self.fields]
        tensors = [host_tensor(part.dtype, part.shape) for part in parts]
        write_parts(parts, tensors)
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
        return [_in_storage(memory, *place) for place in self._places[:num]]

    def host_tensors(self, memory: Tensor, num: int | None = None) -> list[Tensor]:
        """Make the tensors in a buffer of host memory.

        As :meth:`tensors`, but each has a storage of its own over its part of the memory, which stays as long as one
        of them. Operators of torch release the GIL, and must get it back; numpy makes an array without that.
        """
        array = memory.numpy()
        return [
            torch.from_numpy(np.ndarray(shape, _NUMPY[dtype], array, offset))
            if dtype in _NUMPY
            else _in_storage(memory, offset, dtype, shape)
            for offset, dtype, shape in self._places[:num]
        ]


def _in_storage(memory: Tensor, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.empty(0, dtype=dtype, device=memory.device)
    return tensor.set_(memory.untyped_storage(), offset // dtype.itemsize, shape)  # type: ignore[call-overload,no-any-return]


def host_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Make an uninitialized tensor in host memory, where numpy has its type without releasing the GIL."""
    if dtype in _NUMPY:
        return torch.from_numpy(np.empty(shape, _NUMPY[dtype]))
    return torch.empty(shape, dtype=dtype, device="cpu")

"""Storing floating-point rows in fewer bits."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_gnnopt._names import unknown_name

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
_CHUNK_BYTES = 8 << 20


def empty_rows(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Take memory for rows; through numpy, which asks for huge pages: random rows are then found faster."""
    memory = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8))
    return memory.view(dtype).view(shape)


def narrow_dtype(stored_as: str | torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    """Find the type in which to store values.

    Args:
        stored_as: What the user asked for; None for the values' own type.
        dtype: The values' own type.

    Raises:
        ValueError: If there is no such type, or values cannot be stored so.
    """
    if stored_as is None or stored_as == dtype or _DTYPES.get(str(stored_as)) == dtype:
        return dtype
    name = str(stored_as).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"{unknown_name('`stored_as`', name, _DTYPES)} HINT: None stores {dtype} as it is.")
    narrow = _DTYPES[name]
    if not dtype.is_floating_point:
        raise ValueError(
            f"`stored_as` must be None for values that are no floating-point numbers, but got {name!r} for {dtype}."
            " HINT: convert them first, e.g. with `.float()`; or leave `stored_as` out."
        )
    if narrow.itemsize >= dtype.itemsize:
        raise ValueError(
            f"`stored_as` must take fewer bits than the values' own {dtype}, but got {name!r}."
            " HINT: leave `stored_as` out, or choose a narrower type."
        )
    return narrow


def narrow_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Convert rows to fewer bits, some of them at a time.

    Args:
        values: Floating-point values of shape ``(N, ...)``, on any device, in any memory order.
        dtype: The type to store.

    Returns:
        The stored values in host memory, contiguous, of the same shape; and for int8 the scale of each column, float32
        of the shape of a row (``(1,)`` for rows that are one number).

    Raises:
        ValueError: If values cannot be stored so.
    """
    step = max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))
    chunks = [slice(first, first + step) for first in range(0, len(values), step)]
    scale = None
    if dtype == torch.int8:
        largest = torch.zeros(values.shape[1:] or (1,), dtype=values.dtype, device=values.device)
        for chunk in chunks:
            # `amax` keeps a NaN, and so does `maximum`.
            torch.maximum(largest, values[chunk].abs().amax(0), out=largest)
        scale = scale_of(largest)
    stored = empty_rows(values.shape, dtype)
    for chunk in chunks:
        stored[chunk] = narrow(values[chunk], dtype, scale)
    return stored, None if scale is None else scale.cpu()


def scale_of(largest: Tensor) -> Tensor:
    """Choose the scale of each column from the largest magnitude in it, same shape.

    Raises:
        ValueError: If a magnitude is not finite in float32.
    """
    # Below the smallest normal number a scale would be too coarse itself; a column of zeros can have any.
    smallest = torch.finfo(torch.float32).tiny
    scale = (largest.double() / 127).float()
    if not bool(scale.isfinite().all()):
        raise ValueError(
            "`stored_as='int8'` must have finite values that float32 can hold, but a column's largest magnitude is"
            f" {float(largest[~scale.isfinite()][0])}. HINT: replace NaN and infinity, e.g. with `torch.nan_to_num`."
        )
    # A scale that was rounded up may make the largest float32 infinite.
    scale = torch.where((scale * 127).isinf(), torch.nextafter(scale, torch.zeros_like(scale)), scale)
    return torch.where(largest == 0, torch.ones_like(scale), scale.clamp(min=smallest))


def narrow(values: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """Convert values at once.

    Args:
        values: Floating-point values.
        dtype: The type to store.
        scale: For int8, what a step is worth; of a shape that broadcasts to that of `values`.

    Raises:
        ValueError: If a finite value becomes infinite.
    """
    if scale is not None:
        wide = values if values.dtype == torch.float64 else values.float()
        return (wide / scale).round_().clamp_(-127, 127).to(torch.int8)
    stored = values.to(dtype)
    overflown = stored.isinf() & ~values.isinf()
    if bool(overflown.any()):
        name = str(dtype).removeprefix("torch.")
        way_out = "bfloat16" if dtype == torch.float16 else "None"
        raise ValueError(
            f"`stored_as={name!r}` must hold every value, the largest being {torch.finfo(dtype).max:g}, but got"
            f" {float(values[overflown][0]):g}."
            f" HINT: use `stored_as={way_out if way_out == 'None' else repr(way_out)}`, or scale the values."
        )
    return stored

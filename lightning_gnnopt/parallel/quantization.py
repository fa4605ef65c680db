"""Rows in few bits, rounded at random so that they are right on average."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 4, 8)
_HEAD_BYTES = 4  # of a row: its least value and its step, bfloat16 each


def packed_bytes(num_values: int, bits: int) -> int:
    """Bytes of a row of so many values: ``ceil(bits * num_values / 8) + 4``.

    Examples:
        >>> packed_bytes(64, 4), packed_bytes(5, 2)
        (36, 6)
    """
    return -(-bits * num_values // 8) + _HEAD_BYTES


def pack(rows: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Store each row's values as multiples of a step above its least value (Wan et al., MLSys 2023).

    A value between two multiples becomes one of them, with a chance that makes the expected value right. The least
    value and the step are rounded outwards, so that no value lies beyond them.

    Args:
        rows: Floating, shape ``(R, F)``, finite.
        bits: 2, 4 or 8 for each value.
        generator: Of the random numbers, on the rows' device.

    Returns:
        Uint8, shape ``(R, ceil(bits * F / 8) + 4)``.
    """
    values = rows.float()
    num_rows, num_values = values.shape
    if num_values == 0:
        return rows.new_zeros(num_rows, _HEAD_BYTES, dtype=torch.uint8)
    low = _outwards(values.amin(dim=1), upwards=False)
    step = _outwards((values.amax(dim=1) - low.float()) / (2**bits - 1), upwards=True)
    widths = step.float().clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    noise = torch.rand(values.shape, generator=generator, device=values.device)
    levels = ((values - low.float().unsqueeze(1)) / widths + noise).floor().clamp(0, 2**bits - 1).to(torch.uint8)
    per_byte = 8 // bits
    if pad := -num_values % per_byte:
        levels = torch.nn.functional.pad(levels, (0, pad))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)
    packed = (levels.view(num_rows, levels.size(1) // per_byte, per_byte) << shifts).sum(dim=2, dtype=torch.uint8)
    head = torch.stack([low, step], dim=1).view(torch.uint8)
    return torch.cat([head, packed], dim=1)


def unpack(packed: Tensor, num_values: int, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo :func:`pack`, up to its rounding.

    Args:
        packed: Uint8, shape ``(R, packed_bytes(num_values, bits))``.
        num_values: Values of a row, ``F``.
        bits: As they were packed.
        dtype: Of the result.

    Returns:
        Shape ``(R, F)``.
    """
    head = packed[:, :_HEAD_BYTES].reshape(-1).view(torch.bfloat16).view(len(packed), 2).float()
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    levels = (packed[:, _HEAD_BYTES:].unsqueeze(2) >> shifts) & (2**bits - 1)
    values = levels.flatten(1)[:, :num_values].float()
    rows: Tensor = head[:, :1] + values * head[:, 1:]
    return rows.to(dtype)


def _outwards(values: Tensor, *, upwards: bool) -> Tensor:
    """Round to bfloat16, away from the values in between."""
    rounded = values.to(torch.bfloat16)
    infinity = torch.full_like(rounded, float("inf") if upwards else float("-inf"))
    is_short = rounded.float() < values if upwards else rounded.float() > values
    return torch.where(is_short, torch.nextafter(rounded, infinity), rounded)

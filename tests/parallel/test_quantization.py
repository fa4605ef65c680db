"""Rows in few bits: their bytes, their error, and that they are right on average."""

from __future__ import annotations

import pytest
import torch

from lightning_gnnopt.parallel.quantization import BITS, pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("num_values", [1, 3, 8, 13])
def test_rows_take_the_bytes_they_should_and_are_off_by_less_than_a_step(bits: int, num_values: int) -> None:
    rows = torch.randn(50, num_values) * 10 ** torch.randn(50, 1)
    packed = pack(rows, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (50, -(-bits * num_values // 8) + 4)
    assert packed.size(1) == packed_bytes(num_values, bits)
    found = unpack(packed, num_values, bits)
    reach = rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
    head = 2.0**-7 * rows.abs().amax(1, keepdim=True)  # the least value in bfloat16
    step = 1.01 * (reach + head) / (2**bits - 1)
    assert ((found - rows).abs() <= step).all()


@pytest.mark.parametrize("bits", BITS)
def test_they_are_right_on_average_and_spread_no_more_than_a_step_allows(bits: int) -> None:
    """At four standard errors, or ten in all for a level that is hardly ever taken."""
    torch.manual_seed(0)
    rows, times = torch.randn(6, 10), 4000
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([unpack(pack(rows, bits, generator), 10, bits) for _ in range(times)]).double()
    error = (drawn.mean(0) - rows.double()).abs()
    widest = 1.02 * (rows.amax(1) - rows.amin(1) + 2.0**-7 * rows.abs().amax(1)) / (2**bits - 1)
    assert (error <= 4 * drawn.std(0) / times**0.5 + 10 * widest.unsqueeze(1) / times).all()
    assert error.mean() <= drawn.std(0).mean() / times**0.5  # of a normal deviation, 0.8 of the standard one
    assert (drawn.var(0) <= (widest**2 / 4).unsqueeze(1)).all()
    assert drawn.var(0).max() > 0


def test_multiples_of_a_step_are_exact() -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0, 1.0], [-8.0, -8.0, 4.0, 0.0, -4.0], [0.0] * 5])
    assert torch.equal(unpack(pack(rows, 2), 5, 2), rows)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_is_packed_into_next_to_nothing(shape: tuple[int, int]) -> None:
    packed = pack(torch.zeros(shape), 4)
    assert packed.shape == (shape[0], packed_bytes(shape[1], 4))
    assert unpack(packed, shape[1], 4, torch.float64).shape == shape

"""Exchanging rows: gradients by finite differences, and both kinds of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_gnnopt.parallel.halo import fetch_halo, global_sum, plain_wire
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from tests.parallel.ranks import graph, parts_of, plan_of

N = 11  # not divisible by three


@pytest.mark.parametrize("kind", ["uneven", "without-a-halo"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    """The function is all ranks together, from all rows to all halos, weighted: a scalar on one thread."""
    edge_index = graph(N, 30)
    owner = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    if kind == "without-a-halo":
        edge_index = edge_index[:, torch.from_numpy(owner)[edge_index[1]] != 1]  # rank 1 receives nothing, but sends
    parts = parts_of(edge_index, owner, 3)
    assert [part.num_halo > 0 for part in parts] == [True, kind == "uneven", True]
    weights = [torch.randn(part.num_halo, 2, dtype=torch.float64) for part in parts]

    def forward(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        def work(channel: ThreadChannel) -> tuple[float, torch.Tensor, torch.Tensor]:
            part = parts[channel.rank]
            nodes = torch.from_numpy(part.inner)
            rows = x[nodes].clone().requires_grad_()
            halo = fetch_halo(rows, plan_of(part), plain_wire(channel))
            assert torch.equal(halo, x[torch.from_numpy(part.halo)])
            value = (halo.sin() * weights[channel.rank]).sum()
            value.backward()
            return float(value), nodes, rows.grad  # type: ignore[return-value]

        grad, total = torch.zeros_like(x), 0.0
        for value, nodes, rows in run_ranks(3, work):
            total += value
            grad[nodes] = rows
        return total, grad

    x = torch.randn(N, 2, dtype=torch.float64)
    _, grad = forward(x)
    step = 1e-6
    for i in range(N):
        for j in range(2):
            up, down = x.clone(), x.clone()
            up[i, j] += step
            down[i, j] -= step
            assert (forward(up)[0] - forward(down)[0]) / (2 * step) == pytest.approx(float(grad[i, j]), abs=1e-6)


def test_a_global_sum_gives_each_rank_the_gradients_of_all() -> None:
    def work(channel: ThreadChannel) -> tuple[float, float]:
        x = torch.tensor(float(channel.rank), requires_grad=True)
        total = global_sum(x, channel)
        (total * (channel.rank + 1)).backward()
        assert x.grad is not None
        return float(total.detach()), float(x.grad)

    assert run_ranks(3, work) == [(3.0, 6.0)] * 3


def test_what_a_rank_raises_is_raised_and_the_others_end() -> None:
    def work(channel: ThreadChannel) -> None:
        if channel.rank == 1:
            raise KeyError("rank 1")
        channel.sum(torch.zeros(1))

    with pytest.raises(KeyError, match="rank 1"):
        run_ranks(3, work, timeout_s=30.0)


def test_ranks_that_disagree_on_counts_are_told() -> None:
    def work(channel: ThreadChannel) -> None:
        channel.start(torch.zeros(2, 1), [0, 2] if channel.rank == 0 else [2, 0], [0, 1])

    with pytest.raises(RuntimeError, match=r"expected \[0, 1\] rows of the ranks, but got \["):
        run_ranks(2, work, timeout_s=30.0)

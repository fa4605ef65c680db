"""What is fetched under each policy: against the exact one, by bytes, on average, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from lightning_gnnopt.parallel import BNS, Quantized, Stale
from lightning_gnnopt.parallel.policies import Policies
from lightning_gnnopt.parallel.sampled import sample_plan
from lightning_gnnopt.parallel.wires import StaleWires
from tests.parallel.ranks import graph, on_parts, on_whole, parts_of, plan_of
from tests.parallel.test_exact import CONVS, F, N, Net, assert_same, heads, owners, weighted

PARTS = 3


def make(conv: str = "sage", seed: int = 0) -> tuple[nn.Module, Tensor, Any, Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(seed)
    net = Net(CONVS[conv]).double()
    x, weights = torch.randn(N, F, dtype=torch.float64), torch.randn(N, 8, dtype=torch.float64)
    return net, x, parts_of(graph(N), owners("random", PARTS), PARTS), weighted(weights)


@pytest.mark.parametrize("conv", ["sage", "gcn", "gat", "sage-max"])
@pytest.mark.parametrize("policy", [BNS(1.0), Stale(), Stale(3, 0.9)], ids=str)
def test_these_are_exact_in_a_first_step(conv: str, policy: Any) -> None:
    net, x, parts, loss = make(conv)
    assert_same(on_parts(net, x, parts, loss, policy=policy), on_whole(net, x, graph(N), loss), 1e-10)


@pytest.mark.parametrize("policy", [BNS(0.0), BNS(0.2), Quantized(2), [BNS(0.2), Quantized(4)]], ids=str)
def test_evaluation_fetches_everything_as_it_is(policy: Any) -> None:
    net, x, parts, loss = make("gat")
    got = on_parts(net, x, parts, loss, policy=policy, training=False)
    assert_same(got, on_whole(net, x, graph(N), loss), 1e-10)
    different = on_parts(net, x, parts, loss, policy=policy)
    assert (different.out - got.out).abs().max() > 1e-3


@pytest.mark.parametrize("conv", ["graph", "gat", "transformer", "sage-max"])
def test_without_a_halo_parts_are_on_their_own(conv: str) -> None:
    net, x, parts, loss = make(conv)
    owner = torch.from_numpy(owners("random", PARTS))
    source, target = graph(N)
    alone = on_whole(net, x, graph(N)[:, owner[source] == owner[target]], loss)
    assert_same(on_parts(net, x, parts, loss, policy=BNS(0.0)), alone, 1e-10)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.999])
def test_both_sides_draw_the_same_rows(share: float) -> None:
    parts = parts_of(graph(N), owners("random", PARTS), PARTS)
    plans = [sample_plan(plan_of(part), share, rank=part.rank, key=(5, 7)) for part in parts]
    for sender, part in zip(plans, parts, strict=True):
        for whole, count in zip(part.send_counts, sender.send_counts, strict=True):
            assert count == (max(1, round(share * whole)) if whole else 0)
        for receiver, other in zip(plans, parts, strict=True):
            assert receiver.recv_index is not None
            sent = torch.split(sender.send_index, sender.send_counts)[other.rank].numpy()
            received = torch.split(receiver.recv_index, receiver.recv_counts)[part.rank].numpy()
            assert part.inner[sent].tolist() == other.halo[received].tolist()
    again = sample_plan(plan_of(parts[0]), share, rank=0, key=(5, 8))
    assert share == 0.999 or again.send_index.tolist() != plans[0].send_index.tolist()


def test_a_sampled_halo_is_right_on_average() -> None:
    """At four standard errors."""
    plan, times = plan_of(parts_of(graph(N), owners("random", PARTS), PARTS)[1]), 2000
    rows = torch.randn(plan.num_halo, 2, dtype=torch.float64)
    drawn = []
    for step in range(times):
        one = sample_plan(plan, 0.3, rank=1, key=(0, step))
        assert one.recv_index is not None
        drawn.append(one.place(rows[one.recv_index]))
    found = torch.stack(drawn)
    assert ((found.mean(0) - rows).abs() <= 4 * found.std(0) / times**0.5).all()


@pytest.mark.parametrize(
    ("conv", "policy", "row_bytes"),
    [
        ("sage", BNS(0.25), 64),
        ("gatv2", BNS(0.25), 64),
        ("sage", Quantized(4), 8),
        ("sage", [BNS(0.25), Quantized(8)], 12),
        ("sage", Stale(), 64),
    ],
    ids=str,
)
def test_what_travels_is_counted(conv: str, policy: Any, row_bytes: int) -> None:
    """Two layers of eight values each; what is drawn is the same in both, forward and backward."""
    net, x, parts, loss = make(conv)
    got = on_parts(net, x, parts, loss, policy=policy)
    share = 0.25 if "BNS" in str(policy) else 1.0

    def size(counts: Sequence[int]) -> int:
        return sum(max(1, round(share * count)) if count else 0 for count in counts)

    for part, traffic in zip(parts, got.traffic, strict=True):
        assert traffic.by_kind["forward"] == 2 * size(part.send_counts) * row_bytes
        assert traffic.by_kind["backward"] == 2 * size(part.recv_counts) * row_bytes


@pytest.mark.parametrize("conv", ["sage", "gat", "gcn"])
def test_forward_and_backward_pass_draw_the_same(conv: str) -> None:
    net, x, parts, loss = make(conv)
    run = partial(on_parts, net, parts=parts, policy=BNS(0.4), step=3)

    def value(moved: Tensor) -> float:
        return float(loss(run(x=moved, loss=loss).out, torch.arange(N)))

    grad, step = run(x=x, loss=loss).grad_x, 1e-6
    rng = np.random.default_rng(0)
    for i, j in zip(rng.integers(0, N, 6), rng.integers(0, F, 6), strict=True):
        up, down = x.clone(), x.clone()
        up[i, j] += step
        down[i, j] -= step
        assert (value(up) - value(down)) / (2 * step) == pytest.approx(float(grad[i, j]), abs=1e-5)


@pytest.mark.parametrize(("bits", "bar"), [(2, 3.0), (4, 0.6), (8, 0.04)])
def test_more_bits_are_nearer(bits: int, bar: float) -> None:
    net, x, parts, loss = make("gat")
    exact, got = on_whole(net, x, graph(N), loss), on_parts(net, x, parts, loss, policy=Quantized(bits))
    assert 0 < (got.out - exact.out).abs().max() < bar
    assert 0 < (got.grad_x - exact.grad_x).abs().max() < 10 * bar


def test_stale_rows_are_those_of_some_steps_ago() -> None:
    def plain(rows: Tensor, send: Sequence[int], recv: Sequence[int], kind: str) -> Callable[[], Tensor]:
        return lambda: rows.clone()

    def run(delay: int, smooth: float) -> list[list[float]]:
        wires, found = StaleWires(delay, smooth), []
        for step in range(5):
            wires.start()
            ways = [wires.next(plain), wires.next(plain)]  # two layers
            given = [
                float(way(torch.full((1, 1), 10.0 * layer + step), [1], [1], kind)())
                for kind in ("forward", "backward")
                for layer, way in enumerate(ways)
            ]
            found.append(given)
        return found

    assert run(1, 0.0) == [[0, 10, 0, 10], [0, 10, 0, 10], [1, 11, 1, 11], [2, 12, 2, 12], [3, 13, 3, 13]]
    assert [step[0] for step in run(3, 0.0)] == [0, 1, 2, 0, 1]
    averages = [0.0, 0.0, 0.25 * 1, 0.75 * 0.25 + 0.25 * 2, 0.75 * (0.75 * 0.25 + 0.25 * 2) + 0.25 * 3]
    assert [step[0] for step in run(1, 0.75)] == pytest.approx(averages)


def test_a_linear_convolution_has_its_sources_scaled_and_another_one_not() -> None:
    """A part's sum over few drawn sources stands for all of them; attention among them does not."""
    net, x, parts, loss = make("graph")
    outs = torch.stack([on_parts(net.first, x, parts, loss, policy=BNS(0.3), step=s).out for s in range(150)])  # type: ignore[arg-type, union-attr]
    exact = on_whole(net.first, x, graph(N), loss).out  # type: ignore[arg-type, union-attr]
    error = (outs.mean(0) - exact).abs()
    assert (error <= 5 * outs.std(0) / 150**0.5 + 1e-9).all()
    attention = heads(pyg.GATConv, F, 8).double()
    one = on_parts(attention, torch.ones_like(x), parts, loss, policy=BNS(0.3)).out
    assert torch.allclose(one, on_whole(attention, torch.ones_like(x), graph(N), loss).out)  # a mean of equal rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("exakt", "exakt.*exact"),
        ([BNS(), Stale()], "`Stale` cannot be combined with `BNS`"),
        ([BNS(), "bns"], "two policies of the kind 'bns'"),
        ([3], "A policy must be one of"),
    ],
    ids=str,
)
def test_policies_that_make_no_sense_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policies.of(given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: BNS(1.5), "`p` must be from 0 to 1, but got 1.5"),
        (lambda: BNS(lambda step: -1.0).share(3), "`p` must be from 0 to 1, but got -1.0"),
        (lambda: Quantized(3), r"`bits` must be one of \(2, 4, 8\), but got 3"),
        (lambda: Stale(0), "`delay` must be at least 1"),
        (lambda: Stale(1, 1.0), r"`smooth` must be in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()

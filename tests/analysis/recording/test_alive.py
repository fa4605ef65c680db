from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from lightning_gnnopt.analysis.recording.alive import AliveTensors
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.memory import PeakMeter

HERE = Label("forward", "a")


def test_the_peak_and_who_is_there_are_those_of_the_allocator() -> None:
    torch.manual_seed(0)
    conv = GATConv(16, 8, heads=2)
    x, edge_index = torch.randn(50, 16), torch.randint(50, (2, 400))

    def step() -> None:
        conv(x, edge_index).square().mean().backward()

    step()
    conv.zero_grad()
    with PeakMeter("cpu") as meter:
        step()
    conv.zero_grad()
    alive = AliveTensors(lambda: HERE)
    alive.begin()
    step()
    alive.end()
    assert alive.peak_bytes == meter.peak.allocated_bytes
    assert sum(tensor.nbytes for tensor in alive.at_peak) == alive.peak_bytes
    assert [tensor.nbytes for tensor in alive.at_peak] == sorted((t.nbytes for t in alive.at_peak), reverse=True)


def test_each_tensor_knows_its_operator_shape_and_line() -> None:
    alive = AliveTensors(lambda: HERE)
    alive.begin()
    x = torch.ones(3, 5)  # first
    y = x.double()  # second
    view = y[1:]
    view += 1  # in place: no memory
    del view
    alive.end()
    first, second = sorted(alive.at_peak, key=lambda tensor: tensor.nbytes)
    assert (first.nbytes, first.shape, first.dtype, first.op) == (60, "3x5", "float32", "aten::ones")
    assert (second.nbytes, second.shape, second.dtype, second.op) == (120, "3x5", "float64", "aten::_to_copy")
    source = __import__("inspect").getsource(test_each_tensor_knows_its_operator_shape_and_line).splitlines()
    start = test_each_tensor_knows_its_operator_shape_and_line.__code__.co_firstlineno
    for tensor, mark in ((first, "# first"), (second, "# second")):
        line = start + next(place for place, text in enumerate(source) if text.endswith(mark))
        assert tensor.line == f"recording/test_alive.py:{line} in test_each_tensor_knows_its_operator_shape_and_line"
    assert y.sum() == 25


def test_a_backward_pass_is_told_by_the_line_that_ran_the_forward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    alive = AliveTensors(lambda: HERE)

    def forward() -> Tensor:
        return weight.exp()

    alive.begin()
    out = forward().sum()
    out.backward()
    alive.end()
    lines = {tensor.line.partition(" in ")[2] for tensor in alive.at_peak if tensor.nbytes == 4000}
    assert lines == {"forward"}
    assert len([tensor for tensor in alive.at_peak if tensor.nbytes == 4000]) == 2  # exp's, and the gradient


def test_a_line_is_the_users_not_torchs_pygs_or_lightnings() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    alive = AliveTensors(lambda: HERE)
    alive.begin()
    out = model(torch.zeros(2, 4))
    alive.end()
    assert {tensor.line.partition(":")[0] for tensor in alive.at_peak} == {"recording/test_alive.py"}
    assert out.shape == (2, 4)


def test_what_is_released_is_let_go_of() -> None:
    alive = AliveTensors(lambda: HERE)
    alive.begin()
    large = torch.zeros(10_000)
    del large
    small = torch.zeros(10)
    alive.end()
    gc.collect()
    assert alive.peak_bytes == 40_000
    assert [tensor.nbytes for tensor in alive.at_peak] == [40_000]
    assert small.sum() == 0


def test_a_tensor_that_is_kept_does_not_keep_what_followed_it() -> None:
    alive = AliveTensors(lambda: HERE)
    alive.begin()
    kept = torch.zeros(10)
    alive.end()
    gone = weakref.ref(alive)
    del alive
    gc.collect()
    assert gone() is None
    assert kept.sum() == 0

"""Copies are equal, independent, share what the originals share, and reuse their memory."""

from __future__ import annotations

import copy
import io
import threading
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gnnopt.evaluation.copying import Copied, CopyPool
from lightning_gnnopt.evaluation.weights import weights_of

Pair = namedtuple("Pair", ["left", "right"])
LARGE = 5000  # elements: more than a small tensor


class Opaque:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.numbers = tensor, [1, 2]


def test_a_nest_is_copied_with_its_types_and_does_not_change_afterwards() -> None:
    x = torch.randn(LARGE)
    value = {
        "list": [x, 1, None, "s"],
        "tuple": (x, Pair(torch.arange(3), 2.0)),
        "ordered": OrderedDict(b=torch.ones(2), a=torch.zeros(2)),
        "default": defaultdict(list, k=[torch.ones(())]),
        3: torch.Size([1, 2]),
    }
    expected = copy.deepcopy(value)
    copied = CopyPool().copy(value)
    x.zero_()
    value["list"].append("more")
    value["tuple"][1].left.zero_()
    new = copied.value
    assert torch.equal(new["list"][0], expected["list"][0])
    assert new["list"][1:] == [1, None, "s"]
    assert type(new["tuple"][1]) is Pair
    assert torch.equal(new["tuple"][1].left, torch.arange(3))
    assert type(new["ordered"]) is OrderedDict
    assert list(new["ordered"]) == ["b", "a"]
    assert type(new["default"]) is defaultdict
    assert new["default"].default_factory is list
    assert new[3] == torch.Size([1, 2])
    assert new["tuple"][0] is new["list"][0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(LARGE),
        torch.randn(80, 90).t(),
        torch.randn(80, 90)[:, ::2],
        torch.randn(LARGE)[100:],
        torch.randn(1, 3).expand(2000, 3),
        torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last),
        torch.randn(40, 1, 50).permute(2, 1, 0),
        torch.randn(LARGE).to(torch.bfloat16),
        torch.randint(0, 9, (LARGE,)),
        torch.rand(LARGE) > 0.5,
        torch.randn(LARGE, dtype=torch.complex64).conj(),
        torch.randn(LARGE, dtype=torch.complex64).conj().imag,
        torch.empty(0, 7),
        torch.tensor(3.0),
        torch.eye(60).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}-{tensor.layout}",
)
def test_a_tensor_of_any_kind(tensor: torch.Tensor) -> None:
    new = CopyPool().copy([tensor]).value[0]
    assert (new.shape, new.dtype, new.layout, new.device) == (
        tensor.shape,
        tensor.dtype,
        tensor.layout,
        tensor.device,
    )
    if not tensor.is_meta:
        dense = (lambda t: t.to_dense()) if tensor.is_sparse else (lambda t: t)
        assert torch.equal(dense(new), dense(tensor))
        assert tensor.is_sparse or not tensor.numel() or new.data_ptr() != tensor.data_ptr()


def test_a_dense_tensor_keeps_its_strides() -> None:
    tensor = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    assert CopyPool().copy(tensor).value.stride() == tensor.stride()


def test_parameters_become_plain_tensors_without_gradients() -> None:
    parameter = nn.Parameter(torch.randn(LARGE))
    new = CopyPool().copy({"p": parameter, "computed": parameter * 2}).value
    assert type(new["p"]) is torch.Tensor
    assert not new["p"].requires_grad
    assert not new["computed"].requires_grad
    assert torch.equal(new["computed"], parameter.detach() * 2)


def test_tensors_that_share_memory_share_it_in_the_copy_and_in_the_file() -> None:
    weight = torch.randn(LARGE)
    value = {"a": weight, "b": weight.detach(), "c": weight.view(50, 100), "other": weight.clone()}
    new = CopyPool().copy(value).value
    assert new["a"].data_ptr() == new["b"].data_ptr()
    assert new["c"].data_ptr() != new["a"].data_ptr()
    assert torch.equal(new["c"], weight.view(50, 100))
    file = io.BytesIO()
    torch.save(new, file)
    three = 3 * weight.nbytes
    assert three < len(file.getvalue()) < three + 4096


def test_lists_that_are_shared_or_contain_themselves_stay_so() -> None:
    inner = [torch.ones(2)]
    value = {"a": inner, "b": inner}
    value["self"] = value
    new = CopyPool().copy(value).value
    assert new["a"] is new["b"]
    assert new["self"] is new


def test_other_objects_are_deep_copied_with_the_tensors_copies() -> None:
    tensor = torch.randn(LARGE)
    opaque = Opaque(tensor)
    new = CopyPool().copy({"tensor": tensor, "opaque": opaque}).value
    opaque.numbers.append(3)
    assert new["opaque"].tensor is new["tensor"]
    assert new["opaque"].numbers == [1, 2]


def test_lazy_parameters_are_copied() -> None:
    state = nn.LazyLinear(4).state_dict()
    new = CopyPool().copy(state).value
    assert isinstance(new["weight"], nn.parameter.UninitializedParameter)


def test_a_copy_taken_in_inference_mode_can_be_reused_outside() -> None:
    pool, source = CopyPool(), torch.randn(LARGE)
    with torch.inference_mode():
        pool.copy(source).release()
    copied = pool.copy(source)
    assert not copied.value.is_inference()
    assert torch.equal(copied.value, source)


def test_released_buffers_are_reused() -> None:
    pool, source = CopyPool(), torch.randn(LARGE)
    first = pool.copy([source])
    place = first.value[0].data_ptr()
    second = pool.copy([source])
    assert second.value[0].data_ptr() != place
    first.release()
    first.release()
    third = pool.copy([source])
    assert third.value[0].data_ptr() == place
    assert pool.held_bytes == 2 * source.nbytes


def test_a_released_copy_has_no_value() -> None:
    copied = CopyPool().copy([1])
    copied.release()
    with pytest.raises(RuntimeError, match=r"was released\. HINT: use `value` before"):
        _ = copied.value


def test_the_pool_never_holds_more_than_it_once_handed_out() -> None:
    pool = CopyPool()
    sizes = [2000, 3000, 5000, 7000]
    peak = 0
    generator = torch.Generator().manual_seed(0)
    out: list = []
    for _ in range(200):
        if out and torch.rand((), generator=generator) < 0.5:
            out.pop(0)[0].release()
        else:
            size = sizes[int(torch.randint(4, (), generator=generator))]
            out.append((pool.copy(torch.zeros(size)), size))
        in_use = sum(4 * size for _, size in out)
        peak = max(peak, in_use)
        assert in_use <= pool.held_bytes <= peak
    for copied, _ in out:
        copied.release()
    assert pool.held_bytes <= peak


def test_a_copy_that_fails_gives_its_buffers_back() -> None:
    pool, source = CopyPool(), torch.randn(LARGE)
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.copy([source, threading.Lock()])
    assert pool.held_bytes == source.nbytes
    pool.copy(source)
    assert pool.held_bytes == source.nbytes


def test_threads_may_release_while_another_copies() -> None:
    pool, source = CopyPool(), torch.arange(LARGE)
    wrong = []

    def check(copied: Copied, expected: Any) -> None:
        if not bool((copied.value == source + expected).all()):
            wrong.append(expected)
        for _ in range(2):
            copied.release()

    threads = []
    for n in range(100):
        thread = threading.Thread(target=check, args=(pool.copy(source + n), n))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    assert wrong == []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("left_out", torch.full((2,), 5.0), persistent=False)
        self.register_buffer("nothing", None, persistent=False)
        self.inner[0].register_buffer("deep", torch.full((2,), 7.0), persistent=False)


def test_weights_hold_the_state_and_the_buffers_that_a_state_dict_leaves_out() -> None:
    net = Net()
    weights = weights_of(net)
    assert list(weights["state_dict"]) == list(net.state_dict())
    assert weights["state_dict"]["inner.0.weight"].data_ptr() == net.inner[0].weight.data_ptr()
    assert {name: value.tolist() for name, value in weights["buffers"].items()} == {
        "left_out": [5.0, 5.0],
        "inner.0.deep": [7.0, 7.0],
    }


def test_weights_of_compiled_modules_have_the_names_of_plain_ones() -> None:
    net, plain = Net(), Net()
    net.inner[0] = torch.compile(net.inner[0])
    net.inner = torch.compile(net.inner)
    compiled = torch.compile(net)
    assert any("_orig_mod" in name for name in compiled.state_dict())
    weights = weights_of(compiled)
    assert list(weights["state_dict"]) == list(plain.state_dict())
    assert set(weights["buffers"]) == {"left_out", "inner.0.deep"}
    assert dict(weights["state_dict"]._metadata) == dict(plain.state_dict()._metadata)
    plain.load_state_dict(weights["state_dict"])
    assert torch.equal(plain.inner[0].weight, net.state_dict()["inner._orig_mod.0._orig_mod.weight"])


def test_a_copied_state_dict_keeps_its_versions_through_a_file(tmp_path: Path) -> None:
    state = Net().state_dict()
    copied = CopyPool().copy(state).value
    torch.save(copied, tmp_path / "x")
    loaded = torch.load(tmp_path / "x", weights_only=True)
    assert dict(loaded._metadata) == dict(state._metadata)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_adams_state_is_copied_as_it_is() -> None:
    net = nn.Linear(80, 80)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(4, 80)).sum().backward()
    optimizer.step()
    expected = copy.deepcopy(optimizer.state_dict())
    copied = CopyPool().copy(optimizer.state_dict())
    optimizer.step()
    assert copied.value["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        assert all(torch.equal(copied.value["state"][index][name], value) for name, value in state.items())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_from_cuda_are_of_the_moment_they_were_asked_for() -> None:
    pool, stream = CopyPool(), torch.cuda.Stream()
    for n in range(20):
        with torch.cuda.stream(stream):
            x = torch.full((1 << 22,), float(n), device="cuda")
            copied = pool.copy({"x": x, "strided": x.view(2, -1).t()[::2], "small": x[:2], "cpu": torch.ones(2)})
            x.fill_(-1.0)
        copied.wait()
        value = copied.value
        assert all(t.device.type == "cpu" for t in value.values())
        assert all(bool((value[name] == n).all()) for name in ("x", "strided", "small"))
        assert value["x"].is_pinned()
        copied.release()
    assert pool.held_bytes == x.nbytes * 3 // 2 + 8

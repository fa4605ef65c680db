"""Attributes of every kind are taken back after steps within `untouched`."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch_geometric import EdgeIndex

from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.memory import untouched as untouched_module
from tests.memory import probing
from tests.memory.probing import Probe, Tiny, different, inside, run
from tests.memory.runs import same_state

# Attributes of every kind


def _itself() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def _moved(value: OrderedDict[str, int]) -> None:
    value.move_to_end("a")
    value["b"] += 1


def _grown(value: Any) -> None:
    value["new"] += 1


# What there is, and what a step does to it.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1, 2], lambda v: v.append(3)),
    "list emptied": (lambda: [1, 2], lambda v: v.clear()),
    "list of tensors": (lambda: [torch.ones(2), torch.ones(3)], lambda v: [t.add_(1) for t in v]),
    "list of lists": (lambda: [[1], [2]], lambda v: (v[0].append(5), v.pop())),
    "dict": (lambda: {"a": 1, "b": 2}, lambda v: (v.pop("a"), v.update(c=3))),
    "dict of the same size": (lambda: {"a": 1}, lambda v: (v.pop("a"), v.update(b=1))),
    "dict of tensors": (lambda: {"a": torch.ones(2)}, lambda v: v.update(a=torch.zeros(2))),
    "dict in place": (lambda: {"a": {"b": torch.ones(2)}}, lambda v: v["a"]["b"].zero_()),
    "ordered dict": (lambda: OrderedDict(a=1, b=2, c=3), _moved),
    "counter": (lambda: Counter("aab"), lambda v: v.update("abbc")),
    "defaultdict": (lambda: defaultdict(int, a=1), _grown),
    "deque": (lambda: deque([1, 2, 3], maxlen=3), lambda v: v.append(4)),
    "set": (lambda: {1, 2}, lambda v: (v.add(3), v.discard(1))),
    "tuple": (lambda: (torch.ones(2), [1]), lambda v: (v[0].zero_(), v[1].append(2))),
    "tensor": (lambda: torch.arange(6.0).view(2, 3), lambda v: v.mul_(-1)),
    "transposed": (lambda: torch.arange(6.0).view(2, 3).t(), lambda v: v.mul_(-1)),
    "long": (lambda: torch.arange(3), lambda v: v.add_(1)),
    "bool": (lambda: torch.tensor([True, False]), lambda v: v.logical_not_()),
    "bfloat16": (lambda: torch.ones(3, dtype=torch.bfloat16), lambda v: v.add_(1)),
    "nan": (lambda: torch.tensor([1.0, torch.inf]), lambda v: v.fill_(torch.nan)),
    "edge index": (lambda: EdgeIndex([[0, 1], [1, 0]], sparse_size=(2, 2)), lambda v: None),
    "sparse": (lambda: torch.eye(3).to_sparse_csr(), lambda v: None),
    "expanded": (lambda: torch.ones(1).expand(4), lambda v: None),
    "itself": (_itself, lambda v: v.append(3)),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to_dense().clone() if value.layout != torch.strided else torch.Tensor.as_subclass(value, Tensor)
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [("itself" if item is value else _plain(item)) for item in value]
    return copy.copy(value)


@pytest.mark.parametrize("where", ["module", "submodule"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_is_taken_back(kind: str, where: str) -> None:
    make, change = KINDS[kind]
    value = make()
    before = _plain(make())
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        owner.append(module if where == "module" else module.net[0])
        owner[0].thing = value

    def within(trainer: L.Trainer, module: Tiny) -> None:
        inside(trainer, module)
        change(owner[0].thing)

    probe = Probe(within, at=1, prepare=prepare)
    run(Tiny(), probe)
    assert owner[0].thing is value
    assert same_state(_plain(value), before)
    assert type(value) is type(make())
    probe.before["attributes"] = probe.after["attributes"] = None
    assert different(probe.before, probe.after) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_that_is_replaced_or_deleted_comes_back(kind: str) -> None:
    value = KINDS[kind][0]()
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.first = module.second = value
        owner.append(module)

    def within(trainer: L.Trainer, module: Tiny) -> None:
        module.first = None
        del module.second

    run(Tiny(), Probe(within, prepare=prepare))
    assert owner[0].first is value
    assert owner[0].second is value


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda g: float(torch.rand((), generator=g))),
        (lambda: np.random.default_rng(1), lambda g: g.random()),
        (lambda: np.random.RandomState(1), lambda g: g.random()),
        (lambda: random.Random(1), lambda g: g.random()),
    ],
    ids=["torch", "numpy", "numpy's old one", "python"],
)
def test_a_generator_of_the_models_own_draws_what_it_would_have(make: Any, draw: Any) -> None:
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.generator = make()
        owner.append(module)

    run(Tiny(), Probe(lambda trainer, module: [draw(module.generator) for _ in range(3)], prepare=prepare))
    assert draw(owner[0].generator) == draw(make())


def test_what_a_step_adds_to_modules_is_removed() -> None:
    def change(trainer: L.Trainer, module: Tiny) -> None:
        module.note, module.net[0].note = 1, torch.ones(3)
        module.extra = nn.Linear(2, 2)
        module.net[1].scale = nn.Parameter(torch.ones(1))
        module.register_buffer("mask", torch.ones(2))

    class End(Callback):
        names: tuple[set[str], ...] = ()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            End.names = tuple(set(dir(part)) for part in (pl_module, pl_module.net[0], pl_module.net[1]))

    run(Tiny(), Probe(change), End())
    assert not {"note", "extra", "mask"} & End.names[0]
    assert "note" not in End.names[1]
    assert "scale" not in End.names[2]


def test_a_submodule_that_is_replaced_comes_back() -> None:
    owner: list[Any] = []

    def change(trainer: L.Trainer, module: Tiny) -> None:
        owner.extend([module, module.net])
        module.net = nn.Sequential(nn.Linear(3, 2))

    run(Tiny(), Probe(change))
    assert owner[0].net is owner[1]


def test_gradients_keep_their_memory() -> None:
    probe = Probe(inside, at=2)
    run(Tiny(), probe)
    present = {name: value is not None for name, value in probe.before["gradients"].items()}
    assert not present["net.0.bias"]  # frozen
    assert present["net.0.weight"]
    # `snapshot` notes their ids, too.
    assert same_state(probe.before["gradients"], probe.after["gradients"])


@pytest.mark.parametrize("changes", [False, True])
def test_large_tensors_are_watched_and_not_copied(monkeypatch: pytest.MonkeyPatch, changes: bool) -> None:
    monkeypatch.setattr(untouched_module, "LARGE_BYTES", 2**20)
    large, small = torch.zeros(2**19), torch.zeros(2**17)  # 2 MiB, half a MiB
    growths: list[int] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.large, module.small = large, small

    class Measured(Probe):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with PeakMeter("cpu") as meter:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            growths.append(meter.peak.allocated_bytes)

    def change(trainer: L.Trainer, module: Tiny) -> None:
        module.small += 1
        if changes:
            module.large[3] = 1

    monkeypatch.setattr(probing, "snapshot", lambda trainer, module: {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(Tiny(), Measured(change, prepare=prepare))
    said = [str(w.message) for w in caught if "hangs on the model" in str(w.message)]
    assert len(said) == changes
    assert all("(524288,)" in message for message in said)
    assert float(small.abs().max()) == 0
    # The small one is copied, and nothing else is a tenth as large.
    assert 2**19 <= growths[0] < 2**19 + 2**16


def test_tensors_of_inference_are_taken_back() -> None:
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        with torch.inference_mode():
            module.last = torch.ones(3)
        owner.append(module.last)

    def change(trainer: L.Trainer, module: Tiny) -> None:
        with torch.inference_mode():
            module.last += 1
        inside(trainer, module)

    probe = Probe(change, prepare=prepare)
    run(Tiny(), probe)
    assert owner[0].tolist() == [1, 1, 1]
    assert different(probe.before, probe.after) == []


def test_what_cannot_be_taken_back_does_not_keep_the_rest_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor whose places share memory cannot be written to; parameters must come back all the same."""

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.net[0].weights = torch.ones(1).expand(4)
        module.weights = torch.ones(1).expand(4)

    probe = Probe(inside, at=1, prepare=prepare)
    run(Tiny(), probe)
    assert different(probe.before, probe.after) == []

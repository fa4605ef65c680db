from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_gnnopt.memory.held import fingerprint, held_bytes


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


PARAMETERS = 4 * (15 + 5 + 5 + 5 + 10 + 2)
BUFFERS = 4 * (5 + 5) + 8  # running mean and variance, and how many batches there were


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()


def test_a_model_by_hand() -> None:
    model = net()
    assert held_bytes(model) == PARAMETERS + BUFFERS
    assert held_bytes(model, steady=True) == 2 * PARAMETERS + BUFFERS
    model(torch.randn(4, 3)).sum().backward()
    assert held_bytes(model) == held_bytes(model, steady=True) == 2 * PARAMETERS + BUFFERS


def test_frozen_parameters_never_have_gradients() -> None:
    model = net()
    model[0].requires_grad_(False)
    assert held_bytes(model, steady=True) == PARAMETERS + BUFFERS + PARAMETERS - 4 * 20


OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int]] = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), PARAMETERS),
    "adam": (lambda p: torch.optim.Adam(p), 2 * PARAMETERS + 6 * 4),  # 6 counters of steps
    "amsgrad": (lambda p: torch.optim.AdamW(p, amsgrad=True), 3 * PARAMETERS + 6 * 4),
    "lbfgs": (lambda p: torch.optim.LBFGS(p), 0),  # has state after a closure alone
}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_what_optimizers_keep(name: str) -> None:
    make, state_bytes = OPTIMIZERS[name]
    model = net()
    optimizer = make(model.parameters())
    assert held_bytes(model, [optimizer]) == PARAMETERS + BUFFERS
    trained(model, optimizer)
    assert held_bytes(model, [optimizer]) == 2 * PARAMETERS + BUFFERS + state_bytes
    assert held_bytes(model, [optimizer, optimizer]) == held_bytes(model, [optimizer])


def test_state_in_lists_is_counted() -> None:
    """L-BFGS keeps lists of directions and steps: each a vector of all parameters."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, lr=0.1)
    x, y = torch.randn(8, 3, dtype=torch.float32), torch.randn(8, 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    (state,) = optimizer.state.values()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for value in [model.weight, model.weight.grad, *state.values()]
        for tensor in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(tensor, torch.Tensor)
    }
    assert len(state["old_dirs"]) > 1
    assert held_bytes(model, [optimizer]) == sum(storages.values())


def test_shared_memory_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert held_bytes(model) == 2 * 64
    model[1].weight = model[0].weight
    assert held_bytes(model) == 64
    model.register_buffer("view", model[0].weight.detach()[:2])
    assert held_bytes(model) == 64
    model.register_buffer("copy", model[0].weight.detach().clone()[:2])  # holds all of its memory
    assert held_bytes(model) == 128


def test_empty_tensors_hold_nothing() -> None:
    model = nn.Module()
    model.register_buffer("one", torch.empty(0))
    model.register_buffer("other", torch.empty(0, 7))
    assert held_bytes(model) == 0


def test_sparse_gradients_count_what_they_store() -> None:
    model = nn.Embedding(1000, 8, sparse=True)
    model(torch.tensor([3, 5, 3])).sum().backward()
    assert model.weight.grad is not None
    assert held_bytes(model) == 32_000 + 3 * 8 + 3 * 32  # three ids, three rows


def test_sparse_buffers_count_what_they_store() -> None:
    model = nn.Module()
    model.register_buffer("adjacency", torch.eye(4).to_sparse_csr())
    assert held_bytes(model) == 5 * 8 + 4 * 8 + 4 * 4
    model.register_buffer("other", torch.eye(4).to_sparse_coo())
    assert held_bytes(model) == 88 + 2 * 4 * 8 + 4 * 4


# Fingerprints


def mark(change: Callable[[Any, Any], Any] | None = None) -> str:
    module = L.LightningModule()
    module.net = net()
    trainer = SimpleNamespace(
        optimizers=[torch.optim.Adam(module.parameters(), lr=0.1)],
        precision="32-true",
        accumulate_grad_batches=1,
        gradient_clip_val=None,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    if change is not None:
        change(trainer, module)
    return fingerprint(trainer, module)  # type: ignore[arg-type]


def _replaced(trainer: Any, module: Any) -> None:
    module.net[1] = nn.LayerNorm(5)


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "width": lambda t, m: setattr(m, "net", nn.Linear(3, 6)),
    "another module of the same shapes": _replaced,
    "dtype": lambda t, m: m.double(),
    "a frozen layer": lambda t, m: m.net[0].requires_grad_(False),
    "optimizer": lambda t, m: setattr(t, "optimizers", [torch.optim.SGD(m.parameters(), lr=0.1)]),
    "no optimizer": lambda t, m: setattr(t, "optimizers", []),
    "foreach": lambda t, m: t.optimizers[0].param_groups[0].update(foreach=True),
    "precision": lambda t, m: setattr(t, "precision", "bf16-mixed"),
    "accumulation": lambda t, m: setattr(t, "accumulate_grad_batches", 2),
    "clipping": lambda t, m: setattr(t, "gradient_clip_val", 1.0),
    "device": lambda t, m: setattr(t, "strategy", SimpleNamespace(root_device=torch.device("meta"))),
    "a buffer": lambda t, m: m.register_buffer("x", torch.zeros(3)),
}
SAME: dict[str, Callable[[Any, Any], Any]] = {
    "values": lambda t, m: nn.init.zeros_(m.net[0].weight),
    "learning rate": lambda t, m: t.optimizers[0].param_groups[0].update(lr=0.01),
    "betas": lambda t, m: t.optimizers[0].param_groups[0].update(betas=(0.5, 0.9)),
    "mode": lambda t, m: m.eval(),
    "gradients": lambda t, m: m.net[0](torch.ones(1, 3)).sum().backward(),
}


def test_a_fingerprint_is_the_same_for_the_same() -> None:
    assert mark() == mark()
    assert len({mark(), *(mark(change) for change in SAME.values())}) == 1


def test_a_fingerprint_tells_what_changes_memory() -> None:
    assert len({mark(), *(mark(change) for change in CHANGES.values())}) == 1 + len(CHANGES)

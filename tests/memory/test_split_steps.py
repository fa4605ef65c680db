"""Steps in parts on batches that are plain tensors: the reference is the same run on whole batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.memory.runs import Hooks
from tests.memory.split_runs import ROWS, Net, Split, check_same, fit

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.05),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("num_parts", [1, 2, 5, 12])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_in_parts_is_the_run(name: str, num_parts: int) -> None:
    check_same(lambda: Net(OPTIMIZERS[name]), Split(num_parts))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
        {"accumulate_grad_batches": 8},
        {"max_steps": 5},
        {"limit_train_batches": 2},
        {"val_check_interval": 2},
    ],
    ids=str,
)
def test_a_run_in_parts_with_options_is_the_run(options: dict[str, Any]) -> None:
    check_same(Net, Split(5), **options)


def test_a_summed_loss_is_that_of_the_whole() -> None:
    make = partial(Net, partial(torch.optim.SGD, lr=0.001), reduction="sum")
    expected, whole, _ = fit(make())
    found, parts, _ = fit(make(), Split(5, reduction="sum"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert parts.losses == pytest.approx(whole.losses)


def test_hooks_see_one_step() -> None:
    calls = []
    for callbacks in ([], [Split(5)]):
        hooks = Hooks()
        fit(Net(), *callbacks, hooks)
        calls.append(hooks.calls)
    assert calls[0] == calls[1]


def test_gradients_that_hooks_see_are_those_of_the_whole() -> None:
    class Norms(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norms: list[float] = []

        def on_after_backward(self) -> None:
            self.norms.append(float(sum(p.grad.square().sum() for p in self.parameters() if p.grad is not None)))

    norms = []
    for callbacks in ([], [Split(5)]):
        module = Norms()
        fit(module, *callbacks)
        norms.append(module.norms)
    assert len(norms[0]) == 12
    assert norms[1] == pytest.approx(norms[0], rel=1e-9)


def test_a_step_that_is_skipped() -> None:
    class Skips(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    check_same(Skips, Split(4))


def test_parts_of_which_some_have_no_loss_are_refused() -> None:
    class Skips(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if len(batch) == 2 else super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"must return a loss for each part of a batch.*part 3 of 5 has none\. HINT"):
        fit(Skips(), Split(5))  # of 3, 3, 2, 2, 2 rows


def test_a_loss_among_other_outputs() -> None:
    class Outputs(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "rows": batch[:, 0], "first": (batch[:, 1], 2.5, None)}

    outputs: list[Any] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, output: Any, *args: Any) -> None:
            outputs.append(output)

    fit(Outputs(), Split(5), Keep(), max_epochs=1)
    assert torch.equal(torch.cat([output["rows"] for output in outputs]), ROWS[:, 0])
    assert torch.equal(torch.cat([output["first"][0] for output in outputs]), ROWS[:, 1])
    assert [output["first"][1:] for output in outputs] == [(pytest.approx(2.5), None)] * 4


def test_the_strategy_has_its_own_steps_back() -> None:
    names = ("training_step", "backward", "validation_step", "test_step", "predict_step")

    class Removes(Split):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            self.before = {name: getattr(trainer.strategy, name) for name in names}
            super().setup(trainer, pl_module, stage)
            assert all(getattr(trainer.strategy, name) != value for name, value in self.before.items())

        def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            assert self.steps is not None
            self.steps.remove()
            self.steps.remove()
            self.after = {name: getattr(trainer.strategy, name) for name in names}
            self.left = set(names) & set(vars(trainer.strategy))

    split = Removes()
    fit(Net(), split, max_epochs=1)
    assert split.after == split.before
    assert split.left == set()


def test_switched_off_it_asks_nobody() -> None:
    class Off(Split):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            assert self.steps is not None
            self.steps.enabled = False

        def parts(self, batch: Tensor, stage: str) -> Any:
            pytest.fail("asked")

    check_same(Net, Off())

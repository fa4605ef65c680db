"""A run within the budget is the same to the bit with MemoryControl as without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from tests.memory.runs import (
    CLASSES,
    Batches,
    Hooks,
    ManualNet,
    Net,
    fit,
    inexact,
    make_datamodule,
    make_trainer,
    no_warnings,
    same_state,
    watched,
)

# No trace


class Run:
    """All that can be told of a run."""

    def __init__(self, make_module: Callable[[], Any], make_loader: Callable[[], Any], *extra: Any, **kw: Any) -> None:
        hooks, batches = Hooks(), Batches()
        self.module = make_module()
        self.trainer = fit(self.module, make_loader(), *extra, hooks, batches, **kw)
        self.calls, self.batches = hooks.calls, batches
        self.random = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
            "gradients": [p.grad for p in self.module.parameters()],
            "attributes": {k: v for k, v in vars(self.module).items() if isinstance(v, (int, float, str, list))},
            "metrics": dict(self.trainer.callback_metrics),
            "losses": self.batches.losses,
            "logged": self.batches.logged,
            "outputs": self.batches.outputs,
            "batches": [batch.to_dict() for batch in self.batches.batches],
            "global_steps": self.batches.global_steps,
            "loops": self.trainer.fit_loop.state_dict(),
            "calls": self.calls,
            "random": self.random,
        }


class Noisy(Net):
    """Leaves traces wherever a step can."""

    def __init__(self) -> None:
        super().__init__("gat", batch_norm=True, dropout=0.4)
        self.register_buffer("ema", torch.zeros(CLASSES))
        self.count, self.seen, self.sums = 0, [], {"loss": 0.0}

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        self.count += 1
        self.seen.append(float(output.detach()))
        self.sums["loss"] += self.seen[-1]
        self.ema.lerp_(torch.rand(CLASSES) + float(np.random.rand()) + random.random(), 0.1)
        return output


PLAIN_RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (Net, {}),
    "noisy": (Noisy, {}),
    "clipped-accumulated": (partial(Net, batch_norm=True), {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
    "bf16": (partial(Net, dropout=0.2), {"precision": "bf16-mixed"}),
    "sanity": (partial(Net, dropout=0.2), {"num_sanity_val_steps": 2, "val_check_interval": 2}),
    "manual": (ManualNet, {}),
}


@pytest.mark.parametrize("name", PLAIN_RUNS)
def test_a_run_within_the_budget_is_the_same_to_the_bit(name: str) -> None:
    make_module, options = PLAIN_RUNS[name]
    plain = Run(make_module, make_datamodule, **options).state()
    for policy in (("resample", "prune"), "watch" if name == "manual" else "split"):
        control = watched(on_exceed=policy)
        controlled = Run(make_module, make_datamodule, control, **options).state()
        for what, value in plain.items():
            assert same_state(value, controlled[what]), (policy, what)
        assert control.tally.batches > 0
        assert control.tally.over == control.tally.resamples == control.tally.pruned == control.tally.splits == 0


def test_the_strategy_and_the_loaders_are_as_before() -> None:
    control, datamodule = watched(), make_datamodule()
    trainer = make_trainer(control)
    before = dict(vars(trainer.strategy))
    with no_warnings():
        trainer.fit(Net(), datamodule)
    after = vars(trainer.strategy)
    assert after.keys() == before.keys()
    assert not [name for name, value in after.items() if getattr(value, "__self__", None) is control.controller]
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    assert [loader.transforms for loader in loaders] == [(), ()]


def test_the_strategy_is_as_before_after_an_exception() -> None:
    class Breaks(Net):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            if self.trainer.global_step == 3:
                raise KeyError("three")
            return super().training_step(batch, batch_idx)

    control = watched(on_exceed="split")
    trainer = make_trainer(control)
    names = set(vars(trainer.strategy))
    with no_warnings(), pytest.raises(KeyError, match=r"^'three'$"):
        trainer.fit(Breaks(), make_datamodule())
    assert set(vars(trainer.strategy)) == names
    assert trainer.train_dataloader.transforms == ()


def test_two_fits_one_after_the_other_and_of_other_trainers() -> None:
    control = watched()
    first, second = Net("gat"), Net("sage")
    one = fit(first, make_datamodule(), control)
    assert inexact(control) == []
    pairs = list(control.controller.pairs)
    other = fit(second, make_datamodule(), control)  # as in a sweep that makes its callbacks once
    assert inexact(control) == []
    assert list(control.controller.pairs) != pairs
    assert control.tally.batches == 2 * (4 + 2)
    assert "training_step" not in vars(one.strategy)
    assert "training_step" not in vars(other.strategy)


def test_fit_again_with_the_same_trainer() -> None:
    def run(*callbacks: Any) -> Any:
        module, datamodule = Net(batch_norm=True), make_datamodule()
        trainer = fit(module, datamodule, *callbacks)
        trainer.fit_loop.max_epochs = 4
        with no_warnings():
            trainer.fit(module, datamodule)
        return module.state_dict(), trainer.global_step

    control = watched(on_exceed="split")
    assert same_state(run(), run(control))
    assert inexact(control) == []

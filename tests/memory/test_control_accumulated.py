"""Windows of accumulated gradients in which a step, or a part of one, runs out of memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch_geometric.data import Data

from tests.memory.runs import Net, Watch, fit, make_datamodule, make_graph, make_trainer, no_warnings, watched

WINDOW = 2
OPTIONS: dict[str, Any] = {"accumulate_grad_batches": WINDOW, "max_epochs": 1, "limit_val_batches": 0}


class Breaks(Net):
    """Runs out of memory once, in one part of one batch, counted from 0; parts of a second attempt are whole."""

    def __init__(self, where: str = "", batch: int = -1, part: int = -1) -> None:
        super().__init__()
        self.where, self.at = where, (batch, part)
        self.place, self.has_broken = (-1, -1), False
        self.double()

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        if not self.trainer.callbacks:  # a probe
            return super().training_step(batch, batch_idx)
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        self.place = (number, self.place[1] + 1 if self.place[0] == number else 0)
        breaks = self.place == self.at and not self.has_broken
        loss = super().training_step(batch, batch_idx)
        if breaks:
            self.has_broken = True
            if self.where == "forward":
                raise RuntimeError("std::bad_alloc")
            loss.register_hook(self._raise)
        return loss

    def _raise(self, gradient: torch.Tensor) -> None:
        raise RuntimeError("std::bad_alloc")


class Gradients(Callback):
    """Keeps the gradients that each step of the optimizer finds."""

    def __init__(self) -> None:
        self.kept: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.kept.append([p.grad.clone() for p in pl_module.parameters()])


def datamodule() -> Any:
    return make_datamodule(make_graph(dtype=torch.float64))


@cache
def uninterrupted() -> tuple[list[list[torch.Tensor]], dict[str, Any], int]:
    module, gradients, watch = Breaks(), Gradients(), Watch()
    fit(module, datamodule(), gradients, watch, **OPTIONS)
    return gradients.kept, dict(module.state_dict()), max(watch.peaks["train"])


def check(module: Breaks, *, budget: int | None = None) -> None:
    kept, state, _ = uninterrupted()
    gradients = Gradients()
    control = watched(*([] if budget is None else [budget]), on_exceed="split", exact=True)
    with no_warnings():
        fit(module, datamodule(), control, gradients, **OPTIONS)
    assert module.has_broken
    assert control.tally.out_of_memory == 1
    assert len(gradients.kept) == len(kept) == 2
    torch.testing.assert_close(gradients.kept, kept, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("where", "batch"),
    [("forward", 0), ("backward", 0), ("forward", 1), ("forward", 2), ("backward", 2), ("forward", 3)],
)
def test_gradients_of_a_window_are_those_of_whole_batches(where: str, batch: int) -> None:
    check(Breaks(where, batch, 0))


@pytest.mark.parametrize(
    ("where", "batch", "part"),
    [
        ("forward", 0, 0),
        ("backward", 0, 0),
        ("forward", 0, 1),
        ("backward", 0, 1),
        ("forward", 1, 0),
        ("forward", 2, 1),
    ],
)
def test_gradients_of_a_window_whose_batches_are_in_parts_already(where: str, batch: int, part: int) -> None:
    budget = int(0.6 * uninterrupted()[2])
    check(Breaks(where, batch, part), budget=budget)


@pytest.mark.parametrize(("where", "part"), [("backward", 0), ("forward", 1), ("backward", 1)])
def test_what_has_been_added_to_earlier_gradients_cannot_be_taken_back(where: str, part: int) -> None:
    module = Breaks(where, 1, part)
    control = watched(int(0.6 * uninterrupted()[2]), on_exceed="split", exact=True)
    trainer = make_trainer(control, **OPTIONS)
    with no_warnings(), pytest.raises(RuntimeError, match=r"std::bad_alloc") as it:
        trainer.fit(module, datamodule())
    assert "could not be run again in parts: gradients of other batches" in " ".join(it.value.__notes__)

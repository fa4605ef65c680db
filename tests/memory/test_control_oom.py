"""Errors in a step: out of memory is survived, anything else passes through."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.memory import MemoryControl
from tests.memory.runs import (
    Batches,
    Hooks,
    Net,
    Watch,
    fit,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    watched,
)


@pytest.fixture(autouse=True, scope="module")
def _quick_collector() -> Iterator[None]:
    """Let the collections that follow an error look at what is new only."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


ERRORS: dict[str, Callable[[], BaseException]] = {
    "bad-alloc": lambda: RuntimeError("std::bad_alloc"),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": lambda: MemoryError("Unable to allocate 3 GiB for an array"),
}
OTHERS: dict[str, Callable[[], BaseException]] = {
    "shapes": lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied (32x16 and 8x4)"),
    "value": lambda: ValueError("labels out of range"),
    "interrupt": KeyboardInterrupt,
}


class Raiser:
    """Raises once for each step in `at`, if a batch has more than `above` seeds."""

    def __init__(self, make_error: Callable[[], BaseException], at: set[int], above: int) -> None:
        self.make_error, self.at, self.above = make_error, set(at), above
        self.raised = 0

    def __call__(self, step: int, num_seeds: int) -> None:
        if step in self.at and num_seeds > self.above:
            self.raised += 1
            raise self.make_error()


class Breaks(Net):
    """Runs out of memory in a given place of its step, as long as more than 20 seeds come at once."""

    def __init__(self, where: str, raiser: Raiser, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where = where
        self.raiser = [raiser]
        self.double()

    def _hooked(self, value: torch.Tensor, batch: Data) -> torch.Tensor:
        step, raiser, seeds = self.trainer.fit_loop.epoch_loop.total_batch_idx, self.raiser[0], batch.batch_size
        if self.trainer.callbacks and self.where == "backward" and value.requires_grad:  # no callbacks: a probe
            value.register_hook(lambda grad: raiser(step, seeds))
        elif self.trainer.callbacks and self.where == "forward":
            raiser(step, seeds)
        return value

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        logits = self(batch)
        logits = self._hooked(logits, batch)[: batch.batch_size]
        loss = self.loss(batch, logits)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=batch.batch_size)
        return loss


class EvalBreaks(Net):
    def __init__(self, raiser: Raiser) -> None:
        super().__init__()
        self.raiser = [raiser]
        self.double()

    def forward(self, batch: Data) -> torch.Tensor:
        out = super().forward(batch)
        if self.trainer.callbacks and not self.training:
            self.raiser[0](0, batch.batch_size)
        return out


def datamodule(**kwargs: Any) -> Any:
    return make_datamodule(make_graph(dtype=torch.float64), **kwargs)


def run(module: Any, *control: MemoryControl, loader: Any = None, **options: Any) -> dict[str, Any]:
    hooks, batches = Hooks(), Batches()
    trainer = fit(module, datamodule() if loader is None else loader, *control, hooks, batches, **options)
    return {
        "losses": batches.losses,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "module": dict(module.state_dict()),
        "optimizer": [list(state.values()) for o in trainer.optimizers for state in o.state.values()],
        "steps": batches.global_steps,
        "calls": [hash(call) for call in hooks.calls if "batch" in call[0] or "epoch" in call[0] or "step" in call[0]],
    }


close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)


@cache
def uninterrupted(**options: Any) -> dict[str, Any]:
    return run(Breaks("nowhere", Raiser(ERRORS["cpu"], set(), 0)), **options)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("name", ["bad-alloc", "cuda", "cpu", "python"])
def test_a_run_survives_and_ends_like_an_uninterrupted_one(name: str, where: str) -> None:
    raiser = Raiser(ERRORS[name], {0, 2, 5}, above=20)
    control = watched(on_exceed="split" if name == "cpu" else ("resample", "prune"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(Breaks(where, raiser), control)
    close(found, uninterrupted())
    assert raiser.raised == control.tally.out_of_memory == 3
    assert control.tally.splits >= 3
    said = [str(w.message) for w in caught if "ran out of memory" in str(w.message)]
    assert len(said) >= 1
    assert "run again in parts" in said[0]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_it_is_cut_until_it_fits(where: str) -> None:
    raiser = Raiser(ERRORS["bad-alloc"], {1, 2}, above=3)
    control = watched()
    close(run(Breaks(where, raiser), control), uninterrupted())
    assert raiser.raised >= 2 * 4  # 32, 16, 8 and 4 seeds


def test_forward_of_an_accumulated_batch_is_survived() -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    control = watched()
    close(run(Breaks("forward", Raiser(ERRORS["cpu"], {0, 1, 3, 6}, 20)), control, **options), uninterrupted(**options))
    assert control.tally.out_of_memory == 4


def test_backward_of_a_first_accumulated_batch_is_survived() -> None:
    options = {"accumulate_grad_batches": 2}
    control = watched()
    close(run(Breaks("backward", Raiser(ERRORS["cpu"], {0, 2, 4}, 20)), control, **options), uninterrupted(**options))
    assert control.tally.out_of_memory == 3


def test_backward_of_a_later_accumulated_batch_is_raised_with_its_reason() -> None:
    module = Breaks("backward", Raiser(ERRORS["cpu"], {3}, 20))
    control = watched()
    trainer = make_trainer(control, accumulate_grad_batches=2)
    with no_warnings(), pytest.raises(RuntimeError, match="DefaultCPUAllocator") as it:
        trainer.fit(module, datamodule())
    notes = " ".join(it.value.__notes__)
    assert "could not be run again in parts: gradients of other batches" in notes
    assert "HINT: lower `budget`" in notes
    assert "training_step" not in vars(trainer.strategy)


def test_what_never_fits_is_raised_in_the_end() -> None:
    raiser = Raiser(ERRORS["bad-alloc"], {2}, above=0)
    with no_warnings(), pytest.raises(RuntimeError, match=r"std::bad_alloc") as it:
        run(Breaks("forward", raiser), watched())
    assert "could not be run in more parts" in " ".join(it.value.__notes__)
    assert raiser.raised == 6  # 32, 16, 8, 4, 2 seeds and 1


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_pass_through(name: str, where: str) -> None:
    raiser, control = Raiser(OTHERS[name], {1}, above=20), watched(on_exceed="split")
    error = OTHERS[name]()
    expected = SystemExit if name == "interrupt" else type(error)  # Lightning's answer to an interrupt
    with no_warnings(), pytest.raises((expected, type(error))) as it:
        run(Breaks(where, raiser), control)
    if name != "interrupt":
        assert str(it.value) == str(error)
        assert not getattr(it.value, "__notes__", [])
    assert raiser.raised == 1
    assert control.tally.out_of_memory == 0


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_within_a_part(where: str) -> None:
    """A step that is run in parts, because of the budget, runs out all the same."""
    watch = Watch()
    fit(Breaks(where, Raiser(ERRORS["cpu"], set(), 0)), datamodule(), watch)
    raiser = Raiser(ERRORS["cpu"], {1, 5}, above=6)
    control = watched(int(0.6 * max(watch.peaks["train"])), on_exceed="split", exact=True)
    close(run(Breaks(where, raiser), control), uninterrupted())
    assert raiser.raised >= 2
    assert control.tally.out_of_memory == raiser.raised


@pytest.mark.parametrize(("stage", "name"), [("validate", "bad-alloc"), ("test", "cpu"), ("predict", "cpu")])
@pytest.mark.parametrize("exact", [False, True])
def test_evaluation_survives(stage: str, name: str, exact: bool) -> None:
    def evaluate(raiser: Raiser, *control: MemoryControl) -> Any:
        with no_warnings():
            trainer = make_trainer(*control, limit_predict_batches=2)
            return getattr(trainer, stage)(EvalBreaks(raiser), datamodule())

    expected = evaluate(Raiser(ERRORS[name], set(), 0))
    raiser, control = Raiser(ERRORS[name], {0}, above=10), watched(exact=exact)
    close(evaluate(raiser, control), expected)
    assert control.tally.out_of_memory == raiser.raised > 0


def test_the_budget_is_lower_afterwards() -> None:
    raiser, control = Raiser(ERRORS["cpu"], {1}, above=20), watched(200_000, on_exceed="prune")
    run(Breaks("forward", raiser), control)
    assert control.tally.pruned > 0  # the step that failed had been predicted to take less than 200 KB
    assert control.budget_bytes == 200_000


def test_state_that_the_failed_attempt_left_is_not_counted_twice() -> None:
    """Metrics that were updated before the error, and batch statistics."""

    class Counts(Breaks):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            logits = self(batch)[: batch.batch_size]
            self.train_acc(logits, batch.y[: batch.batch_size])
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, batch_size=batch.batch_size)
            loss = self.loss(batch, logits)
            self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=batch.batch_size)
            self._hooked(logits, batch)
            return loss

    expected = run(Counts("forward", Raiser(ERRORS["cpu"], set(), 0)))
    raiser = Raiser(ERRORS["cpu"], {1, 5}, above=20)
    close(run(Counts("forward", raiser), watched()), expected)
    assert raiser.raised == 2


def test_memory_of_the_failed_attempt_is_free_before_the_next() -> None:
    """The tensors of the step that failed are gone when its parts run."""

    class Tracks(Net):
        def __init__(self) -> None:
            super().__init__()
            self.refs: list[Any] = []
            self.alive: list[int] = []

        def training_step(self, batch: Data, batch_idx: int) -> Any:
            self.alive.append(sum(ref() is not None for ref in self.refs))
            hidden = self.convs[0](batch.x, batch.edge_index)
            self.refs.append(weakref.ref(hidden))
            if self.trainer.callbacks and self.trainer.global_step == 1 and batch.batch_size > 20:
                raise RuntimeError("std::bad_alloc")
            return hidden[: batch.batch_size].square().mean()

    module = Tracks()
    gc.collect()
    control = watched()
    fit(module, make_datamodule(), control, max_epochs=1)
    assert control.tally.out_of_memory == 1
    assert module.alive == [0] * len(module.alive)

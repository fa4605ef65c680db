"""Steps in parts on batches that are plain tensors: the reference is the same run on whole batches."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gnnopt.memory.parts import Part
from lightning_gnnopt.memory.split_steps import SplitSteps
from tests.memory.runs import Hooks, make_trainer, no_warnings

ROWS = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # batches of 12, 12, 12, 4
Make = Callable[[Tensor], Any]


class Net(L.LightningModule):
    def __init__(self, optimizer: Callable[[Any], Any] | None = None, *, reduction: str = "mean") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.make_optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self.reduction = reduction
        self.losses: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        errors = (self.net(batch[:, :3])[:, 0] - batch[:, 3]).square()
        return errors.mean() if self.reduction == "mean" else errors.sum()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.loss(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.net(batch[:, :3])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def parts_of(batch: Tensor, num_parts: int, *, reduction: str = "mean") -> list[Part]:
    pieces = batch.tensor_split(num_parts)
    return [
        Part(
            make=partial(lambda piece: piece, piece),
            num_seeds=len(piece),
            weight=1.0 if reduction == "sum" else len(piece) / len(batch),
        )
        for piece in pieces
    ]


class Split(Callback):
    """Runs each step in parts, or those that run out of memory."""

    def __init__(self, num_parts: int | None = 5, *, most: int = 64, reduction: str = "mean") -> None:
        self.num_parts, self.most, self.reduction = num_parts, most, reduction
        self.asked: list[tuple[str, int]] = []
        self.told: list[tuple[int, str, str]] = []
        self.steps: SplitSteps | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.steps = SplitSteps(
            trainer, parts=self.parts, more_parts=self.more_parts, on_out_of_memory=self.on_out_of_memory
        )

    def parts(self, batch: Tensor, stage: str) -> Sequence[Part] | None:
        return (
            None
            if self.num_parts is None
            else parts_of(batch, min(self.num_parts, len(batch)), reduction=self.reduction)
        )

    def more_parts(self, batch: Tensor, stage: str, num_parts: int) -> Sequence[Part] | None:
        self.asked.append((stage, num_parts))
        return None if num_parts > min(self.most, len(batch)) else parts_of(batch, num_parts, reduction=self.reduction)

    def on_out_of_memory(self, batch: Tensor, stage: str, error: BaseException) -> None:
        self.told.append((len(batch), stage, str(error)))


class Seen(Callback):
    """What a callback sees after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]) if outputs else math.nan)
        self.logged.append(float(trainer.callback_metrics.get("loss_step", math.nan)))
        self.steps.append(trainer.global_step)


def fit(module: L.LightningModule, *callbacks: Callback, **kwargs: Any) -> tuple[dict[str, Tensor], Seen, L.Trainer]:
    seen = Seen()
    trainer = make_trainer(*callbacks, seen, **{"max_epochs": 3, **kwargs})
    with no_warnings():
        trainer.fit(module, DataLoader(ROWS, batch_size=12), DataLoader(ROWS[:10], batch_size=5))  # type: ignore[arg-type]
    return {name: value.clone() for name, value in module.state_dict().items()}, seen, trainer


def check_same(make: Callable[[], Net], split: Split, **kwargs: Any) -> None:
    expected, whole, reference = fit(make(), **kwargs)
    found, parts, trainer = fit(make(), split, **kwargs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9, nan_ok=True)
    assert parts.logged == pytest.approx(whole.logged, rel=1e-6, nan_ok=True)
    assert parts.steps == whole.steps
    assert trainer.global_step == reference.global_step
    of_whole = {name: float(value) for name, value in reference.callback_metrics.items()}
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == pytest.approx(of_whole, rel=1e-6)


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


# Out of memory


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What is there already need not be searched for garbage after each error: half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Explodes(torch.autograd.Function):
    """Runs out of memory on the way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("std::bad_alloc")


class Greedy(Net):
    """Steps on more than `room` rows run out of memory, in the batches named."""

    def __init__(self, where: str, room: int, at: Sequence[int] = (1,), message: str = "std::bad_alloc") -> None:
        super().__init__()
        self.where, self.room, self.at, self.message = where, room, at, message

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.where and len(batch) > self.room and batch_idx in self.at:
            if self.where == "forward":
                raise RuntimeError(self.message)
            loss = Explodes.apply(loss)
        return loss

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        if self.where and len(batch) > self.room:
            raise RuntimeError(self.message)
        return super().predict_step(batch, batch_idx)


@pytest.mark.parametrize("num_parts", [None, 2])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_runs_out_of_memory_is_run_again_in_parts(where: str, num_parts: int | None) -> None:
    expected, whole, reference = fit(Net(), max_epochs=2)
    split = Split(num_parts)
    found, parts, trainer = fit(Greedy(where, room=5), split, max_epochs=2)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)
    assert parts.logged == pytest.approx(whole.logged, rel=1e-6)
    of_whole = {name: float(value) for name, value in reference.callback_metrics.items()}
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == pytest.approx(of_whole, rel=1e-6)
    assert trainer.global_step == reference.global_step
    # 12 rows, then 6 are too many; 4 (from 3 parts, or 4) are not.
    asked = [2, 4] if num_parts is None else [4]
    assert split.asked == [("train", number) for number in asked] * 2
    assert split.told == [(12, "train", "std::bad_alloc")] * (2 * len(asked))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_gradients_of_batches_before_stay_where_that_can_be(where: str) -> None:
    """The second batch of an accumulation: forward, nothing was added yet; backward, half of it may have been."""
    options = {"accumulate_grad_batches": 2, "max_epochs": 1}
    expected, _, _ = fit(Net(), **options)
    if where == "forward":
        found, _, _ = fit(Greedy(where, room=6), Split(None), **options)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        return
    with pytest.raises(RuntimeError, match="std::bad_alloc") as caught:
        fit(Greedy(where, room=5), Split(None), **options)
    assert any("could not be run again in parts" in note and "HINT" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_first_batch_of_an_accumulation_is_run_again(where: str) -> None:
    options = {"accumulate_grad_batches": 2, "max_epochs": 1}
    expected, _, _ = fit(Net(), **options)
    found, _, _ = fit(Greedy(where, room=5, at=(0, 2)), Split(None), **options)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_cannot_be_cut_further_is_raised(where: str) -> None:
    split = Split(None, most=4)
    with pytest.raises(RuntimeError, match="std::bad_alloc") as caught:
        fit(Greedy(where, room=1), split)
    assert [number for _, number in split.asked] == [2, 4, 8]
    assert "could not be run in more parts than it was" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("where", ["forward"])
def test_other_errors_are_the_users(where: str) -> None:
    split = Split(None)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(Greedy(where, room=5, message="shapes do not fit"), split)
    assert (split.asked, split.told) == ([], [])


def test_an_evaluation_step_that_runs_out_of_memory() -> None:
    split = Split(None)
    module = Greedy("forward", room=4)
    predicted = predict(module, split)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(predicted), module.net(ROWS[:, :3]))
    assert split.asked == [("predict", number) for _ in range(3) for number in (2, 4)]
    with pytest.raises(RuntimeError, match="std::bad_alloc"):
        predict(Greedy("forward", room=4), Split(None, most=1))


# Evaluation


def predict(module: L.LightningModule, *callbacks: Callback) -> Any:
    with no_warnings():
        return make_trainer(*callbacks).predict(module, DataLoader(ROWS, batch_size=12))  # type: ignore[arg-type]


def test_evaluation_in_parts_is_that_of_the_whole() -> None:
    module = Net()
    whole, parts = predict(module), predict(module, Split(5))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    values = []
    for callbacks in ([], [Split(5)]):
        trainer = make_trainer(*callbacks)
        with no_warnings():
            (metrics,) = trainer.validate(module, DataLoader(ROWS, batch_size=12), verbose=False)  # type: ignore[arg-type]
        values.append(metrics["val"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def returning(make: Make) -> Net:
    module = Net()
    module.predict_step = lambda batch, batch_idx: make(batch)  # type: ignore[method-assign]
    return module


MERGED: dict[str, tuple[Make, Make]] = {
    "nothing": (lambda b: None, lambda b: None),
    "rows": (lambda b: b[:, 1:], lambda b: b[:, 1:]),
    "averages": (lambda b: b[:, 0].mean(), lambda b: b[:, 0].mean()),
    "floats": (lambda b: float(b[:, 0].mean()), lambda b: b[:, 0].mean()),
    "tuples": (lambda b: (b[:, 0], b.mean()), lambda b: (b[:, 0], b.mean())),
    "nested": (lambda b: {"a": {"b": [b[:, 0], b.mean()]}}, lambda b: {"a": {"b": [b[:, 0], b.mean()]}}),
    "lists by row": (lambda b: b[:, 0].tolist(), lambda b: b[:, 0].tolist()),
    "names by row": (lambda b: [f"{v:.3f}" for v in b[:, 0]], lambda b: [f"{v:.3f}" for v in b[:, 0]]),
    "words": (lambda b: "same", lambda b: "same"),
}


@pytest.mark.parametrize("name", MERGED)
def test_outputs_of_parts_are_put_together(name: str) -> None:
    make, expected = MERGED[name]
    for found, batch in zip(predict(returning(make), Split(5)), ROWS.split(12), strict=True):
        check_equal(found, expected(batch))


def check_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) or isinstance(expected, Tensor)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            check_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_equal(one, other)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(torch.as_tensor(found, dtype=expected.dtype), expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda b: torch.tensor(len(b)), r"a Tensor of shape \(\)"),
        (lambda b: torch.zeros(7, 2), r"a Tensor of shape \(7, 2\)"),
        (lambda b: f"{float(b[0, 0])}", "a str"),
        (lambda b: len(b), "a int"),
    ],
    ids=["counts", "other rows", "words", "numbers"],
)
def test_what_cannot_be_put_together_is_refused(make: Make, what: str) -> None:
    with pytest.raises(ValueError, match=rf"run in 5 parts must return what can be put together again.* {what}\. HINT"):
        predict(returning(make), Split(5))

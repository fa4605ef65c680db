"""Steps that run out of memory and are run again in parts."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory.split_runs import ROWS, Net, Split, fit, predict

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

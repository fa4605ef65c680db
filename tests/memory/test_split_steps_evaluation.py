"""Evaluation and prediction in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.memory.runs import make_trainer, no_warnings
from tests.memory.split_runs import ROWS, Make, Net, Split, predict

# Evaluation


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

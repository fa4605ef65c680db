"""The arguments of `AsyncValidation`."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest

from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.evaluation.options import Options

BAD = [
    ({"mode": "maximum"}, r"mode .maximum.\. Did you mean .max.\? Known: max, min"),
    ({"when_busy": "drop"}, r"when_busy.*drop.*coalesce.*queue.*wait"),
    ({"on_failure": "ignore"}, r"on_failure.*ignore.*block.*raise"),
    ({"every_n_epochs": 2, "every_n_steps": 50}, r"`every_n_epochs` and `every_n_steps`.*2 and 50.* HINT: "),
    ({"every_n_epochs": 0}, r"`every_n_epochs` must be at least 1, but is 0\. HINT: "),
    ({"every_n_steps": -1}, r"`every_n_steps` must be at least 1, but is -1\. HINT: "),
    ({"save_top_k": -2}, r"`save_top_k` must be at least -1, but is -2\. HINT: "),
    ({"max_pending": 0}, r"`max_pending` must be at least 1, but is 0\. HINT: "),
    ({"num_threads": 0}, r"`num_threads` must be at least 1, but is 0\. HINT: "),
    ({"timeout_s": 0.0}, r"`timeout_s` must be above 0, but is 0\.0\. HINT: "),
    ({"device": "gpu:x"}, r"`device` must be 'auto' or a device of torch, but is 'gpu:x'.* HINT: "),
    ({"filename": "a/b"}, r"`filename`.* HINT: "),
    ({"filename": "{epoch"}, r"`filename`.* HINT: "),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(options) for options, _ in BAD])
def test_what_cannot_be_is_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        AsyncValidation(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"save_top_k": -1},
        {"save_top_k": 0},
        {"timeout_s": None},
        {"device": "cuda:1"},
        {"monitor": None},
        {"max_pending": 1},
        {"every_n_steps": 1},
    ],
)
def test_what_is_at_the_edge_is_taken(options: dict[str, Any]) -> None:
    assert {name: getattr(Options(**options), name) for name in options} == options


def test_what_is_the_default() -> None:
    """As the issue says."""
    options = AsyncValidation().options
    assert (options.monitor, options.mode, options.device, options.save_top_k) == ("val/acc", "max", "auto", 1)
    assert (options.max_pending, options.when_busy, options.on_failure) == (2, "coalesce", "block")
    assert (options.timeout_s, options.datamodule_factory, options.num_threads) == (600.0, None, None)


def test_before_a_run_there_is_nothing_to_tell() -> None:
    validation = AsyncValidation()
    assert (validation.best_model_path, validation.best_model_score, validation.best_k_models) == ("", None, {})
    assert (validation.lags, validation.num_skipped, validation.is_blocking) == ([], 0, False)
    assert validation.state_dict() == {}
    assert L.Trainer(callbacks=[validation], logger=False, accelerator="cpu").checkpoint_callback is validation

"""Which checkpoints are kept beside training, and how they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gnnopt.evaluation import AsyncValidation

from .runs import STEPS, Fakes, Tiny, fit, same, scripted, weights_in

# ---- checkpoints, without a process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save_top_k", "kept"),
    [(0, []), (1, [3]), (2, [3, 1]), (-1, [3, 1, 4, 0, 2])],
)
def test_so_many_are_kept(save_top_k: int, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.3, 0.6, 0.1, 0.9, 0.4]
    Fakes(monkeypatch, scripted(scores))
    validation = AsyncValidation(save_top_k=save_top_k, when_busy="queue")
    run = fit(tmp_path, validation, max_epochs=5)
    steps = [STEPS * (epoch + 1) for epoch in kept]
    assert list(validation.best_k_models.values()) == pytest.approx([scores[epoch] for epoch in kept])
    assert [weights_in(path)["net.0.weight"].tolist() for path in validation.best_k_models] == [
        run.recorder.weights[step]["net.0.weight"].tolist() for step in steps
    ]
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {f"epoch={epoch}-step={step}.ckpt" for epoch, step in zip(kept, steps, strict=True)} | {
        "validations.jsonl"
    }
    if not kept:
        assert (validation.best_model_path, validation.best_model_score) == ("", None)


def test_without_a_monitor_the_latest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.9, 0.1, 0.5]))
    validation = AsyncValidation(monitor=None, when_busy="queue")
    run = fit(tmp_path, validation)
    assert same(weights_in(validation.best_model_path), run.recorder.weights[18])
    assert validation.best_model_score is None


def test_names_have_metrics_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.25, 0.75, 0.5]))
    validation = AsyncValidation(when_busy="queue", dirpath=tmp_path / "mine", filename="{epoch:02d}-{val/acc:.3f}")
    fit(tmp_path, validation)
    assert validation.best_model_path == str(tmp_path / "mine" / "01-0.750.ckpt")


class WithHparams(Tiny):
    def __init__(self, optimizer: Any = torch.optim.SGD, sizes: Any = range(3), where: Path = Path("here")) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_of_any_kind_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.25, 0.75, 0.5]))
    validation = AsyncValidation(when_busy="queue")
    fit(tmp_path, validation, module=WithHparams())
    loaded = WithHparams.load_from_checkpoint(validation.best_model_path, weights_only=False)
    assert loaded.hparams["optimizer"] is torch.optim.SGD
    assert loaded.hparams["sizes"] == range(3)
    assert loaded.hparams["where"] == Path("here")


def test_a_checkpoint_without_a_monitor_may_be_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.9, 0.1, 0.5]))
    latest, validation = ModelCheckpoint(tmp_path / "latest", save_last=True), AsyncValidation(when_busy="queue")
    for callbacks in ([validation, latest], [latest, validation]):
        run = fit(tmp_path, *callbacks)
        assert same(weights_in(latest.last_model_path), run.recorder.weights[18])
        assert same(weights_in(validation.best_model_path), run.recorder.weights[6])

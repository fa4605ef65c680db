"""Modules, callbacks and Trainers with something unusual about them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_gnnopt.evaluation import AsyncValidation

from .runs import Fakes, Rows, Tiny, fit, judged_alone, ledger, weights_in


class Odd(Tiny):
    """Leaves a part out of its state, has a state of numpy's, and needs what training makes for it."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict(*args, **options).items() if "net.0" not in name}

    def get_extra_state(self) -> dict[str, Any]:
        return {"numbers": np.arange(3.0)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.numbers = state["numbers"]

    def on_train_start(self) -> None:
        self.scale = 2.0

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if not self.trainer.sanity_checking:
            self.log("val/scale", self.scale * self.numbers.sum(), batch_size=1)
            if batch_idx == 0:
                Path(self.trainer.log_dir, f"{self.logger.name}-{self.logger.version}").touch()


class Large(Rows):
    """Has 8 MB beside its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.large = torch.zeros(2_000_000)


def shared_bytes() -> int:
    """Bytes of shared memory that this process keeps open."""
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.islink(path) and "gnnopt" in os.readlink(path):
            found += os.stat(path).st_size
    return found


def test_a_module_like_that_is_validated(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    before = shared_bytes()
    validation = AsyncValidation(monitor="val/loss", mode="min", on_failure="raise")
    logger = CSVLogger(tmp_path, name="odd", version=3)
    fit(tmp_path, validation, module=Odd(), data=Large(), max_epochs=1, logger=logger)
    assert validation.best_model_score is not None
    (line,) = (Path(logger.log_dir) / "checkpoints" / "validations.jsonl").read_text().splitlines()
    assert '"val/scale": 6.0' in line
    assert (Path(logger.log_dir) / "odd-3").exists()  # written over there
    assert shared_bytes() == before  # what comes after training has its memory
    assert not [warning for warning in recwarn if "Validation goes on" in str(warning.message)]


def test_averages_are_judged_where_they_are_saved(tmp_path: Path) -> None:
    validation = AsyncValidation(monitor="val/loss", mode="min", save_top_k=-1)
    fit(tmp_path, validation, EMAWeightAveraging(decay=0.9), max_epochs=2)
    assert len(validation.best_k_models) == 2
    for path, score in validation.best_k_models.items():
        assert judged_alone(Tiny(), weights_in(path))["val/loss"] == score


def test_scores_of_earlier_weights_are_kept_from_other_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fakes(monkeypatch, lambda job: {"val__acc": 0.5, "val__loss": 1.0})
    other = ModelCheckpoint(dirpath=tmp_path / "other", monitor="val/loss")
    with pytest.raises(ValueError, match=r"`ModelCheckpoint\(monitor='val/loss'\)` would save today's weights"):
        fit(tmp_path, AsyncValidation(monitor="val/acc", when_busy="wait", max_pending=1), other, max_epochs=9)


def test_one_that_stands_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, lambda job: 0.5)
    other = ModelCheckpoint(dirpath=tmp_path / "other")
    with pytest.warns(UserWarning, match=r"`ckpt_path='best'` will ask .* which is ModelCheckpoint\. HINT: put"):
        fit(tmp_path, other, AsyncValidation(), max_epochs=1)


def test_a_schedule_of_the_trainers_is_told_not_to_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, lambda job: 0.5)
    with pytest.warns(UserWarning, match=r"`val_check_interval=0\.5` and .*=1` are not looked at"):
        fit(tmp_path, AsyncValidation(), max_epochs=1, val_check_interval=0.5)
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [6]


def test_a_second_fit_knows_the_best_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {6: 0.9, 12: 0.5, 18: 0.6}
    Fakes(monkeypatch, lambda job: scores[job.step])
    validation = AsyncValidation(when_busy="queue")
    first = fit(tmp_path, validation, max_epochs=1)
    best = validation.best_model_path
    first.trainer.fit_loop.max_epochs = 3
    fit(tmp_path, trainer=first.trainer, module=first.module)
    assert (validation.best_model_path, validation.best_k_models) == (best, {best: pytest.approx(0.9)})
    assert Path(best).exists()


def test_a_launcher_that_forks_is_told_the_best(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from lightning_gnnopt.evaluation import AsyncValidation
        from tests.evaluation.runs import fit

        folder = Path(sys.argv[1])
        validation = AsyncValidation(monitor="val/loss", mode="min")
        fit(folder, validation, max_epochs=1, strategy="ddp_fork", devices=1)
        print("best", validation.best_model_path)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"best {tmp_path}/checkpoints/epoch=0-step=6.ckpt" in done.stdout

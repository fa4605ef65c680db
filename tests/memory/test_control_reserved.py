"""What a CUDA allocator reserves beyond what is asked for counts against the budget. As if the CPU were one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_gnnopt import MemoryControl
from lightning_gnnopt.memory import reserved_factor
from lightning_gnnopt.memory.reserved_factor import Reserve, ReservedFactor

from .runs import Net, make_datamodule

FACTOR = 1.25


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ReservedFactor]:
    """The factors that runs make, on any device."""
    original = ReservedFactor.of_stage
    found: list[ReservedFactor] = []

    def of_stage(*args: Any, **options: Any) -> ReservedFactor | None:
        factor = original(*args, **{**options, "device": torch.device("cuda")})
        assert factor is not None
        found.append(factor)
        return factor

    def model_blocks(module: torch.nn.Module, device: torch.device) -> list[int]:
        return [parameter.nbytes for parameter in module.parameters()]

    monkeypatch.setattr(reserved_factor, "model_blocks", model_blocks)
    monkeypatch.setattr(reserved_factor, "simulate_reserve", lambda *args, **options: Reserve(factor=FACTOR, bound=1.3))
    monkeypatch.setattr(ReservedFactor, "of_stage", of_stage)
    return found


def fitted(budget_bytes: int, on_exceed: str, folder: Path) -> list[tuple[float, float]]:
    control = MemoryControl(budget=budget_bytes, on_exceed=(on_exceed,), measure_every=1, verbose=False)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[control],
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(Net("sage", hidden=64), make_datamodule())
    return list(control._controls.pairs)


@pytest.mark.parametrize("on_exceed", ["prune", "split"])
def test_the_budget_is_for_what_is_reserved(on_exceed: str, made: list[ReservedFactor], tmp_path: Path) -> None:
    whole = max(measured for _, measured in fitted(2**30, on_exceed, tmp_path))
    assert [factor.value for factor in made] == [FACTOR]
    budget = int(0.85 * FACTOR * whole)
    pairs = fitted(budget, on_exceed, tmp_path)
    largest = max(measured for _, measured in pairs)
    assert 0.9 * budget < FACTOR * largest <= budget
    if on_exceed == "prune":  # predictions are of what is asked for
        assert all(predicted == measured for predicted, measured in pairs)


def test_there_is_no_factor_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[ReservedFactor | None] = []
    original = ReservedFactor.of_stage

    def of_stage(*args: Any, **options: Any) -> ReservedFactor | None:
        found.append(original(*args, **options))
        return found[-1]

    monkeypatch.setattr(ReservedFactor, "of_stage", of_stage)
    fitted(2**30, "prune", tmp_path)
    assert found == [None]

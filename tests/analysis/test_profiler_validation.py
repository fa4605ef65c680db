"""Validation within a profiled fit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt import AsyncValidation
from lightning_gnnopt.analysis import GNNProfiler
from lightning_gnnopt.datasets import load_dataset
from tests.analysis.profiled import fit, total


@pytest.fixture(scope="module")
def data() -> Data:
    return load_dataset("digits-knn")


def test_validations_after_the_last_recorded_step_are_recorded_too(data: Data) -> None:
    profiler = GNNProfiler(skip_batches=0, memory_every=0, max_batches=5)
    fit(data, profiler, epochs=4)
    assert len(profiler.records.batches) == 5
    assert [validation.batch for validation in profiler.records.validations] == [4, 8, 12, 16]
    assert profiler.records.info["steps"] == 16


def test_validation_beside_training_is_told_apart(data: Data, tmp_path: Path) -> None:
    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    fit(
        data,
        profiler,
        epochs=2,
        callbacks=[AsyncValidation(monitor="val/acc", dirpath=tmp_path)],
        enable_checkpointing=True,
    )
    assert profiler.records.info["async_validation"] is True
    assert {validation.beside for validation in profiler.records.validations} == {True}
    assert all(validation.seconds > 0 for validation in profiler.records.validations)


def test_what_callbacks_do_when_a_validation_ends_is_theirs(data: Data) -> None:
    class Saving(Callback):
        """Writes something, as `ModelCheckpoint` does."""

        @override
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            time.sleep(0.2)

    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    fit(data, profiler, epochs=2, callbacks=[Saving()])
    records = profiler.records
    assert len(records.validations) == 2
    assert total(records, phase="callbacks") >= 0.4
    validation_s = sum(validation.seconds for validation in records.validations)
    assert validation_s == pytest.approx(total(records, phase="validation"), abs=0.1)


def test_validations_of_an_earlier_fit_and_of_a_derived_callback(data: Data, tmp_path: Path) -> None:
    class Mine(AsyncValidation):
        """A user's own."""

    mine = Mine(monitor="val/acc", dirpath=tmp_path)
    counts = []
    for _ in range(2):
        profiler = GNNProfiler(skip_batches=0, memory_every=0, trace_batches=1)
        fit(data, profiler, epochs=1, callbacks=[mine], enable_checkpointing=True)
        assert profiler.records.info["async_validation"] is True
        counts.append(len(profiler.records.validations))
        trace = json.loads(profiler.write_trace(tmp_path / "trace.json").read_text())
        spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        judged = [event for event in spans if event["name"].startswith("validat") or "judg" in event["name"]]
        assert max(event["ts"] + event["dur"] for event in spans) / 1e6 <= profiler.records.info["fit_s"] + 1, judged
    assert counts == [1, 1]

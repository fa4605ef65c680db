"""The application, run inside the test process."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.train import train

Run = Callable[..., float | None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def job(*overrides: str, out: str = "out") -> float | None:
        quiet = ["trainer.accelerator=cpu", "~callbacks.progress_bar", "trainer.enable_progress_bar=false"]
        with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
            config = compose("train", [*quiet, f"output_dir={tmp_path / out}", *overrides])
        return train(config)

    return job


def losses(folder: Path) -> list[str]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_demo_reaches_its_accuracy(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    accuracy = run("experiment=digits", "optimized_metric=test/acc")
    assert accuracy is not None
    assert accuracy >= 0.97
    printed = capsys.readouterr().out
    for row in ("Test accuracy", "Epoch time", "Waiting for batches", "Sampled edges/s", "Peak memory", "Checkpoint"):
        assert row in printed
    assert f"{accuracy:.2%}" in printed
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("best-*.ckpt")
    assert NodeClassifier.load_from_checkpoint(checkpoint, weights_only=True).net.num_layers == 2


def test_two_runs_of_a_seed_are_identical_for_any_number_of_workers(run: Run, tmp_path: Path) -> None:
    common = ("trainer.max_epochs=3", "data.batch_size=256", "test=false")
    run(*common, "data.num_workers=2", out="a")
    run(*common, "data.num_workers=2", out="b")
    run(*common, "data.num_workers=0", out="c")
    run(*common, "seed=43", out="d")
    assert len(losses(tmp_path / "a")) == 12
    assert losses(tmp_path / "a") == losses(tmp_path / "b") == losses(tmp_path / "c")
    assert losses(tmp_path / "a") != losses(tmp_path / "d")


def test_resumed_run_equals_the_uninterrupted_one(run: Run, tmp_path: Path) -> None:
    # Lightning's checkpoints hold no random state of torch, so dropout would go on with other numbers
    common = ("data.batch_size=256", "test=false", "model.dropout=0")
    # Lightning writes last.ckpt only where it writes another: with the best alone, an epoch that is no better has none
    common += ("callbacks.model_checkpoint.save_last=true", "callbacks.model_checkpoint.save_top_k=-1")
    run(*common, "trainer.max_epochs=4", out="whole")
    run(*common, "trainer.max_epochs=2", out="half")
    run(*common, "trainer.max_epochs=4", f"ckpt_path={tmp_path}/half/checkpoints/last.ckpt", out="rest")
    assert losses(tmp_path / "half") + losses(tmp_path / "rest") == losses(tmp_path / "whole")


def test_no_thread_is_left(run: Run) -> None:
    run("trainer.max_epochs=2", "data.num_workers=4")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt")]


def test_optimized_metric_of_training_survives_the_test(run: Run) -> None:
    accuracy = run("trainer.max_epochs=1", "optimized_metric=val/acc")
    assert accuracy is not None
    assert 0 < accuracy <= 1


def test_unknown_optimized_metric(run: Run) -> None:
    with pytest.raises(ValueError, match=r"Unknown optimized_metric 'val/accc'\. Did you mean 'val/acc'\?"):
        run("trainer.max_epochs=1", "optimized_metric=val/accc", "test=false")


def test_testing_a_checkpoint_alone(run: Run, tmp_path: Path) -> None:
    trained = run("trainer.max_epochs=2", "optimized_metric=test/acc")
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("best-*.ckpt")
    tested = run("fit=false", f"ckpt_path={checkpoint}", "optimized_metric=test/acc", out="again")
    assert tested == trained


def test_without_callbacks_and_logger(run: Run, tmp_path: Path) -> None:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose(
            "train",
            [
                "callbacks=none",
                "logger=none",
                "trainer.fast_dev_run=true",
                "trainer.enable_progress_bar=false",
                f"output_dir={tmp_path}",
                "optimized_metric=test/loss",
            ],
        )
    loss = train(config)
    assert loss is not None
    assert torch.isfinite(torch.tensor(loss))


def test_layerwise_evaluation_scores_as_full_sampled_evaluation(run: Run) -> None:
    common = ("trainer.max_epochs=2", "optimized_metric=test/acc")
    layerwise = run(*common, "data.eval_mode=layerwise", out="layerwise")
    sampled = run(*common, "data.eval_num_neighbors=[-1,-1]", out="sampled")
    assert layerwise == sampled

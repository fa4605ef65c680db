from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from benchmarks import endtoend
from benchmarks.endtoend import EQUAL_EPOCHS, EQUAL_STEPS, SAMPLED, Training

EPOCHS = 6
BATCHES = 8  # 898 training nodes in batches of 128


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Where other jobs run, operators on all cores wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endtoend, "OVERRIDES", (*endtoend.OVERRIDES, f"trainer.max_epochs={EPOCHS}"))
    monkeypatch.setattr(endtoend, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(endtoend, "WARMUP", 0)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # `seed_everything` sets them: put back what was there
        monkeypatch.setenv(name, "0")


def config(*overrides: str) -> DictConfig:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        return compose("train", overrides=[*endtoend.OVERRIDES, *overrides])


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, level = tmp_path / "report.json", logging.getLogger("lightning.pytorch").level
    assert endtoend.main(["--quick", "--json", str(path)]) == 0
    assert "test accuracy, sampled" in capsys.readouterr().out
    assert logging.getLogger("lightning.pytorch").level == level

    found = json.loads(path.read_text())
    assert list(found) == ["command", "machine", "versions", "figures", "rows"]
    assert found["command"] == "python -m benchmarks.endtoend --quick"
    assert all(list(figure) == ["name", "value", "reach", "sense", "unit", "runs"] for figure in found["figures"])
    assert all(len(figure["runs"]) == 1 for figure in found["figures"])
    figures: dict[str, dict[str, Any]] = {figure["name"]: figure for figure in found["figures"]}
    assert [(name, figure["reach"], figure["sense"]) for name, figure in figures.items() if figure["reach"]] == [
        ("test accuracy, sampled", 0.97, ">=")
    ]
    assert 0.9 < figures["test accuracy, sampled"]["value"] <= 1
    assert 0.9 < figures["test accuracy, full-batch, equal steps"]["value"] <= 1
    assert 0.0 < figures["test accuracy, full-batch, equal epochs"]["value"] <= 1
    assert 0.0 <= figures["share of the epoch waited for batches, sampled"]["value"] <= 1

    rows = {row["side"]: row for row in found["rows"]}
    assert {side: (row["epochs"], row["steps"]) for side, row in rows.items()} == {
        SAMPLED: (EPOCHS, EPOCHS * BATCHES),
        EQUAL_EPOCHS: (EPOCHS, EPOCHS),
        EQUAL_STEPS: (EPOCHS * BATCHES, EPOCHS * BATCHES),
    }
    assert {row["device"] for row in rows.values()} == {"cpu"}
    assert [row["wait_share"] is None for row in rows.values()] == [False, True, True]
    assert rows[SAMPLED]["test_acc"] == figures["test accuracy, sampled"]["value"]


def test_hyper_parameters_are_those_of_the_demo() -> None:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        demo = compose("train", overrides=["experiment=digits"])
    ours = config()
    for group in ("data", "model", "sampler", "seed"):
        assert ours[group] == demo[group]
    assert {key for key in demo.trainer if key != "default_root_dir" and demo.trainer[key] != ours.trainer[key]} == {
        "accelerator",  # the CPU, also where there is a GPU
        "enable_progress_bar",
        "max_epochs",  # by this test
    }


def test_rounds_take_seeds_in_turn_and_warming_up_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endtoend, "WARMUP", 1)
    jobs: list[DictConfig] = []

    def train(job: DictConfig) -> Training:
        jobs.append(job)
        return Training(epochs=1, steps=1, epoch_s=1.0, train_s=1.0, wait_share=None, test_acc=1.0)

    base = config("seed=7")
    run = endtoend._seeded(base, train)
    for _ in range(4):
        run()
    assert [job.seed for job in jobs] == [7, 7, 8, 9]
    assert [job.data.seed for job in jobs] == [7, 7, 8, 9]
    assert [job.trainer.max_epochs for job in jobs] == [2, EPOCHS, EPOCHS, EPOCHS]
    assert (base.seed, base.trainer.max_epochs) == (7, EPOCHS)


def test_the_same_seed_gives_the_same_accuracy() -> None:
    def trained(seed: int) -> tuple[float, float]:
        job = config("trainer.max_epochs=2", f"seed={seed}")
        sides = (endtoend._train_sampled, endtoend._train_full_batch)
        sampled, full_batch = (endtoend._seeded(job, train)().test_acc for train in sides)
        return sampled, full_batch

    with endtoend.quiet():
        first, again, other = trained(1), trained(1), trained(2)
    assert first == again
    assert first != other


def test_full_batch_tests_the_weights_that_validated_best(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = [(0.5, 0.1), (0.9, 0.2), (0.9, 0.3), (0.8, 0.4)]  # the first of equals, as `ModelCheckpoint` takes
    remaining = iter(accuracies)
    monkeypatch.setattr(endtoend, "_evaluate", lambda model, data: next(remaining))
    training = endtoend._train_full_batch(config("trainer.max_epochs=4"), factor=2)
    assert training.test_acc == 0.2
    assert (training.epochs, training.steps, training.wait_share) == (8, 8, None)
    assert next(remaining, None) is None  # after epochs 2, 4, 6 and 8


def test_a_schedule_is_refused() -> None:
    job = config("model.scheduler={name: StepLR, step_size: 10}")
    with pytest.raises(ValueError, match=r"`scheduler` must be null to train full-batch, but is .*StepLR"):
        endtoend._train_full_batch(job)


def test_figures_come_from_runs_of_the_same_round() -> None:
    def run(epoch_s: float, train_s: float, test_acc: float, wait_share: float | None = None) -> Training:
        return Training(epochs=2, steps=2, epoch_s=epoch_s, train_s=train_s, wait_share=wait_share, test_acc=test_acc)

    figures = endtoend._figures(
        {
            SAMPLED: [run(2.0, 4.0, 0.96, 0.5), run(30.0, 60.0, 0.98, 0.25), run(4.0, 8.0, 0.97, 0.0)],
            EQUAL_EPOCHS: [run(1.0, 2.0, 0.9), run(10.0, 20.0, 0.8), run(1.0, 2.0, 0.7)],
            EQUAL_STEPS: [run(1.0, 8.0, 0.95), run(10.0, 120.0, 0.94), run(1.0, 4.0, 0.93)],
        }
    )
    assert {figure.name: (figure.value, figure.runs, figure.unit) for figure in figures} == {
        "test accuracy, sampled": (0.97, (0.96, 0.98, 0.97), "share"),
        "test accuracy, full-batch, equal epochs": (0.8, (0.9, 0.8, 0.7), "share"),
        "test accuracy, full-batch, equal steps": (0.94, (0.95, 0.94, 0.93), "share"),
        "epoch time, sampled": (4.0, (2.0, 30.0, 4.0), "s"),
        "epoch time, full-batch": (1.0, (1.0, 10.0, 1.0), "s"),
        "epoch time, sampled over full-batch": (3.0, (2.0, 3.0, 4.0), "x"),
        "training time, sampled over full-batch at equal steps": (0.5, (0.5, 0.5, 2.0), "x"),
        "share of the epoch waited for batches, sampled": (0.25, (0.5, 0.25, 0.0), "share"),
    }
    assert [figure.met for figure in figures] == [True, *[None] * 7]

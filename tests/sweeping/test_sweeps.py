"""Sweeps of `gnnopt-train`, with each launcher, and what they leave behind; the guide's commands."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_gnnopt import collect, train
from lightning_gnnopt.sweeping import collect_outcomes

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "sweeps.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL) for line in block.splitlines()]
SMALL = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress_bar",
    "model.hidden_channels=8",
    "data.num_workers=0",
)


def call(monkeypatch: pytest.MonkeyPatch, command: str, *more: str) -> int:
    """Run a command in this process, and return its exit status."""
    name, *arguments = shlex.split(command)
    main = {"gnnopt-train": train.main, "gnnopt-collect": collect.main}[name]
    fixed = {argument.split("=")[0] for argument in more}
    kept = [argument for argument in arguments if argument.split("=")[0] not in fixed]
    monkeypatch.setattr(sys, "argv", [name, *kept, *more])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def guide(*words: str) -> str:
    (found,) = [line for line in COMMANDS if all(word in line for word in words)]
    return found


def check_nothing_is_left(folder: Path, before: set[int]) -> None:
    mine = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not mine
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt")]
    assert not [process.pid for process in psutil.process_iter() if in_folder(process, folder)]


def in_folder(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.cwd() == str(folder)
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


@pytest.fixture
def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.slow
def test_the_guides_first_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], children: set[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, guide("model=gcn,sage,gat"), *SMALL) == 0
    printed = capsys.readouterr().out
    assert "Averaged over seed" in printed
    assert call(monkeypatch, "gnnopt-collect multirun/models") == 0
    assert capsys.readouterr().out.split("Written to")[0] in printed
    report = collect_outcomes("multirun/models")
    assert (report.varying, len(report.jobs), report.metric) == (["model", "seed"], 6, "test/acc")
    assert [(row.overrides["model"], row.n, row.failed) for row in report.summary] == [
        ("gcn", 2, 0),
        ("sage", 2, 0),
        ("gat", 2, 0),
    ]
    assert all(job.outcome.peak_bytes and {"test/acc", "val/acc"} <= job.outcome.metrics.keys() for job in report.jobs)
    collects = [line for line in COMMANDS if line.startswith("gnnopt-collect ")]
    assert len(collects) == 3
    assert [call(monkeypatch, line) for line in collects] == [0, 0, 0]
    assert (tmp_path / "tables" / "summary.csv").exists()
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    if importlib.util.find_spec("pandas") and importlib.util.find_spec("matplotlib"):
        exec(block, scope)
        assert len(scope["frame"]) == 6
    check_nothing_is_left(tmp_path, children)


@pytest.mark.slow
def test_a_job_that_fails_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], children: set[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, guide("model.dropout=0.2,1.2,0.5"), *SMALL) == 1
    captured = capsys.readouterr()
    assert "Error: 1 of 3 jobs failed: 1 in `multirun/dropout`." in captured.err
    report = collect_outcomes("multirun/dropout")
    assert [job.outcome.status for job in report.jobs] == ["ok", "failed", "ok"]
    assert report.jobs[1].error == "`dropout` must be at least 0 and below 1, but got 1.2."
    check_nothing_is_left(tmp_path, children)


@pytest.mark.slow
def test_validation_processes_end_with_their_jobs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, children: set[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "gnnopt-train -m callbacks=[default,async_validation] seed=1,2 hydra.sweep.dir=sweep"
    assert call(monkeypatch, command, *SMALL) == 0
    assert all("val/acc" in job.outcome.metrics for job in collect_outcomes("sweep").jobs)
    check_nothing_is_left(tmp_path, children)


@pytest.mark.slow
def test_joblib(tmp_path: Path) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed (the extra `sweeps`)")
    command = shlex.split(guide("hydra/launcher=joblib"))[1:]
    small = [*SMALL, "model.dropout=0.5,1.5"]
    kept = [argument for argument in command if not argument.startswith(("trainer.", "seed="))]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gnnopt.train", *kept, "seed=1", *small],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Error: 2 of 4 jobs failed: 1, 3 in `multirun/graphs`." in done.stderr
    assert "Traceback" not in done.stderr
    report = collect_outcomes(tmp_path / "multirun" / "graphs")
    given = [(job.outcome.overrides["data"], job.outcome.status) for job in report.jobs]
    assert given == [("digits-knn", "ok"), ("digits-knn", "failed"), ("dcsbm", "ok"), ("dcsbm", "failed")]
    assert f"{report.summary[0].metrics['test/acc'].mean:.4g}" in done.stdout
    assert not [process.pid for process in psutil.process_iter() if in_folder(process, tmp_path)]


@pytest.mark.slow
def test_a_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], children: set[int]
) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("hydra-optuna-sweeper is not installed (the extra `optuna`)")
    monkeypatch.chdir(tmp_path)
    space = ["model.hidden_channels=choice(4,8)", "model.dropout=interval(0,1.5)", "hydra.sweeper.n_trials=4"]
    storage = ["hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.study_name=mine", "seed=3"]
    small = [argument for argument in SMALL if not argument.startswith("model.")]
    status = call(monkeypatch, guide("hydra/sweeper=gnnopt_optuna"), *small, *space, *storage)
    report = collect_outcomes("multirun/search")
    dropouts = [job.outcome.overrides["model.dropout"] for job in report.jobs]
    assert len(dropouts) == 4
    assert [job.outcome.status for job in report.jobs] == ["ok" if value < 1 else "failed" for value in dropouts]
    assert status == int(bool(report.failed))
    best = max(job.outcome.metrics["val/acc"] for job in report.jobs if job.outcome.status == "ok")
    assert f"best_value: {best}" in (tmp_path / "multirun" / "search" / "optimization_results.yaml").read_text()
    check_nothing_is_left(tmp_path, children)

"""The Hydra callback, in an application whose jobs do nothing but end one way or another."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig

from lightning_gnnopt.sampling import NeighborSampler, Topology
from lightning_gnnopt.sweeping import collect_outcomes, record_result
from lightning_gnnopt.sweeping.result import Result, close_result, open_result

CONFIG = """
kind: ok
seed: 1
optimized_metric: null
hydra:
  run: {dir: out}
  sweep: {dir: sweep}
  callbacks:
    outcome:
      _target_: lightning_gnnopt.sweeping.OutcomeWriter
"""
Call = Callable[..., None]


class UnsendableError(Exception):
    """Cannot be pickled: no launcher could send it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}\nand {two}")
        self.hook = lambda: None


class Batch:
    """Stands for what a step holds."""


class Task:
    """Does what `kind` says."""

    def __init__(self) -> None:
        self.held: weakref.ref[Batch] | None = None
        self.was_held: list[bool] = []

    def __call__(self, config: DictConfig) -> float | None:
        if self.held is not None:
            self.was_held.append(self.held() is not None)
        batch = Batch()
        self.held = weakref.ref(batch)
        record_result({"val/acc": torch.tensor(0.25 * config.seed)}, peak_bytes=100)
        if config.kind == "ok":
            record_result({"test/acc": 0.5})
            return 1.0
        if config.kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        if config.kind == "refused":
            NeighborSampler(Topology.__new__(Topology), [])
        if config.kind == "interrupt":
            raise KeyboardInterrupt
        raise UnsendableError(1, 2)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "job.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing

    def app(*arguments: str, task: Callable[[DictConfig], Any] | None = None) -> None:
        monkeypatch.setattr(sys, "argv", ["app", *arguments])

        def job(config: DictConfig) -> Any:
            return (task or Task())(config)

        hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name="job")(job)()

    return app


def outcome(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "outcome.json").read_text())
    return found


def test_failed_jobs_neither_stop_the_others_nor_are_lost(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task()
    with pytest.raises(SystemExit) as stop:
        call("-m", "kind=memory,ok,refused,other", "seed=2", task=task)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(
        "Error: 3 of 4 jobs failed: 0, 2, 3 in `sweep`. HINT: each one's `outcome.json` has its traceback.\n"
    )
    assert "4 jobs, 3 failed" in captured.out
    assert "This table again, with a figure: gnnopt-collect sweep\n" in captured.out
    assert outcome("sweep/0")["error"] == "Out of memory: CUDA out of memory. Tried to allocate 2 GiB."
    assert outcome("sweep/2")["error"].startswith("`num_neighbors` must hold one fan-out per hop, but it is empty.")
    assert outcome("sweep/3")["error"] == "UnsendableError: 1 and 2"
    assert 'raise torch.OutOfMemoryError("CUDA' in outcome("sweep/0")["traceback"]
    good = outcome("sweep/1")
    assert (good["status"], good["error"], good["traceback"]) == ("ok", None, None)
    assert good["overrides"] == {"kind": "ok", "seed": 2}
    assert good["metrics"] == {"val/acc": 0.5, "test/acc": 0.5}
    assert good["peak_bytes"] == 100
    assert good["versions"]["torch"] == torch.__version__
    assert outcome("sweep/0")["metrics"] == {"val/acc": 0.5}  # reached before it failed
    # No job meets what a failed one has held.
    assert task.was_held == [False] * 3


def test_all_well_is_no_error(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call("-m", "seed=1,2", "hydra.sweep.dir='a sweep'")
    captured = capsys.readouterr()
    assert "Error" not in captured.err
    assert "2 jobs\n" in "\n".join(line.rstrip() for line in captured.out.splitlines())
    assert "gnnopt-collect 'a sweep'\n" in captured.out


def test_only_this_sweeps_failures_count(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("-m", "kind=ok,other", "hydra.sweep.subdir=a${hydra.job.num}")
    capsys.readouterr()
    call("-m", "kind=ok", "hydra.sweep.subdir=b${hydra.job.num}")
    assert "3 jobs, 1 failed" in capsys.readouterr().out  # all that is there, told once more


def test_batches_of_a_sweep_go_on(call: Call) -> None:
    with pytest.raises(SystemExit):
        call("-m", "kind=other,ok", "hydra.sweeper.max_batch_size=1")
    assert [outcome(f"sweep/{number}")["status"] for number in range(2)] == ["failed", "ok"]


def test_a_job_of_its_own_fails_as_ever(call: Call) -> None:
    with pytest.raises(UnsendableError, match="1\nand 2"):
        call("kind=other")
    assert (outcome("out")["status"], outcome("out")["sweep"]) == ("failed", None)
    call("kind=ok")
    assert outcome("out")["status"] == "ok"


def test_an_interrupt_ends_the_sweep_and_the_job_did_not_end(call: Call) -> None:
    with pytest.raises(KeyboardInterrupt):
        call("-m", "kind=ok,interrupt,ok", "seed=1")
    assert [outcome(f"sweep/{number}")["status"] for number in range(2)] == ["ok", "running"]
    assert not Path("sweep/2").exists()
    assert [job.error for job in collect_outcomes("sweep").jobs] == [None, "Did not end, or still runs."]


def test_while_a_job_runs_its_outcome_says_so(call: Call) -> None:
    seen: list[dict[str, Any]] = []
    call("seed=3", task=lambda config: seen.append(outcome("out")))
    assert (seen[0]["status"], seen[0]["overrides"], seen[0]["seconds"]) == ("running", {"seed": 3}, None)
    assert outcome("out")["seconds"] >= 0


def test_other_processes_of_a_job_write_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    call("-m", "seed=1")
    assert not list(Path("sweep").rglob("outcome.json"))


def test_results_outside_of_a_job_go_nowhere() -> None:
    record_result({"val/acc": 1.0}, peak_bytes=1)
    assert close_result() == Result()
    open_result()  # nor into the next one
    assert close_result() == Result()


def test_a_search_needs_its_extra_and_a_metric(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = "hydra.sweeper._target_=hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    for found, sentence in (
        (None, "This sweeper needs optuna, which is not installed. HINT: pip install 'lightning-gnnopt[optuna]'."),
        (object(), "`optimized_metric` must name what optuna is to optimize, but is null. HINT: optimized_metric="),
    ):
        monkeypatch.setattr("lightning_gnnopt.sweeping.writer.find_spec", lambda name, found=found: found)
        with pytest.raises(SystemExit) as stop:
            call("-m", optuna, "seed=1,2")
        assert stop.value.code == 1
        assert f"Error: {sentence}" in capsys.readouterr().err
    assert not Path("sweep").exists()

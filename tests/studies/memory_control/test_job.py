"""Jobs of the memory study, run inside the test process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from lightning_gnnopt.memory import MemoryBudgetError
from lightning_gnnopt.studies.cells import load_cells
from lightning_gnnopt.studies.memory_control import settings
from lightning_gnnopt.studies.memory_control.job import run_job
from lightning_gnnopt.studies.memory_control.settings import parts_of
from lightning_gnnopt.study import main

Run = Callable[..., list[Path]]
ROOT = Path(__file__).resolve().parents[3]
NAMES = {
    "predictors=neighbor",
    "limit=neighbor-resample-prune",
    "limit=neighbor-split",
    "overhead",
    "accuracy=whole",
    "accuracy=random",
    "accuracy=degree",
    "accuracy=split",
    "pruning=degree",
    "pruning=pagerank",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def job(*overrides: str) -> list[Path]:
        small = ["+memory.options.dcsbm={num_nodes: 300, num_features: 8, avg_degree: 8}", "data=dcsbm", "model=gcn"]
        with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
            config = compose("memory_study", ["memory=quick", *small, f"dir={tmp_path}", *overrides])
        return run_job(config)

    return job


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Says which parts were measured, and measures nothing."""
    called: list[str] = []

    def fake(kind: str) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
        return lambda setup, options: called.append(kind) or {"found": kind}

    monkeypatch.setattr(settings, "PARTS", {kind: fake(kind) for kind in settings.PARTS})
    return called


def test_parts_of_the_default_study() -> None:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        study = compose("memory_study").memory
    real = [part.name for part in parts_of(study, data="amazon-photo")]
    assert len(real) == len(set(real)) == 2 + 4 + 1 + 5 + 2
    assert set(study.accuracy.data) <= {"amazon-photo", "amazon-computers", "coauthor-physics", "facebook-cornell5"}
    assert not any("accuracy" in part.name for part in parts_of(study, data="reddit-like"))
    with pytest.raises(ValueError, match=r"Unknown part of the study 'limits'\. Did you mean 'limit'"):
        parts_of({**study, "parts": ["limits"]}, data="amazon-photo")


def test_what_is_complete_is_not_run_again(run: Run, measured: list[str], tmp_path: Path) -> None:
    arguments = ["memory.accuracy.data=[dcsbm]"]
    assert {path.parent.name for path in run(*arguments)} == NAMES
    assert len(measured) == len(NAMES)
    assert run(*arguments) == []
    assert len(measured) == len(NAMES)
    (tmp_path / "dcsbm" / "gcn" / "overhead" / "cell.json").write_text('{"config": {')  # cut off
    changed = run(*arguments, "memory.pruning.rounds=3")  # another config: only what it changes is run again
    assert {path.parent.name for path in changed} == {"overhead", "pruning=degree", "pruning=pagerank"}
    assert len(run(*arguments, "memory.pruning.rounds=3", "memory.hidden=8")) == len(NAMES)
    assert len(run(*arguments, "model=gat")) == len(NAMES)


def test_what_cannot_be_run_is_kept_with_its_error_and_stops_nothing(
    run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(setup: Any, options: Any) -> dict[str, Any]:
        raise MemoryBudgetError("A batch does not fit.")

    def exhaust(setup: Any, options: Any) -> dict[str, Any]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(settings, "PARTS", {**settings.PARTS, "limit": refuse, "overhead": exhaust})
    assert len(run()) == 6
    cells = {cell.name.rpartition("/")[2]: cell for cell in load_cells(tmp_path)}
    assert cells["limit=neighbor-split"].error == "A batch does not fit."
    assert cells["overhead"].error == "Out of memory"
    assert cells["pruning=degree"].result["found"] == "pruning"
    assert run() == []  # it would fail again


def test_a_graph_that_is_too_small_is_named(run: Run, tmp_path: Path) -> None:
    run("memory.parts=[overhead]", "memory.overhead.batch_size=151")
    (cell,) = load_cells(tmp_path)
    assert cell.error.startswith("`batch_size` must not be above the 150 nodes that the graph has to train on")


def test_a_fault_of_the_program_is_raised_when_the_rest_is_safe(
    run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound = settings.PARTS

    def fail(setup: Any, options: Any) -> dict[str, Any]:
        raise KeyError("x")

    monkeypatch.setattr(settings, "PARTS", {**sound, "predictors": fail})
    with pytest.raises(KeyError, match="x"):
        run()
    cells = {cell.name.rpartition("/")[2]: cell for cell in load_cells(tmp_path)}
    assert cells["predictors=neighbor"].error == "KeyError: 'x'"
    assert cells["pruning=pagerank"].error == ""
    monkeypatch.setattr(settings, "PARTS", sound)
    assert [path.parent.name for path in run()] == ["predictors=neighbor"]  # mended: tried again


def test_missing_files_are_told_and_tried_again(run: Run, tmp_path: Path) -> None:
    arguments = ("data=amazon-photo", f"data.root={tmp_path / 'no'}", "+data.options.download=false")
    assert len(run(*arguments)) == 6
    assert all("amazon_photo.npz" in cell.error or "amazon-photo" in cell.error for cell in load_cells(tmp_path))
    assert len(run(*arguments)) == 6


@pytest.mark.slow
def test_the_quick_study_runs_to_its_tables_and_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    arguments = ["study", "--config-name", "memory_study", "-m", "memory=quick", "dir=out"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    cells = {cell.name: cell for cell in load_cells("out")}
    assert {name for name, cell in cells.items() if cell.error} == set()
    assert set(cells) == {f"digits-knn/{model}/{name}" for model in ("gcn", "gat") for name in NAMES}
    for name, cell in cells.items():
        if "predictors" in name:
            assert cell.result["kinds"]["analytic"]["max"] < 1e-3
            assert cell.result["kinds"]["analytic"]["exact"] >= 0.8  # not where the first step of an epoch logs
            assert len(cell.result["measured"]) == 16
        if "limit" in name:
            assert cell.result["over_before"] == 5 / 16  # above the 0.7 quantile of 16 different peaks
            assert cell.result["over_after"] == 0.0
        if "split" in name:
            assert "edges_pruned" not in cell.result or cell.result["edges_pruned"] == 0.0
    page = Path("out/tables.md").read_text()
    assert "| digits-knn | gat | neighbor, analytic | 0.0 | 0.0 | 0.0 |" in page
    assert {path.name for path in Path("out/figures").glob("*.svg")} == {
        "predictions.svg",
        "accuracy.svg",
        "peaks.svg",
    }
    assert "20 cells, 0 without a result. Written to out." in capsys.readouterr().out

    before = {path: path.read_bytes() for path in Path("out").rglob("cell.json")}
    main()
    assert {path: path.read_bytes() for path in Path("out").rglob("cell.json")} == before
    assert json.loads(Path("out/digits-knn/gcn/overhead/cell.json").read_text())["config"]["seed"] == 42


def test_the_recipes_page_gives_the_commands() -> None:
    page = (ROOT / "recipes" / "memory_study" / "README.md").read_text()
    assert "python -m lightning_gnnopt.study --config-name memory_study -m data.root=PATH\n" in page
    assert "memory_study -m memory=quick" in page

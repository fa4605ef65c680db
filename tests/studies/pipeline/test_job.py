"""Jobs of the pipeline study, with fits that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from lightning_gnnopt.studies.cells import load_cells
from lightning_gnnopt.studies.pipeline import baseline, measuring
from lightning_gnnopt.studies.pipeline.fits import Fit
from lightning_gnnopt.studies.pipeline.job import run_job
from lightning_gnnopt.studies.pipeline.settings import settings_of
from tests.studies.pipeline.made import made_fit

Run = Callable[..., list[Path]]


def composed(folder: Path, *overrides: str) -> DictConfig:
    small = ["+pipeline.options.dcsbm={num_nodes: 400, num_features: 8, avg_degree: 6}", "data=dcsbm", "model=gcn"]
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        return compose("pipeline_study", [*small, f"dir={folder / 'out'}", "pipeline=quick", *overrides])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *overrides: run_job(composed(tmp_path, *overrides))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules of all fits so far; none of them is run."""
    modules: list[Any] = []

    def run_fit(module: Any, datamodule: Any, *, epochs: int, beside: bool) -> Fit:
        modules.append(module)
        return made_fit(beside=beside)

    monkeypatch.setattr(measuring, "run_fit", run_fit)
    monkeypatch.setattr(baseline, "pyg_samples_with", lambda: None)  # whatever is installed here
    monkeypatch.setattr(measuring.gc, "collect", lambda: 0)  # a test process has much to look through
    return modules


def test_settings_are_the_samplers_and_on_some_graphs_other_numbers() -> None:
    effects = {"data": ["a"], "batch_size": [8, 16], "hidden": [32, 4], "rounds": 1}
    study = {"samplers": ["neighbor", "cluster"], "batch_size": 8, "hidden": 32, "heads": 2, "layers": 2, "rounds": 3}
    study |= {"epochs": 4, "effects": effects}
    found = settings_of(study, data="a", has_heads=True)
    assert [setting.name for setting in found] == [
        "neighbor-8", "cluster-8", "neighbor-16", "neighbor-8-hidden=4", "cluster-16", "cluster-8-hidden=4",
    ]  # fmt: skip
    assert [(setting.rounds, setting.varied) for setting in found[1:4]] == [(3, ""), (1, "batch_size"), (1, "hidden")]
    assert {setting.heads for setting in found} == {2}
    others = settings_of(study, data="b", has_heads=False)
    assert [(setting.name, setting.heads) for setting in others] == [("neighbor-8", None), ("cluster-8", None)]
    with pytest.raises(ValueError, match=r"Unknown sampler of the study 'clusters'\. Did you mean 'cluster'"):
        settings_of({**study, "samplers": ["clusters"]}, data="a", has_heads=True)
    with pytest.raises(ValueError, match=r"`pipeline\.epochs` must be at least 4, but is 3\. HINT"):
        settings_of({**study, "epochs": 3}, data="a", has_heads=True)
    with pytest.raises(ValueError, match=r"`pipeline\.effects\.rounds` must be at least 1, but is 0\. HINT"):
        settings_of({**study, "effects": {**effects, "rounds": 0}}, data="a", has_heads=True)


def test_what_is_complete_is_not_run_again(run: Run, fits: list[Any], tmp_path: Path) -> None:
    both = "pipeline.samplers=[neighbor,cluster]"
    first = run(both)
    assert [path.parent.name for path in first] == ["neighbor-64", "cluster-64"]
    assert len(fits) == 2 * 5  # a try and four sides
    assert run(both) == []
    assert run(both, "pipeline.max_s=1") == []  # how long it may take is no part of what is measured
    assert len(fits) == 10
    first[0].write_text("cut of")
    assert run(both) == first[:1]
    assert run("pipeline.epochs=5") == first[:1]
    assert [cell.config["epochs"] for cell in load_cells(tmp_path / "out")] == [4, 5]


def test_all_sides_begin_with_the_same_weights(run: Run, fits: list[Any]) -> None:
    run("model=gat", "pipeline.hidden=16", "pipeline.heads=4")
    states = [module.state_dict() for module in fits]
    assert all((states[0][name] == state[name]).all() for state in states for name in state)
    assert (fits[0].hparams["hidden_channels"], fits[0].hparams["heads"]) == (16, 4)


def test_what_cannot_be_run_is_kept_with_its_reason(run: Run, fits: list[Any], tmp_path: Path) -> None:
    run("pipeline.batch_size=300")
    (cell,) = load_cells(tmp_path / "out")
    assert (cell.name, cell.complete, dict(cell.result)) == ("dcsbm/gcn/neighbor-300", True, {})
    assert "must not be above the 200 nodes" in cell.error
    assert run("pipeline.batch_size=300") == fits == []


def test_out_of_memory_is_a_result(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_fit(*args: Any, **options: Any) -> Fit:
        raise MemoryError

    monkeypatch.setattr(measuring, "run_fit", run_fit)
    monkeypatch.setattr(baseline, "pyg_samples_with", lambda: None)  # whatever is installed here
    run()
    (cell,) = load_cells(tmp_path / "out")
    assert (cell.error, cell.complete) == ("Out of memory", True)


def test_a_fault_is_kept_and_raised_when_the_others_are_through(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bool] = []

    def run_fit(module: Any, datamodule: Any, *, epochs: int, beside: bool) -> Fit:
        asked.append(beside)
        if len(asked) == 1:
            raise KeyError("lost")
        return made_fit(beside=beside)

    monkeypatch.setattr(measuring, "run_fit", run_fit)
    monkeypatch.setattr(baseline, "pyg_samples_with", lambda: None)  # whatever is installed here
    with pytest.raises(KeyError, match="lost"):
        run("pipeline.samplers=[neighbor,cluster]")
    whole, failed = load_cells(tmp_path / "out")
    assert (failed.name, failed.error, failed.complete) == ("dcsbm/gcn/neighbor-64", "KeyError: 'lost'", False)
    assert whole.result["sides"]["prefetch"]["speedup"] == 1.0
    assert len(run("pipeline.samplers=[neighbor,cluster]")) == 1  # tried again


def test_missing_files_are_tried_again(run: Run, fits: list[Any], tmp_path: Path) -> None:
    arguments = ("data=amazon-photo", f"data.root={tmp_path}", "+data.options.download=false")
    assert len(run(*arguments)) == len(run(*arguments)) == 1
    (cell,) = load_cells(tmp_path / "out")
    assert (cell.complete, dict(cell.result)) == (False, {})
    assert "HINT" in cell.error
    assert not fits

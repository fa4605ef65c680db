"""The study's command, as a user runs it."""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_gnnopt.datasets import dataset_names
from lightning_gnnopt.studies.bottleneck import steps as study_steps
from lightning_gnnopt.studies.collecting import KINDS
from lightning_gnnopt.studies.thesis import MODELS
from lightning_gnnopt.study import main, study

ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    main()


def test_a_multirun_ends_with_tables_and_figures_and_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    steps, plain = [], study_steps._loss
    monkeypatch.setattr(study_steps, "_loss", lambda *args: steps.append(1) or plain(*args))
    arguments = ["-m", "study=quick", "model=gcn,gat", "data=flickr-like,yelp-like", "dir=out/a study"]
    arguments += ["study.options.flickr-like.scale=0.004", "study.options.yelp-like.scale=0.001"]
    arguments += ["study.sampled.samplers=[neighbor]", "study.sampled.batch_sizes=[10]", "study.effects.hidden=[8,64]"]
    call(monkeypatch, *arguments)
    # full and sampled of all; on flickr-like hidden=8 and layers=1 of both, heads=2 of GAT
    assert len(steps) == 4 * (3 + 6) + 3 * (2 + 3)
    out = tmp_path / "out" / "a study"
    with (out / "tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    shares = {(row["graph"], row["model"]): float(row["value"]) for row in rows if row["column"] == "edge_of_layers"}
    assert list(shares) == [(data, model) for data in ("flickr-like", "yelp-like") for model in ("gcn", "gat")]
    assert all(0 < share < 1 for share in shares.values())
    assert {row["error"] for row in rows} == {""}
    page = (out / "tables.md").read_text()
    assert page.count("\n### ") == 9  # and the first one
    assert "| flickr-like | gat | heads=2 | 2 |" in page
    for name in ("vertex_edge", "edge_steps", "effects_time", "effects_memory", "expansion", "sampling", "batches"):
        assert ElementTree.parse(out / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
    printed = capsys.readouterr().out
    assert "13 profiles, 0 settings without one. Written to" in printed
    assert "Edge computation dominates" in printed

    call(monkeypatch, *arguments)
    assert len(steps) == 51
    (out / "tables.csv").unlink()
    before = sorted(tmp_path.rglob("*"))
    call(monkeypatch, f"collect='{out}'")
    assert sorted({*before, out / "tables.csv"}) == sorted(tmp_path.rglob("*"))  # and nothing else, nowhere
    assert len(steps) == 51


def test_collecting_nothing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, f"collect={tmp_path}")
    assert stop.value.code == 1
    assert f"Error: `{tmp_path}` holds no profile of the study. HINT:" in capsys.readouterr().err


def test_the_multirun_is_the_four_models_on_the_thesis_graphs() -> None:
    swept = OmegaConf.load(ROOT / "conf" / "hydra" / "study.yaml").sweeper.params
    assert tuple(swept.model.split(",")) == MODELS
    data = swept.data.split(",")
    assert data[:3] == ["amazon-photo", "amazon-computers", "coauthor-physics"]
    assert data[3:] == ["reddit-like", "yelp-like", "flickr-like", "products-like"]
    assert set(data) <= set(dataset_names())
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        for study in ("default", "quick"):
            options = compose("study", [f"study={study}"]).study.options
            assert set(options) == {"coauthor-physics", *(name for name in data if name.endswith("-like"))}


def test_the_recipes_page_gives_the_commands() -> None:
    page = (ROOT / "recipes" / "bottleneck_study" / "README.md").read_text()
    assert "python -m lightning_gnnopt.study -m data.root=PATH\n" in page
    assert "python -m lightning_gnnopt.study -m study=quick" in page


def test_a_config_is_dispatched_by_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[str, object]] = []
    for kind, room in KINDS.items():
        job, collecting = ModuleType(f"{room}.job"), ModuleType(f"{room}.collect")
        job.run_job = partial(_note, called, f"{kind} job")  # type: ignore[attr-defined]
        collecting.collect = partial(_note, called, f"{kind} collect")  # type: ignore[attr-defined]
        for module in (job, collecting):
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setitem(sys.modules, room, ModuleType(room))
    for kind in KINDS:
        config = OmegaConf.create({"kind": kind, "collect": None})
        study(config)
        study(OmegaConf.create({"kind": kind, "collect": str(tmp_path)}))
        assert called[-2:] == [(f"{kind} job", config), (f"{kind} collect", str(tmp_path))]
    assert list(KINDS) == ["bottleneck", "pipeline", "memory"]
    with pytest.raises(ValueError, match=r"Unknown kind of study 'pipelines'\. Did you mean 'pipeline'"):
        study(OmegaConf.create({"kind": "pipelines", "collect": None}))


def _note(called: list[tuple[str, object]], name: str, argument: object) -> None:
    called.append((name, argument))


def test_each_study_is_of_its_kind() -> None:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        assert compose("study").kind == "bottleneck"
        assert compose("pipeline_study").kind == "pipeline"


def test_the_pipeline_study_is_the_same_models_and_graphs() -> None:
    swept = OmegaConf.load(ROOT / "conf" / "hydra" / "study.yaml").sweeper.params
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        whole, quick = (compose("pipeline_study", [f"pipeline={name}"]).pipeline for name in ("default", "quick"))
    assert (whole.models, whole.graphs) == (swept.model, swept.data)
    assert {quick.models} <= set(MODELS)
    for options in (whole.options, quick.options):
        assert set(options) == {"coauthor-physics", *(name for name in swept.data.split(",") if "-like" in name)}


def test_the_pipeline_recipes_page_gives_the_commands() -> None:
    page = (ROOT / "recipes" / "pipeline_study" / "README.md").read_text()
    assert "python -m lightning_gnnopt.study --config-name pipeline_study -m data.root=PATH\n" in page
    assert "python -m lightning_gnnopt.study --config-name pipeline_study -m pipeline=quick" in page

"""Jobs of the study, run inside the test process."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.studies.bottleneck import job as study
from lightning_gnnopt.studies.bottleneck import steps as study_steps
from lightning_gnnopt.studies.bottleneck.folder import load_cells
from lightning_gnnopt.studies.bottleneck.job import run_job
from lightning_gnnopt.studies.bottleneck.settings import settings_of
from lightning_gnnopt.studies.bottleneck.tables import tables_of

Run = Callable[..., list[Path]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def job(*overrides: str) -> list[Path]:
        with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
            small = ["+study.options.dcsbm={num_nodes: 400, num_features: 16, avg_degree: 8}", "study.effects.data=[]"]
            small += ["study.sampled.batch_sizes=[20]", "data=dcsbm", f"dir={tmp_path / 'out'}", "study=quick"]
            config = compose("study", [*small, *overrides])
        return run_job(config)

    return job


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the training steps of each model."""
    plain, counted = study_steps._loss, Counter[str]()

    def loss(model: Any, batch: Any) -> torch.Tensor:
        counted[type(model.net).__name__] += 1
        return plain(model, batch)

    monkeypatch.setattr(study_steps, "_loss", loss)
    return counted


def test_settings_are_the_full_batch_samplers_and_effects() -> None:
    part = {"steps": 4, "skip": 1, "memory_every": 2}
    effects = {"data": ["a"], "hidden": [8, 64], "heads": [1, 8], "layers": [2, 3], **part}
    sampled = {"samplers": ["neighbor"], "batch_sizes": [5, 6], **part}
    config = {"hidden": 64, "heads": 8, "layers": 2, "full": part, "effects": effects, "sampled": sampled}
    names = [setting.name for setting in settings_of(config, data="a", has_heads=True)]
    sampled_names = ["sampler=neighbor-5", "sampler=neighbor-6"]
    assert names == ["full", *sampled_names, "hidden=8", "heads=1", "layers=3"]
    assert [setting.name for setting in settings_of(config, data="b", has_heads=True)] == ["full", *sampled_names]
    alone = settings_of(config, data="a", has_heads=False)
    assert [setting.name for setting in alone] == ["full", *sampled_names, "hidden=8", "layers=3"]
    assert (alone[3].hidden, alone[3].value, alone[3].heads, alone[0].value) == (8, 8, None, None)
    with pytest.raises(ValueError, match=r"Unknown sampler of the study 'neighbour'\. Did you mean 'neighbor'"):
        settings_of({**config, "sampled": {**sampled, "samplers": ["neighbour"]}}, data="a", has_heads=True)
    with pytest.raises(ValueError, match=r"`study\.full` must have .* but has {'steps': 2, 'skip': 1"):
        settings_of({**config, "full": {**part, "steps": 2}}, data="a", has_heads=True)


def test_two_graphs_and_two_models_and_what_is_complete_is_not_run_again(
    run: Run, steps: Counter[str], tmp_path: Path
) -> None:
    jobs = [
        (model, *graph)
        for model in ("model=gcn", "model=gat")
        for graph in (("data=dcsbm",), ("data=rmat", "+study.options.rmat={num_nodes: 300, num_features: 8}"))
    ]
    folders = [folder for job in jobs for folder in run(*job)]
    assert len(folders) == 4 * 3
    assert steps == {"GCN": 2 * (3 + 6 + 6), "GAT": 2 * (3 + 6 + 6)}
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("info.json")}
    assert len(first) == 12

    assert [run(*job) for job in jobs] == [[], [], [], []]
    assert sum(steps.values()) == 60
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("info.json")} == first

    (again,) = run("model=gcn", "study.full.steps=4")  # another config: only what it changes is run again
    assert again == tmp_path / "out" / "dcsbm" / "gcn" / "full"
    assert sum(steps.values()) == 64

    cells = load_cells(tmp_path / "out")
    assert {(cell.data, cell.model) for cell in cells} == {(d, m) for d in ("dcsbm", "rmat") for m in ("gcn", "gat")}
    tables = tables_of(cells)
    full = next(cell for cell in cells if (cell.data, cell.model, cell.setting) == ("dcsbm", "gcn", "full"))
    row = next(row for row in tables["vertex_edge"].rows if (row.data, row.model) == ("dcsbm", "gcn"))
    timed = {batch.batch for batch in full.records.batches if batch.timed}
    both = [t for t in full.records.times if t.batch in timed and t.phase in ("forward", "backward")]
    total_s = sum(t.seconds for t in both)
    assert row.values["edge"] == pytest.approx(sum(t.seconds for t in both if t.kind == "edge") / total_s)
    assert row.values["vertex"] == pytest.approx(sum(t.seconds for t in both if t.kind == "vertex") / total_s)
    assert row.values["vertex"] > 0 < row.values["edge"]  # type: ignore[operator]
    graph = next(row for row in tables["graphs"].rows if row.data == "dcsbm")
    assert graph.values == {
        "nodes": 400, "edges": 3200, "features": 16, "classes": 8, "train": 200, "of_published": None,
    }  # fmt: skip


def test_records_know_their_sampler_and_batch_size(run: Run, tmp_path: Path) -> None:
    run("model=gcn")
    cells = {cell.setting: cell for cell in load_cells(tmp_path / "out")}
    full = cells["full"].records
    assert {(row.sampler, row.batch_size, row.nodes, row.edges) for row in full.batches} == {("full", 200, 400, 3200)}
    assert [row.timed for row in full.batches] == [False, False, True]
    neighbor = cells["sampler=neighbor-20"].records
    assert {(row.sampler, row.batch_size, row.seeds) for row in neighbor.batches} == {("neighbor", 20, 20)}
    assert [row.peak_bytes is not None for row in neighbor.batches] == [False, True, False, False, True, True]
    assert all(row.sample_s is not None and row.sample_s > 0 for row in neighbor.loads)
    (point,), timed = neighbor.sweeps, [row for row in neighbor.batches if row.timed]
    assert (point.sweep, point.value, point.sampler, point.batches) == ("batch_size", 20, "neighbor", 2)
    assert (point.graph_nodes, point.graph_edges) == (400, 3200)
    waits = {row.batch: row.wait_s for row in neighbor.loads}
    assert point.step_s == pytest.approx(sum(row.step_s - waits[row.batch] for row in timed) / 2)
    assert point.edges == sum(row.edges for row in timed) / 2
    assert point.peak_bytes == max(row.peak_bytes for row in neighbor.batches if row.peak_bytes is not None)
    assert [(row.value, row.sampler, row.sample_s) for row in full.sweeps] == [(200, "full", 0)]
    cluster = cells["sampler=cluster-20"].records
    assert {(row.sampler, row.batch_size) for row in cluster.batches} == {("cluster", 20)}
    assert 10 <= sum(row.seeds for row in cluster.batches) / len(cluster.batches) <= 40  # about so many
    assert (full.info["model"], full.info["dataset"]) == ("GCN", "dcsbm")


def test_a_gcn_is_given_the_degrees_of_the_whole_graph(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, degrees = study_steps._loss, []

    def loss(model: Any, batch: Any) -> torch.Tensor:
        found = plain(model, batch)
        degrees.append((batch.in_degree, batch.edge_index))
        return found

    monkeypatch.setattr(study_steps, "_loss", loss)
    run("model=gcn", "study.sampled.samplers=[neighbor]")
    for in_degree, edge_index in degrees:
        drawn = torch.zeros(len(in_degree), dtype=torch.long).scatter_add_(
            0, edge_index[1], torch.ones_like(edge_index[1])
        )
        assert bool((in_degree >= drawn).all())
    assert float(degrees[-1][0].float().mean()) > 7  # 8 in the whole graph


def test_what_cannot_be_run_is_kept_with_its_error_and_stops_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, steps: Counter[str], tmp_path: Path
) -> None:
    plain = study_steps._loss

    def loss(model: Any, batch: Any) -> torch.Tensor:
        if "batch_size" not in batch:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return plain(model, batch)

    monkeypatch.setattr(study_steps, "_loss", loss)
    assert len(run("model=gcn", "study.sampled.batch_sizes=[20,201]")) == 5
    cells = {cell.setting: cell for cell in load_cells(tmp_path / "out")}
    assert cells["full"].error == "Out of memory"
    assert cells["sampler=neighbor-201"].error.startswith("`batch_size` must not be above the 200 nodes")
    assert (cells["sampler=neighbor-20"].error, len(cells["sampler=neighbor-20"].records.batches)) == ("", 6)
    tables = tables_of(list(cells.values()))
    assert "| dcsbm | gcn | full | Out of memory | - |" in tables["vertex_edge"].markdown()
    assert run("model=gcn", "study.sampled.batch_sizes=[20,201]") == []  # it would fail again


def test_a_fault_of_the_program_is_raised_when_the_rest_is_safe(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = study.profile_setting

    def profile(setting: Any, *args: Any, **kwargs: Any) -> Records:
        if setting.name == "full":
            raise KeyError("x")
        return plain(setting, *args, **kwargs)

    monkeypatch.setattr(study, "profile_setting", profile)
    with pytest.raises(KeyError, match="x"):
        run("model=gcn")
    cells = {cell.setting: cell for cell in load_cells(tmp_path / "out")}
    assert cells["full"].error == "KeyError: 'x'"
    assert len(cells["sampler=cluster-20"].records.batches) == 6
    monkeypatch.undo()
    assert [folder.name for folder in run("model=gcn")] == ["full"]  # mended: tried again


def test_missing_files_are_told_and_tried_again(run: Run, tmp_path: Path) -> None:
    arguments = ("data=amazon-photo", "model=gcn", f"data.root={tmp_path}", "+data.options.download=false")
    assert len(run(*arguments)) == 3
    cells = load_cells(tmp_path / "out")
    assert all("amazon_photo.npz" in cell.error or "amazon-photo" in cell.error for cell in cells)
    assert len(run(*arguments)) == 3


def test_half_a_profile_is_neither_read_nor_taken_for_a_whole_one(run: Run, tmp_path: Path) -> None:
    run("model=gcn")
    folder = tmp_path / "out" / "dcsbm" / "gcn"
    (folder / "full").rename(folder / ".full.part")
    assert {cell.setting for cell in load_cells(tmp_path / "out")} == {"sampler=neighbor-20", "sampler=cluster-20"}
    (folder / ".full.part" / "stray.csv").write_text("x")
    assert [path.name for path in run("model=gcn")] == ["full"]
    assert not (folder / ".full.part").exists()
    assert not (folder / "full" / "stray.csv").exists()
    (folder / "full" / "info.json").write_text('{"study": {')  # written by no one of us
    assert [path.name for path in run("model=gcn")] == ["full"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no profile of the study\. HINT"):
        load_cells(tmp_path)


def test_cells_come_by_edges_and_quadrant(run: Run, tmp_path: Path) -> None:
    for model in ("gat", "gcn"):
        for name, nodes in (("rmat", 900), ("dcsbm", 300)):
            run(
                f"model={model}",
                f"data={name}",
                f"++study.options.{name}={{num_nodes: {nodes}}}",
                "study.sampled.samplers=[]",
            )
    found = [(cell.data, cell.model) for cell in load_cells(tmp_path / "out")]
    assert found == [("dcsbm", "gcn"), ("dcsbm", "gat"), ("rmat", "gcn"), ("rmat", "gat")]


def test_a_slow_setting_runs_fewer_steps(run: Run, steps: Counter[str], tmp_path: Path) -> None:
    slow = ("study.max_s=0", "study.full.steps=50", "study.sampled.steps=50", "study.sampled.memory_every=3")
    run("model=gcn", "study.sampled.samplers=[neighbor]", *slow)
    assert steps == {"GCN": (1 + 4) + (1 + 6)}
    full, sampled = load_cells(tmp_path / "out")
    assert [row.timed for row in full.records.batches] == [False, False, True, True, False]
    assert [row.peak_bytes is None for row in sampled.records.batches] == [True, False, True, True, True, False, True]
    assert json.loads((tmp_path / "out" / "dcsbm" / "gcn" / "full" / "info.json").read_text())["steps"] == 5


def test_sparse_features_are_refused_in_full_batches(run: Run, tmp_path: Path) -> None:
    run("model=gcn", "+data.options.features=sparse", "study.sampled.samplers=[]")
    (cell,) = load_cells(tmp_path / "out")
    assert cell.error.startswith("`dcsbm` has sparse features, which no full batch can have. HINT:")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_allocations_beyond_the_share_of_free_memory_fail() -> None:
    share = 2**30 / psutil.virtual_memory().available  # a gigabyte
    cpu = torch.device("cpu")
    with study_steps._limited_memory(share, cpu):
        torch.empty(2**28, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(2**31, dtype=torch.uint8)
    torch.empty(2**31, dtype=torch.uint8)
    with study_steps._limited_memory(share, torch.device("meta")):  # not a matter of the processor's memory
        torch.empty(2**31, dtype=torch.uint8)
    with study_steps._limited_memory(None, cpu):
        torch.empty(2**31, dtype=torch.uint8)

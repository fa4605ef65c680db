from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lightning_gnnopt.studies import collecting
from lightning_gnnopt.studies.cells import save_cell
from lightning_gnnopt.studies.pipeline.collect import collect
from lightning_gnnopt.studies.pipeline.plots import FIGURES
from lightning_gnnopt.studies.pipeline.report import PipelineReport
from tests.studies.pipeline.made import made_cell


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    if importlib.util.find_spec("matplotlib") is not None:
        import matplotlib.pyplot as plt

        plt.close("all")


@pytest.fixture
def report() -> PipelineReport:
    return PipelineReport(
        [
            made_cell("large", edges=5000, prefetch=0.98),
            made_cell(prefetch=0.995, model="gat", equal=False),
            made_cell(prefetch=1.4),
            made_cell(sampler="cluster", prefetch=1.1),
            made_cell("lost", error="no such | file\nHINT: look"),
        ]
    )


def test_rows_are_small_graphs_first_and_models_in_their_order(report: PipelineReport) -> None:
    settings = list(dict.fromkeys((row.data, row.model, row.sampler) for row in report.rows))
    assert settings == [
        ("g", "gcn", "cluster"), ("g", "gcn", "neighbor"), ("g", "gat", "neighbor"), ("large", "gcn", "neighbor"),
        ("lost", "gcn", "neighbor"),
    ]  # fmt: skip
    assert [row.side for row in report.rows[:3]] == ["prefetch", "async", "both"]
    first = report.rows[0]
    assert (first.prepare, first.validation, first.rounds) == (0.25, pytest.approx(1 / 3), 2)
    assert (first.startup_s, report.rows[1].startup_s) == (0.0, 5.0)
    assert (report.num_cells, [row.error for row in report.failed]) == (5, ["no such | file\nHINT: look"])


def test_summary_by_side_and_sampler_beside_the_thesis(report: PipelineReport) -> None:
    found = {(row.side, row.sampler): row for row in report.summaries}
    assert len(found) == 6
    near = found["prefetch", "neighbor"]
    assert (near.cells, near.least, near.median, near.most) == (3, 0.98, 0.995, 1.4)
    assert (near.slower, near.clearly_slower) == (2, 1)
    assert (near.theory, near.effect) == (1.5, pytest.approx(0.995 / 1.5))
    assert near.thesis == (0.62, 1.08, 1.51)
    assert found["prefetch", "cluster"].thesis == (1.08, 1.48, 1.82)
    assert found["both", "cluster"].thesis is None


def test_tables_for_people(report: PipelineReport) -> None:
    lines = report.markdown().splitlines()
    assert "| prefetch | neighbor | 3 | 0.98 / 0.99 / 1.40 | 1.50 | 0.66 | 2 | 1 | 1.00 | 0.62 / 1.08 / 1.51 |" in lines
    assert (
        "| g | gat | neighbor | 128 | 64 | 6.00 | 25 | 33 | 0.99 | 1.50 | 1.30 | 1.50 | 1.50 | 1.50 | 0, 2 | 1.00 |"
        " 5.00 | DIFFER | 0.25 |" in lines
    )
    (failed,) = [line for line in lines if line.startswith("| lost")]
    assert r"no such \| file HINT: look" in failed
    columns = {line.replace(r"\|", "").count("|") for line in lines if line.startswith(("| g ", "| lost", "| graph"))}
    assert len(columns) == 1
    assert "4 of 16 cells" in report.markdown()


def test_figures_show_all_cells(report: PipelineReport) -> None:
    pytest.importorskip("matplotlib")
    _, panels = report.plot("theory")
    points = [point for line in panels[0].lines[:2] for point in zip(*line.get_data(), strict=True)]
    assert sorted(points) == [(1.5, 0.98), (1.5, 0.995), (1.5, 1.1), (1.5, 1.4)]
    _, (clusters, neighbors) = report.plot("cells")
    bars = {container.get_label(): [bar.get_width() for bar in container] for container in neighbors.containers}
    assert bars["prefetching"] == [1.4, 0.995, 0.98]
    assert [label.get_text() for label in clusters.get_yticklabels()] == ["g gcn, 128/64"]
    _, panels = report.plot("effect")
    assert {x for line in panels[1].lines[:2] for x in line.get_xdata()} == {3.0}
    with pytest.raises(ValueError, match=r"Unknown figure of the study 'theories'\. Did you mean 'theory'"):
        report.plot("theories")
    with pytest.raises(ValueError, match="`cells` has nothing to show: no cell has numbers"):
        PipelineReport([made_cell(error="x")]).plot("cells")


def test_collect_writes_tables_and_figures_and_prints_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for cell in (made_cell(prefetch=0.9), made_cell(model="gat", equal=False), made_cell("lost", error="[red]gone")):
        cell.result["other_cores"] = 1.5 if cell.config["model"] == "gat" else 0.25  # type: ignore[index]
        save_cell(tmp_path, cell)
    report = collect(tmp_path)
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["side"], row["speedup"]) for row in rows[:3]] == [
        ("prefetch", "0.9"),
        ("async", "1.3"),
        ("both", "1.5"),
    ]
    assert rows[-1]["error"] == "[red]gone"
    with (tmp_path / "summary.csv").open() as file:
        assert next(csv.DictReader(file))["thesis"] == "0.62/1.08/1.51"
    assert (tmp_path / "tables.md").read_text() == report.markdown()
    for name in FIGURES:
        assert ElementTree.parse(tmp_path / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "0.90 / 1.05 / 1.20" in printed
    assert "0.62 / 1.08 / 1.51" in printed
    assert "[red]gone" in printed
    assert "Below 0.99 of the baseline's speed: 1 of 6 sides." in printed
    assert "In 1 cells other processes kept more than 0.25 cores busy" in printed
    assert "2 cells, 1 without numbers, 1 in which the sides' losses differ. Written to" in printed


def test_without_matplotlib_tables_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    save_cell(tmp_path, made_cell())
    report = collecting.collect("pipeline", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"g", "tables.md", "cells.csv", "summary.csv"}
    assert "pip install 'lightning-gnnopt[plots]'" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gnnopt\[plots\]'"):
        report.plot("theory")

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_gnnopt.studies.bottleneck.folder import Cell
from lightning_gnnopt.studies.bottleneck.plots import FIGURES
from lightning_gnnopt.studies.bottleneck.report import StudyReport
from tests.studies.bottleneck.study_cells import made_cell, parts, split

plt = pytest.importorskip("matplotlib.pyplot")
MIB = 2**20


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def sampled(model: str, size: int, **options: Any) -> Cell:
    return made_cell(
        model=model, setting=f"sampler=neighbor-{size}", sampler="neighbor", batch_size=size, loaded=MIB, **options
    )


@pytest.fixture
def report() -> StudyReport:
    return StudyReport(
        [
            made_cell(spans=split(1, 3), peaks=[MIB], loaded=MIB),
            made_cell(model="gat", spans=parts(gather=1.0, message=3.0), peaks=[7 * MIB], loaded=MIB),
            made_cell(setting="hidden=16", varied="hidden", hidden=16, step_s=0.5, peaks=[0], loaded=MIB),
            made_cell(data="h$", error="Out of memory"),
            made_cell(data="h$", model="gat", spans=split(3, 1), peaks=[3 * MIB], loaded=MIB),
            sampled("gcn", 8, load=(0.1, 0.2, 0.1, 0.5), step_s=1.0, peaks=[MIB, 2 * MIB, 5 * MIB]),
            sampled("gat", 8, error="`batch_size` must not be above ..."),
        ]
    )


def bars(ax: Any) -> dict[str, list[float]]:
    return {container.get_label(): [patch.get_width() for patch in container] for container in ax.containers}


def test_bars_of_vertex_and_edge(report: StudyReport) -> None:
    figure, panels = report.plot("vertex_edge")
    assert [ax.get_title() for ax in panels] == ["GCN", "GAT"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["g", r"h\$"]
    assert bars(panels[0]) == {"vertex": [25, 0], "edge": [75, 0], "outside the layers": [0, 0]}
    assert bars(panels[1]) == {"vertex": [0, 75], "edge": [100, 25], "outside the layers": [0, 0]}
    assert [text.get_text() for text in panels[0].texts] == ["out of memory"]
    assert figure.get_supxlabel() == "share of forward and backward [%]"


def test_bars_of_edge_steps_leave_out_what_took_no_time(report: StudyReport) -> None:
    _, panels = report.plot("edge_steps")
    assert bars(panels[0]) == {"gather": [0, 0], "message": [100, 0]}
    assert bars(panels[1]) == {"gather": [25, 0], "message": [75, 100]}


def test_lines_of_effects(report: StudyReport) -> None:
    _, (time,) = report.plot("effects_time")
    (line,) = time.lines
    assert (line.get_label(), line.get_xdata().tolist(), line.get_ydata().tolist()) == ("GCN", [16, 64], [500, 1000])
    assert (time.get_xlabel(), time.get_ylabel()) == ("hidden size", "a step [ms]")
    _, (memory,) = report.plot("effects_memory")
    assert memory.lines[0].get_ydata().tolist() == [1.0, 2.0]
    assert memory.get_ylabel() == "peak, with the batch [MiB]"


def test_points_of_expansion(report: StudyReport) -> None:
    _, (full, some) = report.plot("expansion")
    points = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in full.lines}
    assert points["GCN"] == [(0, 2.0)]
    assert points["GAT"] == [(0, 8.0), (1, 4.0)]
    assert {y for _, y in points["most in the thesis, GCN"]} == {15.0}
    assert some.lines[0].get_ydata().tolist() == [pytest.approx((2 + 3 + 6) / 3)]


def test_bars_of_sampling(report: StudyReport) -> None:
    _, grid = report.plot("sampling")
    assert bars(grid[0]) == {
        "sample": [pytest.approx(100 / 9)],
        "slice": [pytest.approx(200 / 9)],
        "transfer": [pytest.approx(100 / 9)],
        "step": [pytest.approx(500 / 9)],
    }
    assert [text.get_text() for text in grid[0].texts] == ["900 ms"]
    assert [text.get_text() for text in grid[1].texts] == ["not possible"]


def test_boxes_of_batches(report: StudyReport) -> None:
    _, grid = report.plot("batches")
    assert (grid[0].get_title(), grid[0].get_xlabel(), grid[0].get_ylabel()) == ("GCN", "[MiB]", "g")
    (medians,) = [line for line in grid[0].lines if line.get_linewidth() == 1.6]
    assert medians.get_xdata().tolist() == [3.0, 3.0]
    ends = {x for line in grid[0].lines for x in line.get_xdata()}
    assert {min(ends), max(ends)} == {2.0, 6.0}
    assert not grid[1].lines


def test_axes_can_be_given_and_must_be_as_many(report: StudyReport) -> None:
    figure, panels = plt.subplots(1, 2)
    drawn, found = report.plot("vertex_edge", panels)
    assert drawn is figure
    assert list(found) == list(panels)
    with pytest.raises(ValueError, match="`ax` must be 2 axes, but got 1"):
        report.plot("vertex_edge", plt.gca())


def test_unknown_and_empty_figures(report: StudyReport) -> None:
    with pytest.raises(ValueError, match=r"Unknown figure of the study 'expansions'\. Did you mean 'expansion'"):
        report.plot("expansions")
    with pytest.raises(ValueError, match="`sampling` has nothing to show"):
        StudyReport([made_cell()]).plot("sampling")


def test_save_writes_tables_and_all_figures_that_show_something(report: StudyReport, tmp_path: Path) -> None:
    before = plt.get_fignums()
    written = report.save(tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == {
        "tables.md", "tables.csv", *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "svg")),
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)
    assert plt.get_fignums() == before
    few = StudyReport([made_cell(spans=split(1, 1))]).save(tmp_path / "few")
    assert {path.stem for path in few} == {"tables", "vertex_edge", "edge_steps"}
    none = StudyReport([made_cell(error="Out of memory")]).save(tmp_path / "none")
    assert [path.name for path in none] == ["tables.md", "tables.csv"]


def test_without_matplotlib_tables_are_written(
    report: StudyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert [path.name for path in report.save(tmp_path)] == ["tables.md", "tables.csv"]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-gnnopt\[plots\]'"):
        report.plot("expansion")

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.records import LayerRecord, Records
from lightning_gnnopt.analysis.reporting.plots import KINDS
from lightning_gnnopt.analysis.reporting.report import BottleneckReport
from lightning_gnnopt.analysis.reporting.tables import (
    environment_table,
    layer_table,
    loading_table,
    memory_table,
    memory_tables,
    notes,
    part_table,
    peak_table,
    phase_table,
    place_table,
    sweep_tables,
    tensor_table,
    time_tables,
    validation_table,
)

from .profile_records import ADVICE, VERDICT, make_facts, make_poor_report, make_records, make_report


def printed(report: BottleneckReport, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(report)
    return console.export_text()


def cells(table: object) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}  # type: ignore[attr-defined]


def test_phases_in_milliseconds_and_shares() -> None:
    table = phase_table(make_report())
    assert table is not None
    assert table.title == "Phases of a training step: means of 6 timed steps"
    assert table.columns == ("phase", "what", "ms", "share")
    rows = cells(table)
    # 1.05 times 4, 1 + 8.75 * 3, 1.5 + 17.5 * 3 and 89.25 ms
    assert rows["wait"] == ("for the loader", "4.20", "4.5 %")
    assert rows["forward"] == ("the model and the loss", "28.6", "30.5 %")
    assert rows["backward"] == ("their gradients", "56.7", "60.5 %")
    assert rows["a step"] == ("together", "93.7", "100.0 %")


def test_layers_and_parts_in_milliseconds() -> None:
    report = make_report()
    layers, parts = layer_table(report, 10), part_table(report, 10)
    assert layers is not None
    assert parts is not None
    assert cells(layers) == {
        "conv1": ("GATConv", "2.10", "4.20", "7.09", "14.2", "-", "27.6", "29.4 %"),
        "conv2": ("GATConv", "4.20", "8.40", "14.2", "28.4", "-", "55.1", "58.8 %"),
        "outside the layers": ("", "-", "-", "-", "-", "2.62", "2.62", "2.8 %"),
    }
    assert parts.columns == ("layer", "gather", "message", "aggregate", "update", "normalize", "total")
    assert cells(parts)["conv2"] == ("6.30", "18.9", "12.6", "1.58", "3.15", "42.5")
    assert cells(parts)["all"] == ("9.45", "28.4", "18.9", "2.36", "4.73", "63.8")
    assert cells(parts)["share"] == ("14.8 %", "44.4 %", "29.6 %", "3.7 %", "7.4 %", "100.0 %")


def test_the_rest_of_many_layers_is_added_up() -> None:
    report = make_report(make_records(layers=[f"layer{i}" for i in range(50)]))
    table = layer_table(report, 10)
    assert table is not None
    names = [row[0] for row in table.rows]
    assert names == [*(f"layer{i}" for i in range(40, 50)), "and 40 more", "outside the layers"]
    # vertex, forward: 2 ms times 1.05 times 1 + 2 + ... + 40
    assert cells(table)["and 40 more"][1] == f"{2 * 1.05 * 820:,.0f}"


def test_loading_validation_and_memory() -> None:
    report = make_report()
    assert cells(loading_table(report))["sampling"] == ("8.40 ms",)
    assert cells(loading_table(report))["batches ready when asked for"] == ("0.5",)
    assert cells(validation_table(report))["share of the fit"] == ("9.6 %",)
    assert cells(memory_table(report)) == {
        "bytes of a batch, mean": ("10.0 MiB",),
        "peak of a step with its batch, median": ("120.0 MiB",),
        "largest": ("180.0 MiB",),
        "memory expansion, mean": ("12.00",),
        "an edge more adds": ("41,943 B",),
        "model, gradients, optimizer": ("3.0 MiB",),
        "limit": ("203.0 MiB",),
        "limit, less these": ("200.0 MiB",),
        "steps over the limit": ("0.0 %",),
    }
    assert cells(place_table(report, 10))["optimizer"] == ("", "16.0 MiB", "0 B", "4.0 MiB")
    assert place_table(report, 10).rows[2] == ("backward", "conv2", "28.0 MiB", "-12.0 MiB", "16.0 MiB")  # type: ignore[union-attr]


def test_peaks_count_the_steps_over_the_limit() -> None:
    limit_bytes = 143 * 2**20  # 140 MiB are left beside the model: one of 60, 100, 140 and 180 MiB is more
    table = peak_table(make_report(facts=make_facts(limit_bytes=limit_bytes)))
    assert cells(table)["NeighborLoader"] == ("512", "4", "60.0 MiB", "120.0 MiB", "180.0 MiB", "25.0 %")
    unlimited = peak_table(make_report(facts=make_facts(limit_bytes=None)))
    assert cells(unlimited)["NeighborLoader"] == ("512", "4", "60.0 MiB", "120.0 MiB", "180.0 MiB")


def test_tensors_with_the_lines_that_made_them() -> None:
    table = tensor_table(make_report(), 3)
    assert table is not None
    assert table.title == "The largest tensors at the peak of step 2"
    assert table.rows[0] == (
        "36.0 MiB", "12000 x 48 float32", "forward conv1 message", "index_select", "model.py:30 in forward",
    )  # fmt: skip
    assert table.rows[3][:2] == (f"{3 * (9 + 8 + 7 + 6 + 5)}.0 MiB", "and 5 more")


def test_sweeps_with_their_errors() -> None:
    size, nodes, degree = sweep_tables(make_report())
    assert size.columns[0] == "seeds"
    assert size.rows[0] == ("64", "neighbor", "1,280", "0.128", "0.064", "0.064", "1.51", "14.5 %", "2.7 MiB", "")
    assert size.rows[-2] == ("8,192", "saint", *["-"] * 7, "out of memory")
    assert size.rows[-1][:2] == ("6,120", "full")
    assert [table.columns[0] for table in (nodes, degree)] == ["nodes", "degree"]
    assert "error" not in nodes.columns


def test_nothing_recorded_makes_no_tables() -> None:
    report = make_poor_report()
    assert time_tables(report, 10) == memory_tables(report, 10) == sweep_tables(report) == []
    assert environment_table(report) is None
    assert printed(report).split("\n")[:2] == ["Bottleneck report", "No step was timed."]


def test_an_environment_may_be_nested_or_anything() -> None:
    records = make_records(environment={"machine": {"cores": 2}, "torch": None, "odd": "<b>"})
    rows = cells(environment_table(make_report(records)))
    assert rows["machine: cores"] == ("2",)
    assert rows["odd"] == ("<b>",)
    assert "torch" not in rows
    assert environment_table(make_report(Records(info={"environment": "unknown", "steps": "many"}))) is None


def test_notes_name_the_layers_they_are_about() -> None:
    records = make_records()
    records.layers += [LayerRecord(f"layer{i}", "GCNConv", 1, 0, 0, "compiled: not timed") for i in range(9)]
    assert notes(make_report(records))[1:] == ["layer0, layer1, layer2 and 6 more layers: compiled: not timed"]


@pytest.mark.parametrize(
    "layers", [("conv1", "conv2"), tuple(f"encoder.layers.{i}.self_attention.conv" for i in range(50))]
)
def test_the_terminal_shows_all_within_100_columns(layers: tuple[str, ...]) -> None:
    text = printed(make_report(make_records(layers=layers)))
    lines = text.split("\n")
    assert max(map(len, lines)) <= 100
    assert len(lines) < 160
    assert lines[0].strip() == "GAT on amazon-photo, cpu"
    assert VERDICT in text
    assert "1. 7.9% of a step waits for batches. `num_workers` 1 -> 2 would hide it." in text
    for number in ("93.7" if len(layers) == 2 else "35,153", "44.4 %", "120.0 MiB", "index_select", "out of memory"):
        assert number in text
    if len(layers) == 50:
        assert "and 40 more" in text
        assert "…" in text
        row = next(line for line in lines if ".49.self_attention.conv" in line)
        assert row.endswith(("%", "% "))  # each layer on one line


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    advice = [Advice(rule="odd", finding="[red]found[/red]", remedy="[/]")]
    text = printed(make_report(make_records(layers=["conv[bold]", "[/]"]), advice=advice, verdict="[link]"))
    assert all(name in text for name in ("conv[bold]", "[/]", "[red]found[/red] [/]", "[link]"))


def test_the_title_says_what_was_profiled() -> None:
    assert make_report().title == "GAT on amazon-photo, cpu"
    assert make_report(Records(info={"model": "GCN"})).title == "GCN"
    assert make_report(Records(info={"dataset": "cora", "device": "cpu"})).title == "A model on cora, cpu"
    assert make_report(Records()).title == "Bottleneck report"
    assert make_report(title="Mine").title == "Mine"


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = BottleneckReport(make_records())
    written = report.save(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert written[0] == folder / "report.html"
    assert all(path.is_file() for path in written)
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{kind}.{suffix}" for kind in KINDS for suffix in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "records",
        "figures",
    }  # nothing temporary is left
    loaded = BottleneckReport.load(folder)
    assert loaded.records == report.records
    assert loaded.facts == report.facts
    assert loaded.verdict == report.verdict
    with pytest.raises(FileNotFoundError, match=r"must hold the report of a profile, but has no `records/info.json`"):
        BottleneckReport.load(tmp_path)


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    make_report(make_records(steps=4)).save(tmp_path)
    other = tmp_path / "figures" / "mine.png"
    other.write_bytes(b"")
    poor = make_records(layers=(), steps=4, sweeps=False)
    poor.tensors, poor.memory = [], []
    make_report(poor).save(tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    expected = {f"{kind}.{suffix}" for kind in ("phases", "expansion", "peaks") for suffix in ("png", "svg")}
    assert names == expected | {"mine.png"}
    assert 'id="figure-layers"' not in (tmp_path / "report.html").read_text()


def test_without_matplotlib_tables_and_page_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "phases.png").write_bytes(b"old")
    with pytest.warns(UserWarning, match=r"matplotlib is not installed.*'lightning-gnnopt\[plots\]'") as caught:
        written = make_report().save(tmp_path)
    assert len([w for w in caught if "matplotlib" in str(w.message)]) == 1
    page = (tmp_path / "report.html").read_text()
    assert "Figures are not drawn: matplotlib is not installed." in page
    assert "lightning-gnnopt[plots]" in page
    assert "<svg" not in page
    assert '<td class="number">93.7</td>' in page
    assert not (tmp_path / "figures" / "phases.png").exists()
    assert tmp_path / "records" / "times.csv" in written
    with pytest.raises(ModuleNotFoundError, match=r"lightning-gnnopt\[plots\]"):
        make_report().plot("phases")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to `.*file/report`: .* HINT: give a folder"):
        make_report().save(tmp_path / "file" / "report")


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(self: Path, *args: object, **kwargs: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device\. HINT"):
        make_poor_report().save(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".report")]


def test_frames_are_those_of_the_records() -> None:
    pytest.importorskip("pandas")
    report = make_report()
    assert list(report.to_frame("batches")["batch"]) == list(range(8))
    assert len(report.to_frame()) == len(report.records.times)


def test_advice_and_verdict_are_those_of_the_rules() -> None:
    report = make_report()
    assert (list(report.advice), report.verdict) == (list(ADVICE), VERDICT)
    real = BottleneckReport(make_records())
    assert "edge computation" in real.verdict
    assert real.advice

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.figure import Figure
from benchmarks.report import Report

MET = Figure.of_runs("accuracy", [0.98, 0.99], unit="share", reach=0.97, sense=">=")
MISSED = Figure.of_runs("speed-up", [1.5, 1.25, 2.0], unit="x", reach=1.85, sense=">=")
REPORTED = Figure(name="edges", value=12345678.0, unit="edges/s")


def make_report(*figures: Figure, rows: tuple[dict[str, str | int | float | None], ...] = ()) -> Report:
    return Report(
        command="python -m benchmarks.fake --quick",
        machine={"cores": 2, "device": None},
        versions={"numpy": "2.0"},
        figures=figures,
        rows=rows,
    )


def printed(report: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.print(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("figures", "met"),
    [((), True), ((REPORTED,), True), ((MET, REPORTED), True), ((MET, MISSED), False), ((MISSED,), False)],
)
def test_met(figures: tuple[Figure, ...], met: bool) -> None:
    assert make_report(*figures).met is met


def test_json_has_exactly_these_keys(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    make_report(MISSED, REPORTED, rows=({"side": "ours", "edges": 5, "wait_s": None},)).write_json(path)
    assert json.loads(path.read_text()) == {
        "command": "python -m benchmarks.fake --quick",
        "machine": {"cores": 2, "device": None},
        "versions": {"numpy": "2.0"},
        "figures": [
            {"name": "speed-up", "value": 1.5, "reach": 1.85, "sense": ">=", "unit": "x", "runs": [1.5, 1.25, 2.0]},
            {"name": "edges", "value": 12345678.0, "reach": None, "sense": None, "unit": "edges/s", "runs": []},
        ],
        "rows": [{"side": "ours", "edges": 5, "wait_s": None}],
    }


def test_json_makes_its_folder_and_leaves_nothing_else_there(tmp_path: Path) -> None:
    path = tmp_path / "results" / "today" / "report.json"
    make_report(MET).write_json(str(path))
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(self: Path, data: str, encoding: str) -> int:
        with self.open("w") as file:
            file.write(data[:5])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        make_report(MET).write_json(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    seen = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        seen.append((path.read_text(), json.loads(self.read_text())["command"], self.parent == target.parent))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    make_report(MET).write_json(path)
    assert seen == [("old", "python -m benchmarks.fake --quick", True)]
    assert json.loads(path.read_text())["figures"][0]["name"] == "accuracy"


def test_json_takes_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        make_report(rows=({"wait_s": math.nan},)).write_json(path)
    assert not path.exists()


def test_table_names_the_figures_that_are_met_and_missed() -> None:
    lines = printed(make_report(MET, MISSED, REPORTED)).splitlines()
    fields = {line.split()[1]: line.strip(" │").split() for line in lines if line.startswith("│")}
    assert fields["accuracy"] == ["accuracy", "0.985", "0.98", "0.99", "share", ">=", "0.97", "met"]
    assert fields["speed-up"] == ["speed-up", "1.5", "1.25", "2", "x", ">=", "1.85", "missed"]
    assert fields["edges"] == ["edges", "12,345,678", "edges/s"]


def test_one_table_holds_rows_figures_machine_and_versions() -> None:
    rows = ({"side": "ours", "edges": 12345, "s": 0.123456}, {"side": "theirs", "why": "not installed"})
    text = printed(make_report(MET, rows=rows))
    assert text.count("┌") == text.count("└") == 1
    lines = [line.strip(" │").split() for line in text.splitlines()]
    assert ["python", "-m", "benchmarks.fake", "--quick"] in lines
    assert ["side", "edges", "s", "why"] in lines
    assert ["ours", "12,345", "0.1235", "-"] in lines
    assert ["theirs", "-", "-", "not", "installed"] in lines
    assert ["cores", "2,", "device", "-,", "numpy", "2.0"] in lines


def test_print_without_a_terminal_has_room(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    figure = Figure(name="a name of a figure that takes sixty columns " + 16 * "x", value=1.0, unit="s")
    make_report(figure).print()
    assert figure.name in capsys.readouterr().out


def test_rows_of_a_part_stand_together_with_their_own_columns() -> None:
    rows = (
        {"part": "first", "side": "ours", "edges": 5, "note": None},
        {"part": "second", "case": "a", "share": 0.5},
        {"part": "first", "side": "theirs", "edges": 7, "note": None},
    )
    lines = [line.strip("│ ").split() for line in printed(make_report(MET, rows=rows)).splitlines()]
    start = lines.index(["part", "side", "edges"])
    assert lines[start + 1 : start + 3] == [["first", "ours", "5"], ["first", "theirs", "7"]]
    second = lines.index(["part", "case", "share"])
    assert lines[second + 1] == ["second", "a", "0.5"]

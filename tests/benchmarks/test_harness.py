from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.harness
from benchmarks.harness import Figure, Measured, run_benchmark

MET = Figure(name="accuracy", value=0.98, unit="share", reach=0.97, sense=">=")
MISSED = Figure(name="speed-up", value=1.5, unit="x", reach=1.85, sense=">=")


class Measure:
    def __init__(self, *figures: Figure) -> None:
        self.figures = figures
        self.calls: list[bool] = []

    def __call__(self, quick: bool) -> Measured:
        self.calls.append(quick)
        return list(self.figures), [{"side": "ours"}]


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A benchmark of 10 s, on a machine that did nothing else."""
    other = {"cpu_s": 0.0}
    seconds, cpu_seconds = iter([100.0, 110.0]), iter([5.0, 5.0])
    monkeypatch.setattr(benchmarks.harness.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(benchmarks.harness, "other_cpu_s", lambda: next(cpu_seconds) + other["cpu_s"])
    return other


@pytest.mark.parametrize(("argv", "quick"), [([], False), (["--quick"], True)])
def test_quick_reaches_the_benchmark_and_the_command(argv: list[str], quick: bool, tmp_path: Path) -> None:
    measure, path = Measure(MET), tmp_path / "report.json"
    assert run_benchmark("fake", measure, argv=[*argv, "--json", str(path)]) == 0
    assert measure.calls == [quick]
    found = json.loads(path.read_text())
    assert list(found) == ["command", "machine", "versions", "figures", "rows"]
    assert found["command"] == "python -m benchmarks.fake" + " --quick" * quick
    assert found["figures"] == [MET.as_dict()]
    assert found["rows"] == [{"side": "ours"}]
    assert str(tmp_path) not in path.read_text()


def test_versions_of_peers_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run_benchmark("fake", Measure(MET), peers=["rich", "no-such-package-at-all"], argv=["--json", str(path)])
    assert list(json.loads(path.read_text())["versions"])[-2:] == ["python", "rich"]


@pytest.mark.parametrize(
    ("figures", "argv", "status"),
    [([MET], [], 0), ([MISSED], [], 0), ([MET], ["--strict"], 0), ([MET, MISSED], ["--strict"], 1)],
)
def test_a_missed_figure_fails_only_if_strict(
    figures: list[Figure], argv: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_benchmark("fake", Measure(*figures), argv=argv) == status
    assert ("missed" in capsys.readouterr().out) == (MISSED in figures)


def test_a_report_is_written_although_a_figure_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run_benchmark("fake", Measure(MISSED), argv=["--strict", "--json", str(path)]) == 1
    assert json.loads(path.read_text())["figures"] == [MISSED.as_dict()]


@pytest.mark.parametrize("argv", [["--json"], ["--jsn", "x"], ["more"]])
def test_bad_arguments_end_before_measuring(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    measure = Measure(MET)
    with pytest.raises(SystemExit) as ended:
        run_benchmark("fake", measure, argv=argv)
    assert ended.value.code == 2
    assert measure.calls == []
    assert "usage: python -m benchmarks.fake [-h] [--quick] [--json PATH] [--strict]" in capsys.readouterr().err


def test_a_folder_as_json_ends_before_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure = Measure(MET)
    with pytest.raises(SystemExit) as ended:
        run_benchmark("fake", measure, argv=["--json", str(tmp_path)])
    assert ended.value.code == 2
    assert measure.calls == []
    assert "`--json` must name a file, but" in capsys.readouterr().err


def test_help_says_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_benchmark("fake", Measure(), description="Ours beside theirs.", argv=["--help"])
    assert ended.value.code == 0
    assert "Ours beside theirs." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other_cpu_s", "other_cores", "warns"), [(0.0, 0.0, False), (4.0, 0.4, False), (5.0, 0.5, True)]
)
def test_a_busy_machine_is_noted(
    other_cpu_s: float,
    other_cores: float,
    warns: bool,
    clocks: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmarks.harness.os, "cpu_count", lambda: 4)
    measure = Measure(MET)

    def busy(quick: bool) -> Measured:
        clocks["cpu_s"] = other_cpu_s
        return measure(quick)

    path = tmp_path / "report.json"
    run_benchmark("fake", busy, argv=["--json", str(path)])
    assert json.loads(path.read_text())["machine"]["other_cores"] == other_cores
    warning = f"Warning: other processes kept {other_cores:.2f} of 4 cores busy"
    assert (warning in capsys.readouterr().err) is warns

"""From folders of outcomes to tables and a figure."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

from lightning_gnnopt.collect import collect, main
from lightning_gnnopt.sweeping import SweepReport, collect_outcomes
from tests.sweeping.jobs import leave, leave_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    leave_sweep(tmp_path / "sweep")
    return tmp_path / "sweep"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_jobs_that_went_well_are_averaged_and_the_others_counted(sweep: Path) -> None:
    report = collect_outcomes(sweep)
    assert (report.varying, report.groups, report.metric) == (["model", "seed"], ["model"], "test/acc")
    gcn, gat = report.summary
    assert (gcn.overrides, gcn.n, gcn.failed, gcn.peak_bytes) == ({"model": "gcn"}, 3, 0, 3 * 2**20)
    assert (gat.overrides, gat.n, gat.failed, gat.peak_bytes) == ({"model": "gat"}, 1, 2, 4 * 2**20)
    stat = gcn.metrics["test/acc"]
    assert (stat.mean, stat.std, stat.n) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert (gat.metrics["test/acc"].mean, gat.metrics["test/acc"].std) == (0.9, None)
    assert gcn.seconds is not None
    assert gcn.seconds.mean == 2.0


def test_files_hold_what_the_report_holds(sweep: Path) -> None:
    pytest.importorskip("matplotlib")
    written = collect_outcomes(sweep).save(sweep)
    assert [path.name for path in written] == ["table.csv", "summary.csv", "table.md", "figure.png", "figure.svg"]
    assert all(path.stat().st_size for path in written)
    table = rows(sweep / "table.csv")
    assert [row["job"] for row in table] == ["0", "1", "2", "3", "4", "5"]
    assert [row["model"] for row in table] == ["gcn"] * 3 + ["gat"] * 3
    assert "trainer.max_epochs" not in table[0]  # the same in all
    assert [row["status"] for row in table[3:]] == ["ok", "failed", "running"]
    assert [row["error"] for row in table[3:]] == ["", "Too | much.", "Did not end, or still runs."]
    assert float(table[1]["test/acc"]) == 0.6
    summary = rows(sweep / "summary.csv")
    assert [(row["n"], row["failed"], row["test/acc n"]) for row in summary] == [("3", "0", "3"), ("1", "2", "1")]
    assert float(summary[0]["test/acc std"]) == pytest.approx(0.1)
    assert summary[1]["test/acc std"] == ""
    page = (sweep / "table.md").read_text()
    assert "| gcn | 3 | 0 | 0.6 ± 0.1 |" in page
    assert "- 4: Too | much." in page


def test_the_frame_holds_numbers(sweep: Path) -> None:
    pytest.importorskip("pandas")
    frame = collect_outcomes(sweep).to_frame()
    means = frame.groupby("model")["test/acc"].mean()
    assert means["gcn"] == pytest.approx(0.6)
    assert means["gat"] == 0.9
    assert frame["seed"].tolist() == [0, 1, 2, 0, 1, 2]


def test_the_figure_has_means_and_deviations(sweep: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    report = collect_outcomes(sweep)
    _, own = plt.subplots()
    figure, ax = report.plot(own)
    assert ax is own
    (points,) = ax.containers
    assert points[0].get_ydata().tolist() == pytest.approx([0.6, 0.9])
    (bars,) = points[2]
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert lengths == pytest.approx([0.2, 0.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["gcn", "gat"]
    assert "mean over seed" in ax.get_ylabel()
    plt.close(figure)


def test_numbers_run_along_the_axis_and_names_make_series(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    for number, (net, width) in enumerate([("gcn", 100), ("gat", 100), ("gcn", 20), ("gat", 20)]):
        leave(tmp_path / str(number), {"model": net, "model.hidden_channels": width}, {"val/acc": width / 1000})
    figure, ax = collect_outcomes(tmp_path).plot()
    assert [bars.get_label() for bars in ax.containers] == ["gcn", "gat"]
    assert ax.containers[0][0].get_xdata().tolist() == [20, 100]
    assert ax.containers[0][0].get_ydata().tolist() == [0.02, 0.1]
    assert ax.get_xscale() == "linear"
    plt.close(figure)


def test_numbers_far_apart_have_a_logarithmic_axis_and_failed_ones_none(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    for number, (size, rate) in enumerate([(0, 0.1), (512, 0.1), (512, 0.001)]):
        metrics = {"val/acc": 0.5} if size else None
        leave(tmp_path / str(number), {"data.batch_size": size, "lr": rate}, metrics)
    figure, ax = collect_outcomes(tmp_path).plot()
    assert (ax.get_xlabel(), ax.get_xscale()) == ("lr", "log")
    plt.close(figure)


def test_more_series_than_colours_share_one(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    for number in range(9):
        leave(tmp_path / str(number), {"a": number / 10, "b": f"b{number}"}, {"val/acc": number})
    figure, ax = collect_outcomes(tmp_path).plot()
    assert len(ax.containers) == 1
    plt.close(figure)


def test_foreign_files_and_nested_folders_do_not_matter(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "notes.json").write_text("{}")
    (sweep / "other").mkdir()
    (sweep / "other" / "outcome.json").write_text("{}")
    (sweep / "folder" / "outcome.json").mkdir(parents=True)
    leave(sweep / "deep" / "er" / "10", {"model": "ggnn"}, {"test/acc": 1.0})
    leave(sweep / "deep" / "er" / "2", {"model": "ggnn"}, {"test/acc": 1.0})
    report = collect([sweep], output=sweep.parent / "out")
    assert [job.name for job in report.jobs] == ["0", "1", "2", "3", "4", "5", "deep/er/2", "deep/er/10"]
    assert report.foreign == [sweep / "other" / "outcome.json"]
    assert f"Left out, as they hold no outcome that this version reads: {report.foreign[0]}." in capsys.readouterr().out
    assert (sweep.parent / "out" / "table.csv").exists()
    assert not (sweep / "table.csv").exists()


def test_several_folders_keep_their_names_and_a_job_counts_once(tmp_path: Path) -> None:
    leave(tmp_path / "a" / "0", {"seed": 1}, {"val/acc": 0.1})
    leave(tmp_path / "b", {"seed": 2}, {"val/acc": 0.3})
    report = collect_outcomes(tmp_path / "a", tmp_path / "b", tmp_path)
    assert [job.name for job in report.jobs] == [str(tmp_path / "a" / "0"), str(tmp_path / "b")]
    assert report.summary[0].metrics["val/acc"].mean == pytest.approx(0.2)


def test_overrides_that_some_jobs_lack_vary(tmp_path: Path) -> None:
    leave(tmp_path / "0", {}, {"val/acc": 0.1})
    leave(tmp_path / "1", {"model.norm": None}, {"val/acc": 0.2})
    report = collect_outcomes(tmp_path)
    assert [row.overrides for row in report.summary] == [{}, {"model.norm": None}]


def test_what_is_averaged_over_can_be_chosen(sweep: Path) -> None:
    (row,) = collect_outcomes(sweep, average_over=["model", "seed"]).summary
    assert (row.n, row.failed, dict(row.overrides)) == (4, 2, {})
    assert len(collect_outcomes(sweep, average_over=[]).summary) == 6
    with pytest.raises(ValueError, match=r"Unknown override 'sed'\. Did you mean 'seed'\?"):
        collect_outcomes(sweep, average_over=["sed"])


def test_a_metric_that_is_no_number_stays_visible(tmp_path: Path) -> None:
    leave(tmp_path / "0", {"seed": 1}, {"val/loss": math.nan, "val/other": math.inf})
    leave(tmp_path / "1", {"seed": 2}, {"val/loss": 1.0, "val/other": 1.0})
    metrics = collect_outcomes(tmp_path).summary[0].metrics
    assert math.isnan(metrics["val/loss"].mean)
    assert metrics["val/other"].mean == math.inf


def test_metric_is_chosen_or_named(sweep: Path) -> None:
    assert collect_outcomes(sweep, metric="val/acc").shown_metrics == ["val/acc", "test/acc"]
    with pytest.raises(ValueError, match=r"Unknown metric 'val/accc'\. Did you mean 'val/acc'\?"):
        collect_outcomes(sweep, metric="val/accc")


def test_nothing_reached_is_a_table_without_a_figure(tmp_path: Path) -> None:
    leave(tmp_path / "0", {"seed": 1})
    report = collect_outcomes(tmp_path)
    assert [path.name for path in report.save(tmp_path)] == ["table.csv", "summary.csv", "table.md"]
    with pytest.raises(ValueError, match="needs a job that has reached a metric"):
        report.plot()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gnnopt-collect", *arguments])
    main()


def test_the_command_prints_and_writes(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, str(sweep), "--metric", "val/acc", "--group-by", "seed")
    printed = capsys.readouterr().out
    assert "6 jobs, 2 failed" in printed
    assert "Averaged over seed" in printed
    assert "0.5 ± 0.1" in printed
    assert "5: Did not end, or still runs." in printed
    assert f"Written to {sweep}: table.csv" in printed.replace("\n", "")


def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in (
        ([str(tmp_path)], f"Error: `{tmp_path}` must hold jobs of `gnnopt-train`, but there is no `outcome.json`"),
        ([str(tmp_path / "no")], f"Error: `{tmp_path / 'no'}` must be a folder of jobs, but there is none. HINT:"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(monkeypatch, *arguments)
        assert stop.value.code == 1
        assert sentence in capsys.readouterr().err
    leave(tmp_path / "0", {}, {"val/acc": 1.0})
    with pytest.raises(SystemExit):
        call(monkeypatch, str(tmp_path), "--output", str(tmp_path / "0" / "outcome.json"))
    assert "HINT: --output names another folder." in capsys.readouterr().err


def test_extras_are_named_where_they_are_missing(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    report = collect([sweep])
    assert "HINT: pip install 'lightning-gnnopt[plots]'" in capsys.readouterr().out
    assert not (sweep / "figure.png").exists()
    with pytest.raises(ModuleNotFoundError, match=r"lightning-gnnopt\[plots\]"):
        report.plot()
    with pytest.raises(ModuleNotFoundError, match=r"lightning-gnnopt\[frames\]"):
        report.to_frame()


def test_what_a_file_says_is_no_markup_and_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "0", {"model": "[red]x[/nope]", "seed": 1}, error="\x1b[2J[bold]gone")
    leave(tmp_path / "1", {"model": "a|b", "seed": 1}, {"val/acc": 1.0})
    report: SweepReport = collect([tmp_path])
    printed = capsys.readouterr().out
    assert "[red]x[/nope]" in printed
    assert "\x1b[2J" not in printed
    assert "a\\|b" in report.markdown()

"""The study's command as a user runs it, validation process and all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_gnnopt.studies.cells import load_cells
from lightning_gnnopt.study import main


def test_quick_is_one_cell_whose_sides_train_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config-name", "pipeline_study", "-m", "pipeline=quick", "dir=out"]
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    main()
    (cell,) = load_cells("out")
    assert (cell.name, cell.error) == ("flickr-like/gcn/neighbor-64", "")
    result = cell.result
    assert (result["losses_equal"], result["val_losses_equal"]) == (True, True)
    assert len(result["rounds"]) == 1
    for side, found in result["sides"].items():
        assert found["epoch_s"] > 0, side
        assert (found["startup_s"] > 0) is (side in ("async", "both"))
        assert side == "baseline" or found["theory"] >= 1
    assert {path.name for path in Path("out").iterdir()} > {"tables.md", "cells.csv", "summary.csv", "flickr-like"}
    assert "1 cells, 0 without numbers, 0 in which the sides' losses differ" in capsys.readouterr().out

    before = (Path("out") / cell.name / "cell.json").stat().st_mtime_ns
    main()
    assert (Path("out") / cell.name / "cell.json").stat().st_mtime_ns == before

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import everything


@pytest.mark.slow
def test_both_sides_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "MODELS", ("sage",))
    monkeypatch.setattr(everything, "QUICK", ("data.options.scale=0.002", "trainer.max_epochs=2"))
    path = tmp_path / "report.json"
    assert everything.main(["--quick", "--json", str(path)]) == 0
    assert "peak memory, everything over plain" in capsys.readouterr().out
    found = json.loads(path.read_text())
    plain, ours = found["rows"]
    assert plain["side"].startswith("plain, ")
    assert ours["side"] == "everything"
    assert [row["epochs"] for row in found["rows"]] == [2, 2]
    for row in found["rows"]:
        assert 0 < row["epoch_s"] < row["fit_s"]
        assert row["peak_mib"] > 100  # an interpreter with torch
        assert 0 < row["test_acc"] <= 1
    assert len(found["figures"]) == 4
    assert not [child for child in psutil.Process().children(recursive=True) if "everything_run" in child.cmdline()]


def test_a_side_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1:.*Could not find 'model/no-such'"):
        everything._run("plain", ["model=no-such"])


def test_the_peak_counts_children() -> None:
    child = "b = bytearray(80 * 2**20); import time; time.sleep(3)"
    root = psutil.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    )
    peak = everything._Peak(root.pid)
    root.wait()
    assert peak.stop() >= 80 * 2**20
    stopped = everything._Peak(root.pid)  # it is gone
    time.sleep(0.2)
    assert stopped.stop() == 0

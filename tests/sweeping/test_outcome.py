"""A job's outcome in its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lightning_gnnopt.sweeping.outcome import Outcome, read_outcome, write_outcome
from lightning_gnnopt.sweeping.overrides import plain_overrides


def test_what_is_written_is_read(tmp_path: Path) -> None:
    outcome = Outcome(
        "failed",
        overrides={"model": "gat", "sampler.num_neighbors": [15, 10], "~callbacks.progress_bar": None},
        metrics={"val/loss": math.inf, "val/acc": 0.5},
        seconds=1.5,
        peak_bytes=7,
        error="no",
        traceback="where",
        started="2020-01-01T00:00:00+00:00",
        sweep="s",
        versions={"torch": "2"},
    )
    path = write_outcome(outcome, tmp_path)
    assert read_outcome(path) == outcome
    assert [file.name for file in tmp_path.iterdir()] == ["outcome.json"]


def test_it_is_json_by_the_letter(tmp_path: Path) -> None:
    path = write_outcome(Outcome("ok", metrics={"a": math.nan, "b": -math.inf}), tmp_path)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["metrics"] == {"a": "nan", "b": "-inf"}
    assert math.isnan(read_outcome(path).metrics["a"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("status", "done"),
        ("status", ["ok"]),
        ("overrides", []),
        ("metrics", {"a": "many"}),
        ("metrics", {"a": []}),
        ("metrics", {"a": True}),
        ("seconds", "1"),
        ("error", 1),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = write_outcome(Outcome("ok"), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=r"must hold a job's outcome of format 1, but does not\. HINT:"):
        read_outcome(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outcome.json").write_bytes(content)
    with pytest.raises(ValueError, match="must hold a job's outcome"):
        read_outcome(tmp_path / "outcome.json")


def test_overrides_become_plain_values() -> None:
    lines = ["+a.b='1,2'", "++c={x:[1,null],2:inf}", "~d", "e=${now:%Y}", "f=1e-3", "g=true", "seed=1", "seed=2"]
    assert plain_overrides(lines) == {
        "a.b": "1,2",
        "c": {"x": [1, None], "2": "inf"},
        "~d": None,
        "e": "${now:%Y}",
        "f": 0.001,
        "g": True,
        "seed": 2,
    }

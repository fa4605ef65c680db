"""Beside training on a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gnnopt.evaluation.messages import ValidationFailed
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder

from .supervised import Make


def full(error: OSError, suffix: str, count: int) -> Callable[..., None]:
    """Like `SnapshotFolder.write`, on a disk that is full for a while."""
    left = [count]

    def write(self: SnapshotFolder, path: Path, content: Any) -> None:
        if path.suffix == suffix and left[0]:
            left[0] -= 1
            raise error
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)

    return write


def test_a_snapshot_for_which_there_is_no_disk_is_lost(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(SnapshotFolder, "write", full(error, ".weights", 1))
    it = setting({20: 0.5})
    it.submit(10)
    it.submit(20)
    lost, judged = it.outcomes(2)
    assert (lost.verdict, lost.error) == (None, None)
    assert "step 10" in lost.notice
    assert "No space left on device" in lost.notice
    assert judged.verdict is not None
    assert judged.verdict.step == 20
    assert it.files() == ["epoch=2-step=20.ckpt", "validations.jsonl"]


def test_two_lost_in_a_row_end_it(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(SnapshotFolder, "write", full(error, ".weights", 2))
    it = setting({})
    it.submit(10)
    it.submit(20)
    lost, given_up = it.outcomes(2)
    assert lost.error is None
    assert isinstance(given_up.error, ValidationFailed)
    assert "No space left on device" in str(given_up.error)
    assert it.files() == []


def test_two_lost_with_a_verdict_between_do_not(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    it = setting({20: 0.5})
    write, bad = full(OSError(errno.ENOSPC, "No space left"), ".weights", 99), {10, 30}
    written = SnapshotFolder.write
    monkeypatch.setattr(
        SnapshotFolder,
        "write",
        lambda self, path, content: (write if float(content.get("w", 0)) in bad else written)(self, path, content),
    )
    for step in (10, 20, 30):
        it.submit(step)
    assert [(o.verdict is None, o.error) for o in it.outcomes(3)] == [(True, None), (False, None), (True, None)]


def test_without_disk_for_the_checkpoint_there_is_a_verdict(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotFolder, "write", full(OSError(errno.ENOSPC, "No space left"), ".ckpt", 1))
    it = setting({10: 0.75, 20: 0.5})
    it.submit(10)
    it.submit(20)
    first, second = it.outcomes(2)
    assert first.verdict is not None
    assert "checkpoint of step 10 could not be kept" in first.notice
    assert "No space left" in first.notice
    assert second.notice == ""
    assert it.ranking.best_score == 0.5  # of what can be loaded
    assert it.files() == ["epoch=2-step=20.ckpt", "validations.jsonl"]


def test_a_snapshot_without_a_checkpoint_is_judged_and_gone(setting: Make) -> None:
    it = setting({10: 0.5}, save_top_k=0)
    it.submit(10, with_checkpoint=False)
    [outcome] = it.outcomes(1)
    assert outcome.verdict is not None
    assert it.files() == ["validations.jsonl"]
    assert it.ranking.best_path == ""

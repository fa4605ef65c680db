"""A snapshot's files are whole or not there, and a promotion never overwrites."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest
import torch

from lightning_gnnopt.evaluation import files
from lightning_gnnopt.evaluation.messages import Verdict
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder

LARGE = {"x": torch.arange(1_000_000)}


def verdict(step: int = 1, epoch: int = 0, **metrics: Any) -> Verdict:
    tensors = {name: torch.tensor(value) for name, value in metrics.items()}
    return Verdict(step=step, epoch=epoch, metrics=tensors, logged={}, shown={}, started_s=10.0, ended_s=12.5)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def written(folder: SnapshotFolder, step: int = 1, epoch: int = 0) -> Snapshot:
    snapshot = folder.new(step=step, epoch=epoch, with_checkpoint=True)
    folder.write(snapshot.weights, {"step": step})
    folder.write(snapshot.checkpoint, {"full": step})
    return snapshot


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "not" / "there")
    snapshot = folder.new(step=7, epoch=2, with_checkpoint=True)
    assert not folder.folder.exists()
    folder.write(snapshot.weights, LARGE)
    assert torch.equal(torch.load(snapshot.weights, weights_only=True, mmap=True)["x"], LARGE["x"])
    assert everything(folder.folder) == {f"pending/{snapshot.weights.name}"}
    assert (snapshot.step, snapshot.epoch) == (7, 2)


def test_snapshots_of_one_step_have_names_of_their_own(tmp_path: Path) -> None:
    taken = [SnapshotFolder(tmp_path).new(step=1, epoch=0, with_checkpoint=True) for _ in range(50)]
    assert len({path for snapshot in taken for path in (snapshot.weights, snapshot.checkpoint)}) == 100
    assert SnapshotFolder(tmp_path).new(step=1, epoch=0, with_checkpoint=False).checkpoint is None


def test_a_snapshot_survives_a_checkpoint(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    for with_checkpoint in (True, False):
        snapshot = folder.new(step=7, epoch=2, with_checkpoint=with_checkpoint)
        torch.save(snapshot.to_state(), tmp_path / "state")
        assert Snapshot.from_state(torch.load(tmp_path / "state", weights_only=True)) == snapshot


# Failures of writing


def failing_write(folder: SnapshotFolder, content: object = LARGE) -> OSError:
    snapshot = folder.new(step=1, epoch=0, with_checkpoint=False)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the callers look at it
        folder.write(snapshot.weights, content)
    assert caught.value.filename == str(snapshot.weights)
    assert everything(folder.folder) == set()
    return caught.value


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SnapshotFolder(tmp_path)
    real_open = open
    monkeypatch.setattr(files, "open", lambda *arguments: real_open("/dev/full", "wb"), raising=False)
    for content in (LARGE, {"x": 1}):
        error = failing_write(folder, content)
        assert error.errno == errno.ENOSPC
        assert "No space left on device; the file was not written. HINT: free some space there" in str(error)


def test_a_quota_that_ends_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        error = failing_write(SnapshotFolder(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.errno == errno.EFBIG
    assert "HINT: free some space there" in str(error)


def test_an_error_of_torch_without_the_systems_reason_becomes_one_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any) -> Never:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    error = failing_write(SnapshotFolder(tmp_path))
    assert error.errno == errno.EIO
    assert "HINT: check that the folder can be written to" in str(error)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_after_the_data_was_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: Any) -> Never:
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(os, failing, fail)
    assert failing_write(SnapshotFolder(tmp_path)).errno == errno.EDQUOT


def test_an_error_that_is_not_the_systems_is_raised_as_it_is(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Never:
            raise KeyboardInterrupt

    folder = SnapshotFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        folder.write(tmp_path / "x", Broken())
    with pytest.raises(Exception, match="lambda"):
        folder.write(tmp_path / "x", lambda: None)
    assert everything(tmp_path) == set()


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SnapshotFolder(tmp_path)
    folder.write(tmp_path / "x", {"old": 1})
    with pytest.raises(Exception, match="lambda"):
        folder.write(tmp_path / "x", {"new": lambda: None})
    assert torch.load(tmp_path / "x") == {"old": 1}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"the file was not written\. HINT: check .*file/x"):
        SnapshotFolder(tmp_path).write(tmp_path / "file" / "x", 1)


class KillsItsWriter:
    def __reduce__(self) -> Never:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def in_another_process(function: Callable[..., Any]) -> int:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(30)
    assert process.exitcode is not None
    return process.exitcode


def test_a_writer_that_is_killed_leaves_only_what_is_swept(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    snapshot = folder.new(step=1, epoch=0, with_checkpoint=False)
    assert in_another_process(lambda: folder.write(snapshot.weights, [LARGE, KillsItsWriter()])) == -signal.SIGKILL
    assert not snapshot.weights.exists()
    assert len(everything(tmp_path)) == 1
    mine = tmp_path / f".mine~{files.writers_mark()}.tmp"
    elsewhere = tmp_path / ".theirs~another_machine~1~1.tmp"
    again = tmp_path / f".again~{files.writers_mark().rpartition('~')[0]}~1.tmp"  # this number, another process
    for path in (mine, elsewhere, again):
        path.touch()
    assert len(folder.sweep()) == 2
    assert everything(tmp_path) == {mine.name, elsewhere.name}
    assert not folder.pending.exists()


def test_sweeping_keeps_snapshots(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    assert folder.sweep() == []
    written(folder)
    assert folder.sweep() == []
    assert len(everything(tmp_path)) == 2


# Promotion


def test_a_promotion_is_a_rename(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    snapshot = written(folder, step=20, epoch=3)
    number = snapshot.checkpoint.stat().st_ino
    path = folder.promote(snapshot, verdict(20, 3))
    assert path == tmp_path / "epoch=3-step=20.ckpt"
    assert path.stat().st_ino == number
    assert torch.load(path) == {"full": 20}
    folder.drop(snapshot)
    folder.drop(snapshot)
    assert everything(tmp_path) == {"epoch=3-step=20.ckpt"}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_promotion_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def no_links(*_: Any) -> Never:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    folder = SnapshotFolder(tmp_path, filename="best")
    names = [folder.promote(written(folder, step), verdict()).name for step in range(3)]
    assert names == ["best.ckpt", "best-v1.ckpt", "best-v2.ckpt"]
    assert [torch.load(tmp_path / name) for name in names] == [{"full": step} for step in range(3)]


def test_a_promotion_whose_file_is_gone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SnapshotFolder(tmp_path)
    snapshot = folder.new(step=1, epoch=0, with_checkpoint=True)
    folder.folder.mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError):
        folder.promote(snapshot, verdict())

    def no_links(*_: Any) -> Never:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(FileNotFoundError):
        folder.promote(snapshot, verdict())
    assert everything(tmp_path) == set()


def test_a_snapshot_without_a_checkpoint_cannot_be_promoted(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    with pytest.raises(ValueError, match=r"The snapshot of step 4 has no full checkpoint\. HINT: "):
        folder.promote(folder.new(step=4, epoch=0, with_checkpoint=False), verdict())


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("{epoch:02d}-{val/acc:.3f}", "03-0.812.ckpt"),
        ("step={step}-{val.loss}", "step=40-2.5.ckpt"),
        ("{val/count:03d}", "007.ckpt"),
        ("a{{b}}", "a{b}.ckpt"),
        ("{val/acc:/>8.3f}", "___0.812.ckpt"),
        ("{nothing}", "nan.ckpt"),
    ],
)
def test_names(tmp_path: Path, filename: str, expected: Any) -> None:
    metrics = {"val/acc": 0.8123, "val.loss": 2.5, "val/count": 7, "nothing": math.nan, "epoch": 99.0}
    folder = SnapshotFolder(tmp_path, filename=filename)
    snapshot = written(folder, step=40, epoch=3)
    judged = replace(verdict(), metrics={name: torch.tensor(value) for name, value in metrics.items()})
    assert folder.promote(snapshot, judged) == tmp_path / expected


@pytest.mark.parametrize("filename", ["../{epoch}", "/tmp/x", "sub/{epoch}", "a\\b", ""])
def test_names_stay_in_the_folder(tmp_path: Path, filename: str) -> None:
    with pytest.raises(ValueError, match=r"`filename` must be a name, but got .* HINT: `dirpath`"):
        SnapshotFolder(tmp_path, filename=filename)


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("{val/ac}", r"Unknown metric 'val/ac'\. Did you mean 'val/acc'\? Known: epoch, step, val/acc\. HINT: "),
        ("{}", r"Unknown metric ''"),
        ("{val/acc:d}", r"`filename` cannot format 'val/acc' = 0\.5 with 'd': .* HINT: '\.3f'"),
    ],
)
def test_names_that_cannot_be_made(tmp_path: Path, filename: str, message: str) -> None:
    folder = SnapshotFolder(tmp_path, filename=filename)
    snapshot = written(folder)
    with pytest.raises(ValueError, match=message):
        folder.promote(snapshot, verdict(**{"val/acc": 0.5}))


def test_a_name_that_is_no_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`filename` is no format .* HINT: "):
        SnapshotFolder(tmp_path, filename="{epoch")


def test_only_the_folders_own_checkpoints_are_removed(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "own")
    mine, another = folder.promote(written(folder), verdict()), tmp_path / "another.ckpt"
    another.touch()
    for path in (mine, str(mine), another):
        folder.remove(path)
    assert not mine.exists()
    assert another.exists()


def test_leftovers_are_what_nobody_will_judge(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    assert folder.leftovers() == []
    known, unknown = written(folder, 1), written(folder, 2)
    assert in_another_process(lambda: written(folder, 3) and None) == 0
    (folder.pending / f".x~{files.writers_mark()}.tmp").touch()
    (folder.pending / "epoch=0-step=9-abc~another_machine~1~1.ckpt").touch()
    left = folder.leftovers([known])
    assert {unknown.weights, unknown.checkpoint} < set(left)
    assert sorted(path.name.split("-")[1] for path in left) == ["step=2", "step=2", "step=3", "step=3"]


# The ledger


def test_the_ledger_has_every_verdict(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "new")
    assert folder.read_ledger() == []
    folder.record(verdict(5, 1, acc=0.5), path="a.ckpt", score=0.5, lag=3)
    folder.record(verdict(6, 1, acc=math.nan, count=2))
    first, second = [json.loads(line) for line in folder.ledger.read_text().splitlines()]
    assert first == {
        "run": folder.run,
        "step": 5,
        "epoch": 1,
        "score": 0.5,
        "path": "a.ckpt",
        "lag": 3,
        "seconds": 2.5,
        "metrics": {"acc": 0.5},
    }
    assert math.isnan(second["metrics"].pop("acc"))
    assert second["metrics"] == {"count": 2}
    assert folder.read_ledger()[0] == first


def test_verdicts_come_back_to_the_bit(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    value = float(torch.tensor(1.0) / 3)
    folder.record(verdict(5, 1, acc=value, count=3), path="a.ckpt")
    ((back, path),) = folder.read_verdicts()
    assert (back.step, back.epoch, path, back.ended_s - back.started_s) == (5, 1, "a.ckpt", 2.5)
    assert {name: metric.item() for name, metric in back.metrics.items()} == {"acc": value, "count": 3}


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_half_a_line_breaks_nothing(tmp_path: Path, kept: int) -> None:
    folder = SnapshotFolder(tmp_path)
    folder.record(verdict(1))
    whole = folder.ledger.read_bytes()
    folder.record(verdict(2))
    second = folder.ledger.read_bytes()[len(whole) :]
    folder.ledger.write_bytes(whole + second[:kept])
    complete = [1, 2] if kept == -1 else [1]  # only the end of the line is missing
    assert [entry["step"] for entry in folder.read_ledger()] == complete
    folder.record(verdict(3))
    assert [entry["step"] for entry in folder.read_ledger()] == [*complete, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_ledger_on_a_full_disk_says_so(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    folder.ledger.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device; .* HINT: free some space there"):
        folder.record(verdict(1))

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gnnopt.evaluation.copying import Copied, CopyPool
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder
from lightning_gnnopt.evaluation.timeline import Timeline
from lightning_gnnopt.evaluation.writing import Item, SnapshotWriter


class Slow(SnapshotFolder):
    """Writes when it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_write, self.has_begun = threading.Event(), threading.Event()

    def write(self, path: Path, content: Any) -> None:
        self.has_begun.set()
        assert self.may_write.wait(20)
        super().write(path, content)


class Broken:
    """A device's event after the device has failed."""

    def synchronize(self) -> None:
        raise RuntimeError("device-side assert triggered")


def item_of(folder: SnapshotFolder, pool: CopyPool, step: int) -> Item:
    snapshot = folder.new(step=step, epoch=0, with_checkpoint=True)
    return Item(snapshot, pool.copy({"weights": {"w": torch.zeros(100_000)}, "checkpoint": {"step": step}}))


def test_what_is_dropped_before_it_is_written_gives_its_memory_back_at_once(tmp_path: Path) -> None:
    folder, pool = Slow(tmp_path), CopyPool()
    writer = SnapshotWriter(folder, Timeline())
    writer.start()
    first = item_of(folder, pool, 1)
    writer.put(first)
    assert folder.has_begun.wait(20)
    for step in range(2, 10):
        item = item_of(folder, pool, step)
        writer.put(item)
        writer.drop(item)
    assert pool.held_bytes == 2 * 400_000  # the one that is being written, and one for the others
    folder.may_write.set()
    writer.stop()
    assert first.is_written.is_set()
    assert sorted(path.suffix for path in folder.pending.iterdir()) == [".ckpt", ".weights"]
    assert first.snapshot.weights.exists()


def test_what_is_dropped_while_it_is_written_leaves_no_file(tmp_path: Path) -> None:
    folder, pool = Slow(tmp_path), CopyPool()
    writer = SnapshotWriter(folder, Timeline())
    writer.start()
    item = item_of(folder, pool, 1)
    writer.put(item)
    assert folder.has_begun.wait(20)
    writer.drop(item)
    folder.may_write.set()
    writer.stop()
    assert list(folder.pending.iterdir()) == []


def test_a_device_that_fails_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder, pool = SnapshotFolder(tmp_path), CopyPool()
    writer = SnapshotWriter(folder, Timeline())
    writer.start()
    item = item_of(folder, pool, 1)
    assert item.copied is not None
    item.copied._events = [Broken()]
    writer.put(item)
    after = item_of(folder, pool, 2)
    writer.put(after)
    writer.stop()
    assert item.has_weights.is_set()
    assert item.is_written.is_set()
    assert "device-side assert triggered" in str(item.error)
    assert after.error is None
    assert after.snapshot.weights.exists()


def test_a_copy_that_a_device_has_spoilt_is_not_used_again() -> None:
    pool = CopyPool()
    copied: Copied = pool.copy({"w": torch.zeros(100_000)})
    copied._events = [Broken()]
    copied.release()
    assert pool.held_bytes == 0


def test_a_state_that_cannot_be_saved_is_told(tmp_path: Path) -> None:
    folder, pool = SnapshotFolder(tmp_path), CopyPool()
    writer = SnapshotWriter(folder, Timeline())
    writer.start()
    snapshot = folder.new(step=1, epoch=0, with_checkpoint=False)
    item = Item(snapshot, pool.copy({"weights": {"f": lambda: None}, "checkpoint": None}))
    writer.put(item)
    writer.stop()
    assert "pickle" in str(item.error)
    with pytest.raises(FileNotFoundError):
        snapshot.weights.stat()

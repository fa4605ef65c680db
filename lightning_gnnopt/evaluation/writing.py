"""Snapshots on their way into files."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from lightning_gnnopt.evaluation.copying import Copied
from lightning_gnnopt.evaluation.messages import Job
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder
from lightning_gnnopt.evaluation.timeline import Timeline

_WRITING_S = 600.0  # how long a stop waits for what is being written


@dataclass(eq=False)
class Item:
    """A snapshot on its way.

    Attributes:
        snapshot: Names its files.
        copied: ``{"weights": ..., "checkpoint": ...}``, until they are written; None if the files are there.
        has_weights: Set when the weights are in their file, or will never be.
        is_written: Set when all is.
        error: Why the weights are not in their file.
        checkpoint_error: Why the checkpoint is not in its file.
    """

    snapshot: Snapshot
    copied: Copied | None = None
    has_weights: threading.Event = field(default_factory=threading.Event)
    is_written: threading.Event = field(default_factory=threading.Event)
    error: OSError | None = None
    checkpoint_error: OSError | None = None
    is_claimed: bool = False
    is_dropped: bool = False

    @property
    def job(self) -> Job:
        """What the validation process is asked."""
        return Job(step=self.snapshot.step, epoch=self.snapshot.epoch, weights=self.snapshot.weights)


class SnapshotWriter:
    """A thread that writes snapshots, one after the other.

    Args:
        folder: Where they lie.
        timeline: Who did what when.
    """

    def __init__(self, folder: SnapshotFolder, timeline: Timeline) -> None:
        self._folder, self._timeline = folder, timeline
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="gnnopt-snapshots", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: Item) -> None:
        """Have a snapshot written."""
        if item.copied is None:
            item.has_weights.set()
            item.is_written.set()
        else:
            self._items.put(item)

    def drop(self, item: Item) -> None:
        """Have a snapshot's files removed; what is not being written yet gives its memory back at once."""
        with self._lock:
            item.is_dropped = True
            is_free = not item.is_claimed
            item.is_claimed = True
        if is_free and item.copied is not None:
            item.copied.release()
        self._items.put(item)

    def stop(self) -> None:
        """End the thread when all is written; may be called again."""
        self._items.put(None)
        if self._thread.ident is not None:
            self._thread.join(_WRITING_S)

    def remove(self, snapshot: Snapshot) -> None:
        """Remove a snapshot's files."""
        with suppress(OSError):  # one that cannot be removed stays until the folder is
            self._folder.drop(snapshot)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                with self._lock:
                    is_mine = not item.is_claimed
                    item.is_claimed = True
                if is_mine and item.copied is not None:
                    self._write(item, item.copied)
                if item.is_dropped:
                    self.remove(item.snapshot)
            except Exception as error:  # such as a state that cannot be pickled: told like a full disk
                item.error = OSError(f"{type(error).__name__}: {error}")
                self.remove(item.snapshot)
            finally:  # whoever waits for the snapshot must go on
                item.has_weights.set()
                item.is_written.set()

    def _write(self, item: Item, copied: Copied) -> None:
        started_s, snapshot = time.monotonic(), item.snapshot
        try:
            copied.wait()
            self._folder.write(snapshot.weights, copied.value["weights"])
            item.has_weights.set()
            if snapshot.checkpoint is not None:
                try:
                    self._folder.write(snapshot.checkpoint, copied.value["checkpoint"])
                except OSError as error:
                    item.checkpoint_error = error
        except OSError as error:
            item.error = error
            self.remove(snapshot)
        finally:
            copied.release()
            self._timeline.record("writing", f"step {snapshot.step}", started_s, time.monotonic(), step=snapshot.step)

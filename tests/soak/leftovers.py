"""What a run may not leave behind."""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

_FILES, _SHARED = Path("/proc/self/fd"), Path("/dev/shm")
_PATIENCE_S = 5.0


class Leftovers:
    """Compares threads, child processes, open files, shared memory and temporary files with those at first."""

    def __init__(self) -> None:
        self._threads, self._children = _threads(), _children()
        self._files, self._paths = _open_files(), _paths()

    def found(self, *, interrupted: bool = False) -> list[str]:
        """What is there now and was not at first; each is told once.

        Threads and processes may need a moment to end.

        Args:
            interrupted: Whether a run was interrupted, which costs a temporary file if Lightning is saving.
        """
        gc.collect()
        if interrupted:
            _remove_unfinished()
        give_up_s = time.monotonic() + _PATIENCE_S
        while (found := self._found()) and time.monotonic() < give_up_s:
            time.sleep(0.02)
        if found:
            self.__init__()  # type: ignore[misc]
        return found

    def _found(self) -> list[str]:
        threads = [f"thread {thread.name}" for thread in _threads() - self._threads]
        children = [f"process {child}" for child in _children() - self._children]
        files = [f"{count} x open {name}" for name, count in (_open_files() - self._files).items()]
        return threads + children + files + [f"file {path}" for path in _paths() - self._paths]


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _children() -> set[str]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found.add(f"{child.pid} {' '.join(child.cmdline())[:80]}")
    return found


def _open_files() -> Counter[str]:
    """What each descriptor points to; those of the listing itself are gone by the time they are read."""
    found: Counter[str] = Counter()
    for name in os.listdir(_FILES) if _FILES.is_dir() else []:
        with suppress(OSError):
            target = os.readlink(_FILES / name)
            found[target] += "/matplotlib/" not in target  # it keeps its fonts open
    return found


def _paths() -> set[str]:
    """Segments of shared memory that are named after this process, and temporary files."""
    shared = [path for path in _SHARED.iterdir() if f"{os.getpid()}" in path.name] if _SHARED.is_dir() else []
    temporary = [path for path in Path(tempfile.gettempdir()).iterdir() if path.suffix != ".py"]  # PyG's code
    return {str(path) for path in (*shared, *temporary)}


def _remove_unfinished() -> None:
    """Remove the file into which Lightning (fsspec) was writing a checkpoint, and which it leaves: not ours to mend."""
    for path in Path(tempfile.gettempdir()).glob("tmp????????"):
        if path.is_file() and path.read_bytes()[:2] in (b"", b"PK"):
            path.unlink()


def resident_mib() -> float:
    """Resident memory, when the allocator has given back what is free."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not everywhere is glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return float(psutil.Process().memory_info().rss) / 2**20


def slope_per_100(points: list[tuple[int, float]]) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen), per hundred runs."""
    slopes = sorted(
        (y - before) / (x - x_before) for k, (x_before, before) in enumerate(points) for x, y in points[k + 1 :]
    )
    return 100.0 * slopes[len(slopes) // 2] if slopes else 0.0

"""Frames between the training process and the validation process."""

from __future__ import annotations

import os
import queue
from contextlib import suppress
from typing import IO


def write_frame(pipe: IO[bytes], frame: bytes) -> None:
    """Write a frame: its length in 8 bytes, and itself.

    Raises:
        OSError: If nobody can read it any more.
    """
    for part in (len(frame).to_bytes(8, "little"), frame):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(pipe.fileno(), rest) :]


def write_frames(pipe: IO[bytes], frames: list[bytes]) -> None:
    """Write frames, and drop each when it is written."""
    with suppress(OSError, ValueError):  # it ended: noticed elsewhere
        while frames:
            write_frame(pipe, frames.pop(0))


def read_frames(pipe: IO[bytes], frames: queue.SimpleQueue[bytes | None]) -> None:
    """Read frames until there can be no more, which None says."""
    while (head := _read(pipe, 8)) is not None:
        frame = _read(pipe, int.from_bytes(head, "little"))
        if frame is None:
            break
        frames.put(frame)
    frames.put(None)


def _read(pipe: IO[bytes], length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = os.read(pipe.fileno(), min(length - len(parts), 2**20))
        if not part:
            return None
        parts += part
    return bytes(parts)

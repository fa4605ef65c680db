"""What the validation process prints: passed on, and its end kept for the day it dies."""

from __future__ import annotations

import codecs
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import IO


class LastLines:
    """The last lines of a text that arrives in parts, which may end anywhere.

    Args:
        most: How many lines are kept.
    """

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._lines: deque[str] = deque(maxlen=most)

    def add(self, part: str) -> None:
        """Take what arrived."""
        with self._changed:
            if self._lines and not self._lines[-1].endswith("\n"):
                part = self._lines.pop() + part
            self._lines.extend(part.splitlines(keepends=True))
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget what arrived so far."""
        with self._changed:
            self._lines.clear()

    def wait(self, *, quiet_s: float, timeout_s: float) -> None:
        """Wait until something has arrived, and nothing more for a while.

        Args:
            quiet_s: How long nothing more may have arrived.
            timeout_s: The longest wait.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: len(self._lines) > 0, timeout_s)
            while (left_s := deadline_s - time.monotonic()) > 0:
                if not self._changed.wait(min(quiet_s, left_s)):
                    return

    def text(self) -> str:
        """The lines, as one text."""
        with self._changed:
            return "".join(self._lines)


def pass_on(pipe: IO[bytes], last_lines: LastLines) -> None:
    """Print what the process prints where this one's errors go, which need not be a file, as in a notebook."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while part := os.read(pipe.fileno(), 2**16):
        text = decoder.decode(part)
        last_lines.add(text)
        with suppress(Exception):  # whatever there is instead of a stream
            sys.stderr.write(text)
            sys.stderr.flush()

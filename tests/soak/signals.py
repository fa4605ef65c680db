"""Signals at times that are drawn: Ctrl-C for this process, SIGSTOP and SIGKILL for the one that validates."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Self

import psutil

_WORKER = "lightning_gnnopt.evaluation.worker"


class Interrupts:
    """Sends this process SIGINT after some seconds, if the block is still being run."""

    def __init__(self, after_s: float) -> None:
        self._is_within = False
        self._timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        self._is_within = True
        self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_within = False
        self._timer.cancel()
        self._timer.join()
        signal.signal(signal.SIGINT, self._before)  # Lightning has it ignored from the first one on

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._is_within:
            self._is_within = False
            raise KeyboardInterrupt


class KillsValidation:
    """Kills the validation process some seconds after it was started, stopped for some time before that."""

    def __init__(self, after_s: float, *, stopped_s: float) -> None:
        self._after_s, self._stopped_s = after_s, stopped_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-kills")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while (pid := validation_process()) is None:
            if self._is_over.wait(0.02):
                return
        if self._is_over.wait(self._after_s):
            return
        with suppress(ProcessLookupError):
            if self._stopped_s:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self._stopped_s)
            os.kill(pid, signal.SIGKILL)


def validation_process() -> int | None:
    """The process that validates for this one, if there is one."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if _WORKER in process.cmdline():
                return int(process.pid)
    return None

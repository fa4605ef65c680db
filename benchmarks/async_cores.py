"""One core for training and another one for validation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

NOTE = "not pinned: this machine has one core, or does not let processes choose theirs"


def two_cores() -> tuple[int, int] | None:
    """Choose the cores of training and of validation; None if there are no two, or they cannot be chosen.

    The last ones are taken: interrupts prefer the first.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[-1], cores[-2]) if len(cores) > 1 else None


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on a core; those that it starts later inherit it."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), {core})


@contextmanager
def on_one_core() -> Iterator[None]:
    """Train on the first of :func:`two_cores` with one thread, and have all cores and threads back afterwards."""
    cores, num_threads = two_cores(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if cores is None:
            yield
            return
        before = {thread: os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")}
        pin(os.getpid(), cores[0])
        try:
            yield
        finally:
            everywhere = before[str(os.getpid())]
            for thread in os.listdir("/proc/self/task"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), before.get(thread, everywhere))
    finally:
        torch.set_num_threads(num_threads)

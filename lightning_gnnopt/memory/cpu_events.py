"""What the CPU allocator of torch reports to the thread that allocates."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch._C._autograd import DeviceType, _profiler_enabled

try:
    # The profiler under `torch.autograd.profiler_legacy`: per thread, silent, and started in microseconds.
    from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy, _enable_record_function
    from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

    _LIGHT = True
except ImportError:  # a torch that has given it up: `torch.profiler` reports the same, see _Kineto
    _LIGHT = False

_ERROR_LEVEL = 2
_MEMORY = "memory_alloc"
_ALLOCATING_ONLY = re.compile(r"aten::(new_)?empty|aten::resize_$")


_MARK = (1_000_003, -1_000_003, 1_000_033, -1_000_033)
"""Events that stand for a mark: of odd sizes, which no tensor of numbers has, each released at once."""


class Listener(Protocol):
    """Is told what happened in its thread between :meth:`ThreadLog.add` and :meth:`ThreadLog.remove`."""

    labelled: bool

    def take(self, sizes: list[int], labels: list[str]) -> None:
        """Take the next signed sizes; `labels` is empty unless somebody asked for labels."""


class MarkListener(Listener, Protocol):
    """Is told of marks too."""

    def take_mark(self) -> None:
        """What is taken from now on came after the next mark."""


class ThreadLog(threading.local):
    """The recording of one thread, shared by all who listen to it.

    Torch has one recording per thread. So whenever a listener comes or goes, what was recorded until then goes to all
    who listened, and a new recording begins: listeners may nest, and end in any order.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        # Scopes that were entered and not left, over all recordings, by thread.
        self._scopes: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        self._labelled = False
        self._marked = False  # whether there are marks among the events that nobody was told yet
        self._backend: _Light | _Kineto = _Light() if _LIGHT else _Kineto()

    def obstacle(self) -> str | None:
        """Say why nothing can be recorded in this thread now; None if it can."""
        if self._listeners:
            return None
        if _profiler_enabled():
            return "another profiler runs in this thread. HINT: record in a thread of its own, or without the profiler."
        return self._backend.obstacle()

    def add(self, listener: Listener) -> None:
        """Tell `listener` what happens from now on."""
        self._flush()
        self._restart([*self._listeners, listener])

    def remove(self, listener: Listener) -> None:
        """Tell `listener` the rest, and nothing from now on.

        Raises:
            RuntimeError: If it listens to another thread.
        """
        if listener not in self._listeners:
            raise RuntimeError(
                "A recording must end in the thread in which it began, but another thread ended it."
                " HINT: begin and end it around the work itself; do not leave a generator open in it."
            )
        self._flush()
        self._restart([other for other in self._listeners if other is not listener])

    def mark(self) -> None:
        """Let those who listen and have a `take_mark` know what came before this moment, and what after it.

        A mark is two allocations, so it may be made where a recording can be neither ended nor begun: in the backward
        pass. Nobody is told of them as allocations.
        """
        self._marked = bool(self._listeners)
        for size in _MARK[::2]:
            # no operator, so that who follows those does not see it
            torch.UntypedStorage(size)  # type: ignore[no-untyped-call]

    def abandon(self) -> None:
        """End the recording that a forked process inherits, which nobody would ever read."""
        if self._listeners:
            self._listeners = []
            self._backend.stop()

    def _flush(self) -> None:
        if not self._listeners:
            return
        _quiet.end()
        events = self._backend.stop()
        sizes = [size for event in events if event.kind() == _MEMORY and (size := event.cpu_memory_usage())]
        labels = self._labels(events) if self._labelled else []
        stretches = _cut(sizes) if self._marked else [slice(0, len(sizes))]
        self._marked = False
        for number, stretch in enumerate(stretches):
            for listener in self._listeners:
                if number and hasattr(listener, "take_mark"):
                    listener.take_mark()
                listener.take(sizes[stretch], labels[stretch] if listener.labelled else [])

    def _labels(self, events: Iterable[Any]) -> list[str]:
        labels: list[str] = []
        for event in events:
            scopes = self._scopes[event.thread_id()]
            kind = event.kind()
            if kind == "push":
                scopes.append((event.handle(), event.name()))
            elif kind == "pop":
                _leave(scopes, event.handle())
            elif kind == _MEMORY and event.cpu_memory_usage():
                labels.append(_label(scopes))
        return labels

    def _restart(self, listeners: list[Listener]) -> None:
        self._listeners = []  # should the start fail, nobody listens
        self._labelled = any(listener.labelled for listener in listeners)
        if not self._labelled:
            self._scopes.clear()
        if listeners:
            self._backend.start(self._labelled)
            _quiet.begin()
        self._listeners = listeners


class _Light:
    """The light profiler.

    Its events say their ``kind()``: ``"push"`` and ``"pop"``, a scope was entered or left; ``"memory_alloc"``, memory
    was allocated or, if `cpu_memory_usage()` is negative, released. That is 0 for memory of another device.
    """

    def __init__(self) -> None:
        self._labelled = False

    def obstacle(self) -> str | None:
        return None

    def start(self, labelled: bool) -> None:
        config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
        _enable_profiler_legacy(config)
        self._labelled = labelled
        if not labelled:
            _enable_record_function(False)  # operators then cost nothing

    def stop(self) -> list[Any]:
        """Return what happened, in order."""
        if not self._labelled:
            _enable_record_function(True)
        streams: list[list[Any]] = _disable_profiler_legacy()
        if len(streams) == 1:
            return streams[0]
        # Work was handed to other threads (`torch.jit.fork`): each has its list, and time is what they have in common.
        events = [event for stream in streams for event in stream]
        begin = events[0]
        return sorted(events, key=begin.cpu_elapsed_us)


class _KinetoEvent(NamedTuple):
    """Looks like an event of the light profiler."""

    what: str
    scope: str = ""
    place: int = 0
    nbytes: int = 0

    def kind(self) -> str:
        return self.what

    def name(self) -> str:
        return self.scope

    def handle(self) -> int:
        return self.place

    def thread_id(self) -> int:
        return 0

    def cpu_memory_usage(self) -> int:
        return self.nbytes


class _Kineto:
    """`torch.profiler`: one recording in the whole process, and a line on stderr for each."""

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._profiler: Any = None

    def obstacle(self) -> str | None:
        if self._lock.locked():
            return "another thread records, and this version of torch records one thread at a time. HINT: wait for it."
        return None

    def start(self, labelled: bool) -> None:
        # A second one at the same time ends the process.
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"Allocations cannot be recorded now: {self.obstacle()}")
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
        try:
            self._profiler.start()
        except BaseException:
            self._lock.release()
            raise

    def stop(self) -> list[Any]:
        try:
            self._profiler.stop()
        finally:
            self._lock.release()
        timed: list[tuple[int, int, int, _KinetoEvent]] = []
        for place, event in enumerate(self._profiler.profiler.kineto_results.events()):
            begin, end = event.start_ns(), event.end_ns()
            if event.name() == "[memory]":
                if event.device_type() == DeviceType.CPU:
                    timed.append((begin, 1, place, _KinetoEvent(_MEMORY, nbytes=event.nbytes())))
                continue
            timed.append((begin, 0, -end, _KinetoEvent("push", event.name(), place)))  # the longer one is the outer
            timed.append((end, 2, -begin, _KinetoEvent("pop", "", place)))
        return [event for *_, event in sorted(timed, key=lambda entry: entry[:3])]


class _Quiet:
    """Keeps torch from reporting, once in a thousand, that a released block was allocated before the recording."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._before = 0
        self._level: ctypes.c_int | None = None
        name = {"win32": "c10.dll", "darwin": "libc10.dylib"}.get(sys.platform, "libc10.so")
        with contextlib.suppress(OSError, ValueError):  # a torch built otherwise: it reports, and nothing else is lost
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            self._level = ctypes.c_int.in_dll(library, "FLAGS_caffe2_log_level")

    def forked(self) -> None:
        """Begin anew in a forked process, whatever other threads held."""
        self._lock = threading.Lock()
        if self._open and self._level is not None:
            self._level.value = self._before
        self._open = 0

    def begin(self) -> None:
        with self._lock:
            self._open += 1
            if self._level is not None and self._open == 1:
                self._before = self._level.value
                self._level.value = max(self._before, _ERROR_LEVEL)

    def end(self) -> None:
        with self._lock:
            self._open -= 1
            if self._level is not None and self._open == 0:
                self._level.value = self._before


def _cut(sizes: Sequence[int]) -> list[slice]:
    """Find what lies before, between and after the marks."""
    stretches: list[slice] = []
    begin = place = 0
    while place <= len(sizes) - len(_MARK):
        if sizes[place] == _MARK[0] and tuple(sizes[place : place + len(_MARK)]) == _MARK:
            stretches.append(slice(begin, place))
            place = begin = place + len(_MARK)
        else:
            place += 1
    return [*stretches, slice(begin, len(sizes))]


def _leave(scopes: list[tuple[int, str]], handle: int) -> None:
    """Leave a scope; one that was entered before the recording began is not there."""
    for place in range(len(scopes) - 1, -1, -1):
        if scopes[place][0] == handle:
            del scopes[place:]
            return


def _label(scopes: Iterable[tuple[int, str]]) -> str:
    """Name the user's scopes and autograd's nodes, outermost first, and the innermost operator.

    Operators that only allocate (`aten::empty`) say less than the one that called them.
    """
    parts: list[str] = []
    operator = ""
    previous = ""
    for _, name in scopes:
        if "::" not in name:
            if f"aten::{name}" != previous:  # autograd's kernel of the same operator
                parts.append(name)
                operator = ""
        elif not operator or not _ALLOCATING_ONLY.match(name):
            operator = name.removeprefix("autograd::engine::evaluate_function: ")
        previous = name
    if operator and (not parts or parts[-1] != operator):
        parts.append(operator)
    return " > ".join(parts) or "python"


def _forked() -> None:
    _quiet.forked()
    thread_log.abandon()


_quiet = _Quiet()
thread_log = ThreadLog()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

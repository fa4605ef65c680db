"""The training process's side of the validation process."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightning_gnnopt.evaluation.frames import read_frames, write_frame, write_frames
from lightning_gnnopt.evaluation.last_lines import LastLines, pass_on
from lightning_gnnopt.evaluation.messages import FailureKind, Job, ValidationFailed, Verdict
from lightning_gnnopt.evaluation.packing import Packed

# Not `-m`, by which the module would exist twice where its package imports it.
_WORKER = "lightning_gnnopt.evaluation.worker"
_LOOK_S = 0.1  # how often to look whether the process lives
_LAST_LINES = 60
# Who is who in a distributed run, and a Trainer's defaults. The validation process is alone.
_NOT_INHERITED = {
    "RANK", "LOCAL_RANK", "GLOBAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE",
}  # fmt: skip
_NOT_INHERITED_PREFIXES = (
    "MASTER_", "TORCHELASTIC_", "SLURM_", "PL_TRAINER_", "OMPI_", "PMI_", "PMIX_", "MPI_", "LSB_", "JSM_",
)  # fmt: skip

_DEFAULTS = {
    # Threads that wait for others must not take the cores from training.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives the memory of large intermediates back and takes it anew, page by page, with each operator: as long as
    # validation computes, where nothing large is freed that training would free.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


class ChildProcess:
    """A process that validates, started anew: it shares no state with this one but what is sent to it.

    It leads a session of its own, so Ctrl-C does not reach it. It ends with this object, with this process, however
    that ends, and takes the workers of its loaders with it.

    Args:
        packed: A packed `Blueprint`.
        startup_timeout_s: Longest time from the start until it is ready.
        env: Changes to its environment, beside those that a process without a distributed run around it needs.
    """

    def __init__(
        self, packed: Packed, *, startup_timeout_s: float = 300.0, env: Mapping[str, str] | None = None
    ) -> None:
        self._packed = packed
        self._startup_timeout_s = startup_timeout_s
        self._env = dict(env or {})
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._last_lines = LastLines(_LAST_LINES)
        self._threads: list[threading.Thread] = []
        self._finalizer: Any = None
        self._started_s = 0.0
        self._startup_s: float | None = None

    def start(self) -> None:
        """Start the process, and return at once.

        Raises:
            ValidationFailed: If there can be no such process.
        """
        with self._lock:
            if self._process is not None or self._is_stopped.is_set():
                return
            environment = _environment(self._env)
            # It must find this package before it is told where this process looks; and nothing else in the folder.
            first = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONSAFEPATH": "1"}
            self._started_s = time.monotonic()
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", _WORKER, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    env=environment | first,
                )
            except OSError as error:
                raise ValidationFailed("start", f"The validation process could not be started: {error}.") from error
            self._process = process
            self._finalizer = weakref.finalize(self, _end, process, self._threads, os.getpid())
            surroundings = {"path": list(sys.path), "folder": os.getcwd(), "environment": environment}
            frames = [pickle.dumps(surroundings), self._packed.payload]
            targets = (
                (write_frames, (process.stdin, frames)),
                (read_frames, (process.stdout, self._frames)),
                (pass_on, (process.stderr, self._last_lines)),
            )
            for run, args in targets:
                self._threads.append(threading.Thread(target=run, args=args, name="gnnopt-child", daemon=True))
                self._threads[-1].start()

    def run(self, job: Job, *, timeout_s: float | None) -> Verdict:
        """Have weights judged, and wait for the verdict; until the process is ready first, if need be.

        Args:
            job: The weights.
            timeout_s: Longest time for the validation itself; None for ever.

        Returns:
            The verdict.

        Raises:
            ValidationFailed: If there will be none. The process goes on after ``"raised"``, and after no other kind.
            RuntimeError: If the process was never started.
        """
        if self._process is None and not self._is_stopped.is_set():
            raise RuntimeError("The validation process has not been started. HINT: call `start` first.")
        if self._startup_s is None:
            self._await_start()
        self._send(pickle.dumps(job))
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        answer = self._next("died", deadline_s)
        if answer is None:
            stack = self._where_it_hangs()
            self.stop(grace_s=0.0)
            raise ValidationFailed(
                "hung",
                f"The validation of step {job.step:,} took more than `timeout_s` ({timeout_s:g} s), and its process was"
                f" killed.{stack} HINT: raise `timeout_s` if it only needs longer.",
            )
        kind, content = answer
        if kind == "raised":
            raise ValidationFailed("raised", f"The validation of step {job.step:,} raised an exception:\n{content}")
        verdict: Verdict = content
        return verdict

    def stop(self, *, grace_s: float = 2.0) -> None:
        """End the process and its loaders' workers. A `run` in another thread raises; another call does nothing.

        Args:
            grace_s: How long it may take to end by itself, before it is killed.
        """
        self._is_stopped.set()
        self._frames.put(None)
        with self._lock:
            process = self._process
            if process is None or not self._finalizer.alive:
                return
            # A process that is still being told what to do does not listen.
            if grace_s > 0 and not self._threads[0].is_alive():
                with suppress(OSError, ValueError):
                    os.write(process.stdin.fileno(), bytes(8))  # type: ignore[union-attr]
                _wait(process, grace_s)
            if grace_s > 0 and process.poll() is None:
                _signal_all(process, signal.SIGTERM)
                _wait(process, grace_s)
            self._finalizer()

    @property
    def pid(self) -> int | None:
        """Its process id; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def startup_s(self) -> float | None:
        """Seconds from the start until it was known to be ready; None before."""
        return self._startup_s

    def _await_start(self) -> None:
        answer = self._next("start", self._started_s + self._startup_timeout_s)
        if answer is None:
            stack = self._where_it_hangs()
            self.stop(grace_s=0.0)
            raise ValidationFailed(
                "start",
                f"The validation process was not ready after `startup_timeout_s` ({self._startup_timeout_s:g} s), and"
                f" was killed.{stack}",
            )
        if answer[0] == "failed":
            self.stop()
            raise ValidationFailed("start", f"The validation process could not be set up:\n{answer[1]}")
        self._startup_s = time.monotonic() - self._started_s

    def _send(self, frame: bytes) -> None:
        pipe = None if self._process is None else self._process.stdin
        # A process that has ended is noticed where its answer is awaited.
        with self._lock, suppress(OSError, ValueError):
            if pipe is not None and not self._is_stopped.is_set():
                write_frame(pipe, frame)

    def _next(self, kind: FailureKind, deadline_s: float | None) -> tuple[str, Any] | None:
        """Wait for the next answer; None when it is too late."""
        while not self._is_stopped.is_set():
            is_alive = self.is_alive
            late = deadline_s is not None and time.monotonic() > deadline_s
            try:
                # What it said last may still be on its way.
                frame = self._frames.get(timeout=_LOOK_S if is_alive else 1.0)
            except queue.Empty:
                if not is_alive:
                    raise self._ended(kind) from None
                if late:
                    return None
                continue
            if frame is not None:
                answer: tuple[str, Any] = pickle.loads(frame)
                return answer
            if not self._is_stopped.is_set():
                raise self._ended(kind)
        raise ValidationFailed("stopped", "The validation process was stopped.")

    def _ended(self, kind: FailureKind) -> ValidationFailed:
        process = self._process
        assert process is not None
        _wait(process, 5.0)  # its output may end a moment before it does
        code = process.poll()
        self.stop(grace_s=0.0)
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was killed by {_signal_name(-code)}" + ("; out of memory?" if -code == signal.SIGKILL else "")
        else:
            how = f"ended with exit code {code}"
        when = "before it was ready" if kind == "start" else "during a validation"
        return ValidationFailed(kind, f"The validation process {how}, {when}.{self._said()}")

    def _where_it_hangs(self) -> str:
        if self._process is not None and self._startup_s is not None and hasattr(signal, "SIGUSR1"):
            self._last_lines.clear()
            with suppress(OSError):
                self._process.send_signal(signal.SIGUSR1)
            # The stack is written piece by piece, and nothing says which is the last one.
            self._last_lines.wait(quiet_s=0.5, timeout_s=5.0)
        return self._said()

    def _said(self) -> str:
        text = self._last_lines.text()
        return "\nIts last words:\n" + text.rstrip() + "\n" if text else ""


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_PREFIXES)
    }
    return _DEFAULTS | inherited | dict(changes)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)


def _signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    # The group has the leader's id, which no other process gets while one of the group lives.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], threads: list[threading.Thread], owner: int) -> None:
    """Kill the group, and put away what this process has of it."""
    if os.getpid() != owner:  # a forked process inherits the finalizer, but not the child
        return
    _signal_all(process, signal.SIGKILL)
    _wait(process, 10.0)
    deadline_s = time.monotonic() + 0.5  # for the workers, which are not ours to wait for
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline_s:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    for thread, pipe in zip(threads, (process.stdin, process.stdout, process.stderr), strict=False):
        if thread is not threading.current_thread():
            thread.join(2.0)
            # One that a process outside of the group holds open is still being read.
            if pipe is not None and not thread.is_alive():
                pipe.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

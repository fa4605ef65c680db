"""The life and the deaths of the validation process, with real ones."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lightning_gnnopt.evaluation.child import ChildProcess
from lightning_gnnopt.evaluation.messages import Job, ValidationFailed
from lightning_gnnopt.evaluation.packing import Packed, pack

from .child_modules import Obedient, blueprint_of, loader, write_weights

ROOT = Path(__file__).resolve().parents[2]


def group_of(leader: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


class Setting:
    """A process, and the file by which it is told what to do."""

    def __init__(self, folder: Path) -> None:
        self.orders = folder / "order"
        module = Obedient(str(self.orders))
        self.packed: Packed = pack(blueprint_of(module, loader(num_workers=1)))
        self.job = Job(step=5, epoch=1, weights=write_weights(module, folder / "w.pt"))
        self.child = ChildProcess(self.packed)
        self.child.start()

    def run(self, order: str = "", timeout_s: float | None = 60.0) -> Any:
        self.orders.write_text(order)
        return self.child.run(self.job, timeout_s=timeout_s)

    def fails(self, order: str = "", timeout_s: float | None = 60.0) -> ValidationFailed:
        with pytest.raises(ValidationFailed) as failed:
            self.run(order, timeout_s)
        return failed.value


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.child.stop()
    assert until(lambda: made.child.pid is None or group_of(made.child.pid) == [], 5.0)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_another_one_goes_on(setting: Setting) -> None:
    error = setting.fails("die")
    assert error.kind == "died"
    assert "was killed by SIGKILL; out of memory?, during a validation" in str(error)
    assert not setting.child.is_alive
    again = setting.child
    with pytest.raises(ValidationFailed):
        again.run(setting.job, timeout_s=5)
    setting.child = ChildProcess(setting.packed)  # what was packed serves another one
    setting.child.start()
    assert setting.run().step == 5
    assert setting.child.startup_s > 0
    process = setting.child._process
    setting.child.stop()
    assert process.returncode == 0  # it ended by itself
    assert all(pipe.closed for pipe in (process.stdin, process.stdout, process.stderr))
    assert not any(thread.is_alive() for thread in setting.child._threads)


def test_a_process_that_hangs_is_killed_with_its_workers(setting: Setting) -> None:
    assert setting.run().epoch == 1
    pid = setting.child.pid
    error = setting.fails("hang", timeout_s=1.0)
    assert error.kind == "hung"
    assert "step 5 took more than `timeout_s` (1 s)" in str(error)
    assert "in _obey" in str(error)  # where it hung
    assert until(lambda: group_of(pid) == [], 5.0)
    assert not psutil.pid_exists(pid)  # and was reaped


def test_stop_ends_a_run_in_another_thread(setting: Setting) -> None:
    setting.run()
    caught: list[ValidationFailed] = []
    thread = threading.Thread(target=lambda: caught.append(setting.fails("hang", timeout_s=None)))
    thread.start()
    assert until(Path(str(setting.orders) + ".hangs").exists)
    assert len(group_of(setting.child.pid)) >= 2  # a loader's worker
    setting.child.stop()
    setting.child.stop()
    thread.join(10)
    assert [error.kind for error in caught] == ["stopped"]
    assert until(lambda: group_of(setting.child.pid) == [], 5.0)
    assert not setting.child.is_alive
    assert setting.fails().kind == "stopped"


def test_a_process_that_is_stopped_before_it_is_ready(setting: Setting) -> None:
    pid = setting.child.pid
    setting.child.stop()
    assert not psutil.pid_exists(pid)
    assert setting.fails().kind == "stopped"
    assert setting.child.startup_s is None


def test_a_forgotten_process_ends(setting: Setting) -> None:
    setting.run()
    pid, threads = setting.child.pid, setting.child._threads
    setting.child = ChildProcess(setting.packed)
    gc.collect()
    assert not psutil.pid_exists(pid)
    assert not any(thread.is_alive() for thread in threads)
    setting.child.stop()


def test_what_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    child = ChildProcess(Packed(b"no pickle", None, 0))
    child.start()
    with pytest.raises(ValidationFailed, match="could not be set up:\nTraceback") as failed:
        child.run(Job(step=1, epoch=0, weights=tmp_path), timeout_s=1)
    assert failed.value.kind == "start"
    assert not child.is_alive


def test_a_process_that_does_not_come_up_in_time_is_killed(tmp_path: Path) -> None:
    child = ChildProcess(pack(blueprint_of(Obedient())), startup_timeout_s=0.05)
    child.start()
    with pytest.raises(ValidationFailed, match=r"not ready after `startup_timeout_s` \(0.05 s\)") as failed:
        child.run(Job(step=1, epoch=0, weights=tmp_path), timeout_s=1)
    assert failed.value.kind == "start"
    assert not psutil.pid_exists(child.pid)


def test_an_interpreter_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    child = ChildProcess(Packed(b"", None, 0))
    with pytest.raises(ValidationFailed, match="could not be started") as failed:
        child.start()
    assert failed.value.kind == "start"
    child.stop()


def test_a_run_needs_a_start() -> None:
    with pytest.raises(RuntimeError, match="HINT: call `start` first"):
        ChildProcess(Packed(b"", None, 0)).run(Job(step=1, epoch=0, weights=Path()), timeout_s=1)


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.evaluation.test_child import Setting
import os
setting = Setting(Path(sys.argv[2]))
setting.run()
print(setting.child.pid, flush=True)
if sys.argv[3] == "forked" and os.fork() == 0:
    time.sleep(600)
setting.run("hang", timeout_s=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["hanging", "forked"])
def test_it_does_not_outlive_a_parent_that_is_killed(state: str, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), str(tmp_path), state],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        child = int(parent.stdout.readline())
        assert until((tmp_path / "order.hangs").exists)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert until(lambda: group_of(child) == [], timeout_s=3.0)
    finally:
        for process in group_of(parent.pid):
            os.kill(process, signal.SIGKILL)
        parent.stdout.close()


def test_a_large_payload_does_not_keep_start_waiting(tmp_path: Path) -> None:
    module = Obedient()
    module.text = os.urandom(30_000_000)
    child = ChildProcess(pack(blueprint_of(module, loader())))
    child.start()
    try:
        assert child._threads[0].is_alive()  # still writing
        job = Job(step=1, epoch=0, weights=write_weights(module, tmp_path / "w.pt"))
        assert torch.isfinite(child.run(job, timeout_s=60).metrics["x"])
    finally:
        child.stop()

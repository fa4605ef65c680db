from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_gnnopt._machine
from lightning_gnnopt import __version__
from lightning_gnnopt._machine import machine, other_cpu_s, versions


def test_machine_has_exactly_these_keys() -> None:
    found = machine()
    assert list(found) == ["processor", "cores", "memory_gib", "os", "python", "torch_threads", "device"]
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["python"] == platform.python_version()
    assert found["processor"]


def test_machine_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-42-build-of-alice@host")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    found = machine()
    assert found["os"] == "Linux 6.1.0"
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text
    assert platform.node() not in text


def test_machine_names_the_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test 100")
    assert machine()["device"] == "NVIDIA Test 100"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine()["device"] is None


def test_cores_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine()["cores"] == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine()["cores"] == 7


def test_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz \ncache\t: 1\nmodel name\t: Other\n")
    monkeypatch.setattr(lightning_gnnopt._machine, "_CPUINFO", cpuinfo)
    assert machine()["processor"] == "Fast CPU @ 3 GHz"

    cpuinfo.write_text("BogoMIPS : 50\n")  # ARM names no model
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine()["processor"] == "aarch64"

    cpuinfo.unlink()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    done = subprocess.CompletedProcess([], 0, stdout="Apple M9\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    assert machine()["processor"] == "Apple M9"


def test_versions() -> None:
    found = versions(peers=["rich", "no-such-package-at-all"])
    names = ["lightning_gnnopt", "torch", "torch_geometric", "lightning", "numba", "numpy", "python"]
    assert list(found) == [*names, "rich"]
    assert found["lightning_gnnopt"] == __version__
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_other_cpu_is_what_is_neither_idle_nor_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        def _asdict(self) -> dict[str, float]:
            return {"user": 100.0, "nice": 1.0, "system": 20.0, "idle": 5e3, "iowait": 50.0, "steal": 2.0, "guest": 9.0}

    monkeypatch.setattr(lightning_gnnopt._machine.psutil, "cpu_times", Times)
    monkeypatch.setattr(os, "times", lambda: os.times_result((10.0, 2.0, 30.0, 4.0, 1e6)))
    assert other_cpu_s() == 123.0 - 46.0

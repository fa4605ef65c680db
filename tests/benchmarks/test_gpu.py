"""The benchmark for a CUDA device, on the simulated one: the whole script on a graph of a thousand nodes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, preparation, rounds, training
from benchmarks.backends import CudaBackend, SimulatedBackend
from tests.benchmarks.test_loading import TINY


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "QUICK", TINY)
    monkeypatch.setattr(rounds, "gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setenv("GNNOPT_DATA", str(tmp_path))


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--quick"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "`benchmarks.gpu` needs a CUDA device, but torch finds none. HINT: `python -m benchmarks.loading` measures"
        " without one; --simulate tries this script without one.\n"
    )


def test_simulated_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (preparation, training):
        monkeypatch.setattr(module, "missing_peers", lambda: {"torch-sparse": "not here", "pyg-lib": "not here"})
    path = tmp_path / "report.json"
    assert gpu.main(["--simulate", "--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.gpu --simulate --quick"
    assert found["rows"][0] == {"part": "device", "side": "simulated"}
    assert {row["part"] for row in found["rows"]} == {
        "device",
        "preparation",
        "effect of overlap",
        "epoch",
        "training",
        "cache",
        "transfer",
    }
    figures = {figure["name"]: figure["value"] for figure in found["figures"]}
    assert figures["copies to the device per batch"] == 1
    assert figures["effect of overlap, the least of the grid"] > 0


def test_seconds_become_bytes_and_kernels() -> None:
    backend = SimulatedBackend(bytes_per_s=2e6)
    assert (backend.transfer_bytes(0.003), backend.transfer_bytes(0.0)) == (6000, 1)
    event = [backend.streams.current().record()]
    for seconds in (0.002, 0.001):
        backend.kernel(seconds)()
    event.append(backend.streams.current().record())
    backend.synchronize()
    assert event[1].elapsed_s(event[0]) == pytest.approx(0.003, abs=1e-3)  # of the simulated clock
    batch = SimpleNamespace()
    assert backend.move(batch) is batch
    backend.close()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_run() -> None:
    backend = CudaBackend()
    figures, rows = gpu.measure_on(backend, TINY)
    backend.close()
    assert rows[0]["side"] == torch.cuda.get_device_name()
    assert {figure.name: figure.value for figure in figures}["copies to the device per batch"] == 1

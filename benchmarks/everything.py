"""The recipe `everything` (prefetching, validation beside training, memory control), beside plain PyG and Lightning.

The same graph, module, optimizer, batch size and epochs on both sides. Plain is PyG's `NeighborLoader` with the number
of workers that is fastest here, Lightning's own validation after each epoch and its `ModelCheckpoint`; where PyG has
nothing to sample with (neither torch-sparse nor pyg-lib), our loader without workers takes its loader's place, and the
row says so. Each run is a process of its own, so that its peak memory is its own: the most that it and its children
held together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark

MODELS = ("sage", "gat")
ROUNDS, QUICK_ROUNDS = 2, 1
QUICK = ("data.options.scale=0.01", "trainer.max_epochs=2")
PLAIN, EVERYTHING = "plain", "everything"
_POLL_S = 0.05


def measure(quick: bool) -> Measured:
    """Train on both sides in turn.

    Args:
        quick: Whether to take a hundredth of the graph, and one round.

    Returns:
        The figures, and a row per model and side.
    """
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for model in MODELS:
        overrides = [f"model={model}", *(QUICK if quick else ())]
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            side: partial(_run, side, overrides) for side in (PLAIN, EVERYTHING)
        }
        runs = alternate(sides, rounds=QUICK_ROUNDS if quick else ROUNDS, warmup=0)
        figures += _figures(model, runs)
        rows += [_row(model, side, found) for side, found in runs.items()]
    return figures, rows


def _run(side: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Train in a process, and watch what it and its children hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.everything_run", side, folder, *overrides]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak = _Peak(process.pid)
        _, errors = process.communicate()
        peak_bytes = peak.stop()
        if process.returncode != 0:
            raise RuntimeError(f"`{' '.join(command)}` ended with status {process.returncode}:\n{errors[-4000:]}")
        result: dict[str, Any] = json.loads(path.read_text())
    return {**result, "peak_bytes": peak_bytes}


class _Peak:
    """Looks every so often at what a process and its children hold; pages that they share count once."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most, self._is_over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End, and give the most that was held."""
        self._is_over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_S):
            try:
                root = psutil.Process(self._pid)
                self._most = max(self._most, sum(map(_held, [root, *root.children(recursive=True)])))
            except psutil.NoSuchProcess:
                return


def _held(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(found, "pss", found.rss))


def _figures(model: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    def of(name: str, side: str) -> list[float]:
        return [float(run[name]) for run in runs[side]]

    return [
        Figure.of_runs(
            f"{model}: time of the fit, plain over everything", ratios(of("fit_s", PLAIN), of("fit_s", EVERYTHING)),
            unit="x",
        ),
        Figure.of_runs(
            f"{model}: an epoch with its validation, plain over everything",
            ratios(of("epoch_s", PLAIN), of("epoch_s", EVERYTHING)), unit="x",
        ),
        Figure.of_runs(
            f"{model}: peak memory, everything over plain",
            ratios(of("peak_bytes", EVERYTHING), of("peak_bytes", PLAIN)), unit="x",
        ),
        Figure.of_runs(
            f"{model}: test accuracy, everything less plain",
            [a - b for a, b in zip(of("test_acc", EVERYTHING), of("test_acc", PLAIN), strict=True)], unit="share",
        ),
    ]  # fmt: skip


def _row(model: str, side: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    def middle(name: str) -> float:
        return median([float(run[name]) for run in runs])

    return {
        "model": model,
        "side": runs[0]["name"],
        "epochs": runs[0]["epochs"],
        "epoch_s": middle("epoch_s"),
        "fit_s": middle("fit_s"),
        "peak_mib": middle("peak_bytes") / 2**20,
        "step_peak_mib": middle("step_peak_bytes") / 2**20,
        "best_val_acc": middle("val_acc"),
        "test_acc": middle("test_acc"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit status.
    """
    return run_benchmark(
        "everything", measure, description=(__doc__ or "").split("\n")[0], peers=("torch-sparse", "pyg-lib"), argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())

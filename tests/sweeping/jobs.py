"""Jobs that never ran, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_gnnopt.sweeping import Outcome
from lightning_gnnopt.sweeping.outcome import write_outcome


def leave(folder: Path, overrides: dict[str, Any], metrics: dict[str, float] | None = None, **others: Any) -> Outcome:
    """Write a job's outcome: one that went well if it has metrics, or else one that failed."""
    if metrics is None:
        others = {"status": "failed", "error": "Too | much.", "traceback": "Traceback", **others}
    outcome = Outcome(**{"status": "ok", "overrides": overrides, "metrics": metrics or {}, **others})
    write_outcome(outcome, folder)
    return outcome


def leave_sweep(folder: Path) -> None:
    """Write two models with three seeds: one has a job that failed and one that did not end."""
    accuracies: list[float | None] = [0.5, 0.6, 0.7, 0.9, None, None]
    for number, accuracy in enumerate(accuracies):
        overrides = {"model": ["gcn", "gat"][number // 3], "trainer.max_epochs": 5, "seed": number % 3}
        metrics = None if accuracy is None else {"train/loss": 1.0, "val/acc": accuracy - 0.1, "test/acc": accuracy}
        leave(folder / str(number), overrides, metrics, seconds=1.0 + number, peak_bytes=2**20 * (number + 1))
    leave(folder / "5", {"model": "gat", "trainer.max_epochs": 5, "seed": 2}, {}, status="running")

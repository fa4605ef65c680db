"""A supervisor and all around it, with validation processes that are none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_gnnopt.evaluation.backlog import Backlog, WhenBusy
from lightning_gnnopt.evaluation.copying import CopyPool
from lightning_gnnopt.evaluation.messages import Job
from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder
from lightning_gnnopt.evaluation.supervisor import Outcome, Supervisor
from lightning_gnnopt.evaluation.timeline import Timeline

from .runs import FakeChild, wait_until


class Setting:
    """A supervisor and all around it. Scores by step; an exception among them is raised, once for each time it is."""

    def __init__(
        self,
        folder: Path,
        scores: dict[int, Any],
        *,
        gate: threading.Semaphore | None = None,
        max_pending: int = 2,
        when_busy: WhenBusy = "queue",
        save_top_k: int = 1,
    ) -> None:
        self.scores = {step: list(score) if isinstance(score, list) else [score] for step, score in scores.items()}
        self.gate = gate
        self.made: list[FakeChild] = []
        self.folder = SnapshotFolder(folder)
        self.ranking = Ranking(monitor="val/acc", mode="max", save_top_k=save_top_k)
        self.timeline = Timeline()
        self.pool = CopyPool()
        self.supervisor = Supervisor(
            self._make,  # type: ignore[arg-type]
            folder=self.folder,
            ranking=self.ranking,
            backlog=Backlog(max_pending, when_busy),
            timeout_s=5.0,
            timeline=self.timeline,
            step_now=lambda: 100,
        )

    def _make(self) -> FakeChild:
        self.made.append(FakeChild(self._judge, self.gate))
        return self.made[-1]

    def _judge(self, job: Job) -> dict[str, float]:
        assert torch.load(job.weights)["w"].item() == job.step  # the weights of this very step
        scores = self.scores[job.step]
        score = scores.pop(0) if len(scores) > 1 else scores[0]
        if isinstance(score, BaseException):
            raise score
        return score if isinstance(score, dict) else {"val__acc": score}

    def submit(self, step: int, *, with_checkpoint: bool = True) -> Snapshot | None:
        snapshot = self.folder.new(step=step, epoch=step // 10, with_checkpoint=with_checkpoint)
        weights = torch.tensor(float(step))
        checkpoint = {"state_dict": {"w": weights}} if with_checkpoint else None
        return self.supervisor.submit(snapshot, self.pool.copy({"weights": {"w": weights}, "checkpoint": checkpoint}))

    def outcomes(self, count: int) -> list[Outcome]:
        found: list[Outcome] = []

        def are_there() -> bool:
            found.extend(self.supervisor.collect())
            return len(found) >= count

        wait_until(are_there, 20.0)
        assert len(found) == count
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.folder.rglob("*") if path.is_file())


Make = Callable[..., Setting]

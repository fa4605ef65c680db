"""Which snapshots are the best so far."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.evaluation.messages import Verdict

_MODES = ("min", "max")


class Ranking:
    """Keeps the best k checkpoints by the score of the very weights in them.

    As with Lightning's `ModelCheckpoint`, a score has to be better to push another out: a tie keeps the earlier one.
    NaN is worse than every number, infinities included, but takes a place that is free.

    Args:
        monitor: The metric to rank by; None keeps the latest.
        mode: Whether the metric's best value is its smallest or its largest.
        save_top_k: How many to keep; -1 keeps all, 0 none.

    Raises:
        ValueError: If an argument cannot be used.

    Example:
        >>> import torch
        >>> def verdict(step, loss):
        ...     metrics = {"val/loss": torch.tensor(loss)}
        ...     return Verdict(step=step, epoch=0, metrics=metrics, logged={}, shown={}, started_s=0.0, ended_s=1.0)
        >>> ranking = Ranking(monitor="val/loss", mode="min", save_top_k=1)
        >>> ranking.enter(Path("a.ckpt"), verdict(1, 0.5))
        []
        >>> ranking.judge(verdict(2, 0.75))
        False
        >>> ranking.enter(Path("c.ckpt"), verdict(3, 0.25))
        [PosixPath('a.ckpt')]
        >>> ranking.best_path, ranking.best_score
        ('c.ckpt', 0.25)
    """

    def __init__(self, *, monitor: str | None, mode: Literal["min", "max"], save_top_k: int) -> None:
        if mode not in _MODES:
            raise ValueError(f"{unknown_name('mode', mode, _MODES)} HINT: `mode` says which end of `monitor` is best.")
        if isinstance(save_top_k, bool) or not isinstance(save_top_k, int) or save_top_k < -1:
            raise ValueError(
                f"`save_top_k` must be a whole number of checkpoints, at least -1, but got {save_top_k!r}."
                " HINT: -1 keeps all, 0 none."
            )
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self._entries: list[tuple[str, float]] = []  # in the order they came

    @property
    def kept(self) -> dict[str, float]:
        """The checkpoints in the ranking and their scores, best first; without a monitor, their steps."""
        return dict(self._ranked(self._entries))

    @property
    def best_path(self) -> str:
        """The best checkpoint; empty if there is none."""
        return next(iter(self.kept), "")

    @property
    def best_score(self) -> float | None:
        """Its score; None if there is none, or nothing is monitored."""
        return None if self.monitor is None else next(iter(self.kept.values()), None)

    def judge(self, verdict: Verdict) -> bool:
        """Say whether a snapshot belongs to the best k, as of now.

        Raises:
            ValueError: If its metrics lack the monitored one, or that one is not a single number.
        """
        score = self.score(verdict)
        if self.save_top_k == -1:
            return True
        return "" in dict(self._ranked([*self._entries, ("", score)])[: self.save_top_k])

    def enter(self, path: str | os.PathLike[str], verdict: Verdict) -> list[Path]:
        """Enter a checkpoint.

        Args:
            path: Its file. A file that is in the ranking already was replaced: its old entry goes.
            verdict: What was said of the weights in it.

        Returns:
            The files that fell out, the new one among them if it does not belong to the best k.

        Raises:
            ValueError: If its metrics lack the monitored one, or that one is not a single number.
        """
        name, score = os.fspath(path), self.score(verdict)
        entries = [*(entry for entry in self._entries if entry[0] != name), (name, score)]
        out = set() if self.save_top_k == -1 else {path for path, _ in self._ranked(entries)[self.save_top_k :]}
        self._entries = [entry for entry in entries if entry[0] not in out]  # at once: other threads read it
        return [Path(path) for path, _ in entries if path in out]

    def state_dict(self) -> dict[str, Any]:
        """Return plain types that :meth:`load_state_dict` takes."""
        return {"monitor": self.monitor, "mode": self.mode, "entries": [list(entry) for entry in self._entries]}

    def load_state_dict(self, state: dict[str, Any], *, must_exist: bool = True) -> None:
        """Go on with the ranking of an earlier run, or of another process.

        A checkpoint whose file is gone loses its place, with its score, even if it was the best: the best path is
        something to load, and a score that nobody can load would keep later checkpoints out. A state of another metric
        or mode says nothing about this ranking and is left aside, with a warning. If fewer are to be kept than before,
        the others fall out with the next :meth:`enter`.

        Args:
            state: What :meth:`state_dict` returned.
            must_exist: Whether to leave out checkpoints that this machine cannot see.
        """
        if (state["monitor"], state["mode"]) != (self.monitor, self.mode):
            rank_zero_warn(
                f"The checkpoint ranks snapshots by {state['monitor']!r} ({state['mode']}), this run by"
                f" {self.monitor!r} ({self.mode}): the ranking starts afresh, and no earlier file is removed."
            )
            return
        self._entries = [(path, score) for path, score in state["entries"] if not must_exist or os.path.exists(path)]

    def score(self, verdict: Verdict) -> float:
        """Read what a verdict is ranked by: the monitored metric or, without a monitor, the step.

        Raises:
            ValueError: If its metrics lack the monitored one, or that one is not a single number.
        """
        if self.monitor is None:
            return float(verdict.step)
        found = verdict.metrics.get(self.monitor)
        if found is None:
            raise ValueError(
                f"`monitor={self.monitor!r}` is not among the metrics of a validation:"
                f" {', '.join(sorted(verdict.metrics)) or 'it logged none'}. HINT: log it in"
                " `validation_step` or `on_validation_epoch_end`."
            )
        if found.numel() != 1:
            raise ValueError(
                f"`monitor={self.monitor!r}` must be one number, but has shape {tuple(found.shape)}."
                " HINT: log its mean, say."
            )
        return float(found)

    def _ranked(self, entries: list[tuple[str, float]]) -> list[tuple[str, float]]:
        if self.monitor is None:
            return entries[::-1]
        sign = 1.0 if self.mode == "min" else -1.0
        return sorted(
            entries, key=lambda entry: (math.isnan(entry[1]), 0.0 if math.isnan(entry[1]) else sign * entry[1])
        )

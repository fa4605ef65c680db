"""The files of snapshots: written whole or not at all, and promoted to checkpoints by a rename."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import string
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.evaluation.files import (
    TEMPORARY,
    cannot_write,
    may_be_written,
    rename_to_new,
    sync_folder,
    write_whole,
    writers_mark,
)
from lightning_gnnopt.evaluation.messages import Verdict


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Weights at one step, in files.

    Attributes:
        step: The Trainer's `global_step` when they were taken.
        epoch: Its `current_epoch` then.
        taken_s: When they were taken, by `time.monotonic`: meaningless after a restart of the machine.
        weights: The file of what validation needs.
        checkpoint: The file of a full checkpoint that becomes the final one if the weights turn out good; None if
            there is none.
    """

    step: int
    epoch: int
    taken_s: float
    weights: Path
    checkpoint: Path | None

    def to_state(self) -> dict[str, Any]:
        """Return plain types, for a checkpoint."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        return {
            "step": self.step,
            "epoch": self.epoch,
            "taken_s": self.taken_s,
            "weights": str(self.weights),
            "checkpoint": checkpoint,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Snapshot:
        """Undo :meth:`to_state`."""
        checkpoint = None if state["checkpoint"] is None else Path(state["checkpoint"])
        return cls(
            step=state["step"],
            epoch=state["epoch"],
            taken_s=state["taken_s"],
            weights=Path(state["weights"]),
            checkpoint=checkpoint,
        )


class SnapshotFolder:
    """Where a run keeps snapshots without a verdict, the checkpoints that were promoted, and the verdicts.

    A file has its name only when it is complete and on the disk: whoever is killed in the middle leaves a temporary
    file, which :meth:`sweep` removes once its writer is gone. Threads may share a folder, if only one of them calls
    :meth:`record` and none writes during a :meth:`sweep`.

    Args:
        folder: The folder for checkpoints; made when something is written. ``pending/`` below it has the snapshots,
            ``validations.jsonl`` the verdicts.
        filename: The name of checkpoints without its suffix. `epoch`, `step` and all metrics can be put in braces, with
            a format: ``"{epoch:02d}-{val/acc:.3f}"``.
        run: Names the run, in letters and digits, and those that resume it: other runs may use the folder; a new name
            by default.

    Raises:
        ValueError: If `filename` is empty, a path, or no format, or `run` has other characters.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        filename: str = "epoch={epoch}-step={step}",
        run: str | None = None,
    ) -> None:
        try:
            parts = list(string.Formatter().parse(filename))
        except ValueError as error:
            raise ValueError(f"`filename` is no format ({error}): {filename!r}. HINT: '{{epoch}}-{{step}}'.") from error
        if not filename or any(separator in text for text, *_ in parts for separator in "/\\"):
            raise ValueError(
                f"`filename` must be a name, but got {filename!r}. HINT: `dirpath` says which folder it lies in."
            )
        self.folder = Path(folder)
        self.filename = filename
        self.run = secrets.token_hex(4) if run is None else run
        self.pending = self.folder / "pending"
        self.ledger = self.folder / "validations.jsonl"

    @property
    def run(self) -> str:
        """Names the run. It comes from checkpoints, and becomes a part of files' names and of patterns of them."""
        return self._run

    @run.setter
    def run(self, run: str) -> None:
        if not isinstance(run, str) or not re.fullmatch("[A-Za-z0-9]+", run):
            raise ValueError(
                f"`run` must be letters and digits, but is {run!r}. HINT: `AsyncValidation` writes no such state into"
                " a checkpoint; start afresh, with `ckpt_path=None`."
            )
        self._run = run

    def owns(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot's files are named as :meth:`new` names this run's, in this folder or an earlier one.

        Others must not be taken up from a checkpoint's state: what is judged is renamed or removed.
        """
        name = rf"epoch=-?\d+-step=\d+-{self.run}-[0-9a-f]{{8}}~\w+~\d+~\d+"
        files = [(snapshot.weights, "weights"), (snapshot.checkpoint, "ckpt")]
        return all(
            path is None
            or (path.parent.name == "pending" and re.fullmatch(rf"{name}\.{suffix}", path.name) is not None)
            for path, suffix in files
        )

    def new(self, *, step: int, epoch: int, with_checkpoint: bool) -> Snapshot:
        """Name the files of a snapshot that is taken now; write nothing."""
        name = f"epoch={epoch}-step={step}-{self.run}-{secrets.token_hex(4)}~{writers_mark()}"
        return Snapshot(
            step=step,
            epoch=epoch,
            taken_s=time.monotonic(),
            weights=self.pending / f"{name}.weights",
            checkpoint=self.pending / f"{name}.ckpt" if with_checkpoint else None,
        )

    def write(self, path: Path, content: Any) -> None:
        """Save an object with `torch.save`, whole or not at all.

        Raises:
            OSError: If it cannot be written, with the system's reason; nothing is left behind, then.
        """
        write_whole(path, lambda file: torch.save(content, file))

    def promote(self, snapshot: Snapshot, verdict: Verdict) -> Path:
        """Give a snapshot's checkpoint its final name, at once.

        A file that has the name already is another run's and stays: ``-v1``, ``-v2``, ... is added, as
        `ModelCheckpoint` does.

        Returns:
            The checkpoint's path.

        Raises:
            ValueError: If the snapshot has no checkpoint, or `filename` has a name that is not a metric's.
            OSError: If it cannot be renamed.
        """
        if snapshot.checkpoint is None:
            raise ValueError(
                f"The snapshot of step {snapshot.step} has no full checkpoint. HINT: `new(..., with_checkpoint=True)`."
            )
        name = self._name(snapshot, verdict.metrics)
        for version in itertools.count():
            path = self.folder / f"{name}{f'-v{version}' if version else ''}.ckpt"
            try:
                rename_to_new(snapshot.checkpoint, path)
            except FileExistsError:
                continue
            sync_folder(self.folder)
            return path
        raise AssertionError

    def drop(self, snapshot: Snapshot) -> None:
        """Remove a snapshot's files; those that are not there, such as a promoted one, are fine."""
        snapshot.weights.unlink(missing_ok=True)
        if snapshot.checkpoint is not None:
            snapshot.checkpoint.unlink(missing_ok=True)

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint that fell out of the best k; one of another folder, an earlier run's, stays."""
        path = Path(path)
        if path.parent.resolve() == self.folder.resolve():
            path.unlink(missing_ok=True)

    def leftovers(self, known: Iterable[Snapshot] = ()) -> list[Path]:
        """List complete files of this run's snapshots that nobody will judge.

        Args:
            known: Snapshots that will be judged.

        Returns:
            Files in ``pending/`` that are not theirs, and not those of a process that still runs, except this one.
        """
        wanted = {
            path.name for snapshot in known for path in (snapshot.weights, snapshot.checkpoint) if path is not None
        }
        return [
            path
            for path in sorted(self.pending.glob(f"[!.]*-{self.run}-*"))
            if path.name not in wanted and (writers_mark() in path.name or not may_be_written(path.name))
        ]

    def unjudged(self) -> list[Snapshot]:
        """Find the snapshots of processes that are gone, and of this one, that have no verdict; the oldest first."""
        found = []
        for weights in self.leftovers():
            named = re.match(r"epoch=(-?\d+)-step=(\d+)-", weights.name)
            if named is None or weights.suffix != ".weights":
                continue
            checkpoint = weights.with_suffix(".ckpt")
            found.append(
                Snapshot(
                    step=int(named[2]),
                    epoch=int(named[1]),
                    taken_s=0.0,
                    weights=weights,
                    checkpoint=checkpoint if checkpoint.exists() else None,
                )
            )
        return sorted(found, key=lambda snapshot: snapshot.step)

    def sweep(self) -> list[Path]:
        """Remove temporary files whose writers are gone, and ``pending/`` if it is empty.

        Returns:
            The files that were removed.
        """
        temporary = [*self.folder.glob(f".*{TEMPORARY}"), *self.pending.glob(f".*{TEMPORARY}")]
        removed = [path for path in sorted(temporary) if not may_be_written(path.name)]
        for path in removed:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not empty
            self.pending.rmdir()
        return removed

    def record(self, verdict: Verdict, *, path: str = "", score: float | None = None, lag: int | None = None) -> None:
        """Append a verdict to the ledger.

        Args:
            verdict: What was said of a snapshot.
            path: Its checkpoint; empty if it was not promoted.
            score: What it was ranked by.
            lag: How many steps training was ahead when the verdict came.

        Raises:
            OSError: If it cannot be written.
        """
        entry = {
            "run": self.run,
            "step": verdict.step,
            "epoch": verdict.epoch,
            "score": score,
            "path": path,
            "lag": lag,
            "seconds": verdict.ended_s - verdict.started_s,
            "metrics": {name: value.tolist() for name, value in verdict.metrics.items()},
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.ledger, "ab+") as file:
                line = json.dumps(entry).encode() + b"\n"
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line that a killed process did not finish
                        line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise cannot_write(error, self.ledger) from error

    def read_ledger(self) -> list[dict[str, Any]]:
        """Read what :meth:`record` wrote, oldest first, without lines that a killed process did not finish."""
        try:
            lines = self.ledger.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict)]

    def read_verdicts(self) -> Iterator[tuple[Verdict, str]]:
        """Read this run's verdicts and their checkpoints; of their times, only the difference has a meaning."""
        for entry in self.read_ledger():
            if entry.get("run") != self.run:
                continue
            metrics = {
                name: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
                for name, value in entry["metrics"].items()
            }
            verdict = Verdict(
                step=entry["step"],
                epoch=entry["epoch"],
                metrics=metrics,
                logged={},
                shown={},
                started_s=0.0,
                ended_s=entry["seconds"],
            )
            yield verdict, entry["path"]

    def _name(self, snapshot: Snapshot, metrics: Mapping[str, Tensor]) -> str:
        values: dict[str, Any] = {name: value.item() for name, value in metrics.items() if value.numel() == 1}
        values |= {"epoch": snapshot.epoch, "step": snapshot.step}
        name = ""
        for text, field, form, _ in string.Formatter().parse(self.filename):
            name += text
            if field is None:
                continue
            if field not in values:
                raise ValueError(f"`filename`: {unknown_name('metric', field, values)} HINT: it is {self.filename!r}.")
            try:
                name += format(values[field], form or "")
            except ValueError as error:
                raise ValueError(
                    f"`filename` cannot format {field!r} = {values[field]!r} with {form!r}: {error}."
                    " HINT: '.3f', say, for a metric."
                ) from error
        return name.replace("/", "_").replace("\\", "_")


def of_steps(snapshots: Sequence[Snapshot]) -> str:
    """Name snapshots in a message."""
    steps = ", ".join(f"{snapshot.step:,}" for snapshot in snapshots)
    return f"{len(snapshots)} snapshot{'s' if len(snapshots) != 1 else ''} (step {steps})"

"""Finds the outcomes of jobs in folders, whatever else lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_gnnopt.sweeping.outcome import OUTCOME_FILE, Outcome, read_outcome

_NO_END = "Did not end, or still runs."


@dataclass(frozen=True)
class Job:
    """A job that was found.

    Attributes:
        name: Its folder, below the one that was searched; with that one if there were several.
        folder: Its folder.
        outcome: What became of it.
    """

    name: str
    folder: Path
    outcome: Outcome

    @property
    def error(self) -> str | None:
        """Why there is nothing to average; None if it went well."""
        return _NO_END if self.outcome.status == "running" else self.outcome.error


def collect_jobs(folders: Sequence[Path | str]) -> tuple[list[Job], list[Path]]:
    """Find all jobs in folders, and in the folders in them.

    Args:
        folders: Where to look.

    Returns:
        The jobs, numbered ones in the order of their numbers, and files of that name that hold something else.

    Raises:
        FileNotFoundError: If a folder is not there.
    """
    jobs: dict[Path, Job] = {}
    foreign: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`{folder}` must be a folder of jobs, but there is none. HINT: a multirun says where it writes."
            )
        for path in sorted(folder.rglob(OUTCOME_FILE), key=_by_number):
            if path.resolve() in jobs or not path.is_file():
                continue
            try:
                outcome = read_outcome(path)
            except (ValueError, OSError):
                foreign.append(path)
                continue
            inner = path.parent.relative_to(folder)
            place = folder / inner if len(folders) > 1 or inner == Path() else inner
            jobs[path.resolve()] = Job(os.fspath(place), path.parent, outcome)
    return list(jobs.values()), foreign


def _by_number(path: Path) -> list[tuple[bool, int, str]]:
    """Order ``2`` before ``10``."""
    parts: Iterable[str] = re.split(r"(\d+)", os.fspath(path))
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

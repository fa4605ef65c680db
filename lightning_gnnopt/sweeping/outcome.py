"""What became of a job: a file in its folder, plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_gnnopt.evaluation.files import write_whole

OUTCOME_FILE = "outcome.json"
Status = Literal["running", "ok", "failed"]

_FORMAT = 1
_NOT_FINITE = ("nan", "inf", "-inf")  # JSON has no numbers for them


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        status: ``"running"`` from its start on, ``"ok"`` or ``"failed"`` at its end. A job that was killed stays
            ``"running"``.
        overrides: What it was asked for on the command line, by key without a leading ``+``: numbers, strings,
            booleans, None, and lists and dicts of them. A removal's key begins with ``~``.
        metrics: What it reached, by name.
        seconds: How long it took; None before its end.
        peak_bytes: The most memory that it held while it trained, as `RunSummary` measures it; None if unknown.
        error: Why it failed, in one sentence; None if it did not.
        traceback: Where it failed; None if it did not.
        started: When it began, in UTC, as ISO 8601 writes it.
        sweep: Name of the multirun that it belongs to; None if it is a job of its own.
        versions: Versions of what it ran on, by package.
    """

    status: Status
    overrides: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    peak_bytes: int | None = None
    error: str | None = None
    traceback: str | None = None
    started: str | None = None
    sweep: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def write_outcome(outcome: Outcome, folder: Path) -> Path:
    """Write a job's outcome into its folder; who reads the file meets the old one or the new one, never half of it.

    Raises:
        OSError: If it cannot be written.
    """
    path = folder / OUTCOME_FILE
    values: dict[str, Any] = {"format": _FORMAT, **asdict(outcome)}
    values["metrics"] = {
        name: value if math.isfinite(value) else str(float(value)) for name, value in outcome.metrics.items()
    }
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def read_outcome(path: Path) -> Outcome:
    """Read a job's outcome.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not _is_outcome(values):
        raise ValueError(
            f"`{path}` must hold a job's outcome of format {_FORMAT}, but does not."
            " HINT: leave the file out, or read it with the version that wrote it."
        )
    values = {name: values[name] for name in Outcome.__dataclass_fields__}
    values["metrics"] = {name: float(value) for name, value in values["metrics"].items()}
    return Outcome(**values)


def _is_outcome(values: Mapping[str, Any]) -> bool:
    if values.get("format") != _FORMAT or not values.keys() >= Outcome.__dataclass_fields__.keys():
        return False
    dicts = (values["overrides"], values["metrics"], values["versions"])
    texts = (values["error"], values["traceback"], values["started"], values["sweep"])
    return (
        values["status"] in get_args(Status)
        and all(isinstance(value, dict) for value in dicts)
        and all(_is_number(value) or value in _NOT_FINITE for value in values["metrics"].values())
        and all(value is None or _is_number(value) for value in (values["seconds"], values["peak_bytes"]))
        and all(value is None or isinstance(value, str) for value in texts)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The folder of a study: a cell for each combination that was run, there as a whole or not at all."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """What came of one combination of a study.

    Attributes:
        name: Its folder within the study's, such as ``"cora/gcn/neighbor-512"``.
        config: What was run, by name, in plain types.
        result: What was measured, by name, in plain types; empty where it failed.
        error: Why it failed; ``""`` if it did not.
        complete: Whether the same config need not be run again: it was measured, or cannot be run.
    """

    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    error: str = ""
    complete: bool = True


def is_complete(folder: Path | str, name: str, config: Mapping[str, Any]) -> bool:
    """Whether the study's folder holds what this config gives, be it that it cannot be run.

    A cell that another config has written, or that was cut off, is not complete.
    """
    try:
        cell = _read(Path(folder), Path(folder) / name / _FILE)
    except (FileNotFoundError, ValueError):
        return False
    return cell.complete and cell.config == _plain(config)


def save_cell(folder: Path | str, cell: Cell) -> Path:
    """Write a cell in place of what its folder held, under another name first.

    Args:
        folder: Of the study.
        cell: The cell; its config and result are of types that JSON has. Numbers that are not finite become None.

    Returns:
        Its file.

    Raises:
        OSError: If it cannot be written.
        TypeError: If it holds what JSON does not have.
        ValueError: If its name leads out of the folder.
    """
    root = Path(folder).resolve()
    path = (root / cell.name / _FILE).resolve()
    if not path.parent.is_relative_to(root) or path.parent == root:
        raise ValueError(f"A cell must lie within the study's folder {root}, but is named {cell.name!r}.")
    text = json.dumps(
        {
            "config": _plain(cell.config),
            "result": _plain(cell.result),
            "error": cell.error,
            "complete": cell.complete,
        },
        indent=2,
        allow_nan=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{_FILE}.{secrets.token_hex(4)}")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_cells(folder: Path | str) -> list[Cell]:
    """Read all cells of a study, in the order of their names.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file is no cell.
    """
    folder = Path(folder)
    cells = [_read(folder, path) for path in sorted(folder.rglob(_FILE))]
    if not cells:
        raise FileNotFoundError(
            f"`{folder}` holds no cell of a study (`{_FILE}`). HINT: run the study with `-m` first."
        )
    return cells


def _read(folder: Path, path: Path) -> Cell:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Cell(
            path.parent.relative_to(folder).as_posix(),
            dict(found["config"]),
            dict(found["result"]),
            str(found["error"]),
            bool(found["complete"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no cell of a study: {type(error).__name__}: {error}. HINT: remove it, and run the study again."
        ) from error


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists, numbers that are not finite are None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The folder of a study: a profile for each graph, model and setting, each there as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.studies.thesis import MODELS

_KEY = "study"  # in `Records.info`


@dataclass(frozen=True)
class Cell:
    """What is known of one setting of one model on one graph.

    Attributes:
        data: Name of the graph.
        model: Name of the model.
        setting: Name of the setting.
        config: What was run, by name; see `Setting`.
        graph: Sizes of the graph; empty if it could not be loaded.
        records: What was recorded; without rows where it failed.
        error: Why it failed; ``""`` if it did not.
    """

    data: str
    model: str
    setting: str
    config: Mapping[str, Any]
    graph: Mapping[str, Any]
    records: Records
    error: str = ""


def is_complete(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a setting's folder holds what this config gives, be it that it cannot be run."""
    try:
        found = json.loads((folder / "info.json").read_text()).get(_KEY)
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(found) and found["complete"] and found["config"] == json.loads(json.dumps(config))


def save_cell(
    folder: Path,
    config: Mapping[str, Any],
    records: Records,
    *,
    graph: Mapping[str, Any],
    error: str = "",
    complete: bool = True,
) -> Path:
    """Write a setting's profile under another name first, so that its folder is never half of one.

    Args:
        folder: ``<study>/<graph>/<model>/<setting>``; what it held is replaced.
        config: What was run.
        records: What was recorded.
        graph: Sizes of the graph.
        error: Why it failed, or ``""``.
        complete: Whether the same config need not be run again.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be written.
    """
    data, model, setting = folder.parts[-3:]
    records.info |= {
        "dataset": data,
        _KEY: {
            "data": data,
            "model": model,
            "setting": setting,
            "config": dict(config),
            "graph": dict(graph),
            "error": error,
            "complete": complete,
        },
    }
    part = folder.with_name(f".{folder.name}.part")
    for old in (part, folder):
        if old.exists():
            shutil.rmtree(old)
    records.save(part)
    part.rename(folder)
    return folder


def load_cells(folder: Path | str) -> list[Cell]:
    """Read all profiles of a study, graphs with fewer edges first, models in the order of `MODELS`.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file was written by another version.
    """
    cells = []
    for path in Path(folder).glob("*/*/*/info.json"):
        if path.parent.name.startswith("."):  # half of one
            continue
        records = Records.load(path.parent)
        found = records.info.get(_KEY)
        if found is not None:
            names = (found["data"], found["model"], found["setting"])
            cells.append(Cell(*names, found["config"], found["graph"], records, found["error"]))
    if not cells:
        raise FileNotFoundError(
            f"`{folder}` holds no profile of the study. HINT: `python -m lightning_gnnopt.study -m dir=...` runs it."
        )
    edges = {cell.data: max(int(c.graph.get("edges", 0)) for c in cells if c.data == cell.data) for cell in cells}
    return sorted(
        cells, key=lambda cell: (edges[cell.data] or float("inf"), cell.data, _place(cell.model), cell.setting)
    )


def _place(model: str) -> tuple[int, str]:
    return (MODELS.index(model) if model in MODELS else len(MODELS), model)

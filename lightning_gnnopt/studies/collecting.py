"""What collecting a study's results has in common, whichever study it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.studies.thesis import Finding

KINDS = MappingProxyType(
    {
        "bottleneck": "lightning_gnnopt.studies.bottleneck",
        "pipeline": "lightning_gnnopt.studies.pipeline",
        "memory": "lightning_gnnopt.studies.memory_control",
    }
)
"""Rooms by the config's key `kind`; each has ``job.run_job(config)`` and ``collect.collect(folder)``."""


class CollectStudy(Callback):
    """Hydra callback: writes a study's tables and figures once all its jobs are through."""

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        collect(config.kind, config.dir)


def room_of(kind: str) -> str:
    """Name the room of a kind of study; it is imported when needed, as one study does not need what another one does.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of study", kind, KINDS))
    return KINDS[kind]


def collect(kind: str, folder: Path | str) -> Any:
    """Write the tables and figures of what a study's folder holds beside it, and print what was found.

    Args:
        kind: One of `KINDS`.
        folder: Of the study.

    Returns:
        The study's report.

    Raises:
        FileNotFoundError: If there is nothing in the folder.
        ValueError: If the kind is unknown, or a file is not of the study.
        OSError: If it cannot be written to.
    """
    report = import_module(f"{room_of(kind)}.collect").collect(folder)
    if importlib.util.find_spec("matplotlib") is None:
        print("Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.")
    return report


def findings_table(rows: Iterable[Finding], *, title: str) -> Table:
    """Lay out what was found beside what was claimed, for a terminal."""
    table = Table("claimed", "measured here", "agrees", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.claim, row.measured, {True: "yes", False: "no", None: "-"}[row.agrees])
    return table

"""Profiles of a study, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gnnopt.analysis.records import BatchRecord, LoadRecord, Records, TimeRecord
from lightning_gnnopt.studies.bottleneck.folder import Cell

BASE = {"hidden": 64, "heads": 8, "layers": 2, "sampler": "full", "batch_size": None, "varied": ""}
GRAPH = {"nodes": 100, "edges": 1000, "features": 16, "classes": 4, "train": 50, "published_edges": 4000}


def made_cell(
    data: str = "g",
    model: str = "gcn",
    setting: str = "full",
    *,
    spans: Mapping[tuple[str, str, str], float] | None = None,
    step_s: float = 1.0,
    loaded: int = 100,
    peaks: Sequence[int] = (),
    load: tuple[float, float, float, float] | None = None,
    error: str = "",
    graph: Mapping[str, Any] = GRAPH,
    **config: Any,
) -> Cell:
    """Make a profile of one timed step, and as many measured ones as there are peaks (without their batch).

    `spans` are seconds by phase, kind and part; `load` are seconds of sampling, slicing, transfer and waiting.
    """
    records = Records()
    config = {**BASE, **config}
    if not error:
        sampler, size = config["sampler"], config["batch_size"] or 50
        records.batches = [
            BatchRecord(0, sampler, size, size, 100, 1000, loaded, 99.0, None, False),  # warm-up
            BatchRecord(1, sampler, size, size, 100, 1000, loaded, step_s, None, True),
        ]
        records.batches += [
            BatchRecord(2 + place, sampler, size, size, 100, 1000, loaded, 99.0, peak, False)
            for place, peak in enumerate(peaks)
        ]
        records.times = [
            TimeRecord(1, phase, "conv" if kind else "", kind, part, seconds, 1)
            for (phase, kind, part), seconds in (spans or {}).items()
        ]
        if load is not None:
            records.loads = [LoadRecord(0, 9.0, 9.0, 9.0, 9.0, False, 0), LoadRecord(1, *load, False, 0)]
    return Cell(data, model, setting, config, graph, records, error)


def split(vertex: float, edge: float, outside: float = 0.0) -> dict[tuple[str, str, str], float]:
    """Seconds of vertex and edge computation, half of each forward."""
    return {
        (phase, kind, "message" if kind == "edge" else ""): seconds / 2
        for phase in ("forward", "backward")
        for kind, seconds in (("vertex", vertex), ("edge", edge), ("", outside))
    }


def parts(**seconds: float) -> dict[tuple[str, str, str], float]:
    """Seconds of the steps of an edge computation."""
    return {("forward", "edge", part): value for part, value in seconds.items()}

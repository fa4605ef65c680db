"""The tables of the study, made of its profiles."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from lightning_gnnopt.analysis.conclusions.breakdown import Breakdown
from lightning_gnnopt.analysis.recording.labels import PARTS
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.studies.bottleneck.folder import Cell
from lightning_gnnopt.studies.bottleneck.settings import EFFECTS
from lightning_gnnopt.studies.tables import StudyRow, StudyTable, Values

_MIB = 2.0**20


def tables_of(cells: Sequence[Cell]) -> dict[str, StudyTable]:
    """Make all tables.

    Args:
        cells: Profiles, in the order of the rows.

    Returns:
        ``graphs``, ``vertex_edge``, ``edge_steps``, ``hidden``, ``heads``, ``layers``, ``expansion``, ``sampling`` and
        ``batches``, by name; a table nobody has profiled for has no rows.
    """
    full = [cell for cell in cells if cell.setting == "full"]
    sampled = sorted((cell for cell in cells if _is_sampled(cell)), key=_order(cells))
    peaks = {(cell.data, cell.model): peak_bytes(cell.records) for cell in full}
    parts = dict.fromkeys((*(part for part in PARTS if part), "between"), "%")
    effect = {"value": "", "step": "ms", "edge": "%", "peak": "MiB", "expansion": "x"}
    tables = [
        StudyTable(
            "graphs",
            "The graphs",
            {"nodes": "", "edges": "", "of_published": "%", "features": "", "classes": "", "train": ""},
            _graphs(cells),
        ),
        StudyTable(
            "vertex_edge",
            "Vertex and edge computation, full batches: share of the forward and backward pass",
            {"step": "ms", "forward_backward": "ms", "vertex": "%", "edge": "%", "outside": "%", "edge_of_layers": "%"},
            _rows(full, layer_values),
        ),
        StudyTable(
            "edge_steps",
            "Steps of the edge computation, full batches: share of it, forward and backward",
            {"edge": "ms", **parts},
            _rows(full, part_values),
        ),
        *(
            StudyTable(
                name,
                "Effect of the hidden size" if name == "hidden" else f"Effect of the number of {name}",
                effect,
                _rows(_varied(cells, name), effect_values, name),
            )
            for name in EFFECTS
        ),
        StudyTable(
            "expansion",
            "Memory expansion: peak of a step, batch included, over the bytes of the batch",
            {"loaded": "MiB", "peak": "MiB", "expansion": "x"},
            _rows([*full, *sampled], expansion_values),
        ),
        StudyTable(
            "sampling",
            "Sampling: where the time of a batch goes, and its peak against the full batch's",
            {
                **{f"{part}": "ms" for part in ("sample", "slice", "transfer", "compute")},
                "before": "%",
                "edges": "",
                "peak": "MiB",
                "of_full_peak": "%",
            },
            [
                _row(cell, partial(sampling_values, cell.records, peaks.get((cell.data, cell.model))))
                for cell in sampled
            ],
        ),
        StudyTable(
            "batches",
            "Peaks of the batches, each batch included",
            {"measured": "", "min": "MiB", "median": "MiB", "max": "MiB", "variation": "%", "max_over_min": "x"},
            _rows(sampled, spread_values),
        ),
    ]
    return {table.name: table for table in tables}


def layer_values(records: Records) -> Values:
    """Seconds of a step, and shares of the forward and backward pass by kind of computation."""
    found = Breakdown(records)
    kinds = {"vertex": 0.0, "edge": 0.0, "": 0.0}
    for label, seconds in found.label_s.items():
        if label.phase in ("forward", "backward"):
            kinds[label.kind] = kinds.get(label.kind, 0.0) + seconds
    total_s = sum(kinds.values())
    layers_s = kinds["vertex"] + kinds["edge"]
    return {
        "step": found.step_s if found.steps else None,
        "forward_backward": total_s if found.steps else None,
        "vertex": _share(kinds["vertex"], total_s),
        "edge": _share(kinds["edge"], total_s),
        "outside": _share(kinds[""], total_s),
        "edge_of_layers": _share(kinds["edge"], layers_s),
    }


def part_values(records: Records) -> Values:
    """Seconds of the edge computation of a step, and shares of its steps."""
    parts: dict[str, float] = {}
    for label, seconds in Breakdown(records).label_s.items():
        if label.phase in ("forward", "backward") and label.kind == "edge":
            parts[label.part] = parts.get(label.part, 0.0) + seconds
    total_s = sum(parts.values())
    shares: dict[str, float | None] = {part or "between": _share(parts.get(part, 0.0), total_s) for part in PARTS}
    return {"edge": total_s or None, **shares}


def effect_values(records: Records, value: float) -> Values:
    """Time and memory of a step at one value of what is varied."""
    layers, memory = layer_values(records), expansion_values(records)
    return {
        "value": value,
        "step": layers["step"],
        "edge": layers["edge"],
        "peak": memory["peak"],
        "expansion": memory["expansion"],
    }


def expansion_values(records: Records) -> Values:
    """Means over the measured steps: bytes of the batch, peak and their ratio."""
    measured = [row for row in records.batches if row.peak_bytes is not None]
    ratios = list(Breakdown(records).expansions.values())
    return {
        "loaded": statistics.fmean(row.loaded_bytes for row in measured) if measured else None,
        "peak": peak_bytes(records),
        "expansion": statistics.fmean(ratios) if ratios else None,
    }


def peak_bytes(records: Records) -> float | None:
    """Mean peak of the measured steps, their batches included; None if there are none."""
    peaks = [peak for peaks in Breakdown(records).peaks_bytes.values() for peak in peaks]
    return statistics.fmean(peaks) if peaks else None


def sampling_values(records: Records, full_peak_bytes: float | None) -> Values:
    """Means over the timed steps: seconds of the stages of a batch, and their share before the step computes."""
    timed = {row.batch: row for row in records.batches if row.timed}
    loads = [row for row in records.loads if row.batch in timed]
    names = ("sample", "slice", "transfer", "compute", "before", "edges")
    peak = peak_bytes(records)
    found: dict[str, float | None] = dict.fromkeys(names)
    if loads:
        stages = {
            name: statistics.fmean(getattr(row, f"{name}_s") or 0.0 for row in loads)
            for name in ("sample", "slice", "transfer")
        }
        step_s = statistics.fmean(row.step_s for row in timed.values())
        wait_s = statistics.fmean(row.wait_s for row in loads)
        found |= {
            **stages,
            "compute": step_s - wait_s,
            "before": _share(sum(stages.values()), step_s),
            "edges": statistics.fmean(row.edges for row in timed.values()),
        }
    return {**found, "peak": peak, "of_full_peak": None if peak is None else _share(peak, full_peak_bytes or 0.0)}


def spread_values(records: Records) -> Values:
    """How the peaks of the measured batches differ; `variation` is their standard deviation over their mean."""
    peaks = [float(peak) for peaks in Breakdown(records).peaks_bytes.values() for peak in peaks]
    if not peaks:
        return dict.fromkeys(("min", "median", "max", "variation", "max_over_min")) | {"measured": 0}
    return {
        "measured": len(peaks),
        "min": min(peaks),
        "median": statistics.median(peaks),
        "max": max(peaks),
        "variation": _share(statistics.stdev(peaks), statistics.fmean(peaks)) if len(peaks) > 1 else None,
        "max_over_min": _share(max(peaks), min(peaks)),
    }


def _graphs(cells: Sequence[Cell]) -> list[StudyRow]:
    rows: dict[str, StudyRow] = {}
    for cell in cells:
        known = rows.get(cell.data)
        if known is not None and not known.error:
            continue
        graph = cell.graph
        names = ("nodes", "edges", "features", "classes", "train")
        values: dict[str, float | None] = {name: graph.get(name) for name in names}
        values["of_published"] = _share(graph["edges"], graph.get("published_edges") or 0) if graph else None
        rows[cell.data] = StudyRow(cell.data, "", "", values, "" if graph else cell.error)
    return list(rows.values())


def _rows(cells: Iterable[Cell], read: Callable[..., Values], effect: str = "") -> list[StudyRow]:
    return [_row(cell, partial(read, cell.records, *_values_of(cell, effect))) for cell in cells]


def _row(cell: Cell, read: Callable[[], Values]) -> StudyRow:
    return StudyRow(cell.data, cell.model, cell.setting, {} if cell.error else read(), cell.error)


def _values_of(cell: Cell, effect: str) -> tuple[float, ...]:
    return (float(cell.config[effect]),) if effect else ()


def _varied(cells: Sequence[Cell], effect: str) -> list[Cell]:
    """Settings in which one number is varied, and the full batch with the study's own number, by that number."""
    varied = [cell for cell in cells if cell.config.get("varied") == effect]
    pairs = {(cell.data, cell.model) for cell in varied}
    own = [cell for cell in cells if cell.setting == "full" and (cell.data, cell.model) in pairs]
    place = _order(cells)
    return sorted([*varied, *own], key=lambda cell: (*place(cell)[:2], float(cell.config[effect])))


def _is_sampled(cell: Cell) -> bool:
    return cell.config.get("batch_size") is not None


def _order(cells: Sequence[Cell]) -> Callable[[Cell], tuple[int, int, str, float]]:
    """Order within a table: as the cells come, their samplers by name and their batches by size."""
    data = list(dict.fromkeys(cell.data for cell in cells))
    models = list(dict.fromkeys(cell.model for cell in cells))
    return lambda cell: (
        data.index(cell.data),
        models.index(cell.model),
        str(cell.config.get("sampler", "")),
        float(cell.config.get("batch_size") or 0),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None

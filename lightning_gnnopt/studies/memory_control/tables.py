"""The tables of the study, made of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning_gnnopt.studies.cells import Cell
from lightning_gnnopt.studies.tables import StudyRow, StudyTable, Values
from lightning_gnnopt.studies.thesis import MODELS

Rows = Iterable[tuple[str, Values, str]]
"""What a cell gives: settings, their values, and why there are none, or ``""``."""


def tables_of(cells: Sequence[Cell]) -> dict[str, StudyTable]:
    """Make all tables.

    Args:
        cells: The study's cells.

    Returns:
        ``graphs``, ``predictors``, ``limit``, ``overhead``, ``accuracy`` and ``pruning``, by name; a table nobody has
        measured for has no rows.
    """
    cells = ordered(cells)
    errors = dict.fromkeys(("median", "p99", "max", "r2", "under", "exact"), "%")
    tables = [
        StudyTable(
            "graphs",
            "The graphs, with the features that they were trained on",
            dict.fromkeys(("nodes", "edges", "features", "classes", "train"), ""),
            _graphs(cells),
        ),
        StudyTable(
            "predictors",
            "Predictions of what a step adds, for unseen batches: relative errors (median, 99th percentile, largest),"
            " variance explained, share of predictions below and equal to what was measured, and times",
            {**errors, "predict_us": "", "fit": "ms"},
            _rows(cells, "predictors", _predictor_rows),
        ),
        StudyTable(
            "limit",
            "Steps over a limit without and with control, batches that it changed, edges that it pruned, and the share"
            " of the limit that changed batches use and that the largest step takes",
            {
                "limit": "MiB",
                **dict.fromkeys(("over_before", "over_after", "touched", "resampled", "pruned", "split"), "%"),
                **dict.fromkeys(("edges_pruned", "used", "largest"), "%"),
            },
            _rows(cells, "limit", _limit_rows),
        ),
        StudyTable(
            "overhead",
            "Control's share of a run, batches prepared between steps: by its own count, the same of the epochs behind"
            " the first, and by the wall clock of epochs with and without it in turn (median, half of the range)",
            {
                **dict.fromkeys(("own", "steady"), "%"),
                "probes": "ms",
                **dict.fromkeys(("wall", "wall_range", "touched"), "%"),
                "resamples": "x",
                "step": "ms",
            },
            _rows(cells, "overhead", _overhead_rows),
        ),
        StudyTable(
            "accuracy",
            "Accuracy on the test nodes in whole batches, after training on cut ones or in parts: mean over the seeds,"
            " their standard deviation, and the mean less that without a cut",
            {
                **dict.fromkeys(("cut", "accuracy", "deviation", "gain", "split"), "%"),
                "parts": "x",
                "seeds": "",
            },
            _accuracy_rows(cells),
        ),
        StudyTable(
            "pruning",
            "Time to choose and cut edges of one batch: reading it, scores and order; search and cut; all of it",
            {"edges": "", "cut": "", "order": "ms", "search_cut": "ms", "all": "ms"},
            _rows(cells, "pruning", _pruning_rows),
        ),
    ]
    return {table.name: table for table in tables}


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Sort cells: graphs with fewer edges first, models in the order of `MODELS`, parts by name."""
    edges: dict[str, float] = {}
    for cell in cells:
        edges[data_of(cell)] = max(edges.get(data_of(cell), 0.0), (cell.result.get("graph") or {}).get("edges", 0))
    return sorted(cells, key=lambda cell: (edges[data_of(cell)] or float("inf"), data_of(cell), _place(cell)))


def data_of(cell: Cell) -> str:
    """Name of the graph."""
    return str(cell.config["data"])


def model_of(cell: Cell) -> str:
    """Name of the model."""
    return str(cell.config["model"]["net"])


def _place(cell: Cell) -> tuple[int, str]:
    model = model_of(cell)
    return (MODELS.index(model) if model in MODELS else len(MODELS), model)


def _graphs(cells: Sequence[Cell]) -> list[StudyRow]:
    rows: dict[str, StudyRow] = {}
    for cell in cells:
        graph = cell.result.get("graph")
        if graph and data_of(cell) not in rows:
            rows[data_of(cell)] = StudyRow(data_of(cell), "", "", graph)
    return list(rows.values())


def _rows(cells: Sequence[Cell], part: str, read: Callable[[Cell], Rows]) -> list[StudyRow]:
    rows: list[StudyRow] = []
    for cell in cells:
        if cell.config["part"] == part:
            found = [(str(cell.config["variant"]), {}, cell.error)] if cell.error else read(cell)
            rows += [StudyRow(data_of(cell), model_of(cell), *row) for row in found]
    return rows


def _predictor_rows(cell: Cell) -> Rows:
    for kind, found in cell.result["kinds"].items():
        names = ("median", "p99", "max", "r2", "under", "exact")
        values = {name: found.get(name) for name in names}
        predict_s = found.get("predict_s")
        values |= {"predict_us": None if predict_s is None else 1e6 * predict_s, "fit": found.get("fit_s")}
        yield f"{cell.config['variant']}, {kind}", values, found.get("error", "")


def _limit_rows(cell: Cell) -> Rows:
    names = ("over_before", "over_after", "touched", "resampled", "pruned", "split", "edges_pruned", "used", "largest")
    settings = cell.config["settings"]
    name = f"{settings['sampler']}, {', '.join(settings['on_exceed'])}"
    yield name, {"limit": cell.result["limit_bytes"], **{key: cell.result[key] for key in names}}, ""


def _overhead_rows(cell: Cell) -> Rows:
    wall = cell.result["wall"]
    clocks = {"wall": statistics.median(wall), "wall_range": (max(wall) - min(wall)) / 2}
    for side, found in cell.result["sides"].items():
        values = {name: found[name] for name in ("own", "steady", "touched", "resamples")}
        values |= {"probes": found["probe_s"], "step": cell.result["step_s"]}
        yield side, {**values, **(clocks if side == "untouched" else {})}, ""


def _accuracy_rows(cells: Sequence[Cell]) -> list[StudyRow]:
    whole = {
        (data_of(cell), model_of(cell)): statistics.fmean(cell.result["points"][0]["accuracies"])
        for cell in cells
        if cell.config["part"] == "accuracy" and cell.config["variant"] == "whole" and not cell.error
    }

    def read(cell: Cell) -> Rows:
        base = whole.get((data_of(cell), model_of(cell)))
        for point in cell.result["points"]:
            found = point["accuracies"]
            mean = statistics.fmean(found)
            values: dict[str, Any] = {
                "cut": point["share"],
                "accuracy": mean,
                "deviation": statistics.stdev(found) if len(found) > 1 else None,
                "gain": None if base is None else mean - base,
                "split": point.get("split"),
                "parts": point.get("parts"),
                "seeds": len(found),
            }
            yield str(cell.config["variant"]), values, ""

    return _rows(cells, "accuracy", read)


def _pruning_rows(cell: Cell) -> Rows:
    found: Mapping[str, Any] = cell.result
    values = {"edges": found["edges"], "cut": found["cut"], "order": found["order_s"], "search_cut": found["cut_s"]}
    yield str(cell.config["variant"]), {**values, "all": found["s"]}, ""

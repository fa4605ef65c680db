"""Predictors on peaks that the thesis's author measured on a GPU.

The files are looked for in ``../shared/gpu_memory`` beside the checkout. The rows to fit to are drawn anew many times;
what is told is over the draws.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Cell, Figure, Measured
from benchmarks.memory_scale import MemoryScale
from lightning_gnnopt.memory.predictors import PREDICTORS

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "gpu_memory"
RANDOM_GRAPHS = "gcn_random_graphs.csv"
KINDS = ("linear", "max_affine")
REACH = 0.0035
_COLUMNS = ("nodes", "edges", "peak_memory_bytes")
_SETS = {
    "random graphs, GCN": (RANDOM_GRAPHS, None, (10, 20)),
    "cluster batches, GAT": ("gat_pubmed_training_batches.csv", "cluster", (10, 20)),
    "neighbour batches, GAT": ("gat_pubmed_training_batches.csv", "graphsage", (10,)),
}
_CALIBRATED = 200
"""Rows behind a bound: at a coverage of 0.99 it takes a hundred at least."""
_COVERAGES = (0.95, 0.99)


def measure_published(scale: MemoryScale) -> Measured:
    """Fit predictors to a few of the published rows, and predict the others.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per set, predictor and number of rows; without the files a row that says so.
    """
    if not (FOLDER / RANDOM_GRAPHS).is_file():
        return [], [
            {"part": "published", "side": "-", "note": "not measured: its files are not in ../shared/gpu_memory"}
        ]
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for label, (file, config, sizes) in _SETS.items():
        table = _table(file, config)
        for kind in KINDS:
            for num_rows in sizes:
                errors, shortages = _errors(table, kind, num_rows, scale.published_draws)
                name = f"mean error on {label}, {kind} of {num_rows} rows"
                if file == RANDOM_GRAPHS:
                    figures.append(Figure.of_runs(name, errors, unit="share", reach=REACH, sense="<="))
                rows.append(
                    {
                        "part": "published",
                        "set": label,
                        "side": kind,
                        "rows": num_rows,
                        "mape": float(np.median(errors)),
                        "mape_mean": float(np.mean(errors)),
                        "worst_under": max(shortages),
                    }
                )
    more_figures, more_rows = _bounds(_table(RANDOM_GRAPHS, None), scale.published_draws)
    return [*figures, *more_figures], [*rows, *more_rows]


def _table(file: str, config: str | None) -> NDArray[np.float64]:
    with (FOLDER / file).open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if config is None or row["config"].startswith(config)]
    return np.array([[float(row[name]) for name in _COLUMNS] for row in rows])


def _errors(table: NDArray[np.float64], kind: str, num_rows: int, draws: int) -> tuple[list[float], list[float]]:
    """Of each draw, the mean relative error on the rows that were not fitted to, and the worst shortage."""
    errors: list[float] = []
    shortages: list[float] = []
    for draw in range(draws):
        fitted, rest = _drawn(table, num_rows, draw)
        predictor = PREDICTORS[kind](_COLUMNS[:2]).fit(fitted[:, :2], fitted[:, 2])
        ratios = np.asarray(predictor.predict(rest[:, :2])) / rest[:, 2]
        errors.append(float(np.abs(ratios - 1).mean()))
        shortages.append(float((1 - ratios).max()))
    return errors, shortages


def _bounds(table: NDArray[np.float64], draws: int) -> Measured:
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    draws = max(20, draws // 5)
    for kind in KINDS:
        for coverage in _COVERAGES:
            covered: list[float] = []
            overshoots: list[float] = []
            for draw in range(draws):
                fitted, rest = _drawn(table, _CALIBRATED, draw)
                predictor = PREDICTORS[kind](_COLUMNS[:2]).fit(fitted[:, :2], fitted[:, 2])
                uppers = np.asarray(predictor.upper(rest[:, :2], coverage))
                covered.append(float((rest[:, 2] <= uppers).mean()))
                overshoots.append(float((uppers / rest[:, 2] - 1).mean()))
            mean, error = float(np.mean(covered)), float(np.std(covered, ddof=1) / np.sqrt(draws))
            # A mean of draws around the stated coverage lies within three standard errors of it.
            reach = coverage - 3 * error
            figures.append(
                Figure(
                    name=f"rows below the bound at {coverage}, {kind}",
                    value=mean,
                    unit="share",
                    reach=reach,
                    sense=">=",
                )
            )
            rows.append(
                {
                    "part": "published bounds",
                    "set": "random graphs, GCN",
                    "side": kind,
                    "coverage": coverage,
                    "rows": _CALIBRATED,
                    "covered": mean,
                    "covered_error": error,
                    "overshoot": float(np.mean(overshoots)),
                }
            )
    return figures, rows


def _drawn(table: NDArray[np.float64], num_rows: int, draw: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.random.default_rng(draw).permutation(len(table))
    return table[order[:num_rows]], table[order[num_rows:]]

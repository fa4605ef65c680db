"""Cells of the memory study, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gnnopt.studies.cells import Cell

GRAPH = {"nodes": 100, "edges": 1000, "features": 16, "classes": 4, "train": 50}


def made_cell(
    part: str,
    variant: str = "",
    result: Mapping[str, Any] | None = None,
    *,
    data: str = "g",
    model: str = "gcn",
    error: str = "",
    **settings: Any,
) -> Cell:
    """Make a cell as a job writes it."""
    name = f"{part}={variant}" if variant else part
    config = {"data": data, "model": {"net": model}, "part": part, "variant": variant, "settings": settings}
    return Cell(f"{data}/{model}/{name}", config, {"graph": GRAPH, **(result or {})}, error)


def predictors_cell(**kwargs: Any) -> Cell:
    """Two unseen batches; the analytic predictor is exact, the line is 10 % off on one."""
    shared = {"p99": 0.0, "median": 0.0, "r2": 1.0, "under": 0.0, "exact": 1.0, "max": 0.0, "fit_s": 0.1}
    kinds = {
        "analytic": {**shared, "predict_s": 2e-6, "predicted": [100.0, 200.0]},
        "linear": {**shared, "p99": 0.1, "max": 0.1, "exact": 0.5, "predict_s": 3e-4, "predicted": [110.0, 200.0]},
        "forest": {**shared, "p99": 0.2, "max": 0.2, "exact": 0.0, "predict_s": 5e-3, "predicted": [120.0, 180.0]},
    }
    return made_cell("predictors", "neighbor", {"measured": [100.0, 200.0], "kinds": kinds}, **kwargs)


def limit_cell(*, over_after: float = 0.0, policy: tuple[str, ...] = ("resample", "prune"), **kwargs: Any) -> Cell:
    """Four steps, one of them over a limit of 100 bytes without control."""
    result = {
        "limit_bytes": 100,
        "before": [80.0, 90.0, 100.0, 120.0],
        "after": [80.0, 90.0, 98.0, 100.0 + 20 * over_after],
        "over_before": 0.25,
        "over_after": over_after,
        "touched": 0.25,
        "resampled": 0.0,
        "pruned": 0.25,
        "split": 0.0,
        "edges_pruned": 0.03,
        "used": 0.98,
        "largest": 1.0 + 0.2 * over_after,
    }
    options = {"sampler": "neighbor", "on_exceed": list(policy)}
    return made_cell("limit", f"neighbor-{'-'.join(policy)}", result, **options, **kwargs)


def overhead_cell(*, own: Mapping[str, float], probe_share: float = 0.1, **kwargs: Any) -> Cell:
    """Control takes so much of a run, by side, of which the probes are a part."""
    sides = {
        side: {
            "own": share,
            "steady": share - probe_share,
            "probe_s": 0.2,
            "touched": 0.3,
            "resamples": 1.5,
        }
        for side, share in own.items()
    }
    return made_cell("overhead", "", {"wall": [0.01, 0.03, 0.02], "step_s": 0.01, "sides": sides}, **kwargs)


def accuracy_cell(side: str, points: Mapping[float, list[float]], **kwargs: Any) -> Cell:
    """Accuracies by share."""
    more = {"split": 1.0, "parts": 3.0} if side == "split" else {}
    result = {"points": [{"share": share, "accuracies": found, **more} for share, found in points.items()]}
    return made_cell("accuracy", side, result, **kwargs)


def pruning_cell(score: str, seconds: float, **kwargs: Any) -> Cell:
    """So many seconds for 50,000 of 100,000 edges."""
    result = {"edges": 100_000, "cut": 50_000, "order_s": 0.75 * seconds, "cut_s": 0.25 * seconds, "s": seconds}
    return made_cell("pruning", score, result, **kwargs)

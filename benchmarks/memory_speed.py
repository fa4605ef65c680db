"""What control takes: one prediction, and one pruning."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Cell, Figure, Measured, median
from benchmarks.memory_runs import PLENTY, make_model, make_trainer
from benchmarks.memory_scale import MemoryScale
from benchmarks.memory_share import make_block_model_datamodule
from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.memory.cutting import cut_subgraph
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.pruning import keep_order, prune
from lightning_gnnopt.memory.scores import SCORES
from lightning_gnnopt.memory.structure import BatchStructure, Selection
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.sampling import SampleKey, Subgraph
from lightning_gnnopt.studies.quiet import quiet

PREDICTION_S = 0.05e-3
PRUNING_S = {"degree": 2e-3, "pagerank": 15e-3}
THESIS_S = {"linear": 0.22e-3, "forest": 7.05e-3, "degree": 1.8, "pagerank": 13.8}
_WARM = 3


def measure_speed(scale: MemoryScale) -> Measured:
    """Time a prediction and a pruning, on one thread.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per piece of them.
    """
    datamodule = make_block_model_datamodule(scale, num_workers=0)
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    batch = _batch_of(datamodule, scale.prune_edges)
    for model in ("sage", "gat"):
        footprint = _learned(datamodule, model)
        features = footprint.features(batch)
        (predictor, *_) = footprint.predictors.values()
        pieces: dict[str, Callable[[], Any]] = {
            "features": partial(footprint.features, batch),
            "upper bound": partial(footprint.upper, features),
            "predictor alone": partial(predictor.predict, features),
            "all": partial(_predict, footprint, batch),
        }
        seconds = {name: _seconds(run, scale.prune_rounds) for name, run in pieces.items()}
        rows += [
            {"part": "speed", "side": f"prediction, {model}, {name}", "edges": batch.num_edges, "s": median(of_piece)}
            for name, of_piece in seconds.items()
        ]
        name = f"one prediction, {model}"
        figures.append(Figure.of_runs(name, seconds["all"], unit="s", reach=PREDICTION_S, sense="<="))
        if model == "sage":
            more_figures, more_rows = _pruning(footprint, batch, scale)
    figures += more_figures
    rows += more_rows
    rows += [{"part": "speed", "side": f"thesis, {name}", "s": of_thesis} for name, of_thesis in THESIS_S.items()]
    return figures, rows


def _pruning(footprint: Footprint, batch: Subgraph, scale: MemoryScale) -> Measured:
    features = footprint.features(batch)
    budget = int(0.7 * footprint.predict(features))
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for name, reach_s in PRUNING_S.items():
        fitter = Fitter(footprint, budget, Policy(on_exceed=("prune",), pruning=name), "train", Tally())
        seconds = _seconds(partial(fitter, batch), scale.prune_rounds)
        figures.append(
            Figure.of_runs(
                f"one pruning of {batch.num_edges:,} edges by {name}", seconds, unit="s", reach=reach_s, sense="<="
            )
        )
        structure = BatchStructure.of_subgraph(batch)
        scores = SCORES[name](structure.row, structure.col, structure.num_nodes)
        order = keep_order(structure, scores, key=SampleKey(seed=0), by_destination=True)
        selection = _searched(footprint, batch, order, budget)
        pieces: dict[str, Callable[[], Any]] = {
            "structure": partial(BatchStructure.of_subgraph, batch),
            "scores": partial(SCORES[name], structure.row, structure.col, structure.num_nodes),
            "order": partial(keep_order, structure, scores, key=SampleKey(seed=0), by_destination=True),
            "search": partial(_searched, footprint, batch, order, budget),
            "cut": partial(cut_subgraph, batch, selection),
        }
        rows += [
            {
                "part": "speed",
                "side": f"pruning, {name}, {piece}",
                "edges": batch.num_edges,
                "s": median(_seconds(run, scale.prune_rounds)),
            }
            for piece, run in pieces.items()
        ]
        rows.append(
            {
                "part": "speed",
                "side": f"pruning, {name}, kept",
                "edges": len(selection.edges),
                "note": f"{len(selection.nodes):,} of {batch.num_nodes:,} nodes",
            }
        )
    return figures, rows


def _predict(footprint: Footprint, batch: Subgraph) -> float:
    return footprint.upper(footprint.features(batch))


def _searched(footprint: Footprint, batch: Subgraph, order: NDArray[np.int64], budget: int) -> Selection:
    # A structure remembers its edges by destination: a new one each time, as each batch has its own.
    structure = BatchStructure.of_subgraph(batch)
    return prune(structure, order, partial(_cost, footprint), budget, pieces=footprint.pieces())


def _cost(footprint: Footprint, counts: Any) -> float:
    return footprint.upper(np.concatenate([counts.nodes, counts.edges]).astype(np.float64))


def _seconds(run: Callable[[], Any], rounds: int) -> list[float]:
    for _ in range(_WARM):
        run()
    seconds: list[float] = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start_s)
    return seconds


def _learned(datamodule: GraphDataModule, model: str) -> Footprint:
    control = MemoryControl(PLENTY, verbose=False)
    module = make_model(model, datamodule, hidden_channels=64)
    with quiet():
        make_trainer(control, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=datamodule)
    assert control.controller is not None
    return control.controller.learned["train", 0].footprint


def _batch_of(datamodule: GraphDataModule, num_edges: int) -> Subgraph:
    """Draw the batch that has about so many edges."""
    seeds = np.flatnonzero(datamodule.data.train_mask.numpy())
    sampler: Any = datamodule.sampler
    key = SampleKey(seed=1)
    low, high = 1, len(seeds)
    while low < high:
        middle = (low + high) // 2
        if sampler.sample(seeds[:middle], key).num_edges < num_edges:
            low = middle + 1
        else:
            high = middle
    batch: Subgraph = sampler.sample(seeds[:low], key)
    return batch

"""What cutting costs: accuracy with half of the edges, and what `split` changes.

With half of each training batch's edges cut by a score, a network is trained as without, and tested on whole sampled
batches. `split` is compared with the same run without a limit: the losses of its steps and its parameters in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from benchmarks.harness import Cell, Figure, Measured
from benchmarks.memory_runs import (
    MemoryGraph,
    load_graph,
    make_datamodule,
    make_model,
    make_trainer,
    narrowed,
    watched_fit,
)
from benchmarks.memory_scale import SAMPLINGS, MemoryScale
from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.memory.cutting import cut_subgraph
from lightning_gnnopt.memory.pruning import keep_order
from lightning_gnnopt.memory.scores import SCORES
from lightning_gnnopt.memory.structure import BatchStructure, select
from lightning_gnnopt.sampling import SampleKey, Subgraph
from lightning_gnnopt.studies.quiet import quiet

CUTS = (("degree", True), ("pagerank", True), ("random", False), ("degree", False))
"""Scores, and whether they are compared among the in-edges of a node, as `MemoryControl` does, or over the batch."""
_KEPT = 0.5
_BATCH_SIZE, _FANOUTS, _CLUSTERS = 512, (15, 10), 8
_COMPONENTS = 128
_SPLIT_SHARE = 0.6
_SPLIT_FEATURES = 64


class HalfCut:
    """A transform that cuts half of a batch's edges, those of low score first.

    Args:
        score: The score.
        by_destination: Whether scores are compared among the in-edges of each node only.
    """

    def __init__(self, score: str, *, by_destination: bool = False) -> None:
        self._score = score
        self._by_destination = by_destination

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Any]) -> Subgraph:
        """Cut a batch."""
        structure = BatchStructure.of_subgraph(subgraph)
        key = SampleKey(seed=int(subgraph.n_id[0]))
        options: dict[str, Any] = {"key": key} if self._score == "random" else {}
        scores = SCORES[self._score](structure.row, structure.col, structure.num_nodes, **options)
        order = keep_order(structure, scores, key=key, by_destination=self._by_destination)
        keep = np.zeros(structure.num_edges, np.bool_)
        keep[order[: int(_KEPT * len(order))]] = True
        return cut_subgraph(subgraph, select(structure, keep=keep))


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracies on the test nodes, with a run per seed.

    Attributes:
        on_whole: In whole batches.
        on_cut: In batches that were cut as those in training; `on_whole` again where none were.
    """

    on_whole: Sequence[float]
    on_cut: Sequence[float]


def measure_accuracy(scale: MemoryScale) -> Measured:
    """Train with half of the edges, by each score, and with all.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per graph, sampling and score.
    """
    sides = {
        cut + ("" if shared or cut == "random" else ", over the whole batch"): HalfCut(cut, by_destination=shared)
        for cut, shared in CUTS
    }
    lost: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    rows: list[Mapping[str, Cell]] = []
    for name in scale.accuracy_graphs:
        graph = _with_components(load_graph(name, scale.stand_in_nodes), _COMPONENTS)
        for sampling in SAMPLINGS:
            whole = _mean(_accuracies(graph, sampling, scale, None).on_whole)
            for side, cut in sides.items():
                found = _accuracies(graph, sampling, scale, cut)
                lost[side].append((_mean(found.on_whole) - whole, _mean(found.on_cut) - whole))
                rows.append(
                    {
                        "part": "accuracy",
                        "graph": name,
                        "sampling": sampling,
                        "side": side,
                        "whole": whole,
                        "tested_whole": lost[side][-1][0],
                        "tested_cut": lost[side][-1][1],
                        "note": graph.note,
                    }
                )
    figures, summary = _summary(lost)
    return figures, [*rows, *summary]


def _summary(lost: Mapping[str, Sequence[tuple[float, float]]]) -> Measured:
    """Means over graphs and samplings, for tests on whole and on cut batches."""
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for number, tested in enumerate(("whole", "cut")):
        of_random = [pair[number] for pair in lost["random"]]
        for side, pairs in lost.items():
            of_side = [pair[number] for pair in pairs]
            name = f"accuracy, half by {side} less all, tested {tested}"
            figures.append(Figure(name=name, value=_mean(of_side), unit="share"))
            if side != "random":
                better = [ours - theirs for ours, theirs in zip(of_side, of_random, strict=True)]
                goal: dict[str, Any] = {} if side.endswith("batch") else {"reach": 0.0, "sense": ">="}
                name = f"accuracy, half by {side} less random, tested {tested}"
                figures.append(Figure(name=name, value=_mean(better), unit="share", **goal))
                error = float(np.std(better, ddof=1) / np.sqrt(len(better)))
                row = {"part": "accuracy, mean", "tested": tested, "side": f"{side} less random"}
                rows.append({**row, "mean": _mean(better), "standard_error": error})
    return figures, rows


def _accuracies(graph: MemoryGraph, sampling: str, scale: MemoryScale, cut: HalfCut | None) -> Accuracy:
    options: dict[str, Any] = {"transforms": [] if cut is None else [cut]}
    if sampling == "neighbor":
        options |= {"batch_size": _BATCH_SIZE, "num_neighbors": list(_FANOUTS)}
    else:
        options |= {"eval_batch_size": _BATCH_SIZE, "eval_num_neighbors": list(_FANOUTS)}
    on_whole: list[float] = []
    on_cut: list[float] = []
    for seed in range(scale.accuracy_seeds):
        L.seed_everything(seed, verbose=False)
        datamodule = make_datamodule(graph, sampling, scale, clusters=_CLUSTERS, seed=seed, **options)
        module = make_model("sage", datamodule, hidden_channels=scale.hidden)
        with quiet():
            trainer = make_trainer(max_epochs=-1, max_steps=scale.accuracy_steps, limit_val_batches=0)
            trainer.fit(module, datamodule=datamodule)
            loader: Any = datamodule.test_dataloader()
            on_whole.append(_tested(trainer, module, loader))
            if cut is not None:
                loader.add_transform(cut)
                on_cut.append(_tested(trainer, module, loader))
    return Accuracy(on_whole=on_whole, on_cut=on_cut or on_whole)


def _tested(trainer: L.Trainer, module: NodeClassifier, loader: Any) -> float:
    (found,) = trainer.test(module, dataloaders=loader, verbose=False)
    return float(found["test/acc"])


def _with_components(graph: MemoryGraph, number: int) -> MemoryGraph:
    """Put the features' principal components in their place: wide features take the time, and tell no more."""
    data = graph.data.clone()
    if data.num_features > number:
        torch.manual_seed(0)
        x = data.x - data.x.mean(0)
        data.x = x @ torch.svd_lowrank(x, q=number)[2]
        data.x /= data.x.std()
    return replace(graph, data=data)


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers))


# Split


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A training run.

    Attributes:
        losses: The loss of each step.
        parameters: All parameters in the end, one behind the other.
        parts: Mean number of parts of the batches that were split.
        share_split: Share of the batches that were.
        largest: Bytes of the largest step.
    """

    losses: Sequence[float]
    parameters: torch.Tensor
    parts: float
    share_split: float
    largest: float


class _Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def measure_split(scale: MemoryScale) -> Measured:
    """Train whole and in parts, in double and in single precision.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per precision and graph.
    """
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for precision, reach in (("64-true", 1e-6), ("32-true", 1e-4)):
        worst_loss = worst_parameter = 0.0
        for name in scale.budget_graphs:
            whole = _curve(name, scale, precision, budget=None)
            split = _curve(name, scale, precision, budget=int(_SPLIT_SHARE * whole.largest))
            pairs = zip(split.losses, whole.losses, strict=True)
            of_loss = max(abs(ours / theirs - 1) for ours, theirs in pairs)
            change = (split.parameters - whole.parameters).norm() / whole.parameters.norm()
            worst_loss, worst_parameter = max(worst_loss, of_loss), max(worst_parameter, float(change))
            rows.append(
                {
                    "part": "split",
                    "graph": name,
                    "side": precision,
                    "batches": len(whole.losses),
                    "split": split.share_split,
                    "parts": split.parts,
                    "loss_difference": of_loss,
                    "parameter_difference": float(change),
                    "note": load_graph(name, scale.stand_in_nodes).note,
                }
            )
        goal: dict[str, Any] = {"unit": "share", "reach": reach, "sense": "<="}
        figures += [
            Figure(name=f"split against whole, {precision}: largest difference of a loss", value=worst_loss, **goal),
            Figure(name=f"split against whole, {precision}: of the final parameters", value=worst_parameter, **goal),
        ]
    return figures, rows


def _curve(name: str, scale: MemoryScale, precision: Any, *, budget: int | None) -> Curve:
    graph = narrowed(load_graph(name, scale.stand_in_nodes), _SPLIT_FEATURES)
    if precision == "64-true":
        graph.data.x = graph.data.x.double()
    datamodule = make_datamodule(graph, "neighbor", scale)
    L.seed_everything(0, verbose=False)
    module: NodeClassifier = make_model("sage", datamodule, hidden_channels=scale.hidden, dropout=0.0)
    losses = _Losses()
    options: dict[str, Any] = {"on_exceed": "watch"} if budget is None else {"on_exceed": "split", "budget": budget}
    with quiet():
        run = watched_fit(
            module,
            datamodule,
            epochs=4,
            callbacks=[losses],
            trainer_precision=precision,
            trainer_limit_train_batches=scale.exact_batches,
            trainer_limit_val_batches=0,
            **options,
        )
    tally = run.control.tally
    return Curve(
        losses=losses.losses,
        parameters=torch.nn.utils.parameters_to_vector(module.parameters()).detach(),
        parts=tally.parts / max(tally.splits, 1),
        share_split=tally.splits / max(tally.batches, 1),
        largest=max(step.bytes for step in run.steps),
    )

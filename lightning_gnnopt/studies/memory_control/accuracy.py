"""What cutting edges costs in accuracy, by score and share; and what running steps in parts costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.memory.cutting import cut_subgraph
from lightning_gnnopt.memory.pruning import keep_order
from lightning_gnnopt.memory.scores import SCORES
from lightning_gnnopt.memory.structure import BatchStructure, select
from lightning_gnnopt.sampling import SampleKey, Subgraph
from lightning_gnnopt.studies.memory_control.limit import unlimited_peaks
from lightning_gnnopt.studies.memory_control.setup import Setup
from lightning_gnnopt.studies.memory_control.watched import make_trainer
from lightning_gnnopt.studies.quiet import quiet

WHOLE, SPLIT = "whole", "split"
"""Sides that lose no edge: without a limit, and run in parts under one."""
_LOOKED_AT = 10  # steps whose peaks set the limit


class ShareCut:
    """A transform that cuts a share of a batch's edges, those of low score first.

    Args:
        share: The share to cut, from 0 to 1.
        score: The score: a name in `SCORES`.
        by_destination: Whether scores are compared among the in-edges of each node only, as `MemoryControl` does.
    """

    def __init__(self, share: float, score: str, *, by_destination: bool = True) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"`share` must be from 0 to 1, but got {share}. HINT: 0.5 cuts half of the edges.")
        self.share, self.score, self.by_destination = share, score, by_destination

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Any]) -> Subgraph:
        """Cut a batch."""
        structure = BatchStructure.of_subgraph(subgraph)
        order = score_order(structure, self.score, SampleKey(seed=int(subgraph.n_id[0])), self.by_destination)
        keep = np.zeros(structure.num_edges, np.bool_)
        keep[order[: round((1 - self.share) * len(order))]] = True
        return cut_subgraph(subgraph, select(structure, keep=keep))


def score_order(structure: BatchStructure, score: str, key: SampleKey, by_destination: bool) -> Any:
    """Order edges from the one to keep first to the one to cut first, int64 of shape ``(E,)``."""
    options: dict[str, Any] = {"key": key} if score == "random" else {}
    scores = SCORES[score](structure.row, structure.col, structure.num_nodes, **options)
    return keep_order(structure, scores, key=key, by_destination=by_destination and score != "random")


def measure_accuracy(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train on cut batches, or in parts, and test on whole ones; without dropout, so that parts can be compared.

    Args:
        setup: The graph and the model.
        options: `side`, a score, ``"whole"`` or ``"split"``; `shares` of the edges to cut; `limit`, of the largest peak
            without one, for steps in parts; `seeds`, how many runs; `steps`; `batch_size`; `eval_batch_size`.

    Returns:
        ``points``: for each share its ``accuracies`` on the test nodes, one a seed; of steps in parts also the share
        of the batches that were ``split`` and their mean number of ``parts``.

    Raises:
        MemoryBudgetError: If steps in parts do not fit either.
    """
    side = str(options["side"])
    limit_bytes = None
    if side == SPLIT:
        peaks = unlimited_peaks(setup, steps=_LOOKED_AT, batch_size=options["batch_size"])
        limit_bytes = int(float(options["limit"]) * max(peaks))
    points = []
    for share in [0.0] if side in (WHOLE, SPLIT) else options["shares"]:
        accuracies, more = [], {}
        for seed in range(int(options["seeds"])):
            cut = None if side in (WHOLE, SPLIT) else ShareCut(float(share), side)
            control = None
            if limit_bytes is not None:
                control = MemoryControl(limit_bytes, on_exceed=SPLIT, verbose=False)
            accuracies.append(_accuracy(setup, options, seed, cut, control))
            if control is not None:
                tally = control.tally
                more = {"split": tally.splits / max(tally.batches, 1), "parts": tally.parts / max(tally.splits, 1)}
        points.append({"share": float(share), "accuracies": accuracies, **more})
    return {"points": points}


def _accuracy(
    setup: Setup, options: Mapping[str, Any], seed: int, cut: ShareCut | None, control: MemoryControl | None
) -> float:
    datamodule = setup.datamodule(
        batch_size=options["batch_size"],
        eval_batch_size=options["eval_batch_size"],
        transforms=[] if cut is None else [cut],
        seed=setup.seed + seed,
    )
    module = setup.module(seed=setup.seed + seed, dropout=0.0)
    with quiet():
        trainer = make_trainer(*([] if control is None else [control]), max_epochs=-1, max_steps=int(options["steps"]))
        trainer.fit(module, datamodule=datamodule)
        (found,) = make_trainer().test(module, datamodule=datamodule, verbose=False)
    return float(found["test/acc"])

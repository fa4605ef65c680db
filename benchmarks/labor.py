"""Accuracy and nodes per batch of LABOR sampling beside node-wise sampling, with the same network and fan-outs.

A GraphSAGE of three layers is trained with fan-outs 15/10/5 on each graph, with both samplers and the same seed in each
round (weights, split and order of the seeds). Evaluation is exact, layer by layer, so that only training differs. The
weights tested are those that did best on the validation nodes; the rate of learning falls to nothing over the epochs.
"""

from __future__ import annotations

import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch_geometric.data import Data

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.sampling import LaborSampler, NeighborSampler, NodeSampler, Topology

FANOUTS = (15, 10, 5)
GRAPHS: Mapping[str, Mapping[str, Any]] = {
    "rmat": {"num_nodes": 16_384, "avg_degree": 50},
    "facebook-johns-hopkins55": {},
}
QUICK_GRAPHS = ("rmat",)
NODE_WISE, LABOR = "node-wise", "LABOR"
SAMPLERS: Mapping[str, Callable[[Topology], NodeSampler]] = {
    NODE_WISE: partial(NeighborSampler, num_neighbors=FANOUTS),
    LABOR: partial(LaborSampler, num_neighbors=FANOUTS),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run: accuracy on the test nodes, and nodes and edges per training batch."""

    test_acc: float
    nodes: float
    edges: float


def measure(quick: bool) -> Measured:
    """Train on all graphs.

    Args:
        quick: Whether to take one graph, fewer rounds and fewer epochs.
    """
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in QUICK_GRAPHS if quick else GRAPHS:
        try:
            data = load_dataset(name, download=False, **GRAPHS[name])
        except OSError as error:
            rows.append({"graph": name, "note": f"not measured: {str(error).splitlines()[0]}"})
            continue
        sides = {side: _side(data, sampler, epochs=3 if quick else 20) for side, sampler in SAMPLERS.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = alternate(sides, rounds=2 if quick else 20, warmup=0)
        points = [100 * (b.test_acc - a.test_acc) for a, b in zip(runs[NODE_WISE], runs[LABOR], strict=True)]
        mean = sum(points) / len(points)
        goal: dict[str, Any] = {} if quick else {"reach": -0.3, "sense": ">="}
        figures += [
            Figure(
                name=f"accuracy, LABOR minus node-wise, mean, {name}",
                value=mean,
                unit="points",
                runs=tuple(points),
                **goal,
            ),
            Figure.of_runs(
                f"nodes per batch, LABOR over node-wise, {name}",
                ratios([run.nodes for run in runs[LABOR]], [run.nodes for run in runs[NODE_WISE]]),
                unit="x",
            ),
        ]
        rows += [
            {
                "graph": name,
                "side": side,
                "test_acc": round(median([run.test_acc for run in of_side]), 4),
                "nodes_per_batch": round(median([run.nodes for run in of_side])),
                "edges_per_batch": round(median([run.edges for run in of_side])),
            }
            for side, of_side in runs.items()
        ]
    return figures, rows


def _side(data: Data, sampler: Callable[[Topology], NodeSampler], *, epochs: int) -> Callable[[], Training]:
    seeds = itertools.count()

    def run() -> Training:
        seed = next(seeds)
        L.seed_everything(seed, verbose=False)
        datamodule = GraphDataModule(
            data, sampler=sampler, batch_size=512, num_workers=1, eval_mode="layerwise", eval_batch_size=2048, seed=seed
        )
        model = NodeClassifier(
            "sage",
            in_channels=datamodule.num_features,
            out_channels=datamodule.num_classes,
            hidden_channels=64,
            num_layers=len(FANOUTS),
            dropout=0.3,
            optimizer={"name": "Adam", "lr": 0.003},
            scheduler={"name": "CosineAnnealingLR", "T_max": epochs},  # to nothing: no noise of the last steps is left
        )
        with TemporaryDirectory() as folder:
            trainer = L.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                callbacks=ModelCheckpoint(folder, monitor="val/acc", mode="max", save_weights_only=True),
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(model, datamodule=datamodule)
            stats = trainer.train_dataloader.stats  # type: ignore[union-attr]
            (result,) = trainer.test(model, datamodule=datamodule, ckpt_path="best", verbose=False)
        return Training(
            test_acc=result["test/acc"], nodes=stats.nodes / stats.batches, edges=stats.edges / stats.batches
        )

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("labor", measure, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())

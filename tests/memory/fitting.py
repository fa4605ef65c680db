"""A footprint made by hand (90 bytes a node and 40 an edge in the step, 50 and 16 in the batch), and its fitters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.fitter import Fitter
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.predictors import AnalyticPredictor
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.sampling import ClusterSampler
from tests.memory.runs import make_datamodule

HELD = 10_000
NODE, EDGE, BATCH_NODE, BATCH_EDGE = 90, 40, 50, 16

LOADERS: dict[str, dict[str, Any]] = {
    "hops": {},
    "trees": {"sampler": "shadow", "num_neighbors": [4, 3]},
    "clusters": {
        "sampler": partial(ClusterSampler, num_parts=12, clusters_per_batch=3),
        "num_neighbors": None,
        "eval_num_neighbors": [6, 4],
    },
}


def loader_of(name: str = "hops", **options: Any) -> Any:
    datamodule = make_datamodule(**{**LOADERS[name], **options})
    datamodule.setup("fit")
    return datamodule.train_dataloader()


def drawn(name: str = "hops", num_inputs: int = 32, attempt: int = 0, **options: Any) -> tuple[Any, Any]:
    subgraph, batch = loader_of(name, **options).draw(num_inputs, attempt=attempt)
    return subgraph, batch


def bytes_of(batch: Any, ahead: int = 0) -> int:
    """What the footprint should say, from the sizes of the arrays."""
    nodes, edges = int(batch.num_nodes), int(batch.num_edges)
    return HELD + NODE * nodes + EDGE * edges + (1 + ahead) * (BATCH_NODE * nodes + BATCH_EDGE * edges)


def part_bytes(whole: Any, part: Any) -> int:
    nodes, edges = whole.num_nodes, whole.num_edges
    batches = BATCH_NODE * (nodes + part.num_nodes) + BATCH_EDGE * (edges + part.num_edges)
    return int(HELD + batches + NODE * part.num_nodes + EDGE * part.num_edges)


def footprint_of(example: Any, *, ahead: int = 0, **costs: float) -> Footprint:
    reader = FeatureReader(example, loops="loops" in costs, padded="padded" in costs)

    def row(node: float, edge: float) -> list[float]:
        by_kind = {"nodes": node, "edges": edge, **costs}
        return [0.0] + [by_kind.get(name.split("_")[0], 0.0) for name in reader.names]

    step = row(NODE, EDGE)
    predictor = AnalyticPredictor([step], feature_names=reader.names)
    batch_row = np.array([value if value in (BATCH_NODE, BATCH_EDGE) else 0 for value in row(BATCH_NODE, BATCH_EDGE)])
    return Footprint(
        reader=reader,
        predictors={"step": predictor},
        batch_row=batch_row,
        held_bytes=HELD,
        ahead=Ahead(batches=ahead),
    )


def make(
    example: Any, budget: float, on_exceed: str | Sequence[str] = "prune", *, stage: str = "train", **options: Any
) -> Fitter:
    policy = {
        name: options.pop(name)
        for name in ("max_resamples", "pruning", "keep_connected", "exact", "depth", "loss_reduction")
        if name in options
    }
    weights = options.pop("weights", None)
    return Fitter(
        footprint_of(example, **options),
        int(budget),
        Policy(on_exceed=on_exceed, **policy),  # type: ignore[arg-type]
        stage,
        Tally(),
        weights=weights,
    )


def budget_for(batch: Any, share: float) -> int:
    """A share of what the batch takes beyond the model."""
    return HELD + int(share * (bytes_of(batch) - HELD))


def seeds_of(batch: Any) -> list[int]:
    return [int(node) for node in batch.n_id[: batch.batch_size]]

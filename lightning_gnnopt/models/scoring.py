"""Which nodes of a batch count, and how they are judged."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy, MultilabelF1Score


def scored_rows(batch: Any, stage: str) -> slice | Tensor:
    """Find the rows that count: the seeds, or those of the stage's mask.

    ``in`` looks for a stored attribute: a ``Batch`` of full graphs has a *property* `batch_size`, its number of graphs.
    """
    if "batch_size" in batch:
        return slice(int(batch["batch_size"]))
    if f"{stage}_mask" not in batch:
        raise ValueError(
            f"A batch must have `batch_size` (sampled, seeds first) or `{stage}_mask` (a full graph), but has only"
            f" {sorted(batch.keys())}. HINT: add the mask to the `Data`, or use a sampled loader."
        )
    mask: Tensor = batch[f"{stage}_mask"]
    return mask


def make_metrics(num_classes: int, multilabel: bool) -> dict[str, Metric | MetricCollection]:
    """Make the metrics of a stage by name."""
    # Validation of the inputs would wait for the device in every step; the DataModule has checked the labels.
    if multilabel:
        return {
            "acc": MultilabelAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MultilabelF1Score(num_classes, average="micro", validate_args=False),
        }
    return {"acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False)}

"""From a step's stretches to its records, and what a batch says of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.step_memory import Stretch
from lightning_gnnopt.analysis.records import MemoryRecord, TimeRecord
from lightning_gnnopt.memory.features import is_batch


def time_records(number: int, labels: list[Label], spans: list[float]) -> list[TimeRecord]:
    """Add up the seconds of a step's stretches by label."""
    seconds: dict[Label, float] = {}
    calls: dict[Label, int] = {}
    for label, span in zip(labels, spans, strict=True):
        seconds[label] = seconds.get(label, 0.0) + span
        calls[label] = calls.get(label, 0) + 1
    return [TimeRecord(number, *label, total, calls[label]) for label, total in seconds.items()]


def memory_records(number: int, labels: list[Label], stretches: list[Stretch]) -> list[MemoryRecord]:
    """Gather the memory of a step's stretches by label."""
    found: dict[Label, list[int]] = {}
    for label, stretch in zip(labels, stretches, strict=True):
        total = found.setdefault(label, [0, 0, 0])
        total[0] = max(total[0], stretch.peak_bytes)
        total[1] += stretch.live_bytes
        total[2] += stretch.allocated_bytes
    return [MemoryRecord(number, *label, *total) for label, total in found.items()]


def find_batch(batch: Any) -> Any:
    """Find the PyG batch in what a loader yields: itself, or within a tuple, list or dict."""
    if is_batch(batch):
        return batch
    inner = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else ()
    return next((found for item in inner if (found := find_batch(item)) is not None), None)


def num_seeds(batch: Any) -> int | Tensor:
    """Count the seeds of a batch: those it names, else the nodes its loss is over, else all nodes.

    Returns:
        The number, as a tensor where it takes the batch's device to count.
    """
    for store in batch.node_stores:
        if store.get("batch_size") is not None:
            return int(store["batch_size"])
    masks = [mask for store in batch.node_stores if (mask := store.get("train_mask")) is not None]
    if masks and all(mask.dtype == torch.bool for mask in masks):
        return torch.stack([mask.sum() for mask in masks]).sum()
    return int(batch.num_nodes or 0)

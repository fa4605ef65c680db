"""How many bytes a batch has, as a function of its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.features import FeatureReader, batch_bytes


def batch_row(reader: FeatureReader, batches: Sequence[Any]) -> NDArray[np.float64]:
    """Solve the bytes of a batch as an affine function of its features, never below any of these batches.

    They depend on the numbers of nodes, seeds, edges and links in all, not on their hops.
    """
    totals = [_total_of(name) for name in reader.names]
    kinds = sorted({total for total in totals if total})
    sums = np.array([[total == kind for total in totals] for kind in kinds], np.float64)  # (kinds, P)
    if "labels" not in kinds:  # around links what belongs to the inputs has a row for each link
        sums = np.vstack([sums, [name.startswith("nodes_0") for name in reader.names]])
    features = np.stack([reader(batch) for batch in batches])
    matrix = np.column_stack([np.ones(len(batches)), features @ sums.T])
    nbytes = np.array([batch_bytes(batch) for batch in batches], np.float64)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1)
    solved = np.linalg.lstsq(matrix / scale, nbytes, rcond=None)[0] / scale
    rounded = np.round(solved * 2) / 2
    rounded[0] += np.round((nbytes - matrix @ rounded).max())
    if np.abs(matrix @ rounded - nbytes).max() < 1:
        solved = rounded
    else:
        solved[0] += max(0.0, float((nbytes - matrix @ solved).max()))
    return np.concatenate([solved[:1], solved[1:] @ sums])


def _total_of(name: str) -> str:
    """What a feature is a part of; nothing if a batch's bytes do not depend on it."""
    if name.startswith("loops") or name == "padded":
        return ""
    kind, _, rest = name.partition("_")
    return kind + (f"[{rest.partition('[')[2]}" if "[" in rest else "")

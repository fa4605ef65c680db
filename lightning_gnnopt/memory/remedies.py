"""Ways to make a batch fit before its step: fewer edges, or fewer seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.any_batch import cut, key_of, structure_of
from lightning_gnnopt.memory.counting import Counts
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.policy import Policy
from lightning_gnnopt.memory.pruning import DoesNotFit, keep_order, prune
from lightning_gnnopt.memory.scores import SCORES
from lightning_gnnopt.memory.splitting import FULL
from lightning_gnnopt.memory.structure import BatchStructure, select

Weights = Callable[[Any], NDArray[np.floating]]


def prune_to_fit(
    batch: Any, footprint: Footprint, budget_bytes: float, policy: Policy, *, weights: Weights | None = None
) -> Any:
    """Drop as few of the least important edges as will do.

    Args:
        batch: A subgraph or PyG batch.
        footprint: Predicts the bytes at the peak of a step.
        budget_bytes: What they must not exceed.
        policy: Says which edges are important.
        weights: Gives the weights of the batch's edges, for scores that need them.

    Returns:
        What is left.

    Raises:
        DoesNotFit: If the seeds alone are too large.
        TypeError: If such a batch cannot be cut, or weights are missing.
    """
    structure = structure_of(batch)
    order = keep_order(
        structure,
        _scores(batch, structure, policy, weights),
        key=key_of(batch),
        keep_connected=policy.keep_connected,
        by_destination=policy.pruning != "random",
    )
    row = _row_of(batch, footprint)
    selection = prune(
        structure, order, lambda counts: footprint.upper(row(counts)), budget_bytes, pieces=footprint.pieces()
    )
    return cut(batch, selection)


def shrink_to_fit(
    batch: Any, footprint: Footprint, budget_bytes: float, *, depth: int | None = None
) -> tuple[Any, int]:
    """Leave out as few of the last seeds as will do.

    Args:
        batch: A subgraph or PyG batch.
        footprint: Predicts the bytes at the peak of a step.
        budget_bytes: What they must not exceed.
        depth: Layers of the model, for batches without hops.

    Returns:
        What is left, and how many seeds are not in it.

    Raises:
        DoesNotFit: If a single seed is too large.
        TypeError: If such a batch cannot be cut.
    """
    structure = structure_of(batch)
    low, high, fitted = 0, structure.num_seeds, None  # seeds that fit, that do not
    guess = max(1, int(high * _share_that_fits(batch, footprint, budget_bytes)))
    while low < high - 1 or fitted is None:
        num_seeds = min(max(guess, low + 1), high - 1)
        if num_seeds < 1:
            break
        candidate = cut(batch, select(structure, seeds=np.arange(num_seeds), depth=depth))
        upper = footprint.upper(footprint.features(candidate))
        if upper <= budget_bytes:
            low, fitted = num_seeds, candidate
            if upper >= FULL * budget_bytes:
                break
        else:
            high = num_seeds
        guess = (low + high) // 2
    if fitted is None:
        one = cut(batch, select(structure, seeds=np.arange(1), depth=depth))
        raise DoesNotFit(footprint.upper(footprint.features(one)), budget_bytes)
    return fitted, structure.num_seeds - low


def _scores(batch: Any, structure: BatchStructure, policy: Policy, weights: Weights | None) -> NDArray[np.float32]:
    options: dict[str, Any] = {}
    if policy.pruning == "random":
        options["key"] = key_of(batch)
    elif policy.pruning == "inverse_weight":
        if weights is None:
            raise TypeError("`pruning='inverse_weight'` needs the weights of edges. HINT: pass `weight_attr`.")
        options["weight"] = weights(batch)
    return SCORES[policy.pruning](structure.row, structure.col, structure.num_nodes, **options)


def _row_of(batch: Any, footprint: Footprint) -> Callable[[Counts], NDArray[np.float64]]:
    """Make what turns the counts of a pruned batch into its features; labels stay as they are."""
    features, names = footprint.features(batch), footprint.reader.names
    counted = [place for place, name in enumerate(names) if name.split("_")[0] in ("nodes", "edges", "loops")]
    has_loops = any(name.startswith("loops") for name in names)
    num_nodes = sum(value for name, value in zip(names, features, strict=True) if name.startswith("nodes_"))
    padded = (names.index("padded"), features[names.index("padded")] / num_nodes) if "padded" in names else None

    def row(counts: Counts) -> NDArray[np.float64]:
        values = features.copy()
        given = [counts.nodes, counts.edges, counts.loops] if has_loops else [counts.nodes, counts.edges]
        values[counted] = np.concatenate(given)
        if padded is not None:  # the largest in-degree may have fallen: no more than this
            values[padded[0]] = padded[1] * counts.nodes.sum()
        return values

    return row


def _share_that_fits(batch: Any, footprint: Footprint, budget_bytes: float) -> float:
    features = footprint.features(batch)
    nothing = footprint.upper(np.zeros_like(features))
    growth = footprint.upper(features) - nothing
    return float(np.clip((budget_bytes - nothing) / growth, 0, 1)) if growth > 0 else 1.0

"""The seam between sampling and slicing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class SubgraphTransform(Protocol):
    """Looks at a sampled batch before a byte of its features is copied, and may replace it.

    Called from the loader's worker threads, at once for different batches.

    One that has an attribute ``returns_seeds = True`` may keep only the first of a batch's seeds. The loader brings the
    others back in further batches at the end of the epoch. What it keeps of a batch must not depend on what it saw
    before, or the batches would depend on the number of workers.
    """

    def __call__(self, subgraph: Any, resample: Callable[[int], Any]) -> Any:
        """Return the batch to use.

        Args:
            subgraph: What was sampled: a `Subgraph`; in heterogeneous graphs a `HeteroSubgraph`, around links a
                `LinkSubgraph`.
            resample: Draws the same seeds again; its argument is the attempt, from 1.

        Returns:
            `subgraph` itself or another with the same seeds first; only the first ones of them, at least one, if it
            `returns_seeds`.
        """
        ...

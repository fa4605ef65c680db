"""What a sampler around links returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.subgraph import Subgraph


@dataclass(frozen=True, eq=False)
class LinkSubgraph:
    """A batch around ``P`` links and their negatives.

    Local ids are places in ``subgraph.n_id``, in heterogeneous graphs in that of the end's own type.

    Attributes:
        subgraph: The sampled batch. If its trees are disjoint, its `batch` says for each node the number of the link,
            from 0 to ``P - 1``; a negative has the number of the link it was drawn for.
        edge_label_index: Local sources and destinations of the links, then of the ``M`` negatives, int64 of shape
            ``(2, P + M)``; None for triplets.
        edge_label: The links' labels, then a 0 for each negative, shape ``(P + M, ...)``; None for triplets, and
            without negatives where no label was given.
        src_index: For triplets the links' local sources, int64 of shape ``(P,)``.
        dst_pos_index: For triplets their local destinations, int64 of shape ``(P,)``.
        dst_neg_index: For triplets the local negative destinations, int64 of shape ``(P, amount)``, or ``(P,)`` if
            `amount` is 1.
        time: The time of each link, negatives included unless they are triplets'; None if none was given.
    """

    subgraph: Subgraph | HeteroSubgraph
    edge_label_index: NDArray[np.int64] | None = None
    edge_label: NDArray[Any] | None = None
    src_index: NDArray[np.int64] | None = None
    dst_pos_index: NDArray[np.int64] | None = None
    dst_neg_index: NDArray[np.int64] | None = None
    time: NDArray[Any] | None = None

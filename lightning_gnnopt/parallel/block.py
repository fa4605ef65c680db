"""The bipartite graph of a first layer, as a rank has sampled it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Whose rows are summed up into whose, with what weights.

    Attributes:
        sources: Long, shape ``(s,)``: ids of nodes in the whole graph, such as a sampled batch's `n_id`.
        targets: Long, shape ``(t,)``: ids of the nodes that get a sum.
        edge_index: Long, shape ``(2, e)``: places in `sources` above places in `targets`.
        edge_weight: Shape ``(e,)``: what a source's row is multiplied by. None: by one.

    Raises:
        ValueError: If an edge has no such source or target, or there are not as many weights as edges.

    Examples:
        >>> block = Block(torch.tensor([7, 3, 5]), torch.tensor([7]), torch.tensor([[1, 2], [0, 0]]))
        >>> block.averaged().edge_weight
        tensor([0.5000, 0.5000])
    """

    sources: Tensor
    targets: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None = None

    def __post_init__(self) -> None:
        for name, nodes, places in zip(
            ("sources", "targets"), (self.sources, self.targets), self.edge_index, strict=True
        ):
            if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(nodes):
                raise ValueError(
                    f"`edge_index` must hold places in the {len(nodes)} `{name}`, but goes from {int(places.min())} to"
                    f" {int(places.max())}. HINT: places, not ids of nodes, which are in `{name}`."
                )
        if self.edge_weight is not None and self.edge_weight.shape != self.edge_index.shape[1:]:
            raise ValueError(
                f"`edge_weight` must be a number for each of the {self.edge_index.size(1)} edges, but has the shape"
                f" {tuple(self.edge_weight.shape)}. HINT: leave it out for weights of one."
            )

    def averaged(self, dtype: torch.dtype = torch.float32) -> Block:
        """The same edges with weights that make the sums means.

        Args:
            dtype: Of the weights.
        """
        target = self.edge_index[1]
        degrees = torch.bincount(target, minlength=len(self.targets)).clamp(min=1)
        return replace(self, edge_weight=degrees.to(dtype).reciprocal()[target])

"""What a step gets of a part: a `Data` that looks like a full graph's, and brings along who sends what."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import Data

from lightning_gnnopt.parallel.halo import HaloPlan
from lightning_gnnopt.parallel.parts import GraphPart


class PartData(Data):
    """A part of a graph as a batch.

    ``x``, ``y``, masks and other attributes of nodes have a row for each of the part's own nodes, ``n``. Sources in
    `edge_index` may be in the halo, ``n .. n + h - 1``: layers fetch their rows. Further attributes:

    * ``n_id``: global ids of the nodes, ``(n,)``;
    * ``in_degree``, ``out_degree``: in the whole graph, of the halo as well, ``(n + h,)``;
    * ``halo_send_index``, ``halo_send_counts``, ``halo_recv_counts``, ``num_graph_nodes``: a `HaloPlan`.
    """

    @classmethod
    def of(cls, part: GraphPart, data: Data) -> PartData:
        """Join a part and its attributes, without a copy.

        Args:
            part: The structure.
            data: Attributes, as :func:`~lightning_gnnopt.parallel.part_files.load_part` gives them.
        """
        batch = cls(**data.to_dict())
        batch.edge_index = torch.from_numpy(part.edge_index)
        batch.n_id = torch.from_numpy(part.inner)
        batch.in_degree, batch.out_degree = torch.from_numpy(part.in_degree), torch.from_numpy(part.out_degree)
        batch.halo_send_index = torch.from_numpy(part.send_index)
        batch.halo_send_counts, batch.halo_recv_counts = list(part.send_counts), list(part.recv_counts)
        batch.num_graph_nodes = part.num_nodes
        batch.num_nodes = part.num_inner
        return batch

    @property
    def plan(self) -> HaloPlan:
        """Who sends what."""
        return HaloPlan(
            int(self.num_nodes or 0),
            sum(self.halo_recv_counts),
            self.halo_send_index,
            tuple(self.halo_send_counts),
            tuple(self.halo_recv_counts),
        )

    def num_targets(self, stage: str) -> int:
        """Nodes that count in a stage: those of its mask, or all if there is none."""
        mask: Any = self.get(f"{stage}_mask")
        return int(self.num_nodes or 0) if mask is None else int(mask.sum())

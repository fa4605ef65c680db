"""Cutting a graph into parts for processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.parallel.part_files import PartitionInfo, save_parts
from lightning_gnnopt.parallel.parts import cut_graph
from lightning_gnnopt.sampling.partition import Objective, PartitionMethod, partition_nodes
from lightning_gnnopt.sampling.topology import Topology


def partition_graph(
    data: Data,
    num_parts: int,
    *,
    folder: Path | str,
    method: PartitionMethod = "auto",
    objective: Objective = "vol",
    owner: Tensor | NDArray[np.integer] | None = None,
    seed: int = 0,
    max_bytes: int | str | None = None,
) -> PartitionInfo:
    """Cut a graph into parts, one for each process, and write them into a folder.

    Each part owns some nodes and has all of their in-edges, so that softmax, maximum and mean over a node's
    in-neighbours are computed where the node is.

    Args:
        data: The graph: `edge_index`, directed or not, and attributes of nodes, edges and the graph.
        num_parts: Number of parts, ``P``.
        folder: Where they go; must not exist, or be empty.
        method: See :func:`~lightning_gnnopt.sampling.partition.partition_nodes`; ``"auto"`` is METIS where it is
            installed.
        objective: What METIS makes small: the rows that processes exchange (``"vol"``) or the edges between parts
            (``"cut"``).
        owner: The part of each node, ``(N,)``, for a partition of one's own.
        seed: Of `method`.
        max_bytes: The most memory that `method` may take beside the graph, such as ``"2GiB"``; ``"auto"`` takes one
            that does with it. What writing the parts takes is not in it.

    Returns:
        What was written: sizes, halos, who sends how much to whom.

    Raises:
        FileExistsError: If there is something at `folder`.
        ValueError: If an argument is out of range, or an attribute cannot be stored.
        ModuleNotFoundError: If ``method="metis"`` and ``pymetis`` is not installed.
    """
    edge_index: Any = data.edge_index
    if edge_index is None:
        raise ValueError("`data.edge_index` is needed, but there is none. HINT: `ToSparseTensor` removes it.")
    num_nodes = int(data.num_nodes or 0)
    edges = np.asarray(edge_index.detach().cpu().numpy(), dtype=np.int64)
    made_by: dict[str, Any] = {"method": method, "objective": objective, "seed": seed}
    if owner is None:
        topology = Topology.from_edge_index(edge_index, num_nodes=num_nodes)
        owners: Any = partition_nodes(
            topology, num_parts, method=method, objective=objective, seed=seed, max_bytes=max_bytes
        )
    else:
        owners, made_by = np.asarray(torch.as_tensor(owner).cpu()), {"method": "given"}
        if owners.shape != (num_nodes,):
            raise ValueError(
                f"`owner` must have shape ({num_nodes},), a part for each node, but got {owners.shape}."
                " HINT: nodes are numbered as in `edge_index`."
            )
    return save_parts(Path(folder), data, cut_graph(edges, owners, num_parts), num_parts=num_parts, made_by=made_by)

"""Reddit from the files of DGL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import read_npz, read_sparse
from lightning_gnnopt.datasets.download import from_pyg
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks


@register(
    "reddit",
    summary="Posts that one user commented on; word vectors as features, community as class.",
    num_nodes=232_965,
    num_edges=114_615_892,
    num_features=602,
    num_classes=41,
    citation="No licence given. Hamilton, Ying, Leskovec, GraphSAGE, NeurIPS 2017.",
    splits=("public",),
    files=PublishedFiles(
        folders=("reddit",),
        anywhere=(("reddit_data.npz", "reddit_graph.npz"),),
        download=from_pyg("Reddit", subfolder="reddit"),
        source="data.dgl.ai",
    ),
)
def load_reddit(*, paths: tuple[Path, ...]) -> Data:
    """Read the graph with its published split by date (Hamilton, Ying and Leskovec, NeurIPS 2017).

    Args:
        paths: The files ``reddit_data.npz`` and ``reddit_graph.npz``.
    """
    x, label, role = read_npz(paths[0], "feature", "label", "node_types")
    edges = read_sparse(paths[1]).tocoo()
    data = Data(
        x=torch.from_numpy(x.astype(np.float32)),
        y=torch.from_numpy(label.astype(np.int64)),
        edge_index=undirected_edges(edges.row, edges.col, len(x)),
    )
    set_masks(data, *(np.flatnonzero(role == part) for part in (1, 2, 3)))
    return data

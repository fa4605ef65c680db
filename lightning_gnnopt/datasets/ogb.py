"""ogbn-products from the csv files of the Open Graph Benchmark."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets.download import files_only
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks

_NAME = "ogbn-products"
_SPLIT = "sales_ranking"


def _download(root: Path) -> None:
    from ogb.nodeproppred import PygNodePropPredDataset

    # ogb ends by reading back the file that its own processing, here left out, would have written.
    with contextlib.suppress(FileNotFoundError):
        files_only(PygNodePropPredDataset)(name=_NAME, root=str(root))


@register(
    _NAME,
    summary="Goods of Amazon that are bought together; words of their descriptions as features, category as class.",
    num_nodes=2_449_029,
    num_edges=123_718_280,
    num_features=100,
    num_classes=47,
    citation="Amazon licence. Hu et al., Open Graph Benchmark, NeurIPS 2020; Bhatia et al., Extreme Classification.",
    splits=(_SPLIT,),
    files=PublishedFiles(
        folders=("ogbn_products", "ogbn_products_pyg", _NAME, "products"),
        in_named_folder=(
            (
                "raw/edge.csv.gz",
                "raw/node-feat.csv.gz",
                "raw/node-label.csv.gz",
                *(f"split/{_SPLIT}/{part}.csv.gz" for part in ("train", "valid", "test")),
            ),
        ),
        download=_download,
        source="snap.stanford.edu/ogb",
        extra="data",
    ),
)
def load_ogbn_products(*, paths: tuple[Path, ...]) -> Data:
    """Read the graph with its published split by sales rank (Hu et al., NeurIPS 2020), without the ogb package.

    The files are text, 62 million edges and 245 million numbers, so this takes half a minute and more.

    Args:
        paths: Edges, features, labels, training, validation and test nodes, each a gzipped csv file without header.
    """
    edges = np.loadtxt(paths[0], dtype=np.int32, delimiter=",", ndmin=2)
    x = np.loadtxt(paths[1], dtype=np.float32, delimiter=",", ndmin=2)
    label, train, val, test = (np.loadtxt(path, dtype=np.int64, ndmin=1) for path in paths[2:])
    data = Data(
        x=torch.from_numpy(x),
        y=torch.from_numpy(label),
        edge_index=undirected_edges(edges[:, 0], edges[:, 1], len(x)),
    )
    set_masks(data, train, val, test)
    return data

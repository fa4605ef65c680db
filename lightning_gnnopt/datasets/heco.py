"""Dense metapath graphs of DBLP and ACM, from the files of HeCo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import check_shape, read_npy, read_sparse
from lightning_gnnopt.datasets.download import from_address
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.features import sparse_tensor
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks

_ADDRESS = "https://raw.githubusercontent.com/liun-online/HeCo/20e8ca2042838877b2c815279920218b6bbea1db/data"
_SPLITS = ("train_20", "train_40", "train_60")


def load_heco(*, paths: tuple[Path, ...], split: str) -> Data:
    """Read a metapath graph with one of its published splits (Wang, Liu, Han and Shi, HeCo, KDD 2021).

    Args:
        paths: Adjacency, features, labels; then training, validation and test nodes of each split.
        split: ``"train_20"``, ``"train_40"`` or ``"train_60"``: that many training nodes per class.
    """
    edges, x = read_sparse(paths[0]).tocoo(), read_sparse(paths[1])
    label = read_npy(paths[2]).astype(np.int64)
    check_shape(paths[1].name, x, rows=len(label))
    data = Data(
        x=sparse_tensor(x),
        y=torch.from_numpy(label),
        edge_index=undirected_edges(edges.row, edges.col, len(label)),
    )
    first = 3 + 3 * _SPLITS.index(split)
    set_masks(data, *(read_npy(path) for path in paths[first : first + 3]))
    return data


for _name, _summary, _part, _graph, _features, _counts in (
    (
        "heco-dblp-apcpa",
        "Authors who publish at one conference; keywords as features, area as class. Mean degree 1,232.",
        "dblp",
        "apcpa.npz",
        "a_feat.npz",
        (4_057, 4_996_438, 334, 4),
    ),
    (
        "heco-acm-psp",
        "Papers on one subject; words as features, area as class. Mean degree 1,078.",
        "acm",
        "psp.npz",
        "p_feat.npz",
        (4_019, 4_334_194, 1_902, 3),
    ),
):
    _sizes = [split.removeprefix("train_") for split in _SPLITS]
    _parts = [f"{part}_{size}.npy" for size in _sizes for part in ("train", "val", "test")]
    _files = (_graph, _features, "labels.npy", *_parts)
    register(
        _name,
        summary=_summary,
        num_nodes=_counts[0],
        num_edges=_counts[1],
        num_features=_counts[2],
        num_classes=_counts[3],
        citation="No licence given (liun-online/HeCo). Wang, Liu, Han, Shi, HeCo, KDD 2021.",
        splits=_SPLITS,
        files=PublishedFiles(
            folders=(f"heco_{_part}", _name),
            anywhere=(_files,),
            download=from_address(f"{_ADDRESS}/{_part}", _files, subfolder=_name),
            source="github.com/liun-online/HeCo",
        ),
    )(load_heco)

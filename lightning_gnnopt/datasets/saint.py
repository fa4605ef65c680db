"""Flickr and Yelp from the files of GraphSAINT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import compressed, read_npy, read_npz
from lightning_gnnopt.datasets.download import from_pyg
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks

_FILES = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")


def load_saint(*, paths: tuple[Path, ...]) -> Data:
    """Read a graph with its published split (Zeng et al., GraphSAINT, ICLR 2020).

    A node that ``class_map.json`` gives a list of zeros and ones makes the set multi-label: `y` is then a float
    tensor of shape ``(N, labels)``.

    Args:
        paths: The files ``adj_full.npz``, ``feats.npy``, ``class_map.json`` and ``role.json``.
    """
    edges = compressed(paths[0].name, "csr", *read_npz(paths[0], "data", "indices", "indptr", "shape")).tocoo()
    x = read_npy(paths[1])
    classes = json.loads(paths[2].read_text())
    role = json.loads(paths[3].read_text())

    num_nodes = len(x)
    node = np.fromiter((int(key) for key in classes), dtype=np.int64, count=len(classes))
    label = np.array(list(classes.values()))
    y = torch.zeros(num_nodes, label.shape[1]) if label.ndim == 2 else torch.full((num_nodes,), -1)
    y[torch.from_numpy(node)] = torch.from_numpy(label).to(y.dtype)
    data = Data(
        x=torch.from_numpy(x.astype(np.float32)), y=y, edge_index=undirected_edges(edges.row, edges.col, num_nodes)
    )
    set_masks(data, role["tr"], role["va"], role["te"])
    return data


for _name, _summary, _counts, _multilabel in (
    (
        "flickr",
        "Images that share a place, gallery or user; words of their descriptions as features, kind of tag as class.",
        (89_250, 899_756, 500, 7),
        False,
    ),
    (
        "yelp",
        "Reviewers who are friends; word vectors of their reviews as features, kinds of business as labels.",
        (716_847, 13_954_819, 300, 100),
        True,
    ),
):
    register(
        _name,
        summary=_summary,
        num_nodes=_counts[0],
        num_edges=_counts[1],
        num_features=_counts[2],
        num_classes=_counts[3],
        multilabel=_multilabel,
        citation="MIT (GraphSAINT/GraphSAINT). Zeng et al., GraphSAINT, ICLR 2020.",
        splits=("public",),
        files=PublishedFiles(
            folders=(_name,),
            in_named_folder=(_FILES,),
            download=from_pyg(_name.capitalize(), subfolder=_name),
            source="the Google Drive of github.com/GraphSAINT/GraphSAINT",
        ),
    )(load_saint)

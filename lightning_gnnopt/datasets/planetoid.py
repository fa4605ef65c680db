"""Cora, Citeseer and Pubmed from the files of Planetoid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import check_shape, damaged
from lightning_gnnopt.datasets._unpickle import load_pickle
from lightning_gnnopt.datasets.download import from_pyg
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.features import sparse_tensor
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks

_PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
_VALIDATION_NODES = 500


def load_planetoid(*, paths: tuple[Path, ...]) -> Data:
    """Read one citation graph with its public split (Yang, Cohen and Salakhutdinov, ICML 2016).

    Nodes that no file describes, which Citeseer has among its test indices, get zero features, label -1 and no place
    in any mask.

    Args:
        paths: The files ``ind.<name>.{x,y,tx,ty,allx,ally,graph,test.index}``.
    """
    _, y, tx, ty, allx, ally, graph = (load_pickle(path) for path in paths[:-1])
    test = np.loadtxt(paths[-1], dtype=np.int64)
    num_nodes = len(graph)
    if test.ndim != 1 or test.min(initial=0) < 0 or test.max(initial=0) >= num_nodes:
        raise damaged(paths[-1].name, f"it must hold nodes from 0 to {num_nodes - 1}, as the graph has {num_nodes}")
    for path, matrix, labels in ((paths[4], allx, ally), (paths[2], tx, ty)):
        check_shape(path.name, matrix, rows=len(labels))

    label = np.full(num_nodes, -1, dtype=np.int64)
    for nodes, one_hot in ((np.arange(len(ally)), ally), (test, ty)):
        label[nodes] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
    features = sp.vstack([allx, tx], format="coo")
    node = np.concatenate([np.arange(allx.shape[0]), test])[features.row]
    x = sp.csr_matrix((features.data, (node, features.col)), shape=(num_nodes, features.shape[1]))

    degree = [len(neighbors) for neighbors in graph.values()]
    source = np.repeat(np.fromiter(graph, dtype=np.int64), degree)
    target = np.fromiter((v for neighbors in graph.values() for v in neighbors), dtype=np.int64)
    data = Data(
        x=sparse_tensor(x),
        y=torch.from_numpy(label),
        edge_index=undirected_edges(source, target, num_nodes),
    )
    set_masks(data, np.arange(len(y)), np.arange(len(y), len(y) + _VALIDATION_NODES), test)
    return data


for _name, _pyg_name, _topic, _counts in (
    ("cora", "Cora", "machine learning", (2_708, 10_556, 1_433, 7)),
    ("citeseer", "CiteSeer", "computer science", (3_327, 9_104, 3_703, 6)),
    ("pubmed", "PubMed", "diabetes", (19_717, 88_648, 500, 3)),
):
    register(
        _name,
        summary=f"Papers on {_topic} that cite each other; words as features, topic as class. Public split.",
        num_nodes=_counts[0],
        num_edges=_counts[1],
        num_features=_counts[2],
        num_classes=_counts[3],
        citation="MIT (kimiyoung/planetoid). Sen et al., AI Magazine 2008; Yang, Cohen, Salakhutdinov, ICML 2016.",
        splits=("public",),
        files=PublishedFiles(
            folders=(_pyg_name, _name),
            anywhere=(tuple(f"ind.{_name}.{part}" for part in _PARTS),),
            download=from_pyg("Planetoid", name=_pyg_name),
            source="github.com/kimiyoung/planetoid",
        ),
    )(load_planetoid)

"""Co-purchase, co-author and citation graphs from npz files, in the layout of gnn-benchmark or of GraphData."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import check_shape, compressed, names_in, read_npz
from lightning_gnnopt.datasets._unpickle import load_object_npz
from lightning_gnnopt.datasets.download import from_address, from_pyg
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.features import sparse_tensor
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register

GRAPHDATA = "https://raw.githubusercontent.com/EdisonLeeeee/GraphData/f8022c26b917346f2a461ffec0ec5ae24b36de68/datasets"


def load_npz(*, paths: tuple[Path, ...]) -> Data:
    """Read a graph in one of the two layouts that go by the same names.

    gnn-benchmark (Shchur et al., 2018) stores the parts of the sparse matrices (``adj_data``, ``adj_indices``, ...);
    GraphData stores the matrices as pickled objects (``adj_matrix``, ``node_attr``), which are read without running
    the pickle. Features are kept as published; PyG's ``Amazon`` and ``Coauthor`` make them binary instead. A graph
    without features gets the identity: each node its own feature.

    Args:
        paths: The npz file.
    """
    (path,) = paths
    names = names_in(path)
    if "adj_matrix" in names:
        adjacency = load_object_npz(path, "adj_matrix")
        (labels,) = read_npz(path, "node_label")
        x = load_object_npz(path, "node_attr") if "node_attr" in names else sp.identity(len(labels))
    else:
        adjacency, (labels,), x = _sparse(path, "adj"), read_npz(path, "labels"), _sparse(path, "attr")
    check_shape(path.name, adjacency, rows=len(labels), columns=len(labels))
    check_shape(path.name, x, rows=len(labels))
    edges = sp.coo_matrix(adjacency)
    return Data(
        x=sparse_tensor(x),
        y=torch.from_numpy(labels.astype(np.int64)),
        edge_index=undirected_edges(edges.row, edges.col, len(labels)),
    )


def _sparse(path: Path, prefix: str) -> Any:
    """Put a CSR matrix together from its parts."""
    parts = read_npz(path, *(f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape")))
    return compressed(path.name, "csr", *parts)


_SHCHUR = "MIT (shchur/gnn-benchmark). Shchur et al., Pitfalls of Graph Neural Network Evaluation, 2018."
_G2G = "MIT (abojchevski/graph2gauss). Bojchevski, Guennemann, Deep Gaussian Embedding of Graphs, ICLR 2018."
_AMGCN = "No licence given. Wang et al., AM-GCN: Adaptive Multi-channel GCN, KDD 2020."
_ADAMIC = "No licence given. Adamic, Glance, The Political Blogosphere and the 2004 US Election, LinkKDD 2005."
_GOODS = "Goods that are bought together; words of the reviews as features, category as class."
_AUTHORS = "Authors who write together; keywords of their papers as features, field as class."
_PAPERS = "Papers that cite each other; words as features, topic as class."
_PAGES = "Web pages that link to each other; words as features, topic as class."
_BLOGS = "US political blogs that link to each other, left or right. No features, so `x` is the identity."
_WORDS = "Papers that share an author; words as features, area as class."


def _register(
    name: str, summary: str, citation: str, counts: tuple[int, int, int, int], files: PublishedFiles | None = None
) -> None:
    """Register a set; without `files` it comes from GraphData, in a file of its own name."""
    if files is None:
        download = from_address(GRAPHDATA, (f"{name}.npz",), subfolder=name)
        files = PublishedFiles(
            folders=(name,), anywhere=((f"{name}.npz",),), download=download, source="github.com/EdisonLeeeee/GraphData"
        )
    nodes, edges, features, classes = counts
    register(
        name,
        summary=summary,
        num_nodes=nodes,
        num_edges=edges,
        num_features=features,
        num_classes=classes,
        citation=citation,
        files=files,
    )(load_npz)


def _shchur(pyg_class: str, pyg_name: str, file: str, graphdata: str) -> PublishedFiles:
    return PublishedFiles(
        folders=(pyg_name, graphdata),
        anywhere=((f"{file}.npz",), (f"{graphdata}.npz",)),
        download=from_pyg(pyg_class, name=pyg_name),
        source="github.com/shchur/gnn-benchmark",
    )


def _graph2gauss(file: str, anywhere: str, named: tuple[tuple[str, ...], ...] = ()) -> PublishedFiles:
    return PublishedFiles(
        folders=(file,),
        anywhere=((anywhere,),),
        in_named_folder=named,
        download=from_pyg("CitationFull", name=file),
        source="github.com/abojchevski/graph2gauss",
    )


_photo = _shchur("Amazon", "Photo", "amazon_electronics_photo", "amazon_photo")
_computers = _shchur("Amazon", "Computers", "amazon_electronics_computers", "amazon_cs")
_cs = _shchur("Coauthor", "CS", "ms_academic_cs", "coauthor_cs")
_physics = _shchur("Coauthor", "Physics", "ms_academic_phy", "coauthor_phy")
# GraphData has a `citeseer.npz` as well, and means Planetoid's by it.
_citeseer = _graph2gauss("citeseer", "citeseer_full.npz", named=(("citeseer.npz",),))

_register("amazon-photo", _GOODS, _SHCHUR, (7_650, 238_162, 745, 8), _photo)
_register("amazon-computers", _GOODS, _SHCHUR, (13_752, 491_722, 767, 10), _computers)
_register("coauthor-cs", _AUTHORS, _SHCHUR, (18_333, 163_788, 6_805, 15), _cs)
_register("coauthor-physics", _AUTHORS, _SHCHUR, (34_493, 495_924, 8_415, 5), _physics)
_register("cora-ml", _PAPERS, _G2G, (2_995, 16_316, 2_879, 7), _graph2gauss("cora_ml", "cora_ml.npz"))
_register("dblp", _PAPERS, _G2G, (17_716, 105_734, 1_639, 4), _graph2gauss("dblp", "dblp.npz"))
_register("citeseer-full", _PAPERS, _G2G, (4_230, 10_674, 602, 6), _citeseer)
_register("acm", _WORDS, _AMGCN, (3_025, 26_256, 1_870, 3))
_register("uai", _PAGES, _AMGCN, (3_067, 56_616, 4_973, 19))
_register("polblogs", _BLOGS, _ADAMIC, (1_490, 33_430, 1_490, 2))

"""com-amazon from the files of SNAP."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.datasets._checks import check_count
from lightning_gnnopt.datasets.download import from_address
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register

Labels = Literal["auto", "communities", "random"]

_GRAPH = "com-amazon.ungraph.txt"
_COMMUNITIES = ("com-amazon.all.dedup.cmty.txt", "com-amazon.top5000.cmty.txt")


@register(
    "com-amazon",
    summary="Goods that are bought together. Published without features and classes: features here are random, and"
    " classes are the largest communities where their file is there (all other nodes unlabelled), else random."
    " For studies of speed and memory, not of accuracy.",
    num_nodes=334_863,
    num_edges=1_851_744,
    citation="No licence given. Yang, Leskovec, Defining and Evaluating Network Communities, ICDM 2012.",
    files=PublishedFiles(
        folders=("com-amazon",),
        anywhere=((_GRAPH,), (f"{_GRAPH}.gz",)),
        download=from_address(
            "https://snap.stanford.edu/data/bigdata/communities",
            (f"{_COMMUNITIES[0]}.gz", f"{_GRAPH}.gz"),
            subfolder="com-amazon",
        ),
        source="snap.stanford.edu",
    ),
)
def load_com_amazon(
    *,
    paths: tuple[Path, ...],
    seed: int,
    num_features: int = 100,
    num_classes: int = 10,
    labels: Labels = "auto",
) -> Data:
    """Read the graph (Yang and Leskovec, ICDM 2012) and give it features and labels.

    Nodes are renumbered in the order of their published ids.

    Args:
        paths: The file ``com-amazon.ungraph.txt``, gzipped or not. Beside it, ``com-amazon.all.dedup.cmty.txt`` or
            ``com-amazon.top5000.cmty.txt``, gzipped or not, is used if it is there.
        seed: Seed of the random features and labels.
        num_features: Width of the normally distributed features.
        num_classes: Number of classes.
        labels: ``"communities"``: the `num_classes` largest communities are the classes, a node in several belongs to
            the smallest of them, and a node in none is unlabelled (-1). ``"random"``: uniform. ``"auto"``:
            communities where their file is there, else random.

    Raises:
        ValueError: If an option is out of range, or the communities are asked for and not there.
    """
    if labels not in get_args(Labels):
        raise ValueError(unknown_name("value of `labels`", labels, get_args(Labels)))
    check_count(1, num_features=num_features, num_classes=num_classes)
    edges = np.loadtxt(paths[0], dtype=np.int64, ndmin=2)
    published_id, node = np.unique(edges, return_inverse=True)
    source, target = node.reshape(edges.shape).T
    num_nodes = len(published_id)

    random = np.random.default_rng(seed)
    x = random.standard_normal((num_nodes, num_features), dtype=np.float32)
    communities = _find_communities(paths[0].parent)
    if labels == "communities" and communities is None:
        raise ValueError(
            f"`labels` is 'communities', but neither {' nor '.join(_COMMUNITIES)} lies in {paths[0].parent}."
            " HINT: put one of them there, or set `labels` to 'random'."
        )
    if labels == "random" or communities is None:
        y = random.integers(num_classes, size=num_nodes)
    else:
        y = _largest_communities(communities, published_id, num_classes)
    return Data(x=torch.from_numpy(x), y=torch.from_numpy(y), edge_index=undirected_edges(source, target, num_nodes))


def _find_communities(folder: Path) -> Path | None:
    names = [name + suffix for name in _COMMUNITIES for suffix in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _largest_communities(path: Path, published_id: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Label nodes by the largest communities; the smaller ones come last and overwrite the larger ones."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    communities = [np.array(line.split(), dtype=np.int64) for line in content.splitlines()]
    communities.sort(key=len, reverse=True)
    y = np.full(len(published_id), -1, dtype=np.int64)
    for label, members in enumerate(communities[:num_classes]):
        y[np.isin(published_id, members)] = label
    return y

"""Handwritten digits as a graph: the default set, needing no files and no network."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._checks import check_count
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.registry import register


@register(
    "digits-knn",
    summary="Handwritten digits of scikit-learn, each joined to its nearest ones; pixels as features, digit as class."
    " Counts are for `k` 10.",
    num_nodes=1_797,
    num_edges=24_678,
    num_features=64,
    num_classes=10,
    citation="BSD 3-Clause (scikit-learn), CC BY 4.0 (UCI). Alpaydin, Kaynak, Optical Recognition of Handwritten"
    " Digits, UCI Machine Learning Repository 1998.",
)
def load_digits_knn(*, k: int = 10) -> Data:
    """Join each digit of ``sklearn.datasets.load_digits`` to its nearest ones by Euclidean distance of the pixels.

    Args:
        k: Neighbours of a digit before symmetrising, 1 to 1,796.

    Raises:
        ValueError: If `k` is out of range.
    """
    from sklearn.datasets import load_digits
    from sklearn.neighbors import NearestNeighbors

    pixels, digit = load_digits(return_X_y=True)
    check_count(1, k=k)
    if k >= len(pixels):
        raise ValueError(
            f"`k` must be at most {len(pixels) - 1}, one less than there are digits, but got {k}."
            " HINT: 10 gives each digit about 14 neighbours after symmetrising."
        )
    # Pixels are whole numbers 0..16 and the tree sums their squares exactly, so equal distances tie on every machine.
    edges = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(pixels).kneighbors_graph().tocoo()
    return Data(
        x=torch.from_numpy(pixels / 16).float(),
        y=torch.from_numpy(digit),
        edge_index=undirected_edges(edges.row, edges.col, len(pixels)),
    )

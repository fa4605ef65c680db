"""R-MAT graphs: power-law degrees, hubs, and labels that only the neighbourhood tells."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._checks import check_at_least, check_count, check_fraction
from lightning_gnnopt.datasets._kernels import (
    add_product,
    closed_neighborhood_mean,
    draw_rmat,
    normal,
    permutation,
)
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.synthetic import (
    exact_graph,
    pairs_for_degree,
    stream_key,
)


@register(
    "rmat",
    summary="Synthetic R-MAT graph with power-law degrees. Each node carries a hidden vector; its features are that"
    " vector seen through noise, its class is the largest entry of its neighbourhood's mean vector.",
    citation="Chakrabarti, Zhan, Faloutsos, R-MAT: A Recursive Model for Graph Mining, SDM 2004.",
)
def make_rmat(
    *,
    seed: int,
    num_nodes: int = 16_384,
    avg_degree: float = 16.0,
    a: float = 0.57,
    b: float = 0.19,
    c: float = 0.19,
    level_noise: float = 0.1,
    num_features: int = 64,
    num_classes: int = 8,
    feature_noise: float = 0.5,
) -> Data:
    """Make an R-MAT graph (Chakrabarti, Zhan and Faloutsos, SDM 2004) in time linear in its edges.

    An edge descends into one of the four quadrants of the adjacency matrix again and again, with chances `a`, `b`,
    `c` and ``1 - a - b - c``; each level shifts them a little, which smooths the degrees (Seshadhri, Pinar and Kolda,
    ICDM 2011). Node ids are then shuffled, so that hubs are anywhere. Many nodes have no edge at all, as in any R-MAT
    graph.

    A node's hidden vector is normally distributed, one entry per class. Its class is the entry that is largest, after
    centring, in the mean of its own and its neighbours' vectors: one round of mean aggregation finds it, a model
    without edges hardly can.

    Args:
        seed: Seed; the same seed and options give the same bits for any number of threads.
        num_nodes: Number of nodes, not necessarily a power of two.
        avg_degree: Mean degree; the graph has exactly ``2 * round(num_nodes * avg_degree / 2)`` directed edges.
        a: Chance of the first quadrant, where the hubs are.
        b: Chance of the second quadrant.
        c: Chance of the third quadrant.
        level_noise: Largest relative shift of the chances at a level, 0 to 1.
        num_features: Width of `x`.
        num_classes: Number of classes.
        feature_noise: Standard deviation of the noise on the features, whose own is about 1.

    Raises:
        ValueError: If an option is out of range, or the graph too small for its edges.
    """
    check_count(2, num_nodes=num_nodes)
    check_count(1, num_features=num_features, num_classes=num_classes)
    check_fraction(a=a, b=b, c=c, level_noise=level_noise)
    check_at_least(0, feature_noise=feature_noise)
    if a + b + c > 1:
        raise ValueError(
            f"`a`, `b` and `c` must sum to at most 1, but sum to {a + b + c:g}."
            " HINT: 0.57, 0.19, 0.19 are the usual ones."
        )
    num_pairs = pairs_for_degree(num_nodes, avg_degree)

    levels = (num_nodes - 1).bit_length()
    shift = 1 + level_noise * np.random.default_rng(seed).uniform(-1, 1, size=(levels, 4))
    chances = np.array([a, b, c, 1 - a - b - c]) * shift
    bounds = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)[:, :3].copy()
    order = permutation(num_nodes, stream_key(seed, 0))
    edge_key = stream_key(seed, 1)
    edge_index = exact_graph(
        lambda count: draw_rmat(count, edge_key, order, bounds),
        num_nodes=num_nodes,
        num_pairs=num_pairs,
        key=stream_key(seed, 2),
    )

    hidden = normal(num_nodes, num_classes, 1.0, stream_key(seed, 3))
    seen = closed_neighborhood_mean(edge_index.numpy(), hidden)
    seen -= seen.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = normal(num_nodes, num_features, feature_noise, stream_key(seed, 4))
    add_product(x, hidden, normal(num_classes, num_features, num_classes**-0.5, stream_key(seed, 5)))
    return Data(x=torch.from_numpy(x), y=torch.from_numpy(seen.argmax(axis=1)), edge_index=edge_index)

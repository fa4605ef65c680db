"""Degree-corrected stochastic block models, and presets of the size of Reddit, ogbn-products, Flickr and Yelp."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._checks import check_above, check_at_least, check_count, check_fraction
from lightning_gnnopt.datasets._kernels import add_rows, draw_blocks, normal, permutation
from lightning_gnnopt.datasets.registry import describe, register
from lightning_gnnopt.datasets.synthetic import (
    exact_graph,
    pairs_for_degree,
    stream_key,
)

_CITATION = "Karrer, Newman, Stochastic blockmodels and community structure in networks, Physical Review E 2011."


@register(
    "dcsbm",
    summary="Synthetic degree-corrected block model: power-law degrees, edges mostly inside a class, features that"
    " are the class's centre seen through noise.",
    citation=_CITATION,
)
def make_dcsbm(
    *,
    seed: int,
    num_nodes: int = 10_000,
    avg_degree: float = 20.0,
    num_classes: int = 8,
    num_features: int = 64,
    homophily: float = 0.8,
    degree_exponent: float = 2.5,
    feature_noise: float = 1.0,
    label_noise: float = 0.0,
) -> Data:
    """Make a degree-corrected stochastic block model (Karrer and Newman, Physical Review E 2011).

    Classes have equal sizes. An edge draws its first end by weight; with chance `homophily` its second end comes by
    weight from the same class, else from another class. Weights follow a power law, cut so that the largest expected
    degree is about ``sqrt(num_nodes * avg_degree)``, beyond which a simple graph cannot follow (Boguna,
    Pastor-Satorras and Vespignani, 2004). Repeated edges are merged and replaced; where that happens often, in dense
    and small classes, the graph's edge homophily falls below `homophily` and the hubs below their weight.

    Features are the class's centre, a random vector of about unit length, plus normal noise.

    Args:
        seed: Seed; the same seed and options give the same bits for any number of threads.
        num_nodes: Number of nodes, at least two per class.
        avg_degree: Mean degree; the graph has exactly ``2 * round(num_nodes * avg_degree / 2)`` directed edges.
        num_classes: Number of classes.
        num_features: Width of `x`.
        homophily: Share of edges drawn inside a class, 0 to 1.
        degree_exponent: Exponent of the degrees' power law, above 2.
        feature_noise: Standard deviation of the noise on each feature.
        label_noise: Share of nodes whose label is drawn anew from all classes, 0 to 1. No model can be right on more
            than ``1 - label_noise * (1 - 1 / num_classes)`` of the nodes, but for chance.

    Raises:
        ValueError: If an option is out of range, or the graph too small for its edges.
    """
    check_count(2, num_nodes=num_nodes)
    return _block_model(
        seed,
        num_nodes=num_nodes,
        num_pairs=pairs_for_degree(num_nodes, avg_degree),
        num_classes=num_classes,
        num_features=num_features,
        homophily=homophily,
        degree_exponent=degree_exponent,
        feature_noise=feature_noise,
        label_noise=label_noise,
    )


@register(
    "reddit-like",
    summary="Synthetic block model with the counts of Reddit at `scale` 1; `scale` multiplies nodes and edges.",
    num_nodes=232_965,
    num_edges=114_615_892,
    num_features=602,
    num_classes=41,
    citation=_CITATION,
)
def make_reddit_like(
    *,
    seed: int,
    scale: float = 1.0,
    homophily: float = 0.76,
    degree_exponent: float = 2.5,
    feature_noise: float = 0.5,
    label_noise: float = 0.05,
) -> Data:
    """Make a block model with Reddit's numbers of nodes, edges, features and classes, or a scaled one.

    Args:
        seed: Seed, see `make_dcsbm`.
        scale: Factor on the numbers of nodes and of edges, both exact after rounding; the mean degree stays 492.
        homophily: See `make_dcsbm`.
        degree_exponent: See `make_dcsbm`.
        feature_noise: See `make_dcsbm`.
        label_noise: See `make_dcsbm`; by default so large that the best accuracy is about what GraphSAGE is published
            to reach on the real graph.

    Raises:
        ValueError: If an option is out of range, or `scale` so small that a simple graph cannot have that degree.
    """
    return _scaled("reddit-like", seed, scale, homophily, degree_exponent, feature_noise, label_noise)


@register(
    "products-like",
    summary="Synthetic block model with the counts of ogbn-products at `scale` 1; `scale` multiplies nodes and edges.",
    num_nodes=2_449_029,
    num_edges=123_718_280,
    num_features=100,
    num_classes=47,
    citation=_CITATION,
)
def make_products_like(
    *,
    seed: int,
    scale: float = 1.0,
    homophily: float = 0.81,
    degree_exponent: float = 2.5,
    feature_noise: float = 0.7,
    label_noise: float = 0.2,
) -> Data:
    """Make a block model with ogbn-products' numbers of nodes, edges, features and classes, or a scaled one.

    Args:
        seed: Seed, see `make_dcsbm`.
        scale: Factor on the numbers of nodes and of edges, both exact after rounding; the mean degree stays 50.5.
        homophily: See `make_dcsbm`.
        degree_exponent: See `make_dcsbm`.
        feature_noise: See `make_dcsbm`.
        label_noise: See `make_dcsbm`; by default so large that the best accuracy is about what GraphSAGE is published
            to reach on the real graph.

    Raises:
        ValueError: If an option is out of range, or `scale` so small that a simple graph cannot have that degree.
    """
    return _scaled("products-like", seed, scale, homophily, degree_exponent, feature_noise, label_noise)


@register(
    "flickr-like",
    summary="Synthetic block model with the counts of Flickr at `scale` 1; `scale` multiplies nodes and edges.",
    num_nodes=89_250,
    num_edges=899_756,
    num_features=500,
    num_classes=7,
    citation=_CITATION,
)
def make_flickr_like(
    *,
    seed: int,
    scale: float = 1.0,
    homophily: float = 0.32,
    degree_exponent: float = 2.5,
    feature_noise: float = 0.5,
    label_noise: float = 0.58,
) -> Data:
    """Make a block model with Flickr's numbers of nodes, edges, features and classes, or a scaled one.

    Args:
        seed: Seed, see `make_dcsbm`.
        scale: Factor on the numbers of nodes and of edges, both exact after rounding; the mean degree stays 10.1.
        homophily: See `make_dcsbm`.
        degree_exponent: See `make_dcsbm`.
        feature_noise: See `make_dcsbm`.
        label_noise: See `make_dcsbm`; by default so large that the best accuracy is about what GraphSAGE is published
            to reach on the real graph.

    Raises:
        ValueError: If an option is out of range, or `scale` so small that a simple graph cannot have that degree.
    """
    return _scaled("flickr-like", seed, scale, homophily, degree_exponent, feature_noise, label_noise)


@register(
    "yelp-like",
    summary="Synthetic block model with the counts of Yelp at `scale` 1, one class for each node; `scale` multiplies"
    " nodes and edges.",
    num_nodes=716_847,
    num_edges=13_954_818,
    num_features=300,
    num_classes=100,
    citation=_CITATION,
)
def make_yelp_like(
    *,
    seed: int,
    scale: float = 1.0,
    homophily: float = 0.5,
    degree_exponent: float = 2.5,
    feature_noise: float = 0.5,
    label_noise: float = 0.37,
) -> Data:
    """Make a block model with Yelp's numbers of nodes, edges, features and classes, or a scaled one.

    A node of Yelp has several labels. A node of a block model belongs to one block, so that it has one class here, and
    as an undirected graph has an even number of directed edges, there is one edge less.

    Args:
        seed: Seed, see `make_dcsbm`.
        scale: Factor on the numbers of nodes and of edges, both exact after rounding; the mean degree stays 19.5.
        homophily: See `make_dcsbm`; the real graph, of several labels to a node, has no such number.
        degree_exponent: See `make_dcsbm`.
        feature_noise: See `make_dcsbm`.
        label_noise: See `make_dcsbm`; by default so large that the best accuracy is about the F1 score that GraphSAGE
            is published to reach on the real graph.

    Raises:
        ValueError: If an option is out of range, or `scale` so small that a simple graph cannot have that degree.
    """
    return _scaled("yelp-like", seed, scale, homophily, degree_exponent, feature_noise, label_noise)


def _scaled(
    name: str,
    seed: int,
    scale: float,
    homophily: float,
    degree_exponent: float,
    feature_noise: float,
    label_noise: float,
) -> Data:
    full = describe(name)
    assert full.num_nodes is not None
    assert full.num_edges is not None
    assert full.num_features is not None
    assert full.num_classes is not None
    check_above(0, scale=scale)
    num_nodes, num_pairs = round(full.num_nodes * scale), round(full.num_edges // 2 * scale)
    if num_nodes * (num_nodes - 1) // 2 < num_pairs:
        smallest = full.num_edges / full.num_nodes**2
        raise ValueError(
            f"`scale` must be above {smallest:.2g} for `{name}`, but got {scale}: {num_nodes} nodes cannot have"
            f" {full.num_edges // full.num_nodes} neighbours each. HINT: raise `scale`, or use `dcsbm` with a lower"
            " `avg_degree`."
        )
    return _block_model(
        seed,
        num_nodes=num_nodes,
        num_pairs=num_pairs,
        num_classes=full.num_classes,
        num_features=full.num_features,
        homophily=homophily,
        degree_exponent=degree_exponent,
        feature_noise=feature_noise,
        label_noise=label_noise,
    )


def _block_model(
    seed: int,
    *,
    num_nodes: int,
    num_pairs: int,
    num_classes: int,
    num_features: int,
    homophily: float,
    degree_exponent: float,
    feature_noise: float,
    label_noise: float,
) -> Data:
    check_count(1, num_features=num_features, num_classes=num_classes)
    check_fraction(homophily=homophily, label_noise=label_noise)
    check_above(2, degree_exponent=degree_exponent)
    check_at_least(0, feature_noise=feature_noise)
    if num_nodes < 2 * num_classes:
        raise ValueError(
            f"`num_nodes` must be at least two per class, but {num_nodes} nodes have {num_classes} classes."
            " HINT: ask for more nodes (a larger `scale`) or fewer classes."
        )
    order = permutation(num_nodes, stream_key(seed, 0))
    edge_key = stream_key(seed, 1)
    power = (degree_exponent - 1) / (degree_exponent - 2)
    shift = _rank_shift(power, largest=math.sqrt(num_nodes**2 / (2 * num_pairs)))
    edge_index = exact_graph(
        lambda count: draw_blocks(count, edge_key, order, num_classes, homophily, shift, power),
        num_nodes=num_nodes,
        num_pairs=num_pairs,
        key=stream_key(seed, 2),
    )

    block = ((np.arange(num_nodes) + 1) * num_classes - 1) // num_nodes
    y = np.empty(num_nodes, dtype=np.int64)
    y[order] = block
    x = normal(num_nodes, num_features, feature_noise, stream_key(seed, 3))
    add_rows(x, normal(num_classes, num_features, num_features**-0.5, stream_key(seed, 4)), y)
    relabelled = permutation(num_nodes, stream_key(seed, 5))[: round(label_noise * num_nodes)]
    y[relabelled] = permutation(num_nodes, stream_key(seed, 6))[: len(relabelled)] % num_classes
    return Data(x=torch.from_numpy(x), y=torch.from_numpy(y), edge_index=edge_index)


def _rank_shift(power: float, *, largest: float) -> float:
    """Find by bisection the offset of the ranks at which the largest weight is `largest` times the mean weight."""
    low, high = 1e-12, 1e6
    for _ in range(200):
        shift = math.sqrt(low * high)
        mean = power * ((1 + shift) ** (1 / power) - shift ** (1 / power))
        if shift ** (1 / power - 1) > largest * mean:
            low = shift
        else:
            high = shift
    return high

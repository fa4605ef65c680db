from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch_geometric.data import Data

from lightning_gnnopt.datasets import describe, load_dataset
from lightning_gnnopt.datasets._kernels import closed_neighborhood_mean, permutation
from lightning_gnnopt.datasets.dcsbm import _rank_shift
from lightning_gnnopt.datasets.synthetic import exact_graph, stream_key

SMALL: list[tuple[str, dict[str, Any], int, int]] = [
    ("rmat", {"num_nodes": 1_000, "avg_degree": 9.0}, 1_000, 9_000),
    ("rmat", {"num_nodes": 4_096, "avg_degree": 0.5, "level_noise": 0.0}, 4_096, 2_048),
    ("dcsbm", {"num_nodes": 1_001, "avg_degree": 7.3}, 1_001, 7_308),
    ("dcsbm", {"num_nodes": 500, "avg_degree": 30, "num_classes": 1, "homophily": 0.0}, 500, 15_000),
    ("products-like", {"scale": 0.002}, 4_898, 247_436),
    ("reddit-like", {"scale": 0.02}, 4_659, 2_292_318),
    ("flickr-like", {"scale": 0.05}, 4_462, 44_988),
    ("yelp-like", {"scale": 0.01}, 7_168, 139_548),
]


@pytest.mark.parametrize(("name", "options", "num_nodes", "num_edges"), SMALL)
def test_graphs_are_simple_symmetric_and_have_exactly_the_edges(
    name: str, options: dict[str, Any], num_nodes: int, num_edges: int
) -> None:
    data = load_dataset(name, **options)
    assert (data.num_nodes, data.num_edges) == (num_nodes, num_edges)
    assert data.validate()
    source, target = data.edge_index
    key = target * num_nodes + source
    assert bool((key.diff() > 0).all())
    assert torch.equal((source * num_nodes + target).sort().values, key)
    assert not bool((source == target).any())
    classes = describe(name).num_classes or options.get("num_classes", 8)
    assert data.y.unique().tolist() == list(range(classes))
    assert (data.x.dtype, data.y.dtype, data.edge_index.dtype) == (torch.float32, torch.long, torch.long)
    assert data.num_features == (describe(name).num_features or 64)
    assert int(data.train_mask.sum()) == num_nodes // 2


@pytest.mark.parametrize("name", ["rmat", "dcsbm"])
def test_a_seed_gives_the_same_bits_for_any_number_of_threads(name: str) -> None:
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        first = load_dataset(name, num_nodes=2_000, seed=3)
    finally:
        numba.set_num_threads(threads)
    again, other = (load_dataset(name, num_nodes=2_000, seed=seed) for seed in (3, 4))
    for key in ("x", "y", "edge_index", "train_mask"):
        assert torch.equal(first[key], again[key])
    for key in ("x", "y", "edge_index"):
        assert first[key].shape != other[key].shape or not torch.equal(first[key], other[key])


def accuracies(data: Data) -> tuple[float, float]:
    """Test accuracy of logistic regression on the features, and with the neighbourhood's mean beside them."""
    mean = torch.from_numpy(closed_neighborhood_mean(data.edge_index.numpy(), data.x.numpy()))
    train, test = data.train_mask, data.test_mask
    alone, together = (
        float(LogisticRegression(max_iter=50).fit(x[train], data.y[train]).score(x[test], data.y[test]))
        for x in (data.x, torch.cat([data.x, mean], dim=1))
    )
    return alone, together


@pytest.mark.parametrize(
    ("name", "options", "most_alone", "least_together"),
    [
        ("rmat", {"num_nodes": 8_000}, 0.5, 0.7),
        ("dcsbm", {"num_nodes": 4_000}, 0.45, 0.75),
        ("products-like", {"scale": 0.002, "label_noise": 0.0}, 0.2, 0.7),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_neighbors_tell_the_class_and_a_node_alone_does_not(
    name: str, options: dict[str, Any], most_alone: float, least_together: float
) -> None:
    alone, together = accuracies(load_dataset(name, **options))
    assert alone < most_alone
    assert together > least_together


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_noise_makes_features_harder_to_read() -> None:
    quiet, loud = (accuracies(load_dataset("dcsbm", num_nodes=2_000, feature_noise=noise))[0] for noise in (0.1, 2.0))
    assert quiet > 0.99
    assert loud < 0.3


@pytest.mark.parametrize("homophily", [0.0, 0.3, 0.8, 1.0])
def test_that_share_of_edges_stays_inside_a_class(homophily: float) -> None:
    data = load_dataset("dcsbm", num_nodes=20_000, avg_degree=4, num_features=1, homophily=homophily)
    inside = (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean()
    # 40,000 undirected edges: five standard errors, and 0.005 for the repeated ones that are merged.
    assert abs(float(inside) - homophily) <= 5 * math.sqrt(homophily * (1 - homophily) / 40_000) + 0.005
    assert data.y.bincount().tolist() == [2_500] * 8


@pytest.mark.parametrize("exponent", [2.2, 2.5, 3.5])
def test_degrees_follow_the_power_law(exponent: float) -> None:
    num_nodes = 20_000
    data = load_dataset("dcsbm", num_nodes=num_nodes, avg_degree=4, num_features=1, degree_exponent=exponent)
    power = (exponent - 1) / (exponent - 2)
    shift = _rank_shift(power, largest=math.sqrt(num_nodes / 4))
    degree = np.bincount(data.edge_index[1], minlength=num_nodes)[permutation(num_nodes, stream_key(0, 0))]
    rank = np.arange(num_nodes) % 2_500 / 2_500
    low = shift ** (1 / power)
    for x in (0.01, 0.1, 0.5):
        expected = ((x + shift) ** (1 / power) - low) / ((1 + shift) ** (1 / power) - low)
        # 80,000 ends: five standard errors, and 0.02 for pairs of hubs that are drawn twice and merged.
        assert abs(degree[rank < x].sum() / degree.sum() - expected) < 5 * math.sqrt(0.25 / 80_000) + 0.02


@pytest.mark.parametrize("largest", [1.5, 10.0, 200.0])
def test_the_largest_weight_is_as_asked(largest: float) -> None:
    shift = _rank_shift(3.0, largest=largest)
    rank = (np.arange(2_000_000) + 0.5) / 2_000_000
    weight = (rank + shift) ** (1 / 3 - 1)
    assert shift ** (1 / 3 - 1) / weight.mean() == pytest.approx(largest, rel=1e-3)


def test_rmat_has_hubs_anywhere() -> None:
    data = load_dataset("rmat", num_features=1)
    degree = np.bincount(data.edge_index[1], minlength=data.num_nodes)
    assert degree.max() > 50 * degree.mean()
    hubs = np.argsort(-degree)[:100]
    # Uniform ids have mean N / 2 and standard deviation N / sqrt(12); five standard errors of the mean of 100.
    assert abs(hubs.mean() / data.num_nodes - 0.5) < 5 / math.sqrt(12 * 100)


def test_rmat_classes_are_about_as_frequent_and_found_in_the_neighborhood_mean() -> None:
    data = load_dataset("rmat", num_classes=4, num_features=4, feature_noise=0.0)
    assert data.y.bincount().min() > data.num_nodes / 8
    # Without noise the features are the hidden vectors times a matrix, so their means tell the class exactly.
    mean = closed_neighborhood_mean(data.edge_index.numpy(), data.x.numpy())
    assert LogisticRegression(max_iter=500, C=1e4).fit(mean, data.y).score(mean, data.y) > 0.98


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmat", {"num_nodes": 1}, "`num_nodes` must be a whole number of at least 2, but got 1."),
        ("rmat", {"avg_degree": 0}, "`avg_degree` must be a number above 0, but got 0."),
        ("rmat", {"num_nodes": 10, "avg_degree": 9.5}, "`avg_degree` must be at most 9 with 10 nodes, but got 9.5."),
        ("rmat", {"a": 1.2}, "`a` must be a number from 0 to 1, but got 1.2."),
        ("rmat", {"a": 0.6, "b": 0.3}, "`a`, `b` and `c` must sum to at most 1, but sum to 1.09."),
        ("rmat", {"level_noise": -1}, "`level_noise` must be a number from 0 to 1, but got -1."),
        ("rmat", {"feature_noise": -1}, "`feature_noise` must be a number of at least 0, but got -1."),
        ("dcsbm", {"homophily": 1.5}, "`homophily` must be a number from 0 to 1, but got 1.5."),
        ("dcsbm", {"degree_exponent": 2}, "`degree_exponent` must be a number above 2, but got 2."),
        ("dcsbm", {"num_classes": 0}, "`num_classes` must be a whole number of at least 1, but got 0."),
        (
            "dcsbm",
            {"num_nodes": 15, "avg_degree": 2},
            "`num_nodes` must be at least two per class, but 15 nodes",
        ),
        ("dcsbm", {"num_nodes": 100, "homophily": 1.0, "avg_degree": 20}, "100 nodes cannot hold 2,000 directed edges"),
        ("products-like", {"scale": 0}, "`scale` must be a number above 0, but got 0."),
        (
            "products-like",
            {"scale": 1e-5},
            "`scale` must be above 2.1e-05 for `products-like`, but got 1e-05: 24",
        ),
        ("reddit-like", {"scale": 0.001}, "`scale` must be above 0.0021 for `reddit-like`, but got 0.001: 233 nodes"),
        ("flickr-like", {"scale": 1e-4}, "`scale` must be above 0.00011 for `flickr-like`, but got 0.0001: 9 nodes"),
        ("yelp-like", {"scale": 2e-4}, "`num_nodes` must be at least two per class, but 143 nodes have 100 classes."),
        ("reddit-like", {"scal": 1}, "Unknown option of dataset 'reddit-like' 'scal'. Did you mean 'scale'?"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        load_dataset(name, **options)
    assert str(caught.value).startswith(message)
    assert "HINT" in str(caught.value) or "Known" in str(caught.value)


def test_a_distribution_of_too_few_pairs_is_refused() -> None:
    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(count, dtype=np.int32), np.ones(count, dtype=np.int32)

    with pytest.raises(ValueError, match=r"3 nodes cannot hold 4 directed edges .* distinct pairs of 2\. HINT"):
        exact_graph(draw, num_nodes=3, num_pairs=2, key=stream_key(0, 0))
    edge_index = exact_graph(draw, num_nodes=3, num_pairs=1, key=stream_key(0, 0))
    assert edge_index.tolist() == [[1, 0], [0, 1]]


def test_streams_and_seeds_have_their_own_keys() -> None:
    keys = {int(stream_key(seed, stream)) for seed in (0, 1, 2, 2**64 - 1) for stream in range(8)}
    assert len(keys) == 32


@pytest.mark.parametrize("label_noise", [0.0, 0.25, 1.0])
def test_label_noise_redraws_that_share_of_labels_and_nothing_else(label_noise: float) -> None:
    clean = load_dataset("dcsbm", num_nodes=4000, num_classes=5)
    noisy = load_dataset("dcsbm", num_nodes=4000, num_classes=5, label_noise=label_noise)
    assert torch.equal(noisy.x, clean.x)
    assert torch.equal(noisy.edge_index, clean.edge_index)
    # A redrawn label is the old one with chance 1 / 5; five standard deviations of that binomial.
    redrawn = round(4000 * label_noise)
    changed = int((noisy.y != clean.y).sum())
    assert abs(changed - 0.8 * redrawn) <= 5 * (redrawn * 0.8 * 0.2) ** 0.5

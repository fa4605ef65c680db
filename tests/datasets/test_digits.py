from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_gnnopt.datasets import describe, load_dataset


def test_the_default_has_the_described_counts() -> None:
    data, info = load_dataset("digits-knn"), describe("digits-knn")
    assert (data.num_nodes, data.num_edges, data.num_features) == (info.num_nodes, info.num_edges, info.num_features)
    assert data.y.unique().tolist() == list(range(10))
    assert (data.y.dtype, data.x.dtype) == (torch.long, torch.float32)


def test_edges_join_each_digit_to_its_nearest_ones_in_both_directions() -> None:
    pixels, digit = load_digits(return_X_y=True)
    data = load_dataset("digits-knn", k=3)
    np.testing.assert_allclose(data.x.numpy(), pixels / 16)
    assert data.y.tolist() == digit.tolist()
    assert data.is_undirected()
    assert not data.has_self_loops()
    square = (pixels**2).sum(axis=1)
    distance = square[:, None] + square - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    third = np.sort(distance, axis=1)[:, 2]
    # An edge is among the three nearest of one of its ends; every digit is at least that many's neighbour.
    source, target = data.edge_index.numpy()
    assert (distance[source, target] <= np.maximum(third[source], third[target])).all()
    assert np.bincount(target).min() >= 3


@pytest.mark.parametrize(("k", "message"), [(0, "whole number of at least 1"), (1_797, "must be at most 1796")])
def test_k_out_of_range_is_refused(k: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"`k` .*{message}.* but got {k}. HINT"):
        load_dataset("digits-knn", k=k)

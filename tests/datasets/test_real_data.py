"""Every real graph on this machine has the published counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_gnnopt.datasets import describe, load_dataset

# fmt: off
NAMES = [
    "acm", "actor", "amazon-computers", "amazon-photo", "chameleon", "chameleon-filtered", "citeseer",
    "citeseer-full", "coauthor-cs", "coauthor-physics", "cora", "cora-ml", "dblp", "facebook-amherst41",
    "facebook-cornell5", "facebook-johns-hopkins55", "facebook-reed98", "heco-acm-psp", "heco-dblp-apcpa",
    "minesweeper", "polblogs", "squirrel", "squirrel-filtered", "uai",
]
# fmt: on


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_ones(name: str, real_data_root: Path) -> None:
    data, info = load_dataset(name, root=real_data_root, download=False), describe(name)
    assert data.num_nodes == info.num_nodes
    assert data.num_edges == info.num_edges
    assert data.num_features == info.num_features
    labels = data.y[data.y >= 0]
    assert labels.unique().tolist() == list(range(info.num_classes or 0))
    assert data.validate()
    assert data.edge_index.is_contiguous()
    # Sorted by destination, simple and symmetric: keys ascend, and the transposed edges have the same keys.
    source, target = data.edge_index
    key = target * data.num_nodes + source
    assert bool((key.diff() > 0).all())
    assert torch.equal((source * data.num_nodes + target).sort().values, key)
    assert not bool((source == target).any())
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert int(masks.sum(dim=0).max()) == 1
    assert not bool(masks[:, data.y < 0].any())
    if not info.splits:
        assert masks.sum(dim=1).tolist()[:2] == [len(labels) // 2, len(labels) // 4]
        assert int(masks.sum()) == len(labels)


@pytest.mark.parametrize("name", ["coauthor-cs", "coauthor-physics", "facebook-cornell5"])
def test_wide_features_stay_sparse(name: str, real_data_root: Path) -> None:
    assert load_dataset(name, root=real_data_root).x.layout == torch.sparse_csr


def test_the_variable_names_the_folder(real_data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNNOPT_DATA", str(real_data_root))
    assert load_dataset("facebook-reed98").num_edges == describe("facebook-reed98").num_edges

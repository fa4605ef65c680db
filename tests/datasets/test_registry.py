from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets import DATASETS, dataset_names, describe, load_dataset, register
from lightning_gnnopt.datasets.local import PublishedFiles

# fmt: off
NAMES = [
    "acm", "actor", "amazon-computers", "amazon-photo", "chameleon", "chameleon-filtered", "citeseer",
    "citeseer-full", "coauthor-cs", "coauthor-physics", "com-amazon", "cora", "cora-ml", "dblp", "dcsbm",
    "digits-knn", "facebook-amherst41", "facebook-cornell5", "facebook-johns-hopkins55", "facebook-reed98",
    "flickr", "flickr-like", "heco-acm-psp", "heco-dblp-apcpa", "minesweeper", "ogbn-products", "polblogs",
    "products-like", "pubmed", "reddit", "reddit-like", "rmat", "squirrel", "squirrel-filtered", "uai", "yelp",
    "yelp-like",
]
# fmt: on


@pytest.fixture(autouse=True)
def registry_restored() -> Iterator[None]:
    before = dict(DATASETS)
    yield
    DATASETS.clear()
    DATASETS.update(before)


def test_all_names_are_there_and_sorted() -> None:
    names = dataset_names()
    assert names == sorted(names)
    assert set(names) >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_says_what_it_is_and_whom_to_cite(name: str) -> None:
    info = describe(name)
    assert info.name == name
    assert info.summary.endswith(".")
    assert info.citation.endswith(".")
    assert info.source
    assert info.multilabel == (name == "yelp")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    for function in (describe, load_dataset):
        with pytest.raises(ValueError, match=r"Unknown dataset 'citeser'. Did you mean 'citeseer'\? Known: acm, actor"):
            function("citeser")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match=r"`name` 'cora' is already registered. HINT"):
        register("cora")


def ring(*, num_nodes: int = 8) -> Data:
    node = torch.arange(num_nodes)
    return Data(x=torch.ones(num_nodes, 1), y=node % 2, edge_index=torch.stack([node, (node + 1) % num_nodes]))


def test_a_users_loader_gets_its_options_and_a_random_split() -> None:
    assert register("toy", summary="A ring.", num_classes=2)(ring) is ring
    info = describe("toy")
    assert (info.options, info.splits, info.summary, info.num_classes) == (("num_nodes",), (), "A ring.", 2)
    data = load_dataset("toy", num_nodes=4)
    assert data.edge_index.tolist() == [[0, 1, 2, 3], [1, 2, 3, 0]]  # a user's edges stay as they are
    assert [int(data[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")] == [2, 1, 1]
    with pytest.raises(ValueError, match=r"Unknown option of dataset 'toy' 'nodes'. .*Known: num_nodes."):
        load_dataset("toy", nodes=4)


def test_a_users_loader_gets_seed_split_and_paths_if_it_asks_for_them(tmp_path: Path) -> None:
    got = []

    @register(
        "toy",
        splits=("odd", 3),
        files=PublishedFiles(
            folders=("toy",), anywhere=(("toy.txt",),), download=lambda root: None, source="a friend's disk"
        ),
    )
    def load(*, seed: int, split: str | int, paths: tuple[Path, ...]) -> Data:
        got.append((seed, split, paths))
        data = ring(num_nodes=4)
        data.train_mask = data.val_mask = data.test_mask = torch.tensor([True, False, False, False])
        return data

    (tmp_path / "toy.txt").touch()
    path = (tmp_path / "toy.txt",)
    published = load_dataset("toy", root=tmp_path)
    assert published.train_mask.tolist() == [True, False, False, False]
    load_dataset("toy", root=tmp_path, split=3, seed=5)
    shuffled = load_dataset("toy", root=tmp_path, split="random")
    assert int(shuffled.train_mask.sum()) == 2
    assert got == [(0, "odd", path), (5, 3, path), (0, "odd", path)]
    assert describe("toy").options == ()
    assert describe("toy").source == "a friend's disk"

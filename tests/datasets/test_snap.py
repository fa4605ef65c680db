from __future__ import annotations

import gzip
import io
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gnnopt.datasets import describe, load_dataset

GRAPH = "# Undirected graph\n# FromNodeId\tToNodeId\n10\t30\n30\t548\n10\t77\n77\t10\n"  # nodes 10, 30, 77, 548
COMMUNITIES = "548\t30\n10\t30\t77\n77\n"


def write_files(folder: Path, *, communities: str | None = None, zipped: bool = True) -> None:
    for name, text in (("ungraph", GRAPH), (communities, COMMUNITIES)):
        if name and zipped:
            (folder / f"com-amazon.{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
        elif name:
            (folder / f"com-amazon.{name}.txt").write_text(text)


@pytest.mark.parametrize("zipped", [True, False])
def test_ids_are_renumbered_and_features_drawn(tmp_path: Path, zipped: bool) -> None:
    write_files(tmp_path, zipped=zipped)
    data = load_dataset("com-amazon", root=tmp_path, num_features=3, download=False)
    assert data.edge_index.tolist() == [[1, 2, 0, 3, 0, 1], [0, 0, 1, 1, 2, 3]]
    assert data.x.shape == (4, 3)
    assert torch.equal(data.x, load_dataset("com-amazon", root=tmp_path, num_features=3).x)
    assert not torch.equal(data.x, load_dataset("com-amazon", root=tmp_path, num_features=3, seed=1).x)
    assert int(data.train_mask.sum()) == 2


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("communities", ["all.dedup.cmty", "top5000.cmty"])
def test_the_largest_communities_are_the_classes(tmp_path: Path, communities: str, zipped: bool) -> None:
    write_files(tmp_path, communities=communities, zipped=zipped)
    # By size: {10, 30, 77} is class 0, {548, 30} class 1, {77} class 2; the smallest community of a node decides.
    y = [load_dataset("com-amazon", root=tmp_path, num_classes=classes).y.tolist() for classes in (1, 2, 3, 9)]
    assert y == [[0, 0, 0, -1], [0, 1, 0, 1], [0, 1, 2, 1], [0, 1, 2, 1]]


def test_labels_are_random_where_asked_or_where_no_communities_are_there(tmp_path: Path) -> None:
    write_files(tmp_path)
    labels = load_dataset("com-amazon", root=tmp_path).y
    write_files(tmp_path, communities="top5000.cmty")
    assert torch.equal(load_dataset("com-amazon", root=tmp_path, labels="random").y, labels)
    assert bool(((labels >= 0) & (labels < 10)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": "communities"},
            "`labels` is 'communities', but neither com-amazon.all.dedup.cmty.txt nor com-",
        ),
        ({"labels": "community"}, "Unknown value of `labels` 'community'. Did you mean 'communities'?"),
        ({"num_features": 0}, "`num_features` must be a whole number of at least 1, but got 0. HINT"),
        ({"num_classes": 0}, "`num_classes` must be a whole number of at least 1, but got 0. HINT"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_files(tmp_path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        load_dataset("com-amazon", root=tmp_path, **options)
    assert str(caught.value).startswith(message)


def test_graph_and_communities_are_downloaded_from_snap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(gzip.compress((GRAPH if "ungraph" in address else COMMUNITIES).encode()))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load_dataset("com-amazon", root=tmp_path, num_classes=2).y.tolist() == [0, 1, 0, 1]
    address = "https://snap.stanford.edu/data/bigdata/communities/com-amazon"
    assert sorted(asked) == [f"{address}.all.dedup.cmty.txt.gz", f"{address}.ungraph.txt.gz"]


def test_the_summary_says_that_features_are_random() -> None:
    assert "features here are random" in describe("com-amazon").summary

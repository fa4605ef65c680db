from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from lightning_gnnopt.datasets import load_dataset

MASKS = ("train_mask", "val_mask", "test_mask")


def test_the_data_has_everything_and_survives_what_pyg_does_with_it() -> None:
    data = load_dataset("digits-knn")
    assert set(data.keys()) == {"x", "y", "edge_index", *MASKS, "name"}
    assert data.validate()
    copies = (data, data.to("cpu"), data.clone(), pickle.loads(pickle.dumps(data)))
    assert [copy.name for copy in copies] == ["digits-knn"] * 4
    part = data.subgraph(torch.arange(100))
    assert part.num_nodes == 100
    assert part.name == "digits-knn"
    assert sum(data[mask].long() for mask in MASKS).tolist() == [1] * 1_797


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    first, again, other = (load_dataset("digits-knn", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_mask, again.train_mask)
    assert not torch.equal(first.train_mask, other.train_mask)
    assert torch.equal(first.edge_index, other.edge_index)


def test_features_are_laid_out_and_normalised_as_asked() -> None:
    raw = load_dataset("digits-knn")
    dense = load_dataset("digits-knn", normalize_features=True)
    sparse = load_dataset("digits-knn", normalize_features=True, features="sparse")
    assert float(raw.x.max()) == 1
    assert sparse.x.layout == torch.sparse_csr
    torch.testing.assert_close(dense.x.sum(dim=1), torch.ones(1_797))
    torch.testing.assert_close(sparse.x.to_dense(), dense.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "public"}, "Unknown split of dataset 'digits-knn' 'public'. Known: random."),
        ({"features": "csr"}, "Unknown value of `features` 'csr'. Known: auto, dense, sparse."),
        ({"features": "spares"}, "Unknown value of `features` 'spares'. Did you mean 'sparse'?"),
        ({"seed": -1}, "`seed` must not be negative, but got -1. HINT"),
        ({"kk": 3}, "Unknown option of dataset 'digits-knn' 'kk'. Did you mean 'k'? Known: k."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        load_dataset("digits-knn", **arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("split", ["publik", 10, -1])
def test_splits_out_of_range_are_refused_before_anything_is_read(tmp_path: Path, split: object) -> None:
    with pytest.raises(ValueError, match=r"Unknown split of dataset 'squirrel' .* Known: 0, 1, 2, .*, 9, random"):
        load_dataset("squirrel", root=tmp_path, split=split)


@pytest.mark.parametrize(
    "name",
    ["cora", "amazon-photo", "dblp", "acm", "flickr", "com-amazon", "ogbn-products", "facebook-reed98", "heco-acm-psp"],
)
def test_without_files_and_network_there_is_one_clear_error(name: str, empty_data_folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name)
    assert str(caught.value).startswith(f"Dataset `{name}` was not found below {empty_data_folder}, and the download")
    assert "HINT: put " in str(caught.value)
    assert "GNNOPT_DATA" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert ("pip install lightning-gnnopt[data]" in str(caught.value)) == (name == "ogbn-products")

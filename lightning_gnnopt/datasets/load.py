"""The one function that loads a dataset by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from torch_geometric.data import Data

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.datasets import (  # noqa: F401  (each module registers its datasets)
    dcsbm,
    digits,
    facebook,
    heco,
    heterophilous,
    npz,
    ogb,
    planetoid,
    reddit,
    rmat,
    saint,
    snap,
)
from lightning_gnnopt.datasets.features import Features, lay_out, normalize_rows
from lightning_gnnopt.datasets.info import DatasetInfo
from lightning_gnnopt.datasets.local import data_root, obtain
from lightning_gnnopt.datasets.registry import DATASETS, describe
from lightning_gnnopt.datasets.splits import random_split, set_masks


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    split: str | int | None = None,
    features: Features = "auto",
    normalize_features: bool = False,
    download: bool = True,
    **options: Any,
) -> Data:
    """Load a homogeneous graph for node classification.

    Published sets are looked for below `root` (the folder itself, its subfolders, and the layouts PyG and ogb write)
    and downloaded into it otherwise. Their edges are symmetrised, without self loops and duplicates, and sorted by
    destination.

    Args:
        name: One of `dataset_names`.
        root: Folder of the published files. None means the environment variable ``GNNOPT_DATA``, or else
            ``~/.cache/lightning_gnnopt``.
        seed: Seed of random splits and of synthetic graphs.
        split: A published split (`describe` lists them), or ``"random"``: half of the labelled nodes for training, a
            quarter each for validation and test. None means the first published one, else random.
        features: Layout of `x`: ``"dense"``; ``"sparse"``, a float32 CSR tensor; or ``"auto"``, sparse where dense
            would take more than 256 MiB with less than 10 % of the entries non-zero. PyG's ``Data.subgraph`` cannot
            index a CSR tensor.
        normalize_features: Divide each row of `x` by the sum of its absolute values; by default features are as
            published.
        download: Whether the network may be used.
        **options: Options of the dataset itself; `describe` lists them.

    Returns:
        PyG ``Data`` of ``N`` nodes and ``E`` directed edges:

        * ``x``: float32 of shape ``(N, F)``;
        * ``y``: long of shape ``(N,)``, -1 where unlabelled; for multi-label sets float of shape ``(N, labels)``;
        * ``edge_index``: long of shape ``(2, E)``;
        * ``train_mask``, ``val_mask``, ``test_mask``: boolean of shape ``(N,)``; unlabelled nodes are in none;
        * ``name``: the name.

    Raises:
        ValueError: If the name, the split or an option is unknown or out of range, or a file is damaged.
        FileNotFoundError: If the published files are neither below `root` nor to be had from the network.

    Examples:
        >>> data = load_dataset("digits-knn", k=5)
        >>> data.x.shape, data.num_edges, int(data.train_mask.sum())
        (torch.Size([1797, 64]), 12616, 898)
    """
    info = describe(name)
    _check(info, seed, split, features, options)
    entry = DATASETS[name]
    provided: dict[str, Any] = {"seed": seed}
    if info.splits:
        provided["split"] = split if split in info.splits else info.splits[0]
    if entry.files:
        provided["paths"] = obtain(name, entry.files, root=data_root(root), download=download)
    try:
        data = entry.loader(**{keyword: provided[keyword] for keyword in entry.provided}, **options)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        if not entry.files:
            raise
        raise ValueError(
            f"The files of dataset `{name}` in {provided['paths'][0].parent} do not hold what was published"
            f" ({type(error).__name__}: {error}). HINT: remove them, and get them again from {entry.files.source}."
        ) from error

    if split == "random" or "train_mask" not in data:
        set_masks(data, *random_split(data.y, seed))
    if normalize_features:
        data.x = normalize_rows(data.x)
    data.x = lay_out(data.x, features)
    data.name = name
    return data


def _check(info: DatasetInfo, seed: int, split: str | int | None, features: str, options: dict[str, Any]) -> None:
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, but got {seed}. HINT: 0 is the default.")
    splits = (*info.splits, "random")
    if split is not None and split not in splits:
        raise ValueError(unknown_name(f"split of dataset {info.name!r}", split, map(str, splits)))
    if features not in get_args(Features):
        raise ValueError(unknown_name("value of `features`", features, get_args(Features)))
    for option in options:
        if option not in info.options:
            raise ValueError(unknown_name(f"option of dataset {info.name!r}", option, info.options))

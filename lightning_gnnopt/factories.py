"""What the configs in ``conf/`` call by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.parallel import PartitionDataModule


def datamodule_from_name(
    name: str, *, root: str | None = None, options: Mapping[str, Any] | None = None, **loading: Any
) -> GraphDataModule:
    """Load a named graph and wrap it in a `GraphDataModule`.

    Args:
        name: A name of `lightning_gnnopt.datasets.dataset_names`.
        root: Folder with the published files, or to download to.
        options: Further arguments of `load_dataset`.
        **loading: Arguments of `GraphDataModule`.

    Returns:
        The DataModule.

    Raises:
        ValueError: If the name, an option or an argument is unknown or out of range.

    Examples:
        >>> datamodule_from_name("digits-knn", batch_size=64).num_classes
        10
    """
    return GraphDataModule(load_dataset(name, root=root, **dict(options or {})), **loading)


def parts_from_name(
    name: str,
    *,
    folder: str,
    root: str | None = None,
    options: Mapping[str, Any] | None = None,
    method: Any = "auto",
    objective: Any = "vol",
    seed: int = 0,
    **sampling: Any,
) -> PartitionDataModule:
    """Load a named graph for a `GraphParallelStrategy`; where it was cut before, its parts are enough.

    Args:
        name: A name of `lightning_gnnopt.datasets.dataset_names`.
        folder: Where the parts are, or will be.
        root: Folder with the published files, or to download to.
        options: Further arguments of `load_dataset`.
        method: See `PartitionDataModule`.
        objective: See `PartitionDataModule`.
        seed: Of the cut.
        **sampling: What concerns sampled batches, of which there are none.

    Raises:
        ValueError: If the name or an option is unknown or out of range.
    """
    is_cut = any(Path(folder).glob("*-parts"))
    data = None if is_cut else load_dataset(name, root=root, **dict(options or {}))
    return PartitionDataModule(data, folder=folder, method=method, objective=objective, seed=seed)

"""What the configs in ``conf/`` call by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule


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

"""The registry: name -> what is known about a dataset and how it is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.datasets.info import DatasetInfo
from lightning_gnnopt.datasets.local import PublishedFiles

Loader = TypeVar("Loader", bound=Callable[..., Any])

#: Keyword arguments that `load_dataset` hands to a loader whose signature asks for them; all others are options.
PROVIDED = ("paths", "seed", "split")


@dataclass(frozen=True)
class Entry:
    """How one dataset is loaded.

    Attributes:
        info: What is known about it beforehand.
        loader: The registered function.
        provided: Those of `PROVIDED` that the function asks for.
        files: Its published files, None for a set that is made.
    """

    info: DatasetInfo
    loader: Callable[..., Any]
    provided: tuple[str, ...]
    files: PublishedFiles | None


DATASETS: dict[str, Entry] = {}


def register(
    name: str,
    *,
    summary: str = "",
    num_nodes: int | None = None,
    num_edges: int | None = None,
    num_features: int | None = None,
    num_classes: int | None = None,
    multilabel: bool = False,
    citation: str = "",
    splits: tuple[str | int, ...] = (),
    files: PublishedFiles | None = None,
) -> Callable[[Loader], Loader]:
    """Decorate a function so that `load_dataset` finds it under a name.

    The function returns a PyG ``Data`` with ``x``, ``y`` and ``edge_index``, and with ``train_mask``, ``val_mask`` and
    ``test_mask`` where it has a published split. Its keyword-only arguments are the options of the dataset, except
    these, which `load_dataset` fills in: ``seed`` (int), ``split`` (one of `splits`), and with `files` also ``paths``
    (the published files, found or downloaded, in the order they are listed).

    Args:
        name: Name to register.
        summary: One or two sentences for `describe`.
        num_nodes: Number of nodes, as published.
        num_edges: Number of directed edges, as published.
        num_features: Number of features, as published.
        num_classes: Number of classes, as published.
        multilabel: Whether ``y`` is a float tensor of shape ``(N, num_classes)``.
        citation: Licence and paper.
        splits: Published splits, the default first.
        files: Published files to find or to download; None for a set that is made, not read.

    Returns:
        The decorator; it returns the function unchanged.

    Raises:
        ValueError: If the name is taken.

    Examples:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from lightning_gnnopt.datasets import describe, load_dataset, register
        >>> @register("ring", summary="A directed ring.", num_classes=2)
        ... def ring(*, num_nodes: int = 8) -> Data:
        ...     node = torch.arange(num_nodes)
        ...     edge_index = torch.stack([node, (node + 1) % num_nodes])
        ...     return Data(x=torch.ones(num_nodes, 1), y=node % 2, edge_index=edge_index)
        >>> load_dataset("ring", num_nodes=4).edge_index.tolist()
        [[0, 1, 2, 3], [1, 2, 3, 0]]
        >>> describe("ring").options
        ('num_nodes',)
    """
    if name in DATASETS:
        raise ValueError(f"`name` {name!r} is already registered. HINT: register your dataset under a new name.")

    def decorate(loader: Loader) -> Loader:
        parameters = inspect.signature(loader).parameters.values()
        keywords = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        info = DatasetInfo(
            name=name,
            summary=summary,
            num_nodes=num_nodes,
            num_edges=num_edges,
            num_features=num_features,
            num_classes=num_classes,
            multilabel=multilabel,
            source=files.source if files else "made on the spot, no files and no network needed",
            citation=citation,
            splits=splits,
            options=tuple(keyword for keyword in keywords if keyword not in PROVIDED),
        )
        DATASETS[name] = Entry(info, loader, tuple(k for k in keywords if k in PROVIDED), files)
        return loader

    return decorate


def dataset_names() -> list[str]:
    """Names of all registered datasets, sorted.

    Examples:
        >>> from lightning_gnnopt.datasets import dataset_names
        >>> dataset_names()[:3]
        ['acm', 'actor', 'amazon-computers']
    """
    return sorted(DATASETS)


def describe(name: str) -> DatasetInfo:
    """What is known about a dataset before it is loaded.

    Args:
        name: One of `dataset_names`.

    Raises:
        ValueError: If no dataset has that name.

    Examples:
        >>> from lightning_gnnopt.datasets import describe
        >>> describe("cora").num_edges
        10556
    """
    if name not in DATASETS:
        raise ValueError(unknown_name("dataset", name, dataset_names()))
    return DATASETS[name].info

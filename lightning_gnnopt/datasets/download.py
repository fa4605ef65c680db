"""Downloading published files: through PyG's dataset classes, or from an address."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


def files_only(dataset: type[Any]) -> type[Any]:
    """Derive from a PyG dataset class one that downloads its raw files and stops there.

    The raw files are then read by this package, the same way whether they were downloaded or already there. That
    also keeps PyG from unpickling what has just come from the network.

    Args:
        dataset: A subclass of PyG's ``InMemoryDataset``.
    """
    return type(dataset.__name__, (dataset,), {"process": lambda self: None, "load": lambda self, path: None})


def from_pyg(dataset: str, *, subfolder: str = "", **arguments: Any) -> Callable[[Path], None]:
    """Download with the named class of ``torch_geometric.datasets``.

    Args:
        dataset: Name of the class.
        subfolder: Folder below the data folder that becomes the class's ``root``; for a class that writes ``raw``
            straight into its root.
        **arguments: Further arguments of the class.
    """

    def download(root: Path) -> None:
        import torch_geometric.datasets

        files_only(getattr(torch_geometric.datasets, dataset))(root=str(root / subfolder), **arguments)

    return download


def from_address(address: str, files: tuple[str, ...], *, subfolder: str) -> Callable[[Path], None]:
    """Download files that lie beside each other at an address into ``<data folder>/<subfolder>/raw``.

    Args:
        address: Address of the folder, without the last slash.
        files: Names of the files.
        subfolder: Folder below the data folder.
    """

    def download(root: Path) -> None:
        folder = root / subfolder / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if (folder / file).is_file():
                continue
            partial = folder / f"{file}.part"
            with urllib.request.urlopen(f"{address}/{file}", timeout=60) as response, partial.open("wb") as out:
                shutil.copyfileobj(response, out)
            partial.replace(folder / file)

    return download

"""Downloading published files: through PyG's dataset classes, or from an address."""

from __future__ import annotations

import secrets
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


def files_only(dataset: type[Any]) -> type[Any]:
    """Derive from a PyG dataset class one that downloads its raw files and stops there.

    The raw files are then read by this package, the same way whether they were downloaded or already there. That
    also keeps PyG from unpickling what has just come from the network, or lies in a ``processed`` folder.

    Args:
        dataset: A subclass of PyG's ``InMemoryDataset``.
    """
    nowhere = secrets.token_hex(16)  # for ogb, which reads from it without `load`
    instead = {
        "_process": lambda self: None,
        "process": lambda self: None,
        "load": lambda self, path: None,
        "processed_dir": property(lambda self: str(Path(self.root) / nowhere)),
    }
    return type(dataset.__name__, (dataset,), instead)


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

    Raises:
        ValueError: If the address is not an ``https`` one.
    """
    if not address.startswith("https://"):
        raise ValueError(f"`address` must begin with https://, but is {address!r}.")

    def download(root: Path) -> None:
        folder = root / subfolder / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if (folder / file).is_file():
                continue
            # A name of its own: two processes may download the same file.
            partial = folder / f".{file}.{secrets.token_hex(4)}.part"
            try:
                with urllib.request.urlopen(f"{address}/{file}", timeout=60) as response, partial.open("wb") as out:
                    shutil.copyfileobj(response, out)
                    _check_whole(response, out.tell())
                partial.replace(folder / file)
            finally:
                partial.unlink(missing_ok=True)

    return download


def _check_whole(response: Any, received: int) -> None:
    """A connection that ends early is no error to `urllib`, and a server may lead away from https."""
    url, headers = getattr(response, "url", "https://"), getattr(response, "headers", {})  # other openers give neither
    if not url.startswith("https://"):
        raise ConnectionError(f"the download was led to {url}, which is not encrypted")
    promised = headers.get("Content-Length")
    if promised is not None and int(promised) != received:
        raise ConnectionError(f"{url} was cut off: {received:,} bytes of {int(promised):,}")

"""Finding a dataset's published files, in a folder or on the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "GNNOPT_DATA"


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """The files a dataset is published as, and how to download them.

    Attributes:
        folders: Names that the set's folder goes by; a search looks for ``<root>/*/<name>`` and compares
            case-insensitively where it has to tell two sets with equal file names apart.
        anywhere: Alternatives, each the file names wanted together in one folder, recognised in any folder.
        in_named_folder: Alternatives whose file names other sets use as well: taken only from a folder in `folders`,
            or from ``raw`` below one.
        download: Puts one of the alternatives below the given folder.
        source: Where the download comes from, for people.
        extra: Optional extra of this package that the download needs.
    """

    folders: tuple[str, ...]
    anywhere: tuple[tuple[str, ...], ...] = ()
    in_named_folder: tuple[tuple[str, ...], ...] = ()
    download: Callable[[Path], None]
    source: str
    extra: str | None = None


def data_root(root: str | Path | None) -> Path:
    """The folder to search and to download into.

    Args:
        root: A folder; None means the environment variable ``GNNOPT_DATA``, or else
            ``$XDG_CACHE_HOME/lightning_gnnopt`` (``~/.cache/lightning_gnnopt``).

    Examples:
        >>> data_root("graphs").name
        'graphs'
    """
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lightning_gnnopt"


def obtain(name: str, files: PublishedFiles, *, root: Path, download: bool) -> tuple[Path, ...]:
    """Find the published files of a dataset below a folder, or else download them into it.

    Args:
        name: Name of the dataset, for the error.
        files: What to look for and how to download it.
        root: Folder to search, a few levels deep, and to download into.
        download: Whether the network may be used.

    Returns:
        Paths of one alternative's files, in the order they are listed.

    Raises:
        FileNotFoundError: If the files are neither there nor to be had; chained to what stopped the download.
    """
    paths, missing = _search(files, root)
    if paths:
        return paths
    cause: BaseException | None = None
    if download:
        try:
            files.download(root)
        except (Exception, SystemExit) as error:  # any client, any failure; ogb leaves by `exit` when told not to load
            cause = error
        else:
            paths, missing = _search(files, root)
            if paths:
                return paths
    raise FileNotFoundError(_not_found(name, files, root, missing, download, cause)) from cause


def _search(files: PublishedFiles, root: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Paths of the first complete alternative, or the files that the most complete one lacks."""
    names = {folder.casefold() for folder in files.folders}
    fewest_missing: tuple[Path, ...] = ()
    for folder in _folders(root, files.folders):
        owner = folder.parent if folder.name == "raw" else folder
        named = files.in_named_folder if owner.name.casefold() in names else ()
        for alternative in (*files.anywhere, *named):
            paths = tuple(folder / file for file in alternative)
            missing = tuple(path for path in paths if not path.is_file())
            if not missing:
                return paths, ()
            # The first file is the telling one; the others' names may be those of another set.
            if missing[0] != paths[0] and (not fewest_missing or len(missing) < len(fewest_missing)):
                fewest_missing = missing
    return (), fewest_missing


def _folders(root: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the folders to look into: the root, its subfolders and the layouts that PyG and ogb write."""
    root = root.resolve()
    if not root.is_dir():
        return
    yield from (root, root / "raw")
    with os.scandir(root) as entries:
        children = sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    for child in children:
        yield from (child, child / "raw")
    for child in children:
        for name in names:
            yield from (child / name, child / name / "raw")


def _not_found(
    name: str, files: PublishedFiles, root: Path, missing: tuple[Path, ...], download: bool, cause: BaseException | None
) -> str:
    """One error that names both ways to get a dataset."""
    if missing:
        lost = " and ".join(f"`{path.name}`" for path in missing)
        found = f"Dataset `{name}` is incomplete: {lost} {'is' if len(missing) == 1 else 'are'} missing"
        found += f" in {missing[0].parent}"
    else:
        found = f"Dataset `{name}` was not found below {root}"
    if not download:
        tried = "and `download` is False"
    elif cause is None:
        tried = "and the download did not bring it"
    else:
        tried = f"and the download failed ({type(cause).__name__}: {cause})"
    wanted = " or ".join(", ".join(alternative) for alternative in (*files.anywhere, *files.in_named_folder))
    extra = f" after `pip install lightning-gnnopt[{files.extra}]`" if files.extra else ""
    return (
        f"{found}, {tried}. HINT: put {wanted} into {root / files.folders[0]} (`root`, `data.root` or the environment"
        f" variable {ROOT_VARIABLE} names another folder), or connect to the network once{extra}"
        f" to download it from {files.source}."
    )

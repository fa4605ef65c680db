"""A topology as a folder of `.npy` files."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lightning_gnnopt.sampling.shared_arrays import map_file

_VERSION = 1
_HEADER = "topology.json"
_HINT = "HINT: write the folder anew with `Topology.save`."


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a topology's arrays into a new folder that appears complete or not at all.

    Args:
        path: The folder, which must not exist or be empty.
        arrays: ``indptr``, ``indices`` and maybe ``edge_ids``.

    Raises:
        FileExistsError: If there is something at `path`.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise _occupied(path)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        header = {
            "version": _VERSION,
            "num_nodes": len(arrays["indptr"]) - 1,
            "num_edges": len(arrays["indices"]),
            "arrays": list(arrays),
            "id": uuid.uuid4().hex,
        }
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        (temporary / _HEADER).write_text(json.dumps(header) + "\n", encoding="utf-8")
        try:
            temporary.rename(path)
        except OSError as error:
            if path.exists():  # another process was faster
                raise _occupied(path) from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _occupied(path: Path) -> FileExistsError:
    return FileExistsError(
        f"`path` must not exist yet, but there is something at '{path}'."
        " HINT: choose another folder, or remove this one first."
    )


@dataclass(frozen=True)
class TopologyFolder:
    """A folder that :func:`save_arrays` wrote.

    Attributes:
        path: Its absolute path.
        id: Made when it was written: another graph at the same path has another.
        names: The arrays it holds.
        num_nodes: Number of nodes ``N``.
        num_edges: Number of directed edges ``E``.
    """

    path: str
    id: str
    names: tuple[str, ...]
    num_nodes: int
    num_edges: int

    @classmethod
    def open(cls, path: Path) -> TopologyFolder:
        """Read the folder's header.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not one of this version's.
        """
        header_path = path.resolve() / _HEADER
        try:
            header = json.loads(header_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"`path` must be a folder that `Topology.save` wrote, but there is no '{header_path}'."
                " HINT: check the path; `Topology.from_data(data).save(path)` writes one."
            ) from error
        except ValueError:
            _refuse(header_path, "is not JSON")
        if not isinstance(header, dict) or header.get("version") != _VERSION:
            version = header.get("version") if isinstance(header, dict) else None
            _refuse(header_path, f"has version {version!r} instead of {_VERSION}")
        try:
            names, counts = tuple(map(str, header["arrays"])), (int(header["num_nodes"]), int(header["num_edges"]))
            if min(counts) < 0:
                raise ValueError(f"{counts[0]} nodes and {counts[1]} edges")
            return cls(str(header_path.parent), str(header["id"]), names, *counts)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            _refuse(header_path, f"lacks an entry or has a wrong one ({error!r})")

    def arrays(self, *, mmap: bool = True) -> dict[str, NDArray[Any]]:
        """Map the arrays into memory, or read them.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one has another type, length or size than the header says, or the folder was replaced.
        """
        if TopologyFolder.open(Path(self.path)).id != self.id:
            _refuse(Path(self.path), "holds another graph than when it was loaded", "HINT: load it again.")
        lengths = {"indptr": self.num_nodes + 1, "indices": self.num_edges, "edge_ids": self.num_edges}
        if {"indptr", "indices"} - set(self.names) or set(self.names) - set(lengths):
            _refuse(Path(self.path) / _HEADER, f"lists the arrays {list(self.names)}")
        return {name: _array(Path(self.path) / f"{name}.npy", lengths[name], mmap=mmap) for name in self.names}


def _array(path: Path, length: int, *, mmap: bool) -> NDArray[Any]:
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"'{path}' is missing from the topology's folder. {_HINT}") from error
    with stream:
        try:
            if npy.read_magic(stream) != (1, 0):
                raise ValueError("not format 1.0")
            shape, _, dtype = npy.read_array_header_1_0(stream)
        except ValueError as error:
            _refuse(path, f"is not a .npy file ({error})")
        allowed = (np.int64,) if path.stem == "indptr" else (np.int32, np.int64)
        if dtype not in allowed:
            _refuse(path, f"holds {dtype} instead of {' or '.join(np.dtype(kind).name for kind in allowed)}")
        if shape != (length,):
            _refuse(path, f"holds shape {shape} instead of {(length,)}")
        offset = stream.tell()
        size, expected = os.fstat(stream.fileno()).st_size, offset + length * dtype.itemsize
        if size != expected:
            _refuse(path, f"has {size:,} bytes instead of {expected:,}")
        return map_file(stream.fileno(), dtype, length, offset) if mmap else np.fromfile(stream, dtype, length)


def _refuse(path: Path, found: str, hint: str = _HINT) -> NoReturn:
    raise ValueError(f"'{path}' {found}. {hint}")

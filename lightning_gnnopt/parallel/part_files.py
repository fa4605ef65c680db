"""A cut graph as a folder of `.npy` files, of which each rank maps its own."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.parallel.parts import GraphPart

_VERSION = 1
_HEADER = "partition.json"
# numpy reads a header with Python's parser, which Python 3.11 does not always survive in two threads at once.
_READING = threading.Lock()
_HINT = "HINT: write the folder anew with `partition_graph` or `gnnopt-partition`."
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class PartitionInfo:
    """What is known of a cut graph without reading its arrays.

    Attributes:
        id: Made when it was written: another cut at the same path has another.
        num_parts: Number of parts, ``P``.
        num_nodes: Nodes of the graph, ``N``.
        num_edges: Edges of the graph, ``E``.
        made_by: How it was cut: method, objective, seed.
        parts: For each part its ``inner``, ``halo`` and ``edges``, and ``send_counts`` and ``recv_counts``.
        attributes: For each attribute its ``kind`` (``"node"``, ``"edge"``, ``"graph"`` or ``"value"``), and the
            ``dtype`` and ``shape`` of the whole tensor, and its ``largest`` value if it is of integers; or the plain
            value.
        targets: Nodes of each mask by part, of ``train_mask`` and the like.
    """

    id: str
    num_parts: int
    num_nodes: int
    num_edges: int
    made_by: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...]
    attributes: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, tuple[int, ...]]


def save_parts(
    folder: Path, data: Data, parts: Iterable[GraphPart], *, num_parts: int, made_by: Mapping[str, Any]
) -> PartitionInfo:
    """Write a cut graph into a new folder that appears complete or not at all.

    Args:
        folder: The folder, which must not exist or be empty.
        data: The graph.
        parts: Its parts.
        num_parts: Number of parts.
        made_by: How it was cut, to be remembered.

    Raises:
        FileExistsError: If there is something at `folder`.
        ValueError: If an attribute cannot be stored.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise _occupied(folder)
    attributes = describe_attributes(data)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        described: list[dict[str, Any]] = []
        targets: dict[str, list[int]] = {name: [] for name in attributes if name.endswith("_mask")}
        for part in parts:
            place = temporary / f"part-{part.rank}"
            place.mkdir()
            for name, array in part.arrays().items():
                np.save(place / f"{name}.npy", array, allow_pickle=False)
            rows = {"node": torch.from_numpy(part.inner), "edge": torch.from_numpy(part.edge_id)}
            for name, kept in attributes.items():
                if kept["kind"] != "value":
                    value = data[name] if kept["kind"] == "graph" else data[name][rows[kept["kind"]]]
                    np.save(place / f"data.{name}.npy", _to_numpy(value), allow_pickle=False)
                    if name in targets:
                        targets[name].append(int(value.sum()))
            described.append(
                {"inner": part.num_inner, "halo": part.num_halo, "edges": len(part.edge_id),
                 "send_counts": list(part.send_counts), "recv_counts": list(part.recv_counts)}
            )  # fmt: skip
        header = {
            "version": _VERSION, "id": uuid.uuid4().hex, "num_parts": num_parts, "num_nodes": int(data.num_nodes or 0),
            "num_edges": int(data.num_edges), "made_by": dict(made_by), "parts": described, "attributes": attributes,
            "targets": targets,
        }  # fmt: skip
        (temporary / _HEADER).write_text(json.dumps(header) + "\n", encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError as error:
            if folder.exists():  # another process was faster
                raise _occupied(folder) from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_info(folder)


def read_info(folder: Path | str) -> PartitionInfo:
    """Read a folder's header.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not one of this version's.
    """
    path = Path(folder) / _HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"There is no cut graph in '{folder}': '{path}' is missing. {_HINT}") from error
    except ValueError:
        _refuse(path, "is not JSON")
    if not isinstance(header, dict) or header.pop("version", None) != _VERSION:
        _refuse(path, f"is not of version {_VERSION}")
    try:
        targets = {str(name): tuple(map(int, counts)) for name, counts in header.pop("targets").items()}
        info = PartitionInfo(**{**header, "parts": tuple(header["parts"]), "targets": targets})
        if len(info.parts) != info.num_parts:
            raise ValueError(f"{len(info.parts)} parts instead of {info.num_parts}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _refuse(path, f"lacks an entry or has a wrong one ({error!r})")
    return info


def describe_attributes(data: Data) -> dict[str, dict[str, Any]]:
    """Say of each attribute what `PartitionInfo` keeps.

    Raises:
        ValueError: If one cannot be stored.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in data.to_dict().items():
        if name == "edge_index" or (name == "num_nodes" and isinstance(value, int)):
            continue
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise ValueError(
                    f"`data.{name}` must be dense to be stored by part, but is {value.layout}."
                    " HINT: `.to_dense()`, or its principal components."
                )
            kind = "node" if data.is_node_attr(name) else "edge" if data.is_edge_attr(name) else "graph"
            is_integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
            found[name] = {
                "kind": kind, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape),
                "largest": int(value.max()) if is_integer and value.numel() else None,
            }  # fmt: skip
        elif isinstance(value, _PLAIN):
            found[name] = {"kind": "value", "value": value}
        else:
            raise ValueError(
                f"`data.{name}` must be a tensor or a plain value to be stored by part, but is a"
                f" {type(value).__name__}. HINT: `del data.{name}` if training does not need it."
            )
    return found


def load_part(folder: Path | str, rank: int) -> tuple[GraphPart, Data]:
    """Map a part and what it has of the graph's attributes into memory.

    Args:
        folder: Written by :func:`save_parts`.
        rank: Which part.

    Returns:
        The part, and its attributes: rows of its own nodes, and of its edges.

    Raises:
        FileNotFoundError: If there is no such folder, or a file is missing.
        ValueError: If there is no such part, or a file is damaged.
    """
    info = read_info(folder)
    if not 0 <= rank < info.num_parts:
        raise ValueError(
            f"The graph in '{folder}' was cut into {info.num_parts} parts, but part {rank} is asked for."
            " HINT: cut it into as many parts as there are processes."
        )
    place, entry = Path(folder) / f"part-{rank}", info.parts[rank]
    arrays = {name: _map(place / f"{name}.npy") for name in GraphPart.ARRAYS}
    part = GraphPart(
        rank, info.num_parts, info.num_nodes, info.num_edges,
        send_counts=tuple(map(int, entry["send_counts"])), recv_counts=tuple(map(int, entry["recv_counts"])), **arrays,
    )  # fmt: skip
    sizes = (part.num_inner, part.num_halo, len(part.edge_id), part.edge_index.shape[1], len(part.send_index))
    expected = (entry["inner"], entry["halo"], entry["edges"], entry["edges"], sum(part.send_counts))
    if sizes != expected:
        _refuse(place, f"has arrays of {sizes} nodes, edges and rows instead of {expected}")
    data = Data()
    for name, kept in info.attributes.items():
        if kept["kind"] == "value":
            data[name] = kept["value"]
        else:
            data[name] = _from_numpy(_map(place / f"data.{name}.npy"), kept["dtype"])
    return part, data


def _to_numpy(value: Tensor) -> Any:
    value = value.detach().cpu().contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _from_numpy(array: Any, dtype: str) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _map(path: Path) -> Any:
    """Map an array, copy-on-write: the file is never changed, and torch does not warn of memory it may not write to."""
    try:
        with _READING:
            return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"'{path}' is missing from a cut graph's folder. {_HINT}") from error
    except ValueError as error:
        if path.stat().st_size and "mmap" in str(error):  # an empty array cannot be mapped
            return np.load(path, allow_pickle=False)
        _refuse(path, f"is not a .npy file ({error})")


def _occupied(folder: Path) -> FileExistsError:
    return FileExistsError(
        f"`folder` must not exist yet, but there is something at '{folder}'."
        " HINT: choose another folder, or remove this one first."
    )


def _refuse(path: Path, what: str) -> NoReturn:
    raise ValueError(f"'{path}' {what}. {_HINT}")

"""What four real processes do together with `shared_on_machine`; apart from the tests, so that they import little."""

from __future__ import annotations

import gc
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from lightning_gnnopt.loading import sharing
from lightning_gnnopt.loading.sharing import shared_on_machine
from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.sampling.shared_arrays import SharedArrays

RAW_BYTES = 64 * 2**20
NUM_NODES, DEGREE = 2**20, 14


class Raw:
    """An array and no more."""

    def __init__(self, values: NDArray[Any], source: SharedArrays | None = None) -> None:
        self.values = values
        self.source = source

    def share(self) -> Raw:
        source = SharedArrays({"values": self.values})
        return Raw(source.arrays()["values"], source)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Raw, (self.values,)) if self.source is None else (opened, (self.source,))


def opened(source: SharedArrays) -> Raw:
    return Raw(source.arrays()["values"], source)


class Unshareable(Raw):
    def share(self) -> Raw:
        raise OSError(28, "No space left on device")


class Unreadable(Raw):
    def share(self) -> Unreadable:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def large_raw() -> Raw:
    return Raw(np.arange(RAW_BYTES // 8, dtype=np.int64))


def small_raw() -> Raw:
    return Raw(np.arange(1000))


def large_topology() -> Topology:
    """About 67 MB."""
    indices = (np.arange(NUM_NODES * DEGREE, dtype=np.int64) * 48_271 % NUM_NODES).astype(np.int32)
    return Topology.from_csc(np.arange(NUM_NODES + 1) * DEGREE, indices)


def mapping_of(array: NDArray[Any]) -> dict[str, Any]:
    """What the kernel says of the mapping that an array lies in: which file, and its bytes by kind."""
    address = array.ctypes.data
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for entry in entries[1:]:
        first, last, device, inode = re.match(r"(\w+)-(\w+) \S+ \S+ (\S+) (\d+)", entry).groups()
        if int(first, 16) <= address < int(last, 16):
            kinds = {kind: 1024 * int(kib) for kind, kib in re.findall(r"^(\w+): +(\d+) kB", entry, re.MULTILINE)}
            return {"file": f"{device}:{inode}", **kinds}
    raise LookupError(address)


class Counted:
    """Counts the calls of a function that makes something."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.function()


def together(function: Callable[[], Any], node_rank: int, local_rank: int) -> dict[str, Any]:
    """Call `shared_on_machine`, and note what came out: values, mapping, calls, errors and warnings."""
    make = Counted(function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            shared = shared_on_machine(make, node_rank=node_rank, local_rank=local_rank)
        except Exception as error:
            found: dict[str, Any] = {"error": (type(error).__name__, str(error))}
        else:
            array = shared.indices if isinstance(shared, Topology) else shared.values
            found = {"sum": int(array.sum()), "length": len(array), "shared": shared.source is not None}
            dist.barrier()  # everybody has read all of it
            if shared.source is not None:
                found["mapping"] = mapping_of(array)
            dist.barrier()
    return found | {"calls": make.calls, "warnings": [str(warning.message) for warning in caught]}


def denied(path: str, flags: int, mode: int = 0o777, *, real: Any = os.open, **options: Any) -> int:
    if str(path).startswith("/proc/"):
        raise PermissionError(13, "Permission denied", path)
    return real(path, flags, mode, **options)


def late(payload: bytes) -> Any:
    time.sleep(0.5)
    return pickle.loads(payload)


def child(rank: int, world_size: int, folder: str, pipe: Connection) -> None:
    """Be one of four processes: 0 and 1 on the first machine, 2 and 3 on the second, unless it says otherwise."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    rank_zero_only.rank = rank  # as Lightning sets it
    node_rank, local_rank = divmod(rank, 2)
    found: dict[str, Any] = {}

    def fails_on(failing: int, error: type[Exception]) -> Raw:
        if rank == failing:
            raise error(f"`x` is missing in rank {rank}.")
        return small_raw()

    found["topology"] = together(large_topology, node_rank, local_rank)
    found["raw"] = together(large_raw, node_rank, local_rank)
    found["error"] = together(lambda: fails_on(2, ValueError), node_rank, local_rank)
    found["unreadable"] = together(lambda: Unreadable(np.arange(10)), node_rank, local_rank)
    found["unshareable"] = together(
        lambda: Unshareable(np.arange(1000)) if node_rank == 0 else small_raw(), node_rank, local_rank
    )
    with mock.patch.object(os, "open", denied if rank in (1, 3) else os.open):
        found["denied"] = together(small_raw, node_rank, local_rank)
        found["denied_error"] = together(lambda: fails_on(3, KeyError), node_rank, local_rank)
    # Three processes on one machine, whose local ranks go the other way round, and one that is alone.
    found["uneven"] = together(small_raw, int(rank == 3), 0 if rank == 3 else 2 - rank)

    slow = mock.Mock(loads=late, dumps=pickle.dumps)
    with mock.patch.object(sharing, "pickle", slow if local_rank else pickle):
        make = Counted(small_raw)
        shared = shared_on_machine(make, node_rank=node_rank, local_rank=local_rank)
        if local_rank == 0:
            del shared
            gc.collect()
        found["late"] = {"calls": make.calls}

    with (
        mock.patch.object(dist, "get_backend", return_value="nccl"),
        mock.patch.object(dist, "new_group", wraps=dist.new_group) as new_group,
        mock.patch.object(dist, "destroy_process_group", wraps=dist.destroy_process_group) as destroy,
    ):
        found["not_gloo"] = together(small_raw, node_rank, local_rank)
        found["not_gloo"]["groups"] = [str(call.kwargs["backend"]) for call in new_group.call_args_list]
        found["not_gloo"]["destroyed"] = destroy.call_count
    pipe.send(found)
    dist.destroy_process_group()

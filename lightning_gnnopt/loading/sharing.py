"""One copy on each machine of what all of its processes need."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

_TIMEOUT = timedelta(hours=12)  # while one process makes what the others wait for


class Shareable(Protocol):
    """What processes can share, such as a `Topology` or a `FeatureStore`."""

    def share(self) -> Self:
        """Give an equal object that pickles small, and maps the same memory where it is unpickled.

        Raises:
            OSError: If this machine has no memory for that.
        """
        ...


T = TypeVar("T", bound=Shareable)


class Share(Protocol):
    """Calls a function that makes something large, and hands out what is to be used instead."""

    def __call__(self, make: Callable[[], T]) -> T:
        """Call `make`, or take what another process has made."""


def shared_by_one(make: Callable[[], T]) -> T:
    """Make something large and share it: for further processes that this one starts.

    Raises:
        OSError: If this machine has no memory for that.
    """
    return make().share()


def shared_between(trainer: Any) -> Share | None:
    """Choose how the processes of a Trainer share what is large: by :func:`shared_on_machine`; None if it is alone."""
    if trainer is None or not (dist.is_available() and dist.is_initialized()):
        return None
    return partial(shared_on_machine, node_rank=trainer.node_rank, local_rank=trainer.local_rank)


def shared_on_machine(make: Callable[[], T], *, node_rank: int, local_rank: int) -> T:
    """Make something large once on each machine, and give it to all of the machine's processes.

    All processes of the default process group must call this together. On each machine, the one of local rank 0 calls
    `make` and shares what it gets; the others map that memory. Each goes on when all have it. A process that is alone,
    on its machine or altogether, keeps what it makes. Where a process cannot open another one's memory, as between
    containers, it calls `make` itself, and rank 0 warns of that.

    Args:
        make: Makes the object. It must make the same everywhere, and do nothing that the processes do together.
        node_rank: This process's machine.
        local_rank: This process's number on its machine.

    Returns:
        What `make` gives or, if the machine has several processes, what that one's `share` gives. It can be pickled to
        further processes while the process of local rank 0 keeps it.

    Raises:
        Exception: What was raised here by `make`, or while sharing.
        RuntimeError: If that happened to another process, of any machine.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return make()
    rank, value, error = dist.get_rank(), None, None
    with _group_for_objects() as group:
        places: list[tuple[int, int]] = _gather((node_rank, local_rank), group)
        neighbours = [other for other, (node, _) in enumerate(places) if node == node_rank]
        owner = min(neighbours, key=lambda other: places[other][1])

        offer: bytes | str | None = None
        if rank == owner:
            try:
                value, offer = _offer(make, alone=len(neighbours) == 1)
            except Exception as caught:  # told to all; they would wait for ever otherwise
                error = caught
        offer = _exchange(offer, error, places, group)[owner]

        failure: str | None = None
        if rank != owner:
            try:
                value, failure = _accept(cast("bytes | str", offer), make)
            except Exception as caught:
                error = caught
        # The owner keeps its object until the others have theirs.
        failures = [text for text in _exchange(failure, error, places, group) if text is not None]
    if failures:
        reason = failures[0].partition(" HINT:")[0]
        rank_zero_warn(
            f"{len(failures)} of {len(places)} processes could not map what another process of their machine shares, so"
            f" they keep copies of their own. The first of them met {reason} HINT: run the processes of a machine as"
            " one user in one container or PID namespace, or keep the features in a file that all of them map"
            " (`features='x.npy'`); with memory enough for copies, `share_memory=False` asks for them."
        )
    return cast(T, value)


def _offer(make: Callable[[], T], *, alone: bool) -> tuple[T, bytes | str]:
    """Make the object, and what the other processes of the machine get of it: a pickle, or why there is none."""
    value = make()
    if alone:
        return value, ""
    try:
        value = value.share()
    except OSError as error:
        return value, _text(error)
    return value, pickle.dumps(value)


def _accept(offer: bytes | str, make: Callable[[], T]) -> tuple[T, str | None]:
    """Map what is offered; if that cannot be, make it, and say why."""
    if isinstance(offer, str):
        return make(), offer
    try:
        return pickle.loads(offer), None
    except OSError as error:
        failure = _text(error)
    return make(), failure


def _exchange(word: Any, error: Exception | None, places: list[tuple[int, int]], group: Any) -> list[Any]:
    """Give all processes each one's word, in the order of their ranks; or raise on all, if one has an error."""
    told = _gather((word, None if error is None else _text(error)), group)
    if error is not None:
        raise error
    for rank, (_, text) in enumerate(told):
        if text is not None:
            hint = "" if "HINT:" in text else " HINT: the output of that process has the traceback."
            raise RuntimeError(
                f"Rank {rank} failed to make what the processes of machine {places[rank][0]} share: {text}{hint}"
            )
    return [word for word, _ in told]


def _gather(word: Any, group: Any) -> list[Any]:
    words = [None] * dist.get_world_size()
    dist.all_gather_object(words, word, group=group)
    return words


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _group_for_objects() -> Iterator[Any]:
    """All processes, with a backend that takes objects from host memory: NCCL would need a device of each."""
    if dist.get_backend() == dist.Backend.GLOO:
        yield None  # the default group
        return
    group = dist.new_group(backend=dist.Backend.GLOO, timeout=_TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)

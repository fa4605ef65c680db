"""Numbering of a batch's nodes: global id -> local id, through a table that is never cleared."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import AHEAD, EDGES_AHEAD, prefetch
from lightning_gnnopt.sampling.rng import ONE, mix64

_ENTRY_LIMIT = 2**32
_NO_KEYS = np.empty(0, np.int64)

DENSE_LIMIT_BYTES = 2**30
"""Above this size a thread's table is hashed: it then grows with the batch instead of the graph."""


@njit(nogil=True, cache=True)
def slot_of(keys: NDArray[np.int64], entries: NDArray[np.uint32], base: int, key: np.int64) -> np.int64:
    """Find the slot of `key`, or the free one where it belongs.

    Without `keys` the table is dense and a key is its own slot. With them it is hashed, with linear probing: a slot
    whose entry is below `base` was written by an earlier batch and is free.
    """
    if len(keys) == 0:
        return key
    mask = np.int64(len(keys) - 1)
    slot = np.int64(mix64(np.uint64(key)) & np.uint64(mask))
    while np.int64(entries[slot]) >= base and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def prefetch_slot(keys: NDArray[np.int64], entries: NDArray[np.uint32], key: np.int64) -> None:
    """Ask for the slot of `key`, or the one where the search for it begins."""
    if len(keys) == 0:
        prefetch(entries, key)
    else:
        slot = np.int64(mix64(np.uint64(key)) & np.uint64(len(keys) - 1))
        prefetch(keys, slot)
        prefetch(entries, slot)


@njit(nogil=True, cache=True)
def number_nodes(
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    size: int,
    nodes: NDArray[np.integer],
    new: NDArray[np.integer],
    locals_: NDArray[np.int32],
) -> np.int64:
    """Write the local id of each of `nodes`, numbering the unknown ones from `size` on; return how many those were."""
    if len(keys) == 0:
        n, start, free = np.uint64(len(nodes)), np.uint64(base), np.uint64(base + size)
        for e in range(n):
            if e + EDGES_AHEAD < n:
                prefetch(entries, nodes[e + EDGES_AHEAD])
            u = np.uint64(nodes[e])
            # Without a branch: whether a node is known is as good as random, and a wrong guess costs more than a store.
            entry = np.uint64(entries[u])
            known = entry >= start
            entry = entry if known else free
            entries[u] = entry
            new[free - start - np.uint64(size)] = u
            free += np.uint64(0) if known else ONE
            locals_[e] = entry - start
        return np.int64(free - start) - size
    num_new = np.int64(0)
    for i in range(len(nodes)):
        if i + AHEAD < len(nodes):
            prefetch_slot(keys, entries, np.int64(nodes[i + AHEAD]))
        node = np.int64(nodes[i])
        slot = slot_of(keys, entries, base, node)
        if np.int64(entries[slot]) < base:
            keys[slot] = node
            entries[slot] = base + size + num_new
            new[num_new] = node
            num_new += 1
        locals_[i] = np.int64(entries[slot]) - base
    return num_new


@njit(nogil=True, cache=True)
def start_numbering(
    keys: NDArray[np.int64], entries: NDArray[np.uint32], base: int, seeds: NDArray[np.integer]
) -> None:
    """Give each seed its place as local id; one that stands twice keeps the first."""
    for i in range(len(seeds)):
        seed = np.int64(seeds[i])
        slot = slot_of(keys, entries, base, seed)
        if np.int64(entries[slot]) < base:
            if len(keys) > 0:
                keys[slot] = seed
            entries[slot] = base + i


@njit(nogil=True, cache=True)
def _find(
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    nodes: NDArray[np.integer],
    locals_: NDArray[np.int32],
) -> None:
    n = len(nodes)
    for i in range(n):
        if i + AHEAD < n:
            prefetch_slot(keys, entries, np.int64(nodes[i + AHEAD]))
        entry = np.int64(entries[slot_of(keys, entries, base, np.int64(nodes[i]))])
        locals_[i] = entry - base if entry >= base else -1


@njit(nogil=True, cache=True)
def _rehash(
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    new_keys: NDArray[np.int64],
    new_entries: NDArray[np.uint32],
    new_base: int,
) -> None:
    for slot in range(len(keys)):
        entry = np.int64(entries[slot])
        if entry >= base:
            place = slot_of(new_keys, new_entries, new_base, keys[slot])
            new_keys[place] = keys[slot]
            new_entries[place] = entry - base + new_base


class NodeTable:
    """Gives the nodes of one batch after another their local ids.

    An entry of the table is ``base + local id``. The next batch starts at a `base` above all entries, so that what
    earlier batches left counts as unknown without being cleared. The table is dense (4 bytes per key that can occur)
    or, above a limit, a hash table that grows with the batch. One thread uses it at a time.

    Args:
        num_keys: Keys are integers from 0 to ``num_keys - 1``: node ids, or node ids times trees.
        dense_limit_bytes: A larger dense table is replaced by a hash table.
    """

    def __init__(self, num_keys: int, *, dense_limit_bytes: int = DENSE_LIMIT_BYTES) -> None:
        self.dense = 4 * num_keys <= dense_limit_bytes
        # Hashed or dense, the arrays of a kernel call are the same: no keys means dense.
        self._keys = _NO_KEYS if self.dense else np.empty(1024, np.int64)
        self._entries = np.zeros(num_keys if self.dense else 1024, np.uint32)
        self._base = 1
        self._size = 0
        self.room: tuple[int, int] = (0, 0)
        """Nodes and edges that whoever borrows the table had to make room for so far."""
        self.scratch: tuple[NDArray[Any], ...] | None = None
        """Arrays of that room, which are nobody's between two batches."""

    @property
    def size(self) -> int:
        """Local ids given so far in this batch."""
        return self._size

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.uint32], int]:
        """``keys, entries, base`` for :func:`slot_of` in a kernel; stale after the next `start` or `number`."""
        return self._keys, self._entries, self._base

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._keys.nbytes + self._entries.nbytes

    def start(self, seeds: NDArray[np.integer]) -> None:
        """Begin a batch: seed ``i`` gets the local id ``i``, a key that stands twice that of its first place."""
        start_numbering(*self.begin(len(seeds)), seeds)
        self._size = len(seeds)

    def begin(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], int]:
        """Begin a batch of at most so many keys, which a kernel numbers; give the table's :attr:`arrays`."""
        self._base += self._size
        self._size = 0
        self._make_room(most)
        return self.arrays

    def end(self, size: int) -> None:
        """Be told how many local ids the kernel gave."""
        self._size = size

    def number(self, nodes: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Give each key its local id.

        Args:
            nodes: Keys, shape ``(E,)``.

        Returns:
            The keys not seen before in this batch, in order of their first place, whose local ids are consecutive from
            :attr:`size` on; and the local ids of all `nodes`, int32 of shape ``(E,)``.
        """
        # One more than can be used: the kernel writes every node to the next place, and keeps the new ones.
        new = np.empty(len(nodes) + 1, nodes.dtype)
        locals_ = np.empty(len(nodes), np.int32)
        num_new = self.number_into(nodes, new, locals_)
        return new[:num_new].copy(), locals_

    def number_into(self, nodes: NDArray[np.integer], new: NDArray[np.integer], locals_: NDArray[np.int32]) -> int:
        """Do the same into given arrays.

        Args:
            nodes: Keys, shape ``(E,)``.
            new: Output, at least ``E + 1`` places: first the keys not seen before, behind them anything.
            locals_: Output, shape ``(E,)``; may be `nodes` itself.

        Returns:
            The number of keys not seen before.
        """
        self._make_room(len(nodes))
        num_new = int(number_nodes(self._keys, self._entries, self._base, self._size, nodes, new, locals_))
        self._size += num_new
        return num_new

    def find(self, nodes: NDArray[np.integer]) -> NDArray[np.int32]:
        """Look up the local id of each key, -1 where it has none; int32 of shape ``(E,)``."""
        locals_ = np.empty(len(nodes), np.int32)
        _find(self._keys, self._entries, self._base, nodes, locals_)
        return locals_

    def _make_room(self, num_more: int) -> None:
        needed = self._size + num_more
        if self._base + needed >= _ENTRY_LIMIT:
            self._restart()
        if not self.dense and 2 * needed > len(self._keys):
            keys = np.empty(1 << (2 * needed - 1).bit_length(), np.int64)
            entries = np.zeros(len(keys), np.uint32)
            _rehash(self._keys, self._entries, self._base, keys, entries, 1)
            self._keys, self._entries, self._base = keys, entries, 1

    def _restart(self) -> None:
        """Clear the table, once in some thousands of batches, when entries would exceed 32 bits."""
        known = self._entries >= self._base
        self._entries[known] -= np.uint32(self._base - 1)
        self._entries[~known] = 0
        self._base = 1


class TablePool:
    """The tables of one sampler: one for each thread that samples at the same time, made when first needed.

    Args:
        num_keys: As of `NodeTable`.
        dense_limit_bytes: As of `NodeTable`.
    """

    def __init__(self, num_keys: int, *, dense_limit_bytes: int = DENSE_LIMIT_BYTES) -> None:
        self.num_keys = num_keys
        self.dense_limit_bytes = dense_limit_bytes
        self._idle: list[NodeTable] = []
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self) -> Iterator[NodeTable]:
        """Lend a table for one batch."""
        with self._lock:
            table = self._idle.pop() if self._idle else None
        if table is None:
            table = NodeTable(self.num_keys, dense_limit_bytes=self.dense_limit_bytes)
        yield table
        # Not after an error: a table that was left in the middle of a batch may hold entries it does not know of.
        with self._lock:
            self._idle.append(table)

    def __getstate__(self) -> dict[str, Any]:
        return {"num_keys": self.num_keys, "dense_limit_bytes": self.dense_limit_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["num_keys"], dense_limit_bytes=state["dense_limit_bytes"])  # type: ignore[misc]

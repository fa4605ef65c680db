"""Rows of all nodes, each kept by the rank that owns the node, and the hottest rows of others by whoever wants them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore, Source, feature_store
from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.shuffle import Shuffle, check_agreed
from lightning_gnnopt.sampling.checks import checked_seeds

KIND = "features"
"""What the rows of batches are in the channel's traffic."""

KIND_CACHE = "features-cache"
"""What the rows that fill the cache are there."""


@dataclass
class GatherCounts:
    """Where the rows that batches asked for came from.

    Attributes:
        own: From this rank.
        cached: From its cache.
        fetched: From other ranks. A row that a batch asks for twice counts twice.
        travelled: Rows that were sent for them: a row that a batch asks for twice travels once.
    """

    own: int = 0
    cached: int = 0
    fetched: int = 0
    travelled: int = 0

    @property
    def total(self) -> int:
        """Rows that were asked for."""
        return self.own + self.cached + self.fetched

    @property
    def hit_rate(self) -> float:
        """Share of the rows of others that was cached; 0 if none was asked for."""
        remote = self.cached + self.fetched
        return self.cached / remote if remote else 0.0


class PartFeatures:
    """Rows of an attribute of nodes, over the ranks that own them.

    Each rank holds the rows of its own nodes and a static cache of some rows of others, as SALIENT++ has it (Kaler et
    al., "Communication-efficient graph neural networks with probabilistic neighborhood expansion analysis and
    caching", MLSys 2023). Which rows are worth it tell the policies of ``loading.hotness``, such as
    `inclusion_probabilities` of this rank's seeds. With a cache and without one, a batch gets the same bits.

    All ranks must make it, and with the same type and shape of a row.

    Args:
        rows: The rows of this rank's own nodes, in the order of their ids, shape ``(n, ...)``: of any type that torch
            has; see :func:`~lightning_gnnopt.loading.features.feature_store`.
        nodes: Who owns which node.
        channel: Connects the ranks; used by one thread. Rows travel between hosts' memories: over NCCL, give it a
            channel of a gloo group.
        cached: Global ids of the nodes whose rows to keep beside one's own, shape ``(H,)``; each rank has its own list.
            The rank's own nodes among them are passed over. It takes 8 bytes and a row for each.

    Attributes:
        counts: Where rows came from so far.

    Raises:
        ValueError: If there is not one row per own node, or `cached` are not ids of nodes.
        RuntimeError: If the rows of another rank are of another type or shape, or its `cached` is refused.

    Examples:
        >>> from lightning_gnnopt.parallel.parts import cut_graph
        >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
        >>> parts = list(cut_graph(np.array([[0, 1], [1, 0]]), np.array([0, 1, 1]), 2))
        >>> x = torch.tensor([0.0, 10.0, 20.0])
        >>> def work(channel):
        ...     nodes = NodeMap.collect(parts[channel.rank], channel)
        ...     features = PartFeatures(x[torch.from_numpy(nodes.inner)], nodes, channel, cached=np.array([2]))
        ...     return features.gather(np.array([2, 0, 1])), features.counts
        >>> run_ranks(2, work)[0]
        (tensor([20.,  0., 10.]), GatherCounts(own=1, cached=1, fetched=1, travelled=1))
    """

    def __init__(
        self,
        rows: Source | FeatureStore,
        nodes: NodeMap,
        channel: Channel,
        *,
        cached: NDArray[np.integer] | None = None,
    ) -> None:
        self._store = feature_store(rows)
        if self._store.num_rows != len(nodes.inner):
            raise ValueError(
                f"`rows` must hold a row for each of the {len(nodes.inner):,} nodes of part {nodes.rank}, but has"
                f" {self._store.num_rows:,}. HINT: `x[part.inner]`, or what `load_part` returns."
            )
        self._nodes, self._channel = nodes, channel
        self.counts = GatherCounts()
        self._cached = np.empty(0, np.int64)
        self._cached_rows = self._empty(0)
        check_agreed(channel, (self.dtype, self.row_shape), what="type and shape of a row", kind=KIND_CACHE)
        ids = self._checked([] if cached is None else cached, KIND_CACHE)
        remote = np.unique(ids[nodes.owner[ids] != nodes.rank]).astype(np.int64)
        self._cached_rows = self._fetch(remote, KIND_CACHE)
        self._cached = remote

    @property
    def dtype(self) -> torch.dtype:
        """Type of rows."""
        return self._store.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return tuple(self._store.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, as it travels."""
        return prod(self.row_shape) * self.dtype.itemsize

    @property
    def num_cached(self) -> int:
        """Rows of others that are kept, ``H``."""
        return len(self._cached)

    def gather(self, ids: NDArray[np.integer]) -> Tensor:
        """Collect the rows of a batch of each rank. All ranks must call it, be it without ids.

        Args:
            ids: Global ids of any nodes, shape ``(k,)``, in any order, with repeats.

        Returns:
            Their rows, shape ``(k, ...)``.

        Raises:
            ValueError: If an id is not a node of the graph.
            RuntimeError: If that is so on another rank.
        """
        ids = self._checked(ids, KIND)
        out = self._empty(len(ids))
        is_own = self._nodes.owner[ids] == self._nodes.rank
        slot = np.searchsorted(self._cached, ids)
        is_cached = np.zeros(len(ids), np.bool_)
        inside = slot < self.num_cached
        is_cached[inside] = self._cached[slot[inside]] == ids[inside]
        own, cached, others = map(np.flatnonzero, (is_own, is_cached, ~(is_own | is_cached)))
        wanted, which = np.unique(ids[others], return_inverse=True)
        fetched = self._fetch(wanted, KIND)
        _place(out, own, self._store.rows(self._nodes.local(ids[own])))
        _place(out, cached, self._cached_rows.index_select(0, torch.from_numpy(slot[cached])))
        _place(out, others, fetched.index_select(0, torch.from_numpy(which)))
        self.counts.own += len(own)
        self.counts.cached += len(cached)
        self.counts.fetched += len(others)
        self.counts.travelled += len(wanted)
        return out

    def _checked(self, ids: NDArray[np.integer] | list[int], kind: str) -> NDArray[np.integer]:
        array = np.asarray(ids)
        if array.ndim == 1 and array.size == 0:
            return np.empty(0, np.int64)
        with Shuffle.or_give_up(self._channel, kind=kind):
            try:
                return checked_seeds(array, self._nodes.num_nodes)
            except ValueError as error:
                name = "`cached`" if kind == KIND_CACHE else "`ids`"
                raise ValueError(str(error).replace("`seeds`", name)) from error

    def _fetch(self, ids: NDArray[np.integer], kind: str) -> Tensor:
        """Bring rows of others, as bytes: there is a type that every backend can send."""
        shuffle = Shuffle(self._channel, self._nodes.owner[ids], kind=kind)
        asked = shuffle.ask(ids.astype(np.int64))
        rows = self._store.rows(self._nodes.local(asked))
        received = shuffle.answer(_bytes_of(rows, self.row_bytes).numpy())
        fetched = self._empty(len(ids))
        _bytes_of(fetched, self.row_bytes).copy_(torch.from_numpy(received))
        return fetched

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty((num_rows, *self.row_shape), dtype=self.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.row_shape} per node, {self.dtype}, {self.num_cached:,} rows cached)"


def _bytes_of(rows: Tensor, row_bytes: int) -> Tensor:
    """View rows as their bytes, shape ``(n, row_bytes)``."""
    return rows.view(-1).view(torch.uint8).view(rows.size(0), row_bytes)


def _place(out: Tensor, places: NDArray[np.intp], rows: Tensor) -> None:
    out.index_copy_(0, torch.from_numpy(places), rows)

"""Hot rows of a store on the device, so that only the others travel."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt.loading.copies import Copy
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.hotness import best_hit_rate
from lightning_gnnopt.loading.hotness_kernels import count_ids
from lightning_gnnopt.loading.plan import Packed, Part
from lightning_gnnopt.loading.streams import DeviceStreams
from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch

_CHUNK_BYTES = 64 << 20  # of host memory at a time, while the cache is filled


class CachedFeatures(FeatureStore):
    """A store of which some rows lie on a device as well. What a batch gets is the same bits.

    Args:
        store: All rows.
        hot_ids: The rows to keep on the device, shape ``(H,)``, without repeats.
        streams: The device.
    """

    def __init__(self, store: FeatureStore, hot_ids: NDArray[np.integer], streams: DeviceStreams) -> None:
        super().__init__(store.shape, dtype=store.dtype, stored_dtype=store.stored_dtype, scale=store.scale)
        self.store = store
        self.num_cached = len(hot_ids)
        self._slot: NDArray[np.int32] = np.full(store.num_rows, -1, np.int32)
        self._slot[hot_ids] = np.arange(len(hot_ids), dtype=np.int32)
        self._rows = self._fill(hot_ids, streams)
        self._counts: NDArray[np.float64] = np.zeros(store.num_rows)
        self._counting = threading.Lock()
        self._counts_asked = True

    @property
    @override
    def nbytes(self) -> int:
        return self.store.nbytes

    @property
    def device_bytes(self) -> int:
        """Bytes on the device."""
        return self.num_cached * self.row_bytes

    @property
    def hit_rate(self) -> float:
        """Share of the rows asked for so far that were on the device."""
        asked = int(self._counts.sum())
        return float(self._counts[self._slot >= 0].sum() / asked) if asked else 0.0

    @property
    def best_hit_rate(self) -> float:
        """What the best choice of as many rows would have reached, known only afterwards."""
        return best_hit_rate(self._counts, self.num_cached)

    def reset_counts(self) -> None:
        """Forget what was asked for so far."""
        with self._counting:
            self._counts[:] = 0

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing that is asked for meanwhile, in whichever thread."""
        self._counts_asked = False
        try:
            yield
        finally:
            self._counts_asked = True

    @override
    def gather(self, ids: NDArray[np.integer], out: Tensor) -> None:
        self.store.gather(ids, out)

    @override
    def copied(self, ids: NDArray[np.integer]) -> Copy | None:
        return self.store.copied(ids)

    @override
    def restore(self, stored: Tensor, out: Tensor) -> None:
        self.store.restore(stored, out)

    @override
    def share(self) -> FeatureStore:
        return self.store.share()

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_is, (self.store,)  # rows on a device stay there

    def packed(self, ids: NDArray[np.integer]) -> Packed:
        """Tell apart the rows that are on the device and those that travel, and count both.

        Args:
            ids: Rows, shape ``(n,)``.
        """
        slots, places = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
        missing = np.empty_like(ids)
        # Hits fill `slots` and `places` from the front, misses fill `places` from the back.
        num_hits = int(_split(self._slot, ids, slots, places, missing))
        if self._counts_asked:
            with self._counting:
                count_ids(ids, self._counts)
        slots, missing = slots[:num_hits], missing[: len(ids) - num_hits]
        parts = (
            Part(torch.int32, (num_hits,), (Copy.of_array(slots),)),
            Part(torch.int32, (len(ids),), (Copy.of_array(places),)),
            Part(self.stored_dtype, (len(missing), *self.shape[1:]), lambda out: self.store.gather(missing, out)),
        )
        return Packed(parts, self._unpack, lookups=len(ids), hits=num_hits)

    def _unpack(self, parts: Sequence[Tensor], out: Tensor) -> None:
        slots, places, travelled = parts
        rows = out if self.stored_dtype == self.dtype else torch.empty_like(out, dtype=self.stored_dtype)
        places = places.long()
        rows.index_copy_(0, places[: len(slots)], self._rows.index_select(0, slots))
        rows.index_copy_(0, places[len(slots) :], travelled)
        if rows is not out:
            self.restore(rows, out)

    @torch.inference_mode(False)
    def _fill(self, hot_ids: NDArray[np.integer], streams: DeviceStreams) -> Tensor:
        """Bring the hot rows to the device, chunk by chunk."""
        with streams.active():
            return self._filled(hot_ids, streams)

    def _filled(self, hot_ids: NDArray[np.integer], streams: DeviceStreams) -> Tensor:
        rows = max(1, _CHUNK_BYTES // max(self.row_bytes, 1))
        target = streams.device_memory(len(hot_ids) * self.row_bytes)
        staging = streams.host_memory(min(rows, max(len(hot_ids), 1)) * self.row_bytes)
        for first in range(0, len(hot_ids), rows):
            ids = hot_ids[first : first + rows]
            begin, nbytes = first * self.row_bytes, len(ids) * self.row_bytes
            chunk = staging[:nbytes]
            self.store.gather(ids, chunk.view(self.stored_dtype).view(len(ids), *self.shape[1:]))
            part = target[begin : begin + nbytes]
            streams.copies.submit(lambda part=part, chunk=chunk: part.copy_(chunk), nbytes=nbytes)
            streams.copies.record().synchronize()
        return target.view(self.stored_dtype).view(len(hot_ids), *self.shape[1:])


def _as_it_is(store: FeatureStore) -> FeatureStore:
    return store


@njit(nogil=True, cache=True)
def _split(
    slot: NDArray[np.int32],
    ids: NDArray[np.integer],
    slots: NDArray[np.int32],
    places: NDArray[np.int32],
    missing: NDArray[np.integer],
) -> int:
    n = len(ids)
    hits, misses = 0, 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(slot, ids[i + AHEAD])
        s = slot[ids[i]]
        if s >= 0:
            slots[hits] = s
            places[hits] = i
            hits += 1
        else:
            missing[misses] = ids[i]
            misses += 1
            places[n - misses] = i
    # The misses stand in `places` from the back; bring them into the order of `missing`.
    low, high = hits, n - 1
    while low < high:
        places[low], places[high] = places[high], places[low]
        low += 1
        high -= 1
    return hits

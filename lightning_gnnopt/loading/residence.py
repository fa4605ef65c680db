"""Where a DataModule's batches and the hottest of its features are."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt._units import parse_bytes
from lightning_gnnopt.loading.cached_features import CachedFeatures
from lightning_gnnopt.loading.caching import CACHE_POLICIES, CachePolicy, cache_rows
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.placement import DevicePlacement, HostPlacement, Placement
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.sources import NodeSource
from lightning_gnnopt.loading.streams import DeviceStreams, streams_of


class Residence:
    """The device that a DataModule's batches go to; arguments are `GraphDataModule`'s.

    Pickled, it forgets buffers and what lies on a device: they are made anew where it arrives.
    """

    def __init__(
        self, device: torch.device | str | DeviceStreams | None, *, cache: int | str, cache_policy: CachePolicy
    ) -> None:
        if cache_policy not in CACHE_POLICIES:
            raise ValueError(unknown_name("cache_policy", cache_policy, CACHE_POLICIES))
        if isinstance(device, str):
            try:
                device = torch.device(device)
            except RuntimeError as error:
                raise ValueError(
                    f"`device` must be a torch device, such as 'cpu' or 'cuda:0', but got {device!r}."
                    " HINT: under a Trainer leave it out, and batches go where the Trainer trains."
                ) from error
        self.device = device
        self.cache = cache if cache == "auto" else parse_bytes(cache, name="cache")
        self._policy: CachePolicy = cache_policy
        if not self.cache and cache_policy != "auto":
            rank_zero_warn(
                f"`cache_policy={cache_policy!r}` does nothing without a `cache`."
                " HINT: `cache='2GiB'` keeps the hottest features on the device."
            )
        self._placement: Placement | None = None
        self._cached: FeatureStore | None = None

    @property
    def cached(self) -> CachedFeatures | None:
        """The features of which some are on the device, if there are such."""
        return self._cached if isinstance(self._cached, CachedFeatures) else None

    def placement(self, trainer: Any) -> Placement:
        """Find where batches go: to the streams that were given, or to the Trainer's device, or to the one given.

        Args:
            trainer: The Trainer, or None.

        Returns:
            The placement, the same one until the device is another.
        """
        streams = self._streams(trainer)
        if self._placement is None or getattr(self._placement, "streams", None) is not streams:
            self._placement = HostPlacement() if streams is None else DevicePlacement(streams)
            self._cached = None
        return self._placement

    def cache_rows(self, trainer: Any, store: FeatureStore, source: NodeSource, order: SeedOrder) -> FeatureStore:
        """Put the hottest rows on the device, if there is one, once.

        Args:
            trainer: The Trainer, or None.
            store: All rows.
            source: Samples the training batches.
            order: Which nodes stand in which training batch.
        """
        placement = self.placement(trainer)
        if not isinstance(placement, DevicePlacement):
            rank_zero_warn(
                f"`cache={self.cache!r}` is of no use where batches stay in host memory, as they do on this device."
                " HINT: leave it out, or train on a CUDA device."
            )
            return store
        held = self._cached
        if held is None or (held.store if isinstance(held, CachedFeatures) else held) is not store:
            # Not made yet, or of rows that were not those of all processes of the machine yet.
            held = self._cached = cache_rows(
                store, source, order, budget=self.cache, policy=self._policy, streams=placement.streams
            )
        return held

    def trim(self) -> None:
        """Free the buffers that wait for a use."""
        if self._placement is not None:
            self._placement.trim()

    def _streams(self, trainer: Any) -> DeviceStreams | None:
        given = self.device
        if given is not None and not isinstance(given, str | torch.device):
            return given
        of_trainer = getattr(getattr(trainer, "strategy", None), "root_device", None)
        wanted = torch.device(of_trainer or given or "cpu")
        held = getattr(self._placement, "streams", None)
        if held is not None and held.device.type == wanted.type and wanted.index in (None, held.device.index):
            streams: DeviceStreams = held
            return streams
        return streams_of(wanted)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placement": None, "_cached": None}

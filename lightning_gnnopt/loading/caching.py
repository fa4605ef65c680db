"""Which rows of features a DataModule keeps on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightning_gnnopt._units import format_bytes, parse_bytes
from lightning_gnnopt.loading.cached_features import CachedFeatures
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.hotness import degree_scores, hot_nodes, inclusion_probabilities, presample_scores
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.sources import NodeSource
from lightning_gnnopt.loading.streams import DeviceStreams
from lightning_gnnopt.sampling import NeighborSampler, SampleKey
from lightning_gnnopt.sampling.draws import UniformDraw
from lightning_gnnopt.sampling.weighted import WeightedDraw

CachePolicy = Literal["auto", "vip", "presample", "degree"]
CACHE_POLICIES = ("auto", "vip", "presample", "degree")

_AUTO_SHARE = 0.25  # of the device's free memory; the rest is for what the training step needs
_PRESAMPLED_EPOCHS = 3
_PRESAMPLED_BATCHES = 2000  # at most


def cache_rows(
    store: FeatureStore,
    source: NodeSource,
    order: SeedOrder,
    *,
    budget: int | str,
    policy: CachePolicy,
    streams: DeviceStreams,
) -> FeatureStore:
    """Put the rows that training asks for most often on the device.

    Args:
        store: All rows.
        source: Samples the training batches.
        order: Which nodes stand in which training batch.
        budget: Bytes, as a number or with a unit, or ``"auto"``: a quarter of the device's free memory.
        policy: How rows are chosen, see `GraphDataModule`.
        streams: The device.

    Returns:
        The store with its cache; the store itself if not a row fits into the budget.
    """
    free_bytes = streams.free_bytes()
    if budget != "auto":
        budget_bytes = parse_bytes(budget, name="cache")
    elif free_bytes is None:
        rank_zero_warn("`cache='auto'` needs a device that tells its free memory: nothing is cached. HINT: give bytes.")
        return store
    else:
        budget_bytes = int(_AUTO_SHARE * free_bytes)
    if free_bytes is not None and budget_bytes > free_bytes:
        raise ValueError(
            f"`cache` must fit into the device's free memory, {format_bytes(free_bytes)}, but is"
            f" {format_bytes(budget_bytes)}. HINT: `cache='auto'` takes a quarter of what is free."
        )
    rows = min(budget_bytes // max(store.row_bytes, 1), store.num_rows)
    if not rows:
        return store
    hot_ids = hot_nodes(_scores(source, order, policy), rows)
    return CachedFeatures(store, hot_ids, streams) if len(hot_ids) else store


def _scores(source: NodeSource, order: SeedOrder, policy: CachePolicy) -> NDArray[np.float64]:
    sampler, topology = source.sampler, source.sampler.topology
    if policy == "degree":
        return degree_scores(topology)
    draw = sampler.draw if isinstance(sampler, NeighborSampler) and not sampler.disjoint else None
    known = isinstance(draw, UniformDraw | WeightedDraw)
    if policy == "vip" and not known:
        raise ValueError(
            f"`cache_policy='vip'` needs a `NeighborSampler` that draws uniformly or by weight, its trees not disjoint,"
            f" but the sampler is {sampler!r}. HINT: `cache_policy='presample'` goes with any sampler."
        )
    if policy == "vip" or (policy == "auto" and known):
        assert isinstance(sampler, NeighborSampler)
        chance = np.zeros(topology.num_nodes)
        chance[source.input_nodes] = min(1.0, order.batch_size / max(1, source.num_inputs))
        weight = draw.edge_weight if isinstance(draw, WeightedDraw) else None
        return inclusion_probabilities(
            topology, chance, sampler.num_neighbors, replace=sampler.replace, edge_weight=weight
        )
    return presample_scores(_presampled(source, order), topology.num_nodes)


def _presampled(source: NodeSource, order: SeedOrder) -> Iterator[NDArray[np.integer]]:
    """Draw batches as training does, from keys that training never comes to."""
    left = _PRESAMPLED_BATCHES
    for epoch in range(-_PRESAMPLED_EPOCHS, 0):
        seeds = order.epoch(epoch)
        for index in range(min(len(order), left)):
            yield source.sample(order.batch(seeds, index), SampleKey(order.seed, epoch, index)).n_id
        left -= min(len(order), left)

"""Which rows `GraphDataModule(cache=...)` keeps on the device."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import CachedFeatures, DevicePlacement, GraphDataModule, SimulatedDevice, caching
from lightning_gnnopt.loading.hotness import inclusion_probabilities
from lightning_gnnopt.sampling import (
    ClusterSampler,
    LaborSampler,
    NeighborSampler,
    SaintNodeSampler,
    SampleKey,
    Topology,
)

from .graphs import E, F, N, make_data, prefetch_threads, same_batches
from .modules import Recorder, make_trainer

ROW = F * 4  # bytes
STAGES = ("train", "val", "test", "predict")
POLICIES = ["vip", "presample", "degree", "auto"]
USELESS = "is of no use where batches stay in host memory"


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(host_computes=True) as device:
        yield device


class Knows(SimulatedDevice):
    """A device that tells how much of its memory is free."""

    free = 0

    @override
    def free_bytes(self) -> int | None:
        return self.free


def make_datamodule(device: Any, data: Data | None = None, **options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options}
    if callable(options.get("sampler")):
        del options["num_neighbors"]
    return GraphDataModule(make_data() if data is None else data, device=device, **options)


def cached_of(datamodule: GraphDataModule) -> CachedFeatures:
    datamodule.setup("fit")
    assert datamodule.cached_features is not None
    return datamodule.cached_features


def ids_of(cached: CachedFeatures) -> list[int]:
    """The rows that are there, which must stand in the memory of the device as in the store."""
    ids = np.flatnonzero(cached._slot >= 0)
    assert sorted(cached._slot[ids].tolist()) == list(range(cached.num_cached))
    stored = torch.empty(len(ids), *cached.shape[1:], dtype=cached.stored_dtype)
    cached.store.gather(ids, stored)
    assert torch.equal(cached._rows[torch.from_numpy(cached._slot[ids]).long()], stored)
    return ids.tolist()


def hottest(scores: NDArray[Any] | Sequence[float], count: int) -> list[int]:
    """By sorting: the highest scores, of equal ones the lower ids, none of 0."""
    order = sorted(range(len(scores)), key=lambda node: (-scores[node], node))
    return sorted(node for node in order[:count] if scores[node] > 0)


def presampled(datamodule: GraphDataModule, *, max_batches: int = 10**6) -> NDArray[np.int64]:
    """Count the rows of three epochs of training batches that come before the first."""
    counts, left = np.zeros(N, np.int64), max_batches
    seeds = np.flatnonzero(datamodule.data.train_mask.numpy())
    for epoch in (-3, -2, -1):
        order = SampleKey(5, epoch).permutation(len(seeds))
        for index in range(-(-len(seeds) // 8)):
            if left:
                places = order[8 * index : 8 * (index + 1)]
                counts += np.bincount(
                    datamodule.sampler.sample(seeds[places], SampleKey(5, epoch, index)).n_id, minlength=N
                )
                left -= 1
    return counts


# ---- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "rows"),
    [
        (ROW, 1),
        (10 * ROW, 10),
        (10 * ROW + ROW - 1, 10),
        ("0.5KiB", 25),
        ("200 B", 10),
        (60 * ROW, 60),
        ("100KiB", 60),
        ("1TiB", 60),
    ],
)
def test_as_many_rows_as_fit(budget: int | str, rows: int, device: SimulatedDevice) -> None:
    """All nodes of this graph have out-edges but a few, which would be of no use in the cache."""
    data = make_data()
    warm = len(set(data.edge_index[0].tolist()))
    cached = cached_of(make_datamodule(device, data, cache=budget, cache_policy="degree"))
    assert cached.num_cached == min(rows, warm)
    assert cached.device_bytes == min(rows, warm) * ROW


@pytest.mark.parametrize(("stored", "width"), [("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_narrow_rows_fit_more(stored: str, width: int, device: SimulatedDevice) -> None:
    cached = cached_of(make_datamodule(device, cache=10 * ROW, feature_dtype=stored, cache_policy="degree"))
    assert cached.num_cached == 10 * 4 // width
    assert cached._rows.dtype == getattr(torch, stored)


@pytest.mark.parametrize("budget", [0, "0B", ROW - 1, "19B"])
def test_without_room_for_a_row_there_is_no_cache(budget: int | str, device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, cache=budget)
    datamodule.setup("fit")
    assert datamodule.cached_features is None
    loader = datamodule.train_dataloader()
    assert same_batches(list(loader), list(make_datamodule(None).train_dataloader()))
    assert (loader.stats.cache_lookups, loader.stats.cache_hit_rate) == (0, None)


def test_auto_needs_a_device_that_tells_its_free_memory(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, cache="auto")
    message = "`cache='auto'` needs a device that tells its free memory: nothing is cached. HINT: give bytes."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        datamodule.setup("fit")
    assert datamodule.cached_features is None
    assert same_batches(list(datamodule.train_dataloader()), list(make_datamodule(None).train_dataloader()))


@pytest.mark.parametrize(("free", "rows"), [(4 * 7 * ROW, 7), (4 * 8 * ROW - 4, 7), (4 * ROW - 4, 0), (0, 0)])
def test_auto_takes_a_quarter_of_what_is_free(free: int, rows: int) -> None:
    with Knows(host_computes=True) as device:
        device.free = free
        datamodule = make_datamodule(device, cache="auto")
        datamodule.setup("fit")
        cached = datamodule.cached_features
        assert (0 if cached is None else cached.num_cached) == rows


def test_more_than_is_free_is_refused() -> None:
    with Knows(host_computes=True) as device:
        device.free = 2048
        message = (
            "`cache` must fit into the device's free memory, 2.0 KiB, but is 3.0 KiB."
            " HINT: `cache='auto'` takes a quarter of what is free."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make_datamodule(device, cache="3KiB").setup("fit")
        make_datamodule(device, cache="2KiB").setup("fit")


@pytest.mark.parametrize("budget", ["much", "3 rows", -1, "-1KiB", float("nan")])
def test_what_is_no_budget_is_refused_at_once(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"^`cache` must be a number of bytes, but got .* HINT: "):
        make_datamodule(None, cache=budget)


def test_an_unknown_policy_is_refused_at_once() -> None:
    message = "Unknown cache_policy 'degrees'. Did you mean 'degree'? Known: auto, degree, presample, vip."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(None, cache=100, cache_policy="degrees")


@pytest.mark.parametrize("where", [None, "cpu"])
@pytest.mark.parametrize("budget", [100, "auto"])
def test_a_cache_in_host_memory_is_of_no_use(budget: int | str, where: Any) -> None:
    datamodule = make_datamodule(where, cache=budget)
    message = f"`cache={budget!r}` {USELESS}, as they do on this device. HINT: leave it out, or train on a CUDA device."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        datamodule.setup("fit")
    assert datamodule.cached_features is None
    assert same_batches(list(datamodule.train_dataloader()), list(make_datamodule(None).train_dataloader()))
    with pytest.warns(UserWarning, match=USELESS):
        make_trainer(1).fit(Recorder(), make_datamodule(where, cache=budget))


def test_a_graph_without_training_nodes_has_no_cache(device: SimulatedDevice) -> None:
    data = make_data()
    del data.train_mask
    datamodule = make_datamodule(device, data, cache=1000)
    assert [batch.batch_size for batch in datamodule.predict_dataloader()] == [8] * 7 + [4]
    assert datamodule.cached_features is None


# ---- which rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 9, 20, N])
def test_degree_takes_the_sources_of_most_edges(count: int, device: SimulatedDevice) -> None:
    data = make_data()
    out_degree = np.bincount(data.edge_index[0].numpy(), minlength=N)
    assert len(set(out_degree.tolist())) > 5
    cached = cached_of(make_datamodule(device, data, cache=count * ROW, cache_policy="degree"))
    assert ids_of(cached) == hottest(out_degree, count)


@pytest.mark.parametrize("policy", ["vip", "auto"])
@pytest.mark.parametrize("count", [1, 9, 20, N])
def test_vip_takes_the_likeliest(count: int, policy: str, device: SimulatedDevice) -> None:
    data = make_data()
    datamodule = make_datamodule(device, data, cache=count * ROW, cache_policy=policy)
    chance = np.where(data.train_mask.numpy(), 8 / 35, 0.0)
    topology = Topology.from_edge_index(data.edge_index, N)
    assert ids_of(cached_of(datamodule)) == hottest(inclusion_probabilities(topology, chance, [3, 2]), count)


def test_vip_looks_at_how_edges_are_drawn_and_how_many_seeds_there_are(device: SimulatedDevice) -> None:
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, N)
    sampler = partial(NeighborSampler, num_neighbors=[4, 1], replace=True)
    for batch_size, chance in ((4, 4 / 35), (1000, 1.0)):
        datamodule = make_datamodule(device, data, sampler=sampler, batch_size=batch_size, cache=12 * ROW)
        scores = inclusion_probabilities(topology, np.where(data.train_mask.numpy(), chance, 0.0), [4, 1], replace=True)
        assert ids_of(cached_of(datamodule)) == hottest(scores, 12)


@pytest.mark.parametrize("count", [1, 9, 20, N])
def test_presample_counts_rows_of_three_epochs(count: int, device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, cache=count * ROW, cache_policy="presample")
    assert ids_of(cached_of(datamodule)) == hottest(presampled(datamodule), count)


def test_presampling_ends_after_so_many_batches(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_PRESAMPLED_BATCHES", 7)
    datamodule = make_datamodule(device, cache=9 * ROW, cache_policy="presample")
    counts = presampled(datamodule, max_batches=7)
    assert ids_of(cached_of(datamodule)) == hottest(counts, 9)


def weighted_data() -> Data:
    data = make_data()
    data.weight = torch.rand(E, generator=torch.Generator().manual_seed(2))
    data.time = torch.arange(N)
    return data


NOT_UNIFORM: dict[str, dict[str, Any]] = {
    "weights": {"weight_attr": "weight"},
    "times": {"time_attr": "time"},
    "labor": {"sampler": partial(LaborSampler, num_neighbors=[3, 2])},
    "disjoint": {"sampler": partial(NeighborSampler, num_neighbors=[3, 2], disjoint=True)},
    "saint": {"sampler": SaintNodeSampler, "eval_num_neighbors": [3, 2]},
    "cluster": {"sampler": partial(ClusterSampler, num_parts=4), "eval_num_neighbors": [3, 2]},
}


@pytest.mark.parametrize("kind", [kind for kind in NOT_UNIFORM if kind != "weights"])
def test_vip_is_refused_where_chances_are_not_known(kind: str, device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, weighted_data(), cache=9 * ROW, cache_policy="vip", **NOT_UNIFORM[kind])
    start = "`cache_policy='vip'` needs a `NeighborSampler` that draws uniformly or by weight, its trees not disjoint,"
    hint = "HINT: `cache_policy='presample'` goes with any sampler."
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.*{re.escape(hint)}$"):
        datamodule.setup("fit")


@pytest.mark.parametrize("some_are_zero", [False, True])
def test_weights_enter_the_chances(some_are_zero: bool, device: SimulatedDevice) -> None:
    data = weighted_data()
    if some_are_zero:
        data.weight[::3] = 0.0
    chosen = [
        ids_of(cached_of(make_datamodule(device, data, cache=9 * ROW, cache_policy=policy, weight_attr="weight")))
        for policy in ("vip", "auto")
    ]
    topology = Topology.from_edge_index(data.edge_index, N, edge_ids=True)
    chance = np.zeros(N)
    chance[:35] = 8 / 35
    weight = data.weight.numpy()[topology.edge_ids]
    scores = inclusion_probabilities(topology, chance, [3, 2], edge_weight=weight)
    assert chosen[0] == chosen[1] == hottest(scores, 9)
    assert chosen[0] != hottest(inclusion_probabilities(topology, chance, [3, 2]), 9)


@pytest.mark.parametrize("kind", [kind for kind in NOT_UNIFORM if kind != "weights"])
def test_auto_presamples_there(kind: str, device: SimulatedDevice) -> None:
    chosen = []
    for policy in ("auto", "presample"):
        datamodule = make_datamodule(device, weighted_data(), cache=9 * ROW, cache_policy=policy, **NOT_UNIFORM[kind])
        chosen.append(ids_of(cached_of(datamodule)))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 9
    if kind == "labor":
        assert chosen[0] == hottest(presampled(datamodule), 9)


# ---- batches and rates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"feature_dtype": "int8"}, {"edge_format": "csc"}])
def test_batches_and_rates_are_those_of_a_count(
    policy: str, num_workers: int, options: dict[str, Any], device: SimulatedDevice
) -> None:
    there = make_datamodule(device, cache=14 * F, cache_policy=policy, num_workers=num_workers, **options)
    here = make_datamodule(None, num_workers=0, **options)
    cached = cached_of(there)
    hot = set(ids_of(cached))
    cached.reset_counts()
    assert 0 < len(hot) <= 14
    all_ids: list[int] = []
    for stage in STAGES:
        loader, reference = (getattr(datamodule, f"{stage}_dataloader")() for datamodule in (there, here))
        ids: list[int] = []
        for _ in range(2):
            expected = list(reference)
            assert same_batches(list(loader), expected)
            ids += [node for batch in expected for node in batch.n_id.tolist()]
        hits = sum(node in hot for node in ids)
        assert (loader.stats.cache_lookups, loader.stats.cache_hits) == (len(ids), hits)
        assert loader.stats.cache_hit_rate == pytest.approx(hits / len(ids))
        all_ids += ids
    assert cached.hit_rate == pytest.approx(sum(node in hot for node in all_ids) / len(all_ids))
    counts = np.sort(np.bincount(all_ids, minlength=N))[::-1]
    assert cached.best_hit_rate == pytest.approx(counts[: len(hot)].sum() / len(all_ids))


@pytest.mark.parametrize("kind", NOT_UNIFORM)
def test_a_cache_goes_with_any_sampler(kind: str, device: SimulatedDevice) -> None:
    options = {**NOT_UNIFORM[kind], "data": weighted_data()}
    there = make_datamodule(device, cache=20 * ROW, **options).train_dataloader()
    here = make_datamodule(None, **options).train_dataloader()
    for _ in range(2):
        assert same_batches(list(there), list(here))
    assert there.stats.cache_lookups == there.stats.nodes
    assert 0 < there.stats.cache_hits < there.stats.cache_lookups


def test_the_cache_is_filled_once(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, cache=9 * ROW)
    cached = cached_of(datamodule)
    for _ in range(2):
        module, trainer = Recorder(), make_trainer(1)
        trainer.fit(module, datamodule)
        assert datamodule.cached_features is cached
        assert trainer.train_dataloader.source.builder.of_nodes["x"].store is cached
        assert same_batches([batch for *_, batch in module.batches], list(make_datamodule(None).train_dataloader()))


def test_another_device_gets_a_cache_of_its_own(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, cache=9 * ROW)
    first = cached_of(datamodule)
    with SimulatedDevice(host_computes=True) as other:
        datamodule._residence.device = other  # as if another Trainer had come
        second = cached_of(datamodule)
        assert second is not first
        assert isinstance(datamodule.placement, DevicePlacement)
        assert datamodule.placement.streams is other
        assert other.copied_bytes[0] == 9 * ROW
        assert ids_of(second) == ids_of(first)
        assert same_batches(list(datamodule.train_dataloader()), list(make_datamodule(None).train_dataloader()))


def test_training_warns_of_nothing_where_a_cache_is_of_use(device: SimulatedDevice) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*`cache.*")
        datamodule = make_datamodule(device, cache=9 * ROW)
        make_trainer(1).fit(Recorder(), datamodule)
    assert cached_of(datamodule).num_cached == 9

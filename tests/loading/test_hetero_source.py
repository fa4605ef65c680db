from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.hetero_source import HeteroNodeSource
from lightning_gnnopt.loading.placement import DevicePlacement
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.simulated import SimulatedDevice
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, SampleKey

from .hetero_graphs import CITES, WRITES, differences, make_hetero, no_differences

NODES = [39, 7, *range(10, 30)]


def make_source(nodes: Any = NODES, *, disjoint: bool = False) -> HeteroNodeSource:
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    sampler = HeteroNeighborSampler(topology, [3, 2], disjoint=disjoint)
    return HeteroNodeSource(sampler, HeteroBatchBuilder(data, topology, edge_id=True), "paper", nodes)


def make_loader(source: HeteroNodeSource, **options: Any) -> PrefetchLoader:
    return PrefetchLoader(source, SeedOrder(source.num_inputs, 5, shuffle=True, seed=3), **options)


def test_a_pass_delivers_each_node_once_with_its_neighbours() -> None:
    data, source = make_hetero(), make_source()
    batches = list(make_loader(source, num_workers=2))
    assert source.num_inputs == 22
    assert [batch["paper"].batch_size for batch in batches] == [5, 5, 5, 5, 2]
    input_id = torch.cat([batch["paper"].input_id for batch in batches])
    assert input_id.tolist() == SampleKey(3, 0).permutation(22).tolist()
    seeds = torch.cat([batch["paper"].n_id[: batch["paper"].batch_size] for batch in batches])
    assert seeds.tolist() == [NODES[place] for place in input_id]
    for batch in batches:
        assert torch.equal(batch["author"].x, data["author"].x[batch["author"].n_id])
        assert torch.equal(batch[WRITES].edge_attr, data[WRITES].edge_attr[batch[WRITES].e_id])


def test_a_batch_is_drawn_by_its_key() -> None:
    source = make_source()
    batches = list(make_loader(source, num_workers=0))
    ids = SampleKey(3, 0).permutation(22)[5:10]
    subgraph = source.sampler.sample({"paper": np.array(NODES)[ids]}, SampleKey(3, 0, 1))
    assert differences(batches[1], source.builder.build(subgraph, "paper", ids)) == []


@pytest.mark.parametrize("disjoint", [False, True])
def test_batches_are_the_same_bits_for_any_number_of_workers(disjoint: bool) -> None:
    inline, threaded = (make_loader(make_source(disjoint=disjoint), num_workers=workers) for workers in (0, 2))
    first, second = (list(loader) for loader in (inline, inline))
    assert no_differences(list(threaded), first)
    assert no_differences(list(threaded), second)
    assert not torch.equal(first[0][CITES].e_id, second[0][CITES].e_id)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("disjoint", [False, True])
def test_batches_on_a_device_are_those_on_the_host(num_workers: int, disjoint: bool) -> None:
    expected = list(make_loader(make_source(disjoint=disjoint), num_workers=0))
    with SimulatedDevice() as device:
        loader = make_loader(make_source(disjoint=disjoint), num_workers=num_workers, placement=DevicePlacement(device))
        count = 0
        for batch, other in zip(loader, expected, strict=True):
            device.synchronize()
            assert differences(batch, other) == []
            count += 1
        assert count == 5
        assert len(device.copied_bytes) == 5  # one packed copy each
        del batch
    # Ids and ends travel in half the bytes, and destinations compressed.
    written = sum(plan_bytes(batch) for batch in expected)
    assert sum(device.copied_bytes) < written


def plan_bytes(batch: Any) -> int:
    return sum(value.nbytes for store in batch.stores for value in store.values() if torch.is_tensor(value))


@pytest.mark.parametrize(
    ("input_type", "nodes", "message"),
    [
        ("paper", [], "`seeds` must hold at least one node, but it is empty. HINT: check the split's mask."),
        (
            "paper",
            [1, 40],
            "`seeds['paper']` must be node ids from 0 to 39, but found 40."
            " HINT: seeds are ids among the nodes of their own type.",
        ),
        ("papers", [1], "Unknown node type 'papers'. Did you mean 'paper'? Known: author, paper, venue."),
    ],
)
def test_nodes_that_are_none_are_refused(input_type: str, nodes: list[int], message: str) -> None:
    source = make_source()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeteroNodeSource(source.sampler, source.builder, input_type, nodes)


def test_nodes_may_come_as_a_tensor() -> None:
    assert make_source(torch.tensor([3, 1])).input_nodes.tolist() == [3, 1]
    assert repr(make_source()).startswith("HeteroNeighborSampler(HeteroTopology(nodes: author=30")

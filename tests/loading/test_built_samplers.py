"""Samplers that are built before the DataModule."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from lightning_gnnopt.loading import GraphDataModule, LinkSplit, LinkTask
from lightning_gnnopt.sampling import (
    HeteroNeighborSampler,
    HeteroTopology,
    LaborSampler,
    NeighborSampler,
    NodeSampler,
    SaintNodeSampler,
    Topology,
)

from .graphs import N, make_data, random_graph, same_batches
from .modules import Recorder, make_trainer


def built(kind: type[NodeSampler], **options: Any) -> NodeSampler:
    data = make_data()
    return kind(Topology.from_edge_index(data.edge_index, N), **options)


@pytest.mark.parametrize("kind", [NeighborSampler, LaborSampler])
def test_a_built_sampler_draws_what_one_by_function_draws(kind: type[NodeSampler]) -> None:
    options = {"batch_size": 8, "seed": 3}
    sampler = built(kind, num_neighbors=[3, 2])
    mine = GraphDataModule(make_data(), sampler=sampler, **options)
    other = GraphDataModule(make_data(), sampler=partial(kind, num_neighbors=[3, 2]), **options)
    assert mine.sampler is sampler
    assert mine.topology is sampler.topology
    for stage in ("train", "val", "predict"):
        loaders = [getattr(datamodule, f"{stage}_dataloader")() for datamodule in (mine, other)]
        assert same_batches(*map(list, loaders))
    copy = pickle.loads(pickle.dumps(mine))
    assert same_batches(list(copy.train_dataloader()), list(other.train_dataloader()))


def test_it_trains_and_is_evaluated_with_other_fan_outs() -> None:
    module = Recorder()
    sampler = built(SaintNodeSampler)
    datamodule = GraphDataModule(make_data(), sampler=sampler, eval_num_neighbors=[-1, -1], batch_size=8)
    make_trainer(2).fit(module, datamodule)
    assert len(module.losses) == 10
    assert datamodule.eval_sampler.num_neighbors == [-1, -1]


def hetero_data() -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["paper"].train_mask = torch.randn(20, 2), torch.arange(20) < 12
    data["paper", "cites", "paper"].edge_index = random_graph(20, 80)
    return data


def test_of_several_types() -> None:
    data = hetero_data()
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [3, 2])
    mine = GraphDataModule(data, sampler=sampler, batch_size=5, seed=1)
    other = GraphDataModule(data, num_neighbors=[3, 2], batch_size=5, seed=1)
    assert mine.sampler is sampler
    for a, b in zip(mine.train_dataloader(), other.train_dataloader(), strict=True):
        assert torch.equal(a["paper"].n_id, b["paper"].n_id)
        assert torch.equal(a["paper", "cites", "paper"].edge_index, b["paper", "cites", "paper"].edge_index)


def test_around_links() -> None:
    data = make_data()
    links = LinkTask(train=LinkSplit(data.edge_index[:, :30]))
    options: dict[str, Any] = {"links": links, "batch_size": 10, "seed": 1}
    mine = GraphDataModule(data, sampler=built(NeighborSampler, num_neighbors=[3, 2]), **options)
    other = GraphDataModule(data, num_neighbors=[3, 2], **options)
    assert same_batches(list(mine.train_dataloader()), list(other.train_dataloader()))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"num_neighbors": [3, 2]}, "`num_neighbors`"), ({"weight_attr": "weight"}, "`weight_attr` or `time_attr`")],
)
def test_what_is_built_in_must_not_be_given(arguments: dict[str, Any], name: str) -> None:
    data, sampler = make_data(), built(NeighborSampler, num_neighbors=[3, 2])
    data.weight = torch.rand(data.num_edges)
    message = f"{name} must be left out with a sampler that is built already, but the sampler is {sampler!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)} HINT: build it with them.$"):
        GraphDataModule(data, sampler=sampler, **arguments)


def test_a_sampler_of_another_graph_is_refused() -> None:
    other = Topology.from_edge_index(random_graph(61, 200), 61)
    message = (
        "`sampler` must be of the graph in `data`, of 60 nodes and 300 edges, but its own has 61 and 200."
        " HINT: build its topology from `data`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(make_data(), sampler=NeighborSampler(other, [3, 2]))
    hetero = hetero_data()
    hetero["author"].num_nodes = 1
    with pytest.raises(ValueError, match=r"^`sampler` must be of the graph in `data`, of 21 nodes and 80 edges"):
        GraphDataModule(hetero, sampler=HeteroNeighborSampler(HeteroTopology.from_data(hetero_data()), [3, 2]))

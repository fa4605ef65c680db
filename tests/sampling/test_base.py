from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.sampler import BaseSampler, NodeSamplerInput

from lightning_gnnopt.sampling import NeighborSampler, NodeSampler, SampleKey, SeedsOnlySampler, Topology

from .reference import in_edges, random_graph

N, E = 40, 200


def make_data() -> Data:
    edge_index = random_graph(N, E)
    return Data(x=torch.randn(N, 3), y=torch.arange(N), edge_index=edge_index, edge_attr=torch.arange(E) * 10)


@pytest.mark.parametrize("fanouts", [[3, 2], [-1, -1]])
def test_pygs_node_loader_takes_the_sampler(fanouts: list[int]) -> None:
    data = make_data()
    sampler = NeighborSampler(Topology.from_edge_index(data.edge_index, N, edge_ids=True), fanouts)
    assert isinstance(sampler, BaseSampler)
    seeds = torch.tensor([7, 0, 33, 21, 9])
    loader = NodeLoader(data, node_sampler=sampler, input_nodes=seeds, batch_size=2)
    torch.manual_seed(0)
    batches = list(loader)

    assert [batch.batch_size for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.input_id for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch.n_id[: batch.batch_size] for batch in batches]).equal(seeds)
    incoming = in_edges(data.edge_index, N)
    for batch in batches:
        assert batch.x.equal(data.x[batch.n_id])
        assert batch.y.equal(batch.n_id)
        assert batch.edge_attr.equal(10 * batch.e_id)
        assert batch.n_id[batch.edge_index].equal(data.edge_index[:, batch.e_id])
        assert (len(batch.n_id), len(batch.e_id)) == (sum(batch.num_sampled_nodes), sum(batch.num_sampled_edges))
        for place, node in enumerate(batch.n_id[: batch.batch_size].tolist()):
            taken = batch.e_id[batch.edge_index[1] == place].tolist()
            available = [number for _, number in incoming[node]]
            assert set(taken) <= set(available)
            assert len(taken) == (len(available) if fanouts[0] == -1 else min(len(available), fanouts[0]))


def test_per_hop_counts_serve_pygs_trimming() -> None:
    data, seeds = make_data(), torch.tensor([7, 0, 33])
    sampler = NeighborSampler(Topology.from_edge_index(data.edge_index, N), [-1, -1])
    net = GraphSAGE(3, 8, num_layers=2, out_channels=4).eval()
    (batch,) = NodeLoader(Data(x=data.x, edge_index=data.edge_index), sampler, input_nodes=seeds, batch_size=3)

    trimmed = net(
        batch.x,
        batch.edge_index,
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
    )
    torch.testing.assert_close(trimmed[:3], net(data.x, data.edge_index)[seeds])
    assert "e_id" not in batch  # the topology was built without edge ids


def test_torchs_generator_keys_pygs_batches() -> None:
    data = make_data()
    sampler = NeighborSampler(Topology.from_edge_index(data.edge_index, N, edge_ids=True), [2, 2])
    index = NodeSamplerInput(input_id=None, node=torch.arange(10))
    torch.manual_seed(1)
    first, second = sampler.sample_from_nodes(index), sampler.sample_from_nodes(index)
    torch.manual_seed(1)
    again = sampler.sample_from_nodes(index)
    assert first.edge.equal(again.edge)
    assert not first.edge.equal(second.edge)
    assert {first.node.dtype, first.row.dtype, first.col.dtype, first.edge.dtype} == {torch.int64}


@pytest.mark.parametrize("kind", [NeighborSampler, SeedsOnlySampler])
@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "`seeds` must hold at least one node, but it is empty. HINT: check the split's mask."),
        ([0, 40], "`seeds` must be node ids from 0 to 39, but found 40. HINT: seeds are global ids of the graph"),
        ([0, -1, 99], "`seeds` must be node ids from 0 to 39, but found -1."),
    ],
)
def test_bad_seeds_are_refused(kind: type[NodeSampler], seeds: list[int], message: str) -> None:
    graph = Topology.from_edge_index(random_graph(N, E), N)
    sampler = kind(graph, [2]) if kind is NeighborSampler else kind(graph)
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler.sample(np.array(seeds, dtype=np.int64), SampleKey(0))

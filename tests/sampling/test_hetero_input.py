"""What heterogeneous sampling takes and refuses: seeds, fan-outs, and the edges of each relation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.sampler import NodeSamplerInput

from lightning_gnnopt.sampling import SampleKey
from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology

from .reference import random_data


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ({}, {}, "`seeds` must hold at least one node, but it is empty."),
        ({"a": []}, {}, "`seeds` must hold at least one node, but it is empty."),
        ({"d": [1]}, {}, "Unknown node type 'd'. Known: a, b, c."),
        (
            {"a": [0], "b": [40]},
            {},
            "`seeds['b']` must be node ids from 0 to 39, but found 40. HINT: seeds are ids among",
        ),
        ({"a": [-1]}, {}, "`seeds['a']` must be node ids from 0 to 49, but found -1."),
        ({"a": [0.5]}, {}, "`seeds['a']` must be a one-dimensional array of integers, but got float64 of shape (1,)."),
        (
            {"a": [[0, 1]]},
            {},
            "`seeds['a']` must be a one-dimensional array of integers, but got int64 of shape (1, 2).",
        ),
        ({"a": [0]}, {"time": {"a": np.array([1])}}, "`time` must be None for HeteroNeighborSampler"),
    ],
)
def test_bad_seeds_are_refused(seeds: Any, options: Any, message: str) -> None:
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(random_data()), [3, 3])
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler.sample(seeds, SampleKey(0), **options)


TO_B: EdgeType = ("a", "to", "b")


@pytest.mark.parametrize(
    ("num_neighbors", "message"),
    [
        (
            [],
            "must be a list with one fan-out per hop, but got [] for ('a', 'to', 'b'). HINT: [10, 5] samples two hops.",
        ),
        (5, "must be a list with one fan-out per hop, but got 5 for ('a', 'to', 'b')."),
        ([2, -2], "must hold integers from -1 on (-1: all neighbours, 0: none), but got -2 in [2, -2] for"),
        ([True], "but got True in [True] for"),
        ([1.5], "but got 1.5 in [1.5] for"),
        ({TO_B: [1], ("x", "y", "z"): [1]}, "('x', 'y', 'z') is none of them: [('a', 'to', 'b'), ('b', 'to', 'a')]."),
        ({TO_B: [1]}, "must have fan-outs for every edge type, but has none for ('b', 'to', 'a'). HINT: a 0 in every"),
        (
            {TO_B: [1], ("b", "to", "a"): [1, 0]},
            "must have one length for all edge types, but got {('a', 'to', 'b'): 1, ",
        ),
    ],
)
def test_fan_outs_that_cannot_be_sampled_are_refused(num_neighbors: Any, message: str) -> None:
    nothing = torch.empty(2, 0, dtype=torch.long)
    graph = HeteroTopology.from_edge_index_dict({TO_B: nothing, ("b", "to", "a"): nothing}, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=re.escape(message)):
        HeteroNeighborSampler(graph, num_neighbors)
    with pytest.raises(ValueError, match=re.escape("`topology` must have an edge type, but has none.")):
        HeteroNeighborSampler(HeteroTopology({"a": 1}, {}), [1])


def test_a_loader_must_say_the_type_of_its_seeds() -> None:
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(random_data()), [1])
    with pytest.raises(ValueError, match=re.escape('no type was given. HINT: input_nodes=("a", ids).')):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(3)))


# topology


def test_a_relation_holds_the_sources_of_each_destination() -> None:
    edges = torch.tensor([[4, 0, 2, 4], [1, 1, 0, 1]])
    graph = HeteroTopology.from_edge_index_dict({("a", "r", "b"): edges}, {"a": 5, "b": 3}, edge_ids=True)
    relation = graph.relations["a", "r", "b"]
    assert (relation.indptr.tolist(), relation.indices.tolist()) == ([0, 1, 4, 4], [2, 4, 0, 4])
    assert relation.edge_ids.tolist() == [2, 0, 1, 3]
    assert (graph.node_types, graph.edge_types, graph.num_edges) == (["a", "b"], [("a", "r", "b")], 4)
    assert graph.nbytes == 4 * 8 + 4 * 4 + 4 * 4
    assert repr(graph) == "HeteroTopology(nodes: a=5, b=3; edges: a__r__b=4)"


@pytest.mark.parametrize(
    ("edges", "num_nodes", "message"),
    [
        (
            torch.tensor([[5], [0]]),
            {"a": 5, "b": 3},
            "must hold sources from 0 to 4 (5 nodes), but found 5. HINT: check",
        ),
        (torch.tensor([[0], [3]]), {"a": 5, "b": 3}, "must hold destinations from 0 to 2 (3 nodes), but found 3."),
        (torch.tensor([[-1], [0]]), {"a": 5, "b": 3}, "must hold sources from 0 to 4 (5 nodes), but found -1."),
        (torch.zeros(3, 2).long(), {"a": 5, "b": 3}, "must be an integer tensor of shape (2, E), but got torch.int64"),
        (torch.zeros(2, 2), {"a": 5, "b": 3}, "must be an integer tensor of shape (2, E), but got torch.float32"),
        (torch.zeros(2, 2).long(), {"a": 5}, "`num_nodes_dict` must say how many nodes each type has, but for 'b' it"),
    ],
)
def test_edges_that_do_not_fit_are_refused(edges: Tensor, num_nodes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HeteroTopology.from_edge_index_dict({("a", "r", "b"): edges}, num_nodes)


def test_data_without_an_edge_index_is_refused() -> None:
    data = random_data()
    del data["a", "to", "b"].edge_index
    message = "`data[('a', 'to', 'b')]` must have an `edge_index`, but has ['edge_attr']. HINT: turn an `adj_t`"
    with pytest.raises(ValueError, match=re.escape(message)):
        HeteroTopology.from_data(data)

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader.utils import filter_data

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, SeedsOnlySampler, Subgraph, Topology

from .graphs import E, N, make_data, same_batch, same_bits


def make_rich_data() -> Data:
    """Has every kind of attribute that PyG cuts or leaves."""
    data = make_data()
    data.edge_attr = torch.randn(E, 2)
    data.edge_weight = torch.randn(E)
    data.edge_label_index = torch.arange(2 * E).view(2, E)  # PyG joins what is named `index` in its last dimension
    data.node_index = torch.arange(3 * N).view(3, N)
    data.position = torch.randn(N, 2, 3)
    data.node_years, data.edge_years = np.arange(N), np.random.default_rng(0).random((E, 2))
    data.names = np.array(["a", "b"])
    data.mean = torch.randn(4)
    data.scale = torch.tensor(3.0)
    data.title, data.tags = "a graph", ["x", "y"]
    return data


def make_topology(data: Data, *, edge_ids: bool = True) -> Topology:
    return Topology.from_edge_index(data.edge_index, data.num_nodes, edge_ids=edge_ids)


def sample(topology: Topology, seeds: list[int]) -> Subgraph:
    return NeighborSampler(topology, [3, 2]).sample(np.array(seeds), SampleKey(1))


@pytest.mark.parametrize("num_nodes", [None, N])
def test_attributes_are_cut_as_pyg_cuts_them(num_nodes: int | None) -> None:
    data = make_rich_data()
    data.num_nodes = num_nodes
    topology = make_topology(data)
    subgraph = sample(topology, [4, 9, 4])
    ids = {name: torch.from_numpy(getattr(subgraph, name)).long() for name in ("n_id", "row", "col", "positions")}
    edges = torch.from_numpy(topology.edge_ids)[ids["positions"]]

    batch = BatchBuilder(data, topology, edge_id=True).build(subgraph, np.array([10, 20, 30]))

    expected = filter_data(data, ids["n_id"], ids["row"], ids["col"], edges).to_dict()
    expected |= {
        "num_nodes": len(subgraph.n_id),
        "n_id": ids["n_id"],
        "e_id": edges.long(),
        "input_id": torch.tensor([10, 20, 30]),
        "batch_size": 3,
        "num_sampled_nodes": subgraph.num_sampled_nodes,
        "num_sampled_edges": subgraph.num_sampled_edges,
    }
    found = batch.to_dict()
    assert found.keys() == expected.keys()
    assert found.pop("names") is expected.pop("names") is data.names
    for name, value in expected.items():
        assert same_bits(found[name], value), name
    # and, independent of PyG
    assert torch.equal(batch.x, data.x[ids["n_id"]])
    assert torch.equal(batch.edge_attr, data.edge_attr[edges])
    assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    assert torch.equal(batch.edge_label_index, data.edge_label_index[:, edges])
    assert torch.equal(batch.node_index, data.node_index[:, ids["n_id"]])
    assert batch.title == "a graph"
    assert batch.tags is data.tags


def test_batches_look_like_neighbor_loaders() -> None:
    data = make_data()
    batch = BatchBuilder(data, make_topology(data, edge_ids=False)).build(
        sample(make_topology(data), [0, 1]), np.array([0, 1])
    )
    assert set(batch.keys()) == {
        *("x", "y", "edge_index", "train_mask", "val_mask", "test_mask", "num_nodes"),
        *("n_id", "input_id", "batch_size", "num_sampled_nodes", "num_sampled_edges"),
    }
    assert {batch[name].dtype for name in ("edge_index", "n_id", "input_id")} == {torch.int64}
    assert batch.validate()
    assert batch.num_nodes == sum(batch.num_sampled_nodes)


def test_building_leaves_the_graph_and_other_batches_alone() -> None:
    data = make_rich_data()
    before = data.clone()
    topology = make_topology(data)
    builder, subgraph = BatchBuilder(data, topology), sample(topology, [0])
    first, second = builder.build(subgraph, np.array([0])), builder.build(subgraph, np.array([0]))
    first.x.zero_()
    first.num_sampled_nodes[0] = 99
    first.title = "changed"
    assert second.num_sampled_nodes == subgraph.num_sampled_nodes != first.num_sampled_nodes
    assert second.title == "a graph"
    assert torch.equal(second.x, data.x[second.n_id])
    assert torch.equal(data.x, before.x)
    assert set(data.keys()) == set(before.keys())


def test_in_degrees_are_those_of_the_whole_graph_without_self_loops() -> None:
    data = make_data()
    topology = make_topology(data)
    batch = BatchBuilder(data, topology, in_degree=True).build(sample(topology, [4, 9]), np.array([0, 1]))
    source, target = data.edge_index
    expected = [int(((target == v) & (source != v)).sum()) for v in batch.n_id]
    assert batch.in_degree.tolist() == expected
    assert (source == target).any()


def test_seeds_alone_make_a_batch_without_edges() -> None:
    data = make_rich_data()
    topology = make_topology(data)
    subgraph = SeedsOnlySampler(topology).sample(np.array([5, 3]), SampleKey(0))
    batch = BatchBuilder(data, topology, edge_id=True).build(subgraph, np.array([0, 1]))
    assert torch.equal(batch.x, data.x[[5, 3]])
    assert batch.edge_index.shape == (2, 0)
    assert (batch.edge_attr.shape, batch.e_id.shape) == ((0, 2), (0,))
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([2], [])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_features_become_dense_rows(layout: torch.layout) -> None:
    data = make_data()
    dense = data.x.relu()
    data.x = dense.to_sparse(layout=layout)
    topology = make_topology(data)
    batch = BatchBuilder(data, topology).build(sample(topology, [4, 9]), np.array([0, 1]))
    assert torch.equal(batch.x, dense[batch.n_id])


@pytest.mark.parametrize(
    ("attributes", "edge_id", "missing"),
    [
        ({"edge_attr": torch.zeros(E, 1), "edge_weight": torch.zeros(E)}, True, "edge_attr, edge_weight"),
        ({}, True, "`e_id`"),
    ],
)
def test_edge_attributes_without_edge_ids_are_refused(
    attributes: dict[str, torch.Tensor], edge_id: bool, missing: str
) -> None:
    data = make_data().update(attributes)
    message = (
        f"`topology` must hold edge ids to slice {missing}, but it has none."
        " HINT: build it with `Topology.from_edge_index(..., edge_ids=True)`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BatchBuilder(data, make_topology(data, edge_ids=False), edge_id=edge_id)


def test_needs_edge_ids_finds_attributes_of_edges() -> None:
    assert not BatchBuilder.needs_edge_ids(make_data())
    assert BatchBuilder.needs_edge_ids(make_rich_data())
    assert BatchBuilder.needs_edge_ids(make_data().update({"years": torch.zeros(E)}))


NORMS = {
    "edge_norm": np.array([0.5, 2.0], np.float32),
    "node_norm": np.array([1.0, 2.0, 3.0], np.float32),
    "batch": np.array([0, 1, 0], np.int32),
}


def normed(names: list[str]) -> Subgraph:
    ends, local = np.array([4, 9, 7]), np.array([2, 2])
    given = {name: NORMS[name] for name in names}
    return Subgraph(ends, local, np.array([0, 1]), np.array([0, 1]), None, None, 2, **given)


@pytest.mark.parametrize("names", [[], ["edge_norm"], ["node_norm"], ["batch"], [*NORMS]])
def test_what_else_the_sampler_says_comes_along(names: list[str]) -> None:
    data = make_data()
    batch = BatchBuilder(data, make_topology(data)).build(normed(names), np.array([0, 1]))
    assert {name for name in NORMS if name in batch} == set(names)
    for name in names:
        assert batch[name].tolist() == NORMS[name].tolist()
        assert batch[name].dtype == (torch.int64 if name == "batch" else torch.float32)
    assert (batch.batch_size, batch.num_nodes) == (2, 3)
    assert not {"num_sampled_nodes", "num_sampled_edges"} & set(batch.keys())


@pytest.mark.parametrize(
    ("name", "value"),
    [("edge_norm", torch.rand(E)), ("node_norm", torch.rand(N)), ("batch", torch.zeros(N)), ("batch", "a word")],
)
def test_an_attribute_by_the_name_of_what_the_sampler_says_is_refused(name: str, value: object) -> None:
    data = make_data().update({name: value})
    builder = BatchBuilder(data, make_topology(data))
    message = (
        f"`{name}` of a batch is what the sampler says, but the graph has an attribute of that name too."
        f" HINT: rename `data.{name}`, or delete it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        builder.build(normed([*NORMS]), np.array([0, 1]))
    kept = builder.build(normed([]), np.array([0, 1]))[name]  # the graph's own, as any other
    assert kept == value if isinstance(value, str) else len(kept) in (2, 3)


def test_it_travels_to_another_process() -> None:
    data = make_rich_data()
    topology = make_topology(data)
    builder, subgraph = BatchBuilder(data, topology, edge_id=True, in_degree=True), sample(topology, [4, 9])
    expected, found = (b.build(subgraph, np.array([0, 1])) for b in (builder, pickle.loads(pickle.dumps(builder))))
    del expected.names, found.names
    assert same_batch(expected, found)

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.loading.features import feature_store
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroSubgraph, HeteroTopology, SampleKey
from lightning_gnnopt.sampling.pyg_seam import torch_key

from .hetero_graphs import AT, CITES, NUM_NODES, WRITES, WRITTEN, differences, flat, make_hetero


def sample(
    topology: HeteroTopology, input_type: str, seeds: list[int], key: SampleKey | None = None, **options: Any
) -> HeteroSubgraph:
    sampler = HeteroNeighborSampler(topology, [3, 2], **options)
    return sampler.sample({input_type: np.array(seeds)}, SampleKey(1) if key is None else key)


def with_num_nodes(batch: HeteroData) -> HeteroData:
    """PyG sets the number of nodes only of types that had it; we of all."""
    for node_type in batch.node_types:
        batch[node_type].num_nodes = len(batch[node_type].n_id)
    return batch


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("input_type", ["paper", "author", "venue"])
def test_batches_are_those_of_pygs_loader(input_type: str, disjoint: bool) -> None:
    data, nodes, ids = make_hetero(), torch.tensor([7, 3, 5, 0, 3]), torch.tensor([4, 0, 2])
    topology = HeteroTopology.from_data(data)
    sampler = HeteroNeighborSampler(topology, [3, 2], disjoint=disjoint)
    loader = NodeLoader(data, sampler, (input_type, nodes), batch_size=3, input_id=torch.arange(5))
    torch.manual_seed(11)
    expected = with_num_nodes(loader(ids))
    torch.manual_seed(11)
    subgraph = sample(topology, input_type, nodes[ids].tolist(), torch_key(), disjoint=disjoint)

    batch = HeteroBatchBuilder(data, topology, edge_id=True).build(subgraph, input_type, ids.numpy())

    assert differences(batch, expected) == []
    assert (input_type, "batch_size") in flat(batch)
    assert (("paper", "batch") in flat(batch)) == disjoint


def test_attributes_are_those_of_the_batchs_nodes_and_edges() -> None:
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    subgraph = sample(topology, "paper", [4, 9, 4])
    batch = HeteroBatchBuilder(data, topology, edge_id=True).build(subgraph, "paper", np.array([10, 20, 30]))

    paper, author = batch["paper"], batch["author"]
    assert paper.n_id[:3].tolist() == [4, 9, 4]
    assert (paper.batch_size, paper.input_id.tolist()) == (3, [10, 20, 30])
    assert torch.equal(paper.x, data["paper"].x[paper.n_id])
    assert torch.equal(paper.y, paper.n_id % 3)
    assert torch.equal(paper.year, paper.n_id + 1980)
    assert torch.equal(author.x, data["author"].x[author.n_id])
    assert author.mean is data["author"].mean
    for name in (WRITES, CITES, WRITTEN, AT):
        row, col = batch[name].edge_index
        ends = torch.stack([batch[name[0]].n_id[row], batch[name[2]].n_id[col]])
        assert torch.equal(ends, data[name].edge_index[:, batch[name].e_id])
        assert sum(batch[name].num_sampled_edges) == len(row)
        assert {tensor.dtype for tensor in (row, batch[name].e_id)} == {torch.int64}
    assert torch.equal(batch[WRITES].edge_attr, data[WRITES].edge_attr[batch[WRITES].e_id])
    assert len(batch[CITES].edge_weight) > 0
    assert (batch.title, batch[CITES].source) == ("a graph", "a list")
    assert torch.equal(batch.scale, data.scale)
    assert "batch_size" not in author
    assert batch.num_nodes == sum(sum(counts) for counts in subgraph.num_sampled_nodes.values())
    assert batch["venue"].n_id.tolist() == []
    assert batch[AT].edge_index.shape == (2, 0)
    assert batch.validate()


def test_plans_say_how_large_a_batch_is() -> None:
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    builder, subgraph = HeteroBatchBuilder(data, topology), sample(topology, "paper", [4, 9])
    plan, batch = builder.plan(subgraph, "paper", np.arange(2)), builder.build(subgraph, "paper", np.arange(2))
    tensors = [value for (kind, _), value in flat(batch).items() if kind is not None and torch.is_tensor(value)]
    shared = data["author"].mean.nbytes + data["author"].node_index.nbytes  # passed on, not written
    assert plan.nbytes == sum(tensor.nbytes for tensor in tensors) - shared
    assert (plan.num_nodes, plan.num_edges) == (batch.num_nodes, batch.num_edges)


def test_inputs_may_be_links() -> None:
    """Of a type that the graph need not have."""
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    builder, likes = HeteroBatchBuilder(data, topology), ("author", "likes", "venue")
    batch = builder.build(sample(topology, "author", [1, 2]), likes, np.array([7]))
    assert batch[likes].input_id.tolist() == [7]
    assert "batch_size" not in batch["author"]
    assert "e_id" not in batch[WRITES]


def test_building_leaves_the_graph_and_other_batches_alone() -> None:
    data = make_hetero()
    before = flat(data.clone())
    topology = HeteroTopology.from_data(data)
    builder, subgraph = HeteroBatchBuilder(data, topology), sample(topology, "paper", [0])
    first, second = (builder.build(subgraph, "paper", np.array([0])) for _ in range(2))
    first["paper"].x.zero_()
    first["paper"].num_sampled_nodes[0] = 99
    first[CITES].source, first.title, first["author"].mean = "changed", "changed", None
    assert (second[CITES].source, second.title) == ("a list", "a graph")
    assert second["paper"].num_sampled_nodes[0] == subgraph.num_sampled_nodes["paper"][0] == 1
    assert torch.equal(second["paper"].x, data["paper"].x[second["paper"].n_id])
    assert flat(data).keys() == before.keys()
    assert torch.equal(data["author"].mean, before["author", "mean"])


def test_rows_may_come_from_stores() -> None:
    """In place of an attribute of the graph, beside it, or for a type that has none."""
    data, rows = make_hetero(), torch.randn(40, 5)
    topology = HeteroTopology.from_data(data)
    places = {name: torch.arange(count) for name, count in NUM_NODES.items()}
    stores = {
        ("paper", "x"): feature_store(rows),
        ("author", "place"): feature_store(places["author"]),
        ("venue", "x"): feature_store(places["venue"]),
    }
    builder = HeteroBatchBuilder(data, topology, stores=stores)
    batch = builder.build(sample(topology, "venue", [1, 2]), "venue", np.arange(2))
    assert torch.equal(batch["paper"].x, rows[batch["paper"].n_id])
    assert torch.equal(batch["author"].place, batch["author"].n_id)
    assert torch.equal(batch["author"].x, data["author"].x[batch["author"].n_id])
    assert torch.equal(batch["venue"].x, batch["venue"].n_id)


@pytest.mark.parametrize(
    ("key", "num_rows", "message"),
    [
        (
            ("papers", "x"),
            40,
            "Unknown node type of `stores` 'papers'. Did you mean 'paper'? Known: author, paper, venue."
            ' HINT: a key of `stores` is a node type and the name of an attribute, as in ("paper", "x").',
        ),
        (
            ("paper", "x"),
            39,
            "`stores['paper', 'x']` must have one row for each of the 40 nodes, but has 39."
            " HINT: rows stand in the order of the nodes' ids.",
        ),
    ],
)
def test_stores_that_do_not_fit_are_refused(key: tuple[str, str], num_rows: int, message: str) -> None:
    data = make_hetero()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeteroBatchBuilder(data, HeteroTopology.from_data(data), stores={key: feature_store(torch.zeros(num_rows, 1))})


def test_attributes_of_edges_named_index_are_cut_in_their_last_dimension() -> None:
    """As PyG does it for edges, but not for nodes."""
    data = make_hetero()
    data[CITES].pair_index = torch.stack([torch.arange(160), torch.arange(160) + 1000])
    topology = HeteroTopology.from_data(data)
    batch = HeteroBatchBuilder(data, topology, edge_id=True).build(
        sample(topology, "paper", [4]), "paper", np.arange(1)
    )
    e_id = batch[CITES].e_id
    assert torch.equal(batch[CITES].pair_index, torch.stack([e_id, e_id + 1000]))
    assert batch["author"].node_index is data["author"].node_index


@pytest.mark.parametrize(("edge_id", "missing"), [(False, "edge_attr"), (True, "edge_attr")])
def test_edge_attributes_without_edge_ids_are_refused(edge_id: bool, missing: str) -> None:
    data = make_hetero()
    topology = HeteroTopology.from_data(data, edge_ids=False)
    message = (
        f"`topology` must hold edge ids to slice {missing} of {WRITES}, but it has none."
        " HINT: build it with `HeteroTopology.from_data(..., edge_ids=True)`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeteroBatchBuilder(data, topology, edge_id=edge_id)
    assert HeteroBatchBuilder.needs_edge_ids(data)
    del data[WRITES].edge_attr, data[CITES].edge_weight
    assert not HeteroBatchBuilder.needs_edge_ids(data)
    batch = HeteroBatchBuilder(data, topology).build(sample(topology, "paper", [1]), "paper", np.arange(1))
    assert batch[CITES].edge_index.size(1) > 0
    with pytest.raises(ValueError, match="to slice `e_id` of"):
        HeteroBatchBuilder(data, topology, edge_id=True)


def test_a_topology_of_another_graph_is_refused() -> None:
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    hint = " HINT: build it with `HeteroTopology.from_data(data)`."
    more, other = data.clone(), data.clone()
    more["author", "likes", "venue"].edge_index = torch.zeros(2, 3, dtype=torch.long)
    other["venue"].num_nodes = 9
    for graph, found in (
        (more, "for ('author', 'likes', 'venue') `data` has 3 edges and `topology` no such type."),
        (other, "for 'venue' `data` has 9 nodes and `topology` 8."),
    ):
        message = f"`topology` must be that of `data`, but {found}{hint}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            HeteroBatchBuilder(graph, topology)
    with pytest.raises(TypeError, match=r"^`data` must be a `torch_geometric.data.HeteroData`, but got Data\. HINT:"):
        HeteroBatchBuilder(Data(x=torch.zeros(3, 1)), topology)


def test_an_attribute_by_the_name_of_what_the_sampler_says_is_refused() -> None:
    data = make_hetero()
    data["author"].batch = torch.arange(30)
    topology = HeteroTopology.from_data(data)
    builder = HeteroBatchBuilder(data, topology)
    message = (
        "`batch` of a batch is what the sampler says, but the graph has an attribute of that name of its 'author' nodes"
        " too. HINT: rename `data['author'].batch`, or delete it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        builder.build(sample(topology, "paper", [1], disjoint=True), "paper", np.arange(1))
    kept = builder.build(sample(topology, "paper", [1]), "paper", np.arange(1))["author"]
    assert torch.equal(kept.batch, kept.n_id)


def test_it_travels_to_another_process() -> None:
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    builder, subgraph = HeteroBatchBuilder(data, topology, edge_id=True), sample(topology, "paper", [4, 9])
    expected, found = (b.build(subgraph, "paper", np.arange(2)) for b in (builder, pickle.loads(pickle.dumps(builder))))
    assert differences(found, expected) == []


@pytest.mark.parametrize("name", ["n_id", "input_id", "batch_size", "num_sampled_nodes"])
def test_an_attribute_by_the_name_of_what_batches_get_is_refused(name: str) -> None:
    data = HeteroData()
    data["paper"].x = torch.zeros(3, 2)
    data["paper"][name] = torch.zeros(3)
    data["paper", "cites", "paper"].edge_index = torch.tensor([[0, 1], [2, 2]])
    message = (
        f"`{name}` of a batch is the loader's to say, but 'paper' of the graph has an attribute of that name too."
        f" HINT: rename `data['paper'].{name}`, or delete it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HeteroBatchBuilder(data, HeteroTopology.from_data(data))

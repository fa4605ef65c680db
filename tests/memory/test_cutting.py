from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.loader import LinkNeighborLoader, NeighborLoader
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.memory.cutting import cut_batch, cut_subgraph
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
from lightning_gnnopt.sampling import ClusterSampler, NeighborSampler, SampleKey, Subgraph, Topology

SEEDS = np.array([3, 1, 4, 15, 9, 2, 6])


def graph() -> Data:
    """Every attribute tells which node or edge it is of."""
    edge_index = torch.randint(60, (2, 400), generator=torch.Generator().manual_seed(0))
    nodes, edges = torch.arange(60), torch.arange(400)
    return Data(
        x=torch.stack([nodes, -nodes], 1).float(),
        y=nodes * 10,
        train_mask=nodes % 3 == 0,
        edge_index=edge_index,
        edge_attr=torch.stack([edges, edge_index[0], edge_index[1]], 1),
        weight=edges / 2,
        lookup_index=torch.stack([nodes, nodes]),  # counted in its last dimension, as PyG has it
        classes=torch.arange(7) / 7,
        title="a graph",
        names=["a", "b"],
    )


def topology() -> Topology:
    return Topology.from_edge_index(graph().edge_index, num_nodes=60, edge_ids=True)


def sample(seeds: NDArray[np.integer] = SEEDS, **options: Any) -> Subgraph:
    return NeighborSampler(topology(), [4, 3], **options).sample(seeds, SampleKey(1))


def build(subgraph: Subgraph, **options: Any) -> Data:
    return BatchBuilder(graph(), topology(), edge_id=True, in_degree=True, **options).build(
        subgraph, 100 + np.arange(subgraph.batch_size)
    )


def half(num_edges: int) -> NDArray[np.bool_]:
    return np.random.default_rng(0).random(num_edges) < 0.4


def check_rows(batch: Data, seeds: NDArray[np.integer]) -> None:
    """Each row must be that of the node or edge that `n_id` and `e_id` name."""
    data, degrees = graph(), torch.from_numpy(topology().in_degrees)
    n_id, e_id = batch.n_id, batch.e_id
    assert batch.num_nodes == len(n_id)
    for name in ("x", "y", "train_mask"):
        assert torch.equal(batch[name], data[name][n_id])
    assert torch.equal(batch.lookup_index, data.lookup_index[:, n_id])
    assert torch.equal(batch.in_degree, degrees[n_id])
    for name in ("edge_attr", "weight"):
        assert torch.equal(batch[name], data[name][e_id])
    edge_index = torch.Tensor.as_subclass(batch.edge_index, Tensor)
    assert torch.equal(n_id[edge_index[0]], data.edge_index[0][e_id])
    assert torch.equal(n_id[edge_index[1]], data.edge_index[1][e_id])
    places = [SEEDS.tolist().index(seed) for seed in seeds.tolist()]
    assert batch.input_id.tolist() == [100 + place for place in places]
    assert n_id[: batch.batch_size].tolist() == seeds.tolist()
    assert (batch.title, batch.names) == ("a graph", ["a", "b"])


@pytest.mark.parametrize("places", [None, [1, 2, 5], [4]])
@pytest.mark.parametrize("pruned", [True, False])
def test_a_cut_batch_is_the_one_built_from_the_cut_subgraph(places: list[int] | None, pruned: bool) -> None:
    """The reference slices the whole graph, and never a batch."""
    subgraph = sample()
    batch = build(subgraph)
    structure = BatchStructure.of_subgraph(subgraph)
    seeds = None if places is None else np.array(places)
    selection = select(structure, keep=half(subgraph.num_edges) if pruned else None, seeds=seeds)
    kept = np.arange(len(SEEDS)) if seeds is None else seeds
    cut = cut_batch(batch, selection)
    expected = BatchBuilder(graph(), topology(), edge_id=True, in_degree=True).build(
        cut_subgraph(subgraph, selection), 100 + kept
    )
    assert set(cut.keys()) == set(expected.keys())
    for name, value in expected.to_dict().items():
        if isinstance(value, Tensor):
            assert cut[name].dtype == value.dtype, name
            assert torch.equal(cut[name], value), name
        else:
            assert cut[name] == value, name
    check_rows(cut, SEEDS[kept])


def test_the_batch_that_was_cut_stays_as_it_was() -> None:
    batch = build(sample())
    before = batch.clone()
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), keep=half(batch.num_edges)))
    assert cut.num_edges < batch.num_edges
    for name, value in before.to_dict().items():
        assert torch.equal(batch[name], value) if isinstance(value, Tensor) else batch[name] == value


def test_what_is_whole_is_not_copied() -> None:
    batch = build(sample())
    assert cut_batch(batch, select(BatchStructure.of_batch(batch))) is batch


def equal_sized() -> tuple[Data, Selection]:
    """As many nodes as edges, and as seeds."""
    batch = Data(
        x=torch.arange(3.0)[:, None],
        edge_attr=torch.arange(3) + 10,
        edge_index=torch.tensor([[1, 2, 0], [0, 1, 2]]),
        n_id=torch.arange(3) + 20,
        e_id=torch.arange(3) + 30,
        edge_norm=torch.arange(3) + 40,
        node_norm=torch.arange(3) + 50,
        input_id=torch.arange(3) + 60,
        batch_size=3,
        num_sampled_nodes=[3, 0, 0],  # a list of three, which is no list of nodes
        num_sampled_edges=[3, 0],
    )
    return batch, select(BatchStructure.of_batch(batch), keep=np.array([True, False, True]), seeds=np.array([2, 0]))


def test_as_many_nodes_as_edges_are_not_confused() -> None:
    batch, selection = equal_sized()
    # 2 <- 0 <- 1: the seeds 2 and 0 in this order, then node 1.
    assert (selection.nodes.tolist(), selection.edges.tolist()) == ([2, 0, 1], [2, 0])
    cut = cut_batch(batch, selection)
    expected = {
        "x": [[2.0], [0.0], [1.0]],
        "edge_attr": [12, 10],
        "edge_index": [[1, 2], [0, 1]],
        "n_id": [22, 20, 21],
        "e_id": [32, 30],
        "edge_norm": [42, 40],
        "node_norm": [52, 50, 51],
        "input_id": [62, 60],
    }
    assert {name: cut[name].tolist() for name in expected} == expected
    assert (cut.num_nodes, cut.batch_size) == (3, 2)
    assert (cut.num_sampled_nodes, cut.num_sampled_edges) == ([2, 1, 0], [2, 0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_edge_index_stays_one(dtype: torch.dtype) -> None:
    subgraph = sample()
    old = build(subgraph, edge_format="csc")
    ids, size = old.edge_index.as_tensor().to(dtype), (subgraph.num_nodes, subgraph.num_nodes)
    old.edge_index = EdgeIndex(ids, sparse_size=size, sort_order="col")
    old.edge_index.fill_cache_()
    selection = select(BatchStructure.of_batch(old), keep=half(old.num_edges), seeds=np.array([0, 2, 3]))
    new = cut_batch(old, selection).edge_index
    assert isinstance(new, EdgeIndex)
    new.validate()
    assert (new.dtype, new.sort_order, new.sparse_size()) == (dtype, "col", (len(selection.nodes),) * 2)
    pointers = new._indptr
    again = EdgeIndex(new.as_tensor(), sparse_size=new.sparse_size(), sort_order="col").fill_cache_()
    assert torch.equal(pointers, again._indptr)
    np.testing.assert_array_equal(new.as_tensor().numpy(), np.stack([selection.row, selection.col]))


def test_an_edge_index_that_is_not_sorted_any_more_does_not_say_so() -> None:
    ids = torch.tensor([[3, 4, 3], [0, 1, 2]])
    # Sorted by destination without hops; the seeds are asked for in another order, and edges keep theirs.
    batch = Data(edge_index=EdgeIndex(ids, sparse_size=(5, 5), sort_order="col"), num_nodes=5, batch_size=3)
    selection = select(BatchStructure.of_batch(batch), seeds=np.array([2, 1, 0]))
    new = cut_batch(batch, selection).edge_index
    assert new.as_tensor().tolist() == [[3, 4, 3], [2, 1, 0]]
    assert (new.sort_order, new.sparse_size()) == (None, (5, 5))


def test_a_subgraph_keeps_what_the_sampler_said_of_it() -> None:
    subgraph = sample(disjoint=True)
    rng = np.random.default_rng(0)
    subgraph = Subgraph(
        subgraph.n_id,
        subgraph.row,
        subgraph.col,
        subgraph.positions,
        subgraph.num_sampled_nodes,
        subgraph.num_sampled_edges,
        batch=subgraph.batch,
        edge_norm=rng.random(subgraph.num_edges, np.float32),
        node_norm=rng.random(subgraph.num_nodes, np.float32),
    )
    assert subgraph.batch is not None
    assert subgraph.edge_norm is not None
    assert subgraph.node_norm is not None
    seeds = np.array([5, 0, 3])
    selection = select(BatchStructure.of_subgraph(subgraph), keep=half(subgraph.num_edges), seeds=seeds)
    cut = cut_subgraph(subgraph, selection)
    assert cut.batch is not None
    indices = topology().indices
    np.testing.assert_array_equal(cut.n_id[cut.row], indices[cut.positions])
    np.testing.assert_array_equal(cut.n_id[:3], SEEDS[seeds])
    np.testing.assert_array_equal(cut.edge_norm, subgraph.edge_norm[selection.edges])
    np.testing.assert_array_equal(cut.node_norm, subgraph.node_norm[selection.nodes])
    # The trees are those of the three seeds, in their new order.
    np.testing.assert_array_equal(cut.batch[:3], [0, 1, 2])
    np.testing.assert_array_equal(seeds[cut.batch], subgraph.batch[selection.nodes])
    assert (cut.batch_size, cut.num_nodes, cut.num_edges) == (3, len(selection.nodes), len(selection.edges))
    assert (cut.num_sampled_nodes, cut.num_sampled_edges) == (selection.num_sampled_nodes, selection.num_sampled_edges)
    assert (cut.n_id.dtype, cut.row.dtype, cut.batch.dtype) == (np.int32, np.int32, np.int32)


def test_trees_of_a_batch_are_numbered_by_the_seeds_that_are_left() -> None:
    batch = build(sample(disjoint=True))
    seeds = np.array([5, 0, 3])
    selection = select(BatchStructure.of_batch(batch), seeds=seeds)
    cut = cut_batch(batch, selection)
    assert torch.equal(torch.from_numpy(seeds)[cut.batch], batch.batch[selection.nodes])
    assert cut.batch.dtype == batch.batch.dtype
    pruned = select(BatchStructure.of_batch(batch), keep=half(batch.num_edges))
    assert torch.equal(cut_batch(batch, pruned).batch, batch.batch[pruned.nodes])


def test_an_attribute_that_is_only_called_batch_keeps_its_values() -> None:
    batch = build(sample())
    batch.batch = batch.n_id % 4 + 2
    selection = select(BatchStructure.of_batch(batch), seeds=np.array([5, 0, 3]))
    assert torch.equal(cut_batch(batch, selection).batch, batch.batch[selection.nodes])


def test_a_cluster_is_cut_without_hops() -> None:
    subgraph = ClusterSampler(topology(), parts=np.arange(60) % 3).sample(SEEDS, SampleKey(0))
    batch = build(subgraph)
    selection = select(BatchStructure.of_batch(batch), keep=np.arange(batch.num_edges) % 9 == 0)
    cut = cut_batch(batch, selection)
    assert len(SEEDS) < cut.num_nodes < batch.num_nodes
    assert "num_sampled_nodes" not in cut
    check_rows(cut, SEEDS)
    assert torch.equal(cut.edge_attr[:, 0], batch.edge_attr[::9, 0])


def test_arrays_are_cut_like_tensors() -> None:
    batch, selection = equal_sized()
    batch.marks = np.array([[1, 2], [3, 4], [5, 6]])
    assert cut_batch(batch, selection).marks.tolist() == [[5, 6], [1, 2], [3, 4]]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_row_follows_its_node_or_edge(data: st.DataObject) -> None:
    """Attributes of any number of dimensions, whatever the counts of nodes, edges and seeds have in common."""
    num_nodes = data.draw(st.integers(1, 8))
    ends = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(ends, ends), max_size=12))
    num_edges, num_seeds = len(edges), data.draw(st.integers(1, num_nodes))
    nodes, places = torch.arange(num_nodes), torch.arange(num_edges)
    batch = Data(
        edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t().contiguous(),
        num_nodes=num_nodes,
        batch_size=num_seeds,
        x=nodes[:, None],
        y=nodes,
        cube=nodes[:, None, None].expand(-1, 2, 3),
        n_id=nodes,
        edge_attr=places[:, None],
        edge_weight=places,
        edge_cube=places[:, None, None].expand(-1, 3, 2),
        e_id=places,
        input_id=torch.arange(num_seeds),
        train_mask=nodes % 2 == 0,
    )
    if data.draw(st.booleans()):
        batch.num_sampled_nodes, batch.num_sampled_edges = [num_seeds, num_nodes - num_seeds], [num_edges]
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=num_edges, max_size=num_edges)), bool)
    seeds = data.draw(st.none() | st.lists(st.integers(0, num_seeds - 1), unique=True, min_size=1))
    structure = BatchStructure.of_batch(batch)
    selection = select(structure, keep=keep, seeds=None if seeds is None else np.array(seeds))
    cut = cut_batch(batch, selection)
    assert cut.num_nodes == len(selection.nodes)
    assert cut.batch_size == (num_seeds if seeds is None else len(seeds))
    assert cut.input_id.tolist() == (list(range(num_seeds)) if seeds is None else seeds)
    for name in ("x", "y", "cube", "n_id"):
        assert torch.equal(cut[name], batch[name][selection.nodes]), name
    for name in ("edge_attr", "edge_weight", "edge_cube", "e_id"):
        assert torch.equal(cut[name], batch[name][selection.edges]), name
    assert torch.equal(cut.train_mask, cut.n_id % 2 == 0)
    assert torch.equal(cut.n_id[cut.edge_index], batch.edge_index[:, cut.e_id])


# Links


def links(**extra: Tensor) -> Data:
    """Seeds 0 to 4, of which 0 reads 5 and 3 reads 6."""
    return Data(
        x=torch.arange(7.0)[:, None],
        edge_index=torch.tensor([[5, 6], [0, 3]]),
        num_sampled_nodes=[5, 2],
        num_sampled_edges=[2],
        **extra,
    )


def test_links_between_seeds_that_stay_are_kept() -> None:
    batch = links(
        edge_label_index=torch.tensor([[0, 1, 3, 0], [2, 3, 4, 4]]),
        edge_label=torch.tensor([1.0, 1.0, 1.0, 0.0]),
        input_id=torch.tensor([70, 71, 72]),  # the fourth is a negative
    )
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), seeds=np.array([0, 3, 4])))
    assert cut.x.flatten().tolist() == [0, 3, 4, 5, 6]
    assert cut.edge_label_index.tolist() == [[1, 0], [2, 2]]
    assert cut.edge_label.tolist() == [1.0, 0.0]
    assert cut.input_id.tolist() == [72]
    assert "batch_size" not in cut


def test_triplets_between_seeds_that_stay_are_kept() -> None:
    batch = links(
        src_index=torch.tensor([0, 1, 3]),
        dst_pos_index=torch.tensor([2, 4, 4]),
        dst_neg_index=torch.tensor([[3, 4], [0, 2], [2, 0]]),
        input_id=torch.tensor([70, 71, 72]),
        seed_time=torch.tensor([7, 8, 9]),
    )
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), seeds=np.array([0, 2, 3, 4])))
    assert cut.src_index.tolist() == [0, 2]
    assert cut.dst_pos_index.tolist() == [1, 3]
    assert cut.dst_neg_index.tolist() == [[2, 3], [1, 0]]
    assert (cut.input_id.tolist(), cut.seed_time.tolist()) == ([70, 72], [7, 9])


def test_pruning_keeps_all_links() -> None:
    batch = links(edge_label_index=torch.tensor([[0, 1, 3, 0], [2, 3, 4, 4]]), edge_label=torch.ones(4))
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), keep=np.array([False, True])))
    assert cut.x.flatten().tolist() == [0, 1, 2, 3, 4, 6]
    assert torch.equal(cut.edge_label_index, batch.edge_label_index)
    assert torch.equal(cut.edge_label, batch.edge_label)


def test_edge_labels_without_links_are_of_the_edges() -> None:
    batch = links(edge_label=torch.tensor([10, 20]))
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), keep=np.array([False, True])))
    assert cut.edge_label.tolist() == [20]


# PyG's own loaders

needs_sampler = pytest.mark.skipif(not (WITH_PYG_LIB or WITH_TORCH_SPARSE), reason="PyG's samplers are not installed")


@needs_sampler
def test_batches_of_pyg_neighbor_loader_are_cut() -> None:
    loader = NeighborLoader(graph(), [4, 3], input_nodes=torch.from_numpy(SEEDS), batch_size=7)
    batch = next(iter(loader))
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), seeds=np.array([1, 4])))
    assert torch.equal(cut.x, graph().x[cut.n_id])
    assert torch.equal(cut.edge_attr, graph().edge_attr[cut.e_id])
    assert cut.input_id.tolist() == batch.input_id[[1, 4]].tolist()


@needs_sampler
def test_batches_of_pyg_link_loader_are_cut() -> None:
    data = graph()
    loader = LinkNeighborLoader(
        data, [4, 3], edge_label_index=data.edge_index[:, :6], neg_sampling="binary", batch_size=6
    )
    batch = next(iter(loader))
    cut = cut_batch(batch, select(BatchStructure.of_batch(batch), keep=half(batch.num_edges)))
    assert torch.equal(cut.n_id[cut.edge_label_index], batch.n_id[batch.edge_label_index])

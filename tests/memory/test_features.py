from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.loading import LinkSplit, LinkTask
from lightning_gnnopt.memory.features import FeatureReader, batch_bytes, has_edges, is_batch, num_edges_of
from lightning_gnnopt.sampling import ClusterSampler
from tests.memory.runs import make_datamodule, make_graph

PAIRS = torch.randint(210, (2, 60), generator=torch.Generator().manual_seed(4))


def hetero_graph() -> HeteroData:
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.rand(50, 3), torch.rand(30, 2)
    data["paper"].y = torch.randint(3, (50,), generator=generator)
    data["paper"].train_mask = torch.ones(50, dtype=torch.bool)
    for kind, sizes in {("author", "writes", "paper"): (30, 50), ("paper", "cites", "paper"): (50, 50)}.items():
        ends = [torch.randint(size, (200,), generator=generator) for size in sizes]
        data[kind].edge_index = torch.stack(ends)
    return data


def links(**options: Any) -> LinkTask:
    return LinkTask(train=LinkSplit(PAIRS), **options)


LOADERS: dict[str, Any] = {
    "hops": make_datamodule,
    "one hop": partial(make_datamodule, num_neighbors=[5]),
    "csc": partial(make_datamodule, edge_format="csc"),
    "trees": partial(make_datamodule, sampler="shadow", num_neighbors=[4, 3]),
    "clusters": lambda: make_datamodule(
        sampler=partial(ClusterSampler, num_parts=12, clusters_per_batch=3),
        num_neighbors=None,
        eval_num_neighbors=[6, 4],
    ),
    "saint": lambda: make_datamodule(
        sampler="saint-node", num_neighbors=None, eval_num_neighbors=[6, 4], batch_size=60
    ),
    "pairs": lambda: make_datamodule(links=links(negatives="binary", amount=2.0)),
    "triplets": lambda: make_datamodule(links=links(negatives="triplet", amount=3)),
    "hetero": lambda: GraphDataModule(
        hetero_graph(), num_neighbors=[4, 3], batch_size=8, num_workers=0, input_type="paper"
    ),
}


def drawn(name: str, num_inputs: int = 9) -> tuple[Any, Any]:
    """A subgraph and the batch that is made from it."""
    datamodule: GraphDataModule = LOADERS[name]()
    datamodule.setup("fit")
    subgraph, batch = datamodule.train_dataloader().draw(num_inputs)
    return subgraph, batch


def edges_of(batch: Any) -> list[tuple[int, int]]:
    return list(zip(*plain(batch.edge_index).tolist(), strict=True))


def plain(edge_index: Tensor) -> Tensor:
    return edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index


def loops_by_hop(batch: Any) -> list[int]:
    sizes = batch.get("num_sampled_edges") or [batch.num_edges]
    edges, counts = edges_of(batch), []
    for size in sizes:
        counts.append(sum(u == v for u, v in edges[:size]))
        edges = edges[size:]
    return counts


def row_by_hand(batch: Any) -> dict[str, float]:
    if isinstance(batch, HeteroData):
        row = {
            f"nodes_{hop}[{kind}]": count
            for kind, counts in batch.num_sampled_nodes_dict.items()
            for hop, count in enumerate(counts)
        }
        for kind, counts in batch.num_sampled_edges_dict.items():
            row |= {f"edges_{hop + 1}[{'__'.join(kind)}]": count for hop, count in enumerate(counts)}
        return row
    if batch.get("num_sampled_nodes") is None:
        seeds = batch.get("batch_size", batch.num_nodes)
        row = {"nodes_0": seeds, "nodes_1": batch.num_nodes - seeds, "edges_1": len(edges_of(batch))}
    else:
        row = {f"nodes_{hop}": count for hop, count in enumerate(batch.num_sampled_nodes)}
        row |= {f"edges_{hop + 1}": count for hop, count in enumerate(batch.num_sampled_edges)}
    if batch.get("edge_label_index") is not None:
        row["labels"] = batch.edge_label_index.shape[1]
    if batch.get("src_index") is not None:
        row |= {"labels": len(batch.src_index), "negatives": batch.dst_neg_index.numel()}
    return row


@pytest.mark.parametrize("name", LOADERS)
def test_a_row_by_hand(name: str) -> None:
    _, batch = drawn(name)
    reader = FeatureReader(batch)
    row = reader(batch)
    assert (row.dtype, row.shape) == (np.float64, (len(reader.names),))
    assert dict(zip(reader.names, row.tolist(), strict=True)) == row_by_hand(batch)


@pytest.mark.parametrize("counters", [{}, {"loops": True}, {"padded": True}, {"loops": True, "padded": True}])
@pytest.mark.parametrize("name", LOADERS)
def test_a_subgraph_has_the_row_of_its_batch(name: str, counters: dict[str, bool]) -> None:
    if name == "hetero" and counters:
        return
    subgraph, batch = drawn(name)
    of_batch, of_subgraph = FeatureReader(batch, **counters), FeatureReader(subgraph, **counters)
    assert of_batch.names == of_subgraph.names
    np.testing.assert_array_equal(of_batch(subgraph), of_batch(batch))
    np.testing.assert_array_equal(of_subgraph(batch), of_batch(batch))
    assert num_edges_of(subgraph) == num_edges_of(batch) == batch.num_edges
    assert has_edges(subgraph)
    assert has_edges(batch)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "hetero"])
def test_loops_and_padded_rows_by_hand(name: str) -> None:
    _, batch = drawn(name, 30)
    batch.edge_index = plain(batch.edge_index).clone()
    batch.edge_index[0, ::7] = batch.edge_index[1, ::7]
    reader = FeatureReader(batch, loops=True, padded=True)
    row = dict(zip(reader.names, reader(batch).tolist(), strict=True))
    expected = loops_by_hop(batch)
    assert [row[f"loops_{hop + 1}"] for hop in range(len(expected))] == expected
    assert sum(expected) >= batch.num_edges // 7
    in_degrees: dict[int, int] = {}
    for _, v in edges_of(batch):
        in_degrees[v] = in_degrees.get(v, 0) + 1
    assert row["padded"] == batch.num_nodes * max(in_degrees.values())


def test_a_batch_without_edges() -> None:
    batch = Data(x=torch.rand(4, 1), edge_index=torch.empty(2, 0, dtype=torch.long), batch_size=3)
    reader = FeatureReader(batch, loops=True, padded=True)
    assert reader.names == ("nodes_0", "nodes_1", "edges_1", "loops_1", "padded")
    assert reader(batch).tolist() == [3, 1, 0, 0, 0]


def test_without_seeds_all_nodes_are_seeds() -> None:
    batch = Data(x=torch.rand(4, 1), edge_index=torch.tensor([[0], [1]]))
    assert FeatureReader(batch)(batch).tolist() == [4, 0, 1]


def test_nodes_that_no_attribute_counts() -> None:
    batch = Data(edge_index=EdgeIndex([[0, 2], [1, 1]], sparse_size=(4, 4)), num_nodes=4, batch_size=1)
    assert FeatureReader(batch, loops=True)(batch).tolist() == [1, 3, 2, 0]


def test_columns_are_places_of_names() -> None:
    reader = FeatureReader(drawn("hops")[1], loops=True)
    assert reader.columns(["edges_2", "nodes_0", "loops_1"]).tolist() == [4, 0, 5]


def test_batches_of_another_kind_are_refused() -> None:
    reader = FeatureReader(drawn("hops")[1])
    with pytest.raises(ValueError, match=r"nodes_0, nodes_1, nodes_2, edges_1, edges_2, but it has nodes_0, .*HINT"):
        reader(drawn("one hop")[1])
    other = hetero_graph().rename("author", "editor")
    with pytest.raises(ValueError, match=r"nodes_0\[author\].* but it has .*nodes_0\[editor\].*HINT"):
        FeatureReader(hetero_of(hetero_graph()))(hetero_of(other))


def hetero_of(data: HeteroData) -> HeteroData:
    """With counts as PyG's loaders write them, in the store of each type."""
    for store in data.node_stores:
        store.num_sampled_nodes = [3, 2]
    for store in data.edge_stores:
        store.num_sampled_edges = [5]
    return data


def test_counts_that_pyg_keeps_in_the_stores() -> None:
    data = hetero_of(hetero_graph())
    reader = FeatureReader(data)
    assert reader.names == (
        "nodes_0[paper]",
        "nodes_1[paper]",
        "nodes_0[author]",
        "nodes_1[author]",
        "edges_1[author__writes__paper]",
        "edges_1[paper__cites__paper]",
    )
    assert reader(data).tolist() == [3, 2, 3, 2, 5, 5]
    assert num_edges_of(data) == 10


@pytest.mark.parametrize("counters", [{"loops": True}, {"padded": True}])
def test_edges_of_several_types_are_not_looked_at(counters: dict[str, bool]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(counters))} can be counted in homogeneous batches only"):
        FeatureReader(hetero_of(hetero_graph()), **counters)


@pytest.mark.parametrize("example", [torch.ones(3), (1, 2), {"x": 1}, None])
def test_what_is_no_batch_is_refused(example: Any) -> None:
    with pytest.raises(TypeError, match=rf"must be a PyG `Data` or `HeteroData`, but is a {type(example).__name__}"):
        FeatureReader(example)
    assert not is_batch(example)


# Bytes


def test_bytes_by_hand() -> None:
    shared = torch.rand(5, 2)
    batch = Data(
        x=shared,  # 40
        again=shared,  # the same
        edge_index=torch.zeros(2, 3, dtype=torch.long),  # 48
        mask=torch.ones(5, dtype=torch.bool),  # 5
        half=torch.ones(5, dtype=torch.float16),  # 10
        names=["a", "b"],
        number=3,
        nothing=torch.empty(0),
    )
    assert batch_bytes(batch) == 40 + 48 + 5 + 10


def test_sparse_tensors_count_what_they_store() -> None:
    batch = Data(x=torch.eye(4).to_sparse_csr(), edge_index=torch.zeros(2, 3, dtype=torch.long))
    assert batch_bytes(batch) == (5 * 8 + 4 * 8 + 4 * 4) + 48


def test_parts_of_one_storage_count_each() -> None:
    packed = torch.zeros(100, dtype=torch.uint8)
    batch = Data(x=packed[:40].view(torch.float32), y=packed[40:80].view(torch.long))
    assert batch_bytes(batch) == 80


@pytest.mark.parametrize("name", ["hops", "clusters", "pairs", "hetero"])
def test_bytes_are_those_that_a_copy_takes(name: str) -> None:
    _, batch = drawn(name)
    copied = {
        (store_name, name): value.clone()
        for store_name, store in enumerate(batch.stores)
        for name, value in store.items()
        if isinstance(value, Tensor)
    }
    assert batch_bytes(batch) == sum(value.nbytes for value in copied.values())


def test_graphs_are_batches() -> None:
    assert is_batch(make_graph())
    assert is_batch(hetero_graph())

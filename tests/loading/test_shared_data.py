from __future__ import annotations

import pickle

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading.shared_data import SharedData

from .graphs import make_data, same_batch


def rich_data() -> Data:
    data = make_data()
    data.half, data.brain = torch.randn(60, 3).half(), torch.randn(60, 2).bfloat16()
    data.scalar, data.empty = torch.tensor(3.5), torch.empty(0, 4)
    data.turned = torch.randn(4, 60).t()
    data.title, data.tags = "a graph", ["x"]
    return data


def test_what_another_process_gets_is_the_same_graph_in_a_small_pickle() -> None:
    data = rich_data()
    data.large = torch.randn(60, 5_000)  # 1.2 MB
    shared = SharedData(data).share()
    words = pickle.dumps(shared)
    assert len(words) < 10_000
    for copy in (shared.data, pickle.loads(words).data):
        assert same_batch(copy, data)
    assert data.x.data_ptr() != shared.data.x.data_ptr()


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_sparse_features_stay_sparse(layout: torch.layout) -> None:
    data = make_data()
    dense = data.x.relu()
    data.x = dense.to_sparse(layout=layout)
    shared = SharedData(data).share()
    words = pickle.dumps(shared)
    for copy in (shared.data, pickle.loads(words).data):
        assert copy.x.layout == layout
        assert torch.equal(copy.x.to_dense(), dense)


def test_a_heterogeneous_graph_keeps_its_types() -> None:
    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(3, 2), torch.randn(4, 5)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1], [3, 2]])
    data.year = 2026
    shared = SharedData(data).share()
    copy = pickle.loads(pickle.dumps(shared)).data
    assert copy.year == 2026
    assert torch.equal(copy["a"].x, data["a"].x)
    assert torch.equal(copy["b"].x, data["b"].x)
    assert torch.equal(copy["a", "to", "b"].edge_index, data["a", "to", "b"].edge_index)


def test_writing_changes_nothing_for_the_others() -> None:
    shared = SharedData(make_data()).share()
    words = pickle.dumps(shared)
    mine, other = pickle.loads(words).data, pickle.loads(words).data
    before = other.x.clone()
    mine.x.zero_()
    assert torch.equal(other.x, before)
    assert torch.equal(shared.data.x, before)


def test_a_graph_that_is_not_shared_is_pickled_whole() -> None:
    data = make_data()
    assert same_batch(pickle.loads(pickle.dumps(SharedData(data))).data, data)

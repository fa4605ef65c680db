"""What a sweep takes: models and optimizers of every form; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.sampling import ClusterSampler

from .sweeping import SEEN, Plain, Seeing, hand_peaks, sweep


def test_batches_bring_what_the_model_needs(data: Data) -> None:
    class Net(Seeing):
        needs_in_degree = True

    sweep(data, Net(), batch_sizes=[64], batches=1)
    in_degrees = torch.bincount(data.edge_index[1], minlength=1797)
    sampled = [batch for batch in SEEN if "batch_size" in batch]
    assert sampled
    assert all(torch.equal(batch.in_degree.long(), in_degrees[batch.n_id]) for batch in sampled)


def test_a_network_is_wrapped_and_a_function_is_told_the_sizes(data: Data) -> None:
    def make(datamodule: GraphDataModule) -> NodeClassifier:
        sizes = (datamodule.num_features, datamodule.num_classes)
        assert sizes == (64, 10)
        return NodeClassifier("sage", in_channels=64, out_channels=10, hidden_channels=8)

    made = sweep(data, make, batch_sizes=[64], batches=2)
    wrapped = sweep(data, make(GraphDataModule(data)).net, batch_sizes=[64], batches=2)
    assert [point.peak_bytes for point in made] == [point.peak_bytes for point in wrapped]


@pytest.mark.parametrize("form", ["list", "lists", "dict"])
def test_every_form_of_one_optimizer(data: Data, form: str) -> None:
    model = Plain()
    model.form = form
    (point,) = sweep(data, model, batch_sizes=[], batches=1)
    assert [point.peak_bytes] == hand_peaks(Plain(), [data])


@pytest.mark.parametrize("form", ["two", "none"])
def test_other_than_one_optimizer_is_refused(data: Data, form: str) -> None:
    model = Plain()
    model.form = form
    with pytest.raises(ValueError, match=r"`configure_optimizers` of Plain must make one optimizer, but made"):
        sweep(data, model, batch_sizes=[], batches=1)


def test_manual_optimization_is_refused(data: Data) -> None:
    model = Plain()
    model.automatic_optimization = False
    with pytest.raises(ValueError, match=r"`model` must leave optimization to Lightning, but Plain sets"):
        sweep(data, model, batch_sizes=[])


def test_what_is_no_model_is_refused(data: Data) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a module or a function that makes one .*, but made a int"):
        sweep(data, lambda datamodule: 3, batch_sizes=[])


def test_clusters_have_no_batch_size(data: Data) -> None:
    datamodule = GraphDataModule(data, sampler=lambda topology: ClusterSampler(topology, 10), eval_num_neighbors=[2, 2])
    with pytest.raises(ValueError, match=r"`batch_sizes` must be empty with ClusterSampler"):
        sweep(datamodule, Plain(), batch_sizes=[64])
    (point,) = sweep(datamodule, Plain(), batch_sizes=[])
    assert point.sampler == "full"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [64, 0]}, "`batch_sizes` must be at least 1, but got 0."),
        ({"batch_sizes": [64], "batches": 0}, "`batches` must be at least 1, but got 0."),
        ({"batch_sizes": [], "full_batch": False}, "`batch_sizes` is empty and `full_batch` is False"),
        ({"batch_sizes": [64], "num_neighbors": [0]}, "positive or -1"),
    ],
)
def test_numbers_out_of_range(data: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(data, Plain(), **options)


def test_arguments_that_a_datamodule_has_itself(data: Data) -> None:
    with pytest.raises(ValueError, match="`num_neighbors` must be left out where `data` is a DataModule"):
        sweep(GraphDataModule(data), Plain(), batch_sizes=[64], num_neighbors=[2, 2])


def test_a_graph_without_training_nodes(data: Data) -> None:
    bare = Data(x=data.x, y=data.y, edge_index=data.edge_index)
    with pytest.raises(ValueError, match="`data` must hold `train_mask` to train on, but it has none"):
        sweep(bare, Plain(), batch_sizes=[64])


def test_graphs_of_several_types_are_refused(data: Data) -> None:
    hetero = HeteroData()
    hetero["a"].x, hetero["a"].y = data.x, data.y
    hetero["a"].train_mask = data.train_mask
    hetero["a", "to", "a"].edge_index = data.edge_index
    with pytest.raises(TypeError, match="one type of nodes and edges"):
        sweep(hetero, Plain(), batch_sizes=[64])

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch_geometric.nn.models import GAT, GIN, GraphSAGE

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.layerwise import NodeOutputs, _needed_per_layer, layerwise_outputs
from lightning_gnnopt.loading.pipeline import PipelineOptions
from lightning_gnnopt.models import MODELS, NodeClassifier, SampledGNN, build_model
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology

from ..models.graphs import OPTIONS
from .graphs import C, F, N, make_data, prefetch_threads, random_graph
from .modules import make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


def make_net(name: str, num_layers: int, **kwargs: Any) -> SampledGNN:
    torch.manual_seed(0)
    options = {"in_channels": F, "hidden_channels": 6, "out_channels": C, **OPTIONS[name], **kwargs}
    return build_model(name, num_layers=num_layers, **options).eval()


def outputs_of(model: Any, data: Any, nodes: np.ndarray, *, num_workers: int = 0, **kwargs: Any) -> NodeOutputs:
    topology = Topology.from_edge_index(data.edge_index, N)
    arguments = {"batch_size": 7, **kwargs}
    arguments["options"] = PipelineOptions(num_workers=num_workers)
    return layerwise_outputs(model, topology, data.x, nodes, **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_all_nodes_equal_the_full_graph(name: str, num_layers: int, num_workers: int) -> None:
    data, net = make_data(), make_net(name, num_layers, norm="batch")
    expected = net(data.x, data.edge_index).detach()
    outputs = outputs_of(net, data, np.arange(N), num_workers=num_workers)
    assert outputs.values.shape == (N, C)
    assert_close(outputs.rows(torch.arange(N)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_csr, torch.sparse_coo])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_few_nodes_equal_the_full_graph(num_layers: int, layout: torch.layout) -> None:
    data, net = make_data(), make_net("gcn", num_layers)
    data.x = data.x.relu()
    expected = net(data.x, data.edge_index).detach()
    if layout != torch.strided:
        data.x = data.x.to_sparse(layout=layout)
    nodes = np.array([41, 3, 17, 59])  # not in ascending order
    outputs = outputs_of(net, data, nodes, num_workers=2)
    assert len(outputs.values) == 4
    for asked in ([41, 3, 17, 59], [59, 59, 3], [17]):
        assert_close(outputs.rows(torch.tensor(asked)), expected[asked], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 60, 1_000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    data, net = make_data(), make_net("gat", 2)
    expected = net(data.x, data.edge_index).detach()
    assert_close(outputs_of(net, data, np.arange(N), batch_size=batch_size).values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_batches_of_full_neighbourhoods_agree(name: str) -> None:
    data, net, nodes = make_data(), make_net(name, 2), np.array([41, 3, 17])
    topology = Topology.from_edge_index(data.edge_index, N)
    batch = NeighborSampler(topology, [-1, -1]).sample(nodes, SampleKey(0))
    sampled = net(
        data.x[batch.n_id],
        torch.tensor(np.stack([batch.row, batch.col]), dtype=torch.long),
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
        in_degree=torch.from_numpy(topology.in_degrees[batch.n_id]),
    )
    assert_close(outputs_of(net, data, nodes).rows(torch.from_numpy(nodes)), sampled.detach(), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_only_what_the_asked_nodes_depend_on_is_computed(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 10))
    node = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=15))
    asked = data.draw(st.lists(node, min_size=1, max_size=4, unique=True))
    num_layers = data.draw(st.integers(1, 3))
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()

    needed = _needed_per_layer(Topology.from_edge_index(edge_index, num_nodes), np.array(asked), num_layers)

    expected = set(asked)
    for layer in reversed(range(num_layers)):
        assert needed[layer].tolist() == sorted(expected)
        expected |= {source for source, target in edges if target in expected}
    assert len(needed) == num_layers


def test_each_layer_runs_on_the_nodes_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the path 0 -> 1 -> 2 -> 3 with node 3 asked, three layers compute 3, 2 and 1 nodes."""
    calls: list[tuple[int, int]] = []

    class Sum(nn.Module):
        num_layers = 3

        def inference_per_layer(self, layer: int, x: Tensor, edge_index: Tensor, batch_size: int) -> Tensor:
            calls.append((layer, batch_size))
            assert not torch.is_grad_enabled()
            return x[:batch_size].index_add(0, edge_index[1], x[edge_index[0]])

    topology = Topology.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
    outputs = layerwise_outputs(
        Sum(), topology, torch.tensor([[1.0], [10], [100], [1_000]]), np.array([3]), batch_size=9
    )
    assert calls == [(0, 3), (1, 2), (2, 1)]
    assert outputs.rows(torch.tensor([3])).tolist() == [[1_331]]  # 1 + 3 * 10 + 3 * 100 + 1000: paths, counted


def test_a_node_that_was_not_asked_has_no_output() -> None:
    outputs = outputs_of(make_net("sage", 2), make_data(), np.array([3, 5]))
    with pytest.raises(KeyError, match=re.escape("Node 4 was not evaluated; only the asked nodes have outputs.")):
        outputs.rows(torch.tensor([3, 4, 5]))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", [GraphSAGE, GAT, GIN])
def test_pygs_own_models_are_evaluated_too(kind: type[nn.Module], num_layers: int) -> None:
    torch.manual_seed(0)
    data, net = make_data(), kind(F, 8, num_layers, out_channels=C, norm="batch_norm").eval()
    datamodule = GraphDataModule(data, eval_mode="layerwise", eval_batch_size=7)
    outputs = datamodule.layerwise_outputs(net, "predict")
    expected = net(data.x, data.edge_index).detach()
    assert_close(outputs.rows(torch.arange(N)), expected, atol=1e-5, rtol=1e-5)


class NoLayers(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x[:, :C]


@pytest.mark.parametrize("net", [NoLayers(), GraphSAGE(F, 8, 2, C, jk="cat"), GraphSAGE(F, 8, 2, C, jk="last")])
def test_a_net_that_cannot_run_layer_by_layer_is_refused(net: nn.Module) -> None:
    message = (
        "`eval_mode='layerwise'` needs a network with `num_layers` and `inference_per_layer` and without jumping"
        f" knowledge, but got {type(net).__name__}."
        " HINT: use `eval_mode='sampled'` with `eval_num_neighbors=[-1, ...]`."
    )
    datamodule = GraphDataModule(make_data(), eval_mode="layerwise")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datamodule.layerwise_outputs(net, "val")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer().test(NodeClassifier(net, in_channels=F, out_channels=C), datamodule, verbose=False)


def test_threads_end_if_a_layer_fails() -> None:
    class Fails(nn.Module):
        num_layers = 1

        def inference_per_layer(self, layer: int, x: Tensor, edge_index: Tensor, batch_size: int) -> Tensor:
            raise RuntimeError("in a layer")

    with pytest.raises(RuntimeError, match="in a layer") as caught:
        outputs_of(Fails(), make_data(), np.arange(N), num_workers=3, batch_size=1)
    assert prefetch_threads() == []  # though `caught` still holds the frames
    del caught


def accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(-1) == y).double().mean())


@pytest.mark.parametrize("name", MODELS)
def test_every_way_to_evaluate_exactly_gives_one_accuracy(name: str) -> None:
    """Through Lightning: layer by layer, by full-neighbour batches, and on the whole graph at once."""
    data = make_data(seed=3)
    torch.manual_seed(3)
    options = {"hidden_channels": 8, "norm": "batch", **OPTIONS[name]}
    model = NodeClassifier(name, in_channels=F, out_channels=C, **options)
    shared: dict[str, Any] = {"num_neighbors": [5, 5], "batch_size": 8, "eval_batch_size": 5, "seed": 1}
    make_trainer(4, limit_val_batches=0).fit(model, GraphDataModule(data, **shared))

    model.eval()
    with torch.no_grad():
        logits = model.net(data.x, data.edge_index)
    expected = {
        stage: accuracy(logits[data[f"{stage}_mask"]], data.y[data[f"{stage}_mask"]]) for stage in ("val", "test")
    }
    assert 0 < expected["val"] < 1  # else equality would say little
    for mode in ({"eval_mode": "layerwise"}, {"eval_mode": "sampled", "eval_num_neighbors": [-1, -1]}):
        datamodule, trainer = GraphDataModule(data, **shared, **mode), make_trainer()
        for stage, evaluate in (("val", trainer.validate), ("test", trainer.test)):
            (metrics,) = evaluate(model, datamodule, verbose=False)
            assert metrics[f"{stage}/acc"] == pytest.approx(expected[stage], abs=1e-7)
            mask = data[f"{stage}_mask"]
            loss = nn.functional.cross_entropy(logits[mask], data.y[mask]).item()
            assert metrics[f"{stage}/loss"] == pytest.approx(loss, rel=1e-5)
        assert_close(torch.cat(trainer.predict(model, datamodule)), logits, atol=1e-5, rtol=1e-5)


def test_validation_within_training_is_exact_as_well() -> None:
    data = make_data()
    model = NodeClassifier("gcn", in_channels=F, out_channels=C, hidden_channels=8)
    seen: list[tuple[float, float]] = []

    class Compare(NodeClassifier):
        def on_validation_end(self) -> None:
            logits = self.net(data.x, data.edge_index)  # in eval mode and without gradients, as validation is
            expected = accuracy(logits[data.val_mask], data.y[data.val_mask])
            seen.append((float(self.trainer.callback_metrics["val/acc"]), expected))

    model = Compare("gcn", in_channels=F, out_channels=C, hidden_channels=8)
    datamodule = GraphDataModule(data, num_neighbors=[3, 2], batch_size=8, eval_mode="layerwise")
    make_trainer(3, num_sanity_val_steps=0).fit(model, datamodule)
    assert len(seen) == 3
    for found, expected in seen:
        assert found == pytest.approx(expected, abs=1e-7)


def test_a_graph_without_edges_is_evaluated() -> None:
    data, net = make_data(), make_net("sage", 2)
    data.edge_index = random_graph()[:, :0]
    assert_close(outputs_of(net, data, np.arange(N)).values, net(data.x, data.edge_index).detach())

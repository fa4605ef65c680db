"""A model that is another one on parts of a graph is refused, by the name of the module."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F_
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import degree

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.parallel import PartData
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.parts import cut_graph
from lightning_gnnopt.parallel.probe import MAX_NODES, find_fault, tiny_graph
from tests.parallel.ranks import graph

N, F, C = 200, 6, 3


class Net(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels = F, C
        self.first, self.middle, self.last = pyg.GCNConv(F, 8), middle or nn.Identity(), pyg.GATConv(8, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x, edge_index)).relu(), edge_index)  # type: ignore[no-any-return]


class Centred(nn.Module):
    """A norm over all nodes that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class CentredInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class ByOutDegree(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x / (1 + degree(edge_index[0])[: len(x), None]), edge_index)


class Pooled(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x, edge_index) + pyg.global_mean_pool(x, None)[:, :C]


class Contrasts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = pyg.SuperGATConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x, edge_index), edge_index), edge_index)  # type: ignore[no-any-return]


class Alone(L.LightningModule):
    """A step of a user's own, without an index."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any) -> Tensor:
        out = self.net(batch.x, batch.edge_index)
        self.log("loss", 0.0)
        return F_.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask])


class Guesses(Alone):
    """Its outputs are random in training, but its loss is not."""

    def training_step(self, batch: Any) -> Tensor:
        out = self.net(F_.dropout(batch.x, training=self.training), batch.edge_index)
        return out.sum() * 0.0 + sum(p.square().sum() for p in self.parameters())


class NeedsTrainer(Alone):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) * self.trainer.global_step


def part(rank: int = 0) -> PartData:
    torch.manual_seed(0)
    attributes = {"x": torch.randn(N, F), "y": torch.randint(C, (N,)), "train_mask": torch.arange(N) % 3 == 0}
    owner = torch.arange(N) % 2
    found = list(cut_graph(graph(N, 1500).numpy(), owner.numpy(), 2))[rank]
    nodes = torch.from_numpy(found.inner)
    return PartData.of(found, Data(**{name: value[nodes] for name, value in attributes.items()}))


@pytest.mark.parametrize(
    "module",
    [
        lambda: NodeClassifier(Net()),
        lambda: NodeClassifier(Net(pyg.BatchNorm(8))),
        lambda: NodeClassifier(Net(nn.Sequential(pyg.GraphNorm(8), nn.Dropout(0.5)))),
        lambda: NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=8),
        lambda: NodeClassifier("gcn", in_channels=F, out_channels=C, hidden_channels=8),
        lambda: NodeClassifier("gat", in_channels=F, out_channels=C, hidden_channels=8),
        lambda: NodeClassifier("ggnn", in_channels=F, out_channels=C, hidden_channels=8),
        lambda: Alone(Net(pyg.PairNorm())),
        lambda: Guesses(Net()),
    ],
    ids=["net", "batch-norm", "dropout", "sage", "gcn", "gat", "ggnn", "own-step", "random"],
)
def test_nothing_is_wrong_with_these(module: Callable[[], L.LightningModule]) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_fault(module(), part()) is None


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: Net(Centred()), r"'net.middle' \(Centred\) gives outputs that are off by up to 0\.\d+ in two parts"),
        (lambda: Net(CentredInTraining()), r"'net.middle' \(CentredInTraining\) gives outputs that are off"),
        (ByOutDegree, r"'net.first.*' \(.*\) gives outputs that are off|cannot be computed"),
        (Pooled, "the loss is .* in two parts instead of .*, although all modules give the same"),
        (Contrasts, r"'net.middle' \(SuperGATConv\) cannot be computed on a part of a graph: IndexError"),
    ],
    ids=["norm", "norm-in-training", "out-degree", "pool", "supergat"],
)
def test_what_looks_at_all_nodes_together_is_named(net: Callable[[], nn.Module], message: str) -> None:
    torch.manual_seed(0)
    fault = find_fault(NodeClassifier(net()), part())
    assert fault is not None
    assert re.search(message, fault), fault


def test_a_step_that_cannot_run_alone_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"could not be tried out, as its training step.*not attached to a `Trainer`"):
        assert find_fault(NeedsTrainer(Net()), part()) is None


def test_the_module_is_as_before() -> None:
    torch.manual_seed(0)
    module = NodeClassifier(Net(pyg.BatchNorm(8)))
    batch, installed = part(), Installed(module)
    state, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    assert find_fault(module, batch) is None
    installed.remove()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert int(module.train_metrics["acc"].update_count) == 0


def test_nodes_without_a_label_do_not_count() -> None:
    batch = part()
    batch.y[~batch.train_mask] = -1
    data = tiny_graph(batch)
    assert torch.equal(data.train_mask, data.y >= 0)
    assert 8 <= int(data.train_mask.sum()) < MAX_NODES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_fault(NodeClassifier(Net()), batch) is None
    assert find_fault(NodeClassifier(Pooled()), batch) is not None


def test_the_tiny_graph_is_a_piece_of_the_part() -> None:
    batch = part()
    data = tiny_graph(batch)
    assert data.num_nodes == MAX_NODES
    assert data.num_edges > 20
    rows = {tuple(row) for row in batch.x.tolist()}
    assert all(tuple(row) in rows for row in data.x.tolist())
    edges = {
        (tuple(batch.x[u].tolist()), tuple(batch.x[v].tolist())) for u, v in batch.edge_index.T if u < len(batch.x)
    }
    assert all((tuple(data.x[u].tolist()), tuple(data.x[v].tolist())) in edges for u, v in data.edge_index.T)

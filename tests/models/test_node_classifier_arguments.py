from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close
from torch_geometric.data import Data

from lightning_gnnopt.models import GCN, NodeClassifier

from .batches import C, F, make_batches, make_data, make_model


@pytest.mark.parametrize("cls", [pyg.GraphSAGE, pyg.GAT])
@pytest.mark.parametrize("depth", [1, 2])
def test_pygs_models_run_unchanged(cls: type[nn.Module], depth: int) -> None:
    data = make_data()
    net = cls(F, 6, depth, out_channels=C)
    model = NodeClassifier(net).eval()
    assert (model.in_channels, model.out_channels, model.num_layers, model.needs_in_degree) == (F, C, depth, False)

    received = []
    net.register_forward_pre_hook(lambda _module, _args, kwargs: received.append(kwargs), with_kwargs=True)
    (batch,) = make_batches(data, torch.arange(5), hops=2)
    expected = net(data.x, data.edge_index)[:5]
    assert_close(model(batch), expected)
    counts = {
        "num_sampled_nodes_per_hop": batch.num_sampled_nodes,
        "num_sampled_edges_per_hop": batch.num_sampled_edges,
    }
    assert received == [{}, counts]


def test_a_net_is_passed_only_what_it_takes() -> None:
    class Plain(nn.Module):
        out_channels = C

        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(F, C)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(x)

    model = NodeClassifier(Plain())
    assert model.num_layers is None
    (batch,) = make_batches(make_data(), torch.arange(5))
    assert_close(model(batch), model.net.lin(batch.x[:5]))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"name": "reducelronplateau", "factor": 0.5}, {"monitor": "val/loss"}),
        ({"name": "ReduceLROnPlateau", "monitor": "train/loss"}, {"monitor": "train/loss"}),
        ({"name": "CosineAnnealingLR", "T_max": 7, "interval": "step"}, {"interval": "step"}),
        (functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3), {}),
        (
            {"name": "StepLR", "step_size": 3, "interval": "epoch", "frequency": 2},
            {"interval": "epoch", "frequency": 2},
        ),
    ],
)
def test_schedulers(scheduler: Any, expected: dict[str, Any]) -> None:
    configured = make_model(scheduler=scheduler).configure_optimizers()
    config = configured["lr_scheduler"]
    name = scheduler["name"] if isinstance(scheduler, dict) else "StepLR"
    assert type(config.pop("scheduler")).__name__.lower() == name.lower()
    assert config == expected


def test_optimizers() -> None:
    assert type(make_model().configure_optimizers()) is torch.optim.Adam
    optimizer = make_model(optimizer={"name": "SGD", "lr": 0.5, "momentum": 0.9}).configure_optimizers()
    assert optimizer.defaults["momentum"] == 0.9
    model = make_model(optimizer=functools.partial(torch.optim.RMSprop, lr=0.25))
    assert type(model.configure_optimizers()) is torch.optim.RMSprop
    assert len(model.configure_optimizers().param_groups[0]["params"]) == len(list(model.net.parameters()))


def test_hydras_containers_become_plain_hyper_parameters() -> None:
    config = OmegaConf.create({"optimizer": {"name": "Adam", "lr": 0.5, "betas": [0.5, 0.9]}})
    model = make_model(optimizer=config.optimizer)
    saved = model.hparams["optimizer"]
    assert saved == {"name": "Adam", "lr": 0.5, "betas": [0.5, 0.9]}
    assert (type(saved), type(saved["betas"])) == (dict, list)
    assert tuple(model.configure_optimizers().defaults["betas"]) == (0.5, 0.9)


def test_features_follow_the_nets_precision() -> None:
    (batch,) = make_batches(make_data(), torch.arange(5))
    batch.x = batch.x.half()
    assert make_model()(batch).dtype == torch.float32
    assert make_model().double()(batch).dtype == torch.float64


@pytest.mark.parametrize(("in_degree", "warned"), [(True, 0), (False, 1)])
def test_missing_in_degrees_are_warned_of_once(in_degree: bool, warned: int, recwarn: pytest.WarningsRecorder) -> None:
    batches = make_batches(make_data(), torch.arange(10), in_degree=in_degree)
    model = make_model("gcn")
    assert model.needs_in_degree
    for batch in batches:
        model(batch)
    model(make_data())  # a full graph's own degrees are right
    messages = [str(w.message) for w in recwarn if "GCN normalises by degrees of the full graph" in str(w.message)]
    assert len(messages) == warned


def test_in_degrees_reach_the_net() -> None:
    data = make_data()
    (batch,) = make_batches(data, torch.arange(5))
    model = make_model("gcn").eval()
    assert_close(model(batch), model.net(data.x, data.edge_index)[:5])
    batch.in_degree = batch.in_degree + 1
    assert not torch.allclose(model(batch), model.net(data.x, data.edge_index)[:5])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"out_channels": 3}, "`in_channels` is needed to build `sage`, but was not given."),
        ({"in_channels": 5}, "`out_channels` is needed to build `sage`, but was not given."),
        ({"net": "sagee", "in_channels": 5, "out_channels": 3}, "Unknown model 'sagee'. Did you mean 'sage'?"),
        ({"in_channels": 5, "out_channels": 3, "dropout": 1}, "`dropout` must be at least 0 and below 1, but got 1."),
        ({"in_channels": 5, "out_channels": 3, "num_layers": 0}, "`num_layers` must be at least 1, but got 0."),
        (
            {"in_channels": 5, "out_channels": 3, "hidden_channels": 0},
            "`hidden_channels` must be at least 1, but got 0.",
        ),
        (
            {"in_channels": 5, "out_channels": 3, "optimiser": {}},
            "Unknown option of NodeClassifier with `net='sage'`, 'optimiser'. Did you mean 'optimizer'?",
        ),
        (
            {"net": "gat", "in_channels": 5, "out_channels": 3, "head": 2},
            "Unknown option of NodeClassifier with `net='gat'`, 'head'. Did you mean 'heads'?",
        ),
        (
            {"in_channels": 5, "out_channels": 3, "optimizer": {"name": "Adan"}},
            "Unknown optimizer 'Adan'. Did you mean 'Adam'?",
        ),
        (
            {"in_channels": 5, "out_channels": 3, "optimizer": {"name": "Adam", "learning_rate": 1}},
            "Unknown argument of `Adam` 'learning_rate'.",
        ),
        (
            {"in_channels": 5, "out_channels": 3, "scheduler": {"name": "StepLR"}},
            "`scheduler` needs `step_size` to build `StepLR`, but has only [].",
        ),
        (
            {"net": nn.Linear(5, 3)},
            "`out_channels` is needed, as Linear has no such attribute, but was not given. HINT: pass the number of",
        ),
        (
            {"net": GCN(5, 6, 3), "heads": 2},
            "`net` is a GCN already, but ['heads'] were given as its options. HINT: pass them where the",
        ),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        NodeClassifier(**kwargs)
    assert str(error.value).startswith(message)


def test_batches_that_do_not_fit_are_refused() -> None:
    data, model = make_data(), make_model()
    with pytest.raises(
        ValueError, match=r"must have `in_channels` = 5 features per node, but has 4. HINT: pass `in_ch"
    ):
        model(Data(x=data.x[:, :4], edge_index=data.edge_index))
    with pytest.raises(ValueError, match=r"`batch.x` must be dense, but its layout is torch.sparse_csr. HINT: call"):
        model(Data(x=data.x.to_sparse_csr(), edge_index=data.edge_index))
    del data.train_mask
    with pytest.raises(
        ValueError, match=r"must have `batch_size` .* or `train_mask` .*, but has only \['edge_index', "
    ):
        model.training_step(data, 0)


@pytest.mark.parametrize("net", ["sage", pyg.GraphSAGE(F, 6, 2, out_channels=C)])
def test_fewer_hops_than_layers_are_refused(net: str | nn.Module) -> None:
    (batch,) = make_batches(make_data(), torch.arange(5), hops=1)
    with pytest.raises(ValueError, match="the net has 2 layers and the batch has 1 hops"):
        make_model(net)(batch)


def test_a_datamodule_without_eval_mode_is_fine() -> None:
    model = make_model()
    model._trainer = SimpleNamespace(datamodule=object())
    model.on_validation_epoch_start()
    assert model._layerwise is None

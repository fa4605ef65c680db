"""What `GraphDataModule` refuses: bad input, and models that do not fit it."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.sampling import SeedsOnlySampler

from .graphs import F, N, make_data, random_graph
from .modules import Recorder, classifier, make_trainer


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def bad(**changes: Any) -> Data:
    return make_data().update(changes)


def no_node(stage: str) -> Data:
    return bad(**{f"{stage}_mask": torch.zeros(N, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (Data(), {}, "`data` must hold at least one node, but it is empty. HINT: check how the graph was loaded."),
        (bad(x=torch.full((N, F), float("nan"))), {}, "`x` must be finite, but 300 of its 300 values are NaN or"),
        (no_node("train"), {}, "`train_mask` must choose at least one node, but all of its 60 values are False."),
        (no_node("val"), {}, "`val_mask` must choose at least one node, but all of its 60 values are False."),
        (no_node("test"), {}, "`test_mask` must choose at least one node, but all of its 60 values are False."),
        (no_node("predict"), {}, "`predict_mask` must choose at least one node, but all of its 60 values are False."),
        (
            bad(y=torch.arange(N) - 1),
            {},
            "`y` must be from 0 to 58 (59 classes) for every node of `train_mask`, but 1 of 35 labels are not,"
            " such as -1. HINT: leave unlabelled nodes out of the masks.",
        ),
        (
            make_data(),
            {"num_classes": 2},
            "`y` must be from 0 to 1 (2 classes) for every node of `train_mask`, but 11 of 35 labels are not,"
            " such as 2. HINT: leave unlabelled nodes out of the masks.",
        ),
        (
            bad(y=None),
            {},
            "`data` must hold labels `y` to train on, but it has none. HINT: use only `predict`.",
        ),
        (
            make_data(),
            {"batch_size": 0},
            "`batch_size` must be at least 1, but got 0. HINT: 1024 is a common size for sampled graphs.",
        ),
        (make_data(), {"eval_batch_size": -4}, "`batch_size` must be at least 1, but got -4."),
        (make_data(), {"num_neighbors": []}, "`num_neighbors` must hold one fan-out per hop, but it is empty."),
        (make_data(), {"num_neighbors": [5, 0]}, "`num_neighbors` must hold integers that are positive or -1"),
        (make_data(), {"eval_num_neighbors": [0]}, "`eval_num_neighbors` must hold integers that are positive or -1"),
        (
            make_data(),
            {"sampler": "nieghbor"},
            "Unknown sampler 'nieghbor'. Did you mean 'neighbor'? Known: cluster, fastgcn, labor, ladies, neighbor,",
        ),
        (
            make_data(),
            {"eval_mode": "layer-wise"},
            "Unknown eval_mode 'layer-wise'. Did you mean 'layerwise'? Known: layerwise, sampled.",
        ),
        (
            make_data(),
            {"eval_mode": "layerwise", "eval_num_neighbors": [-1]},
            "`eval_num_neighbors` must be left out with `eval_mode='layerwise'`, but got [-1]."
            " HINT: layer-wise evaluation always takes all neighbours; `eval_mode='sampled'` uses fan-outs.",
        ),
        (
            make_data(),
            {"sampler": SeedsOnlySampler, "num_neighbors": [5]},
            "`num_neighbors` must be left out with a `sampler` function, but got [5]."
            " HINT: give the fan-outs to the sampler itself.",
        ),
    ],
)
def test_bad_input_is_refused_at_once(data: Data, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        GraphDataModule(data, **arguments)


def test_an_edge_that_points_past_the_last_node_is_refused() -> None:
    edge_index = random_graph()
    edge_index[1, 7] = 60
    message = (
        "`edge_index` must hold node ids from 0 to 59 (60 nodes), but found 60."
        " HINT: set `data.num_nodes`, or give every node a row in `x`, or drop the edges that point outside the graph."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(bad(edge_index=edge_index)).setup("fit")


class Declares(Recorder):
    num_layers = 3


@pytest.mark.parametrize("module", [classifier(num_layers=3), Declares()])
@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_fewer_fan_outs_than_layers_are_refused(module: L.LightningModule, run: str) -> None:
    message = (
        "`num_neighbors` must hold one fan-out for each of the model's 3 layers, but samples 2 hops ([3, 2])."
        " HINT: lengthen it, or lower the model's `num_layers`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(make_trainer(1), run)(module, GraphDataModule(make_data(), num_neighbors=[3, 2]))


def test_fewer_fan_outs_of_evaluation_are_refused() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], eval_num_neighbors=[-1])
    with pytest.raises(ValueError, match=re.escape("`eval_num_neighbors` must hold one fan-out for each of the model")):
        make_trainer(1).fit(classifier(), datamodule)


def test_too_few_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`out_channels` must be at least the graph's 3 classes, but is 2.")):
        make_trainer(1).fit(classifier(out_channels=2), GraphDataModule(make_data(), num_neighbors=[3, 2]))


def test_a_module_that_does_not_know_layerwise_evaluation_is_refused() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], eval_mode="layerwise")
    with pytest.raises(ValueError, match=re.escape("but Recorder does not declare `supports_layerwise = True`.")):
        make_trainer(1).fit(Recorder(), datamodule)


def test_a_sampler_of_another_kind_is_refused_by_its_class() -> None:
    data = make_data()
    with pytest.raises(TypeError, match=r"of this package, but got builtins.object. HINT: .*partial"):
        GraphDataModule(data, sampler=object())  # type: ignore[arg-type]

"""Each sampler, end to end: loaded, trained on, evaluated."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor
from torch.testing import assert_close

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.models import MODELS, NodeClassifier
from lightning_gnnopt.sampling import SAMPLERS

from ..models.graphs import OPTIONS
from .graphs import C, F, make_data, prefetch_threads, same_batches
from .modules import make_trainer

SAMPLED: dict[str, dict[str, Any]] = {
    "neighbor": {"num_neighbors": [3, 2]},
    "labor": {"num_neighbors": [3, 2], "importance_iterations": 1},
    "fastgcn": {"layer_sizes": [20, 20]},
    "ladies": {"layer_sizes": [12, 12]},
    "shadow": {"num_neighbors": [3, 2]},
}
TRAINS_ONLY: dict[str, dict[str, Any]] = {
    "cluster": {"num_parts": 6, "clusters_per_batch": 2},
    "saint-node": {},
    "saint-edge": {},
    "saint-walk": {"walk_length": 2},
}


def make_module(name: str, **kwargs: Any) -> GraphDataModule:
    sampler = partial(SAMPLERS[name], **{**SAMPLED, **TRAINS_ONLY}[name])
    if name in TRAINS_ONLY:
        kwargs.setdefault("eval_mode", "layerwise")
    data = make_data()
    # Something to learn: features tell a node's class, its number modulo three, and edges join nodes of one class.
    data.x[:, :C] += 2 * torch.nn.functional.one_hot(data.y, C)
    source, target = data.edge_index
    data.edge_index = torch.stack([source - source % C + target % C, target])
    return GraphDataModule(data, **{"sampler": sampler, "batch_size": 8, "seed": 3, **kwargs})


def make_model(net: str = "gcn", **kwargs: Any) -> NodeClassifier:
    seed_everything(0, verbose=False)
    sizes = {"in_channels": F, "out_channels": C, "hidden_channels": 16}
    return NodeClassifier(net, **{**sizes, **OPTIONS[net], "dropout": 0.0, **kwargs})


def test_every_sampler_is_here() -> None:
    assert SAMPLED.keys() | TRAINS_ONLY.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_are_the_same_bits_for_any_number_of_workers(name: str) -> None:
    def batches(num_workers: int) -> list[Any]:
        datamodule = make_module(name, num_workers=num_workers)
        train = datamodule.train_dataloader()
        return [*train, *train, *datamodule.val_dataloader()]

    expected = batches(0)
    assert len(expected) > 4
    assert same_batches(batches(2), expected)
    assert same_batches(batches(4), expected)
    assert prefetch_threads() == []


@pytest.mark.parametrize("net", MODELS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_net_learns_from_every_sampler(name: str, net: str) -> None:
    datamodule, model = make_module(name), make_model(net)
    losses: list[Tensor] = []
    model.on_train_batch_end = lambda outputs, *_: losses.append(outputs["loss"])
    trainer = make_trainer(max_epochs=25, num_sanity_val_steps=0)
    trainer.fit(model, datamodule)
    per_epoch = len(datamodule.train_dataloader())
    assert len(losses) == 25 * per_epoch
    values = torch.stack(losses)
    assert values.isfinite().all()
    assert values[-2 * per_epoch :].mean() < 0.5 * values[:per_epoch].mean()
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert prefetch_threads() == []


@pytest.mark.parametrize("evaluation", [{"eval_mode": "layerwise"}, {"eval_num_neighbors": [-1, -1]}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_evaluation_is_exact_whatever_trains(name: str, evaluation: dict[str, Any]) -> None:
    given = {"eval_mode": "sampled", **evaluation}
    datamodule, model = make_module(name, **given), make_model()
    make_trainer(2).fit(model, datamodule)
    data = datamodule.data
    expected = model.eval().net(data.x, data.edge_index).detach()
    assert_close(torch.cat(make_trainer().predict(model, datamodule)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Any) -> None:
    def run(max_steps: int, **kwargs: Any) -> list[float]:
        model, losses = make_model(), []
        trainer = make_trainer(max_epochs=-1, max_steps=max_steps, num_sanity_val_steps=0, limit_val_batches=0)

        def note(outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "four.ckpt")

        model.on_train_batch_end = note
        trainer.fit(model, make_module(name), **kwargs)
        return losses

    whole, first = run(7), run(4)
    assert len(whole) == 7
    assert first + run(7, ckpt_path=tmp_path / "four.ckpt") == whole

"""The configs: complete, found, and overridden as a user would."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_gnnopt import AsyncValidation, GraphDataModule
from lightning_gnnopt.datasets import dataset_names, describe
from lightning_gnnopt.models import MODELS, NodeClassifier
from lightning_gnnopt.sampling import SAMPLERS, Topology
from lightning_gnnopt.train import build, build_members

CONF = Path(__file__).resolve().parent.parent / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose("train", [*overrides, "output_dir=out"])
    OmegaConf.resolve(config)
    return config


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


def test_every_dataset_has_a_config() -> None:
    assert options("data") == dataset_names()


def test_every_model_has_a_config() -> None:
    assert options("model") == sorted(MODELS)


def test_every_sampler_has_a_config() -> None:
    assert options("sampler") == sorted(SAMPLERS)


@pytest.mark.parametrize("name", dataset_names())
def test_data_config_names_its_dataset_and_known_options(name: str) -> None:
    config = composed(f"data={name}").data
    assert config.name == name
    general = {"split", "features", "normalize_features", "download"}
    assert set(config.options) <= {*describe(name).options, *general}
    accepted = set(inspect.signature(GraphDataModule.__init__).parameters)
    assert set(config) - {"_target_", "name", "root", "options"} <= accepted


@pytest.mark.parametrize("name", sorted(MODELS))
def test_model_config_builds_its_net(name: str) -> None:
    model = instantiate(composed(f"model={name}").model, in_channels=5, out_channels=3, _convert_="all")
    assert isinstance(model, NodeClassifier)
    assert type(model.net) is MODELS[name]
    assert model.out_channels == 3


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampler_config_builds_its_sampler(name: str, star: Topology) -> None:
    assert type(instantiate(composed(f"sampler={name}").sampler)(star)) is SAMPLERS[name]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampler_config_lists_every_plain_argument(name: str) -> None:
    arguments = set(inspect.signature(SAMPLERS[name]).parameters)
    # Arrays, which come from the graph (`data.weight_attr`, `data.time_attr`) or from code, and a matter of memory.
    left_out = {"topology", "edge_weight", "node_time", "edge_time", "parts", "dense_limit_bytes"}
    assert set(composed(f"sampler={name}").sampler) - {"_target_", "_partial_"} == arguments - left_out


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_choice_of_sampler_chooses_an_evaluation_that_works(name: str) -> None:
    config = composed(f"sampler={name}")
    assert config.data.eval_mode == ("layerwise" if name == "cluster" or "saint" in name else "sampled")
    datamodule, model = build(config)
    L.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False).fit(
        model, datamodule
    )
    assert type(datamodule.sampler) is SAMPLERS[name]


def test_the_command_line_beats_the_samplers_choice_of_evaluation() -> None:
    config = composed("sampler=cluster", "data.eval_mode=sampled", "data.eval_num_neighbors=[5,5]")
    datamodule, _ = build(config)
    assert datamodule.eval_sampler.num_neighbors == [5, 5]


@pytest.fixture
def star() -> Topology:
    return Topology.from_edge_index(torch.stack([torch.arange(1, 100), torch.zeros(99).long()]), num_nodes=100)


@pytest.mark.parametrize("name", [name for name in options("trainer") if name != "gpu"])
def test_trainer_config_builds_a_trainer(name: str) -> None:
    trainer = instantiate(composed(f"trainer={name}").trainer, logger=False, _convert_="all")
    assert isinstance(trainer, L.Trainer)
    assert trainer.max_epochs == 20


def test_gpu_trainer_insists_on_a_gpu() -> None:
    assert composed("trainer=gpu").trainer.accelerator == "gpu"


@pytest.mark.parametrize("name", [name for name in options("callbacks") if name != "none"])
def test_callbacks_config_builds_callbacks(name: str) -> None:
    members = build_members(composed(f"callbacks={name}").callbacks)
    assert members
    assert all(isinstance(member, L.Callback) for member in members)


def test_async_validation_keeps_the_best_weights_itself() -> None:
    config = composed("callbacks=[default,async_validation]").callbacks
    assert config.model_checkpoint is None
    assert set(config.async_validation) - {"_target_"} == set(inspect.signature(AsyncValidation).parameters)


@pytest.mark.parametrize("name", ["csv"])
def test_logger_config_builds_a_logger(name: str) -> None:
    for member in composed(f"logger={name}").logger.values():
        assert instantiate(member).save_dir == "out"


def test_none_choices_are_empty() -> None:
    config = composed("logger=none", "callbacks=none")
    assert (dict(config.logger), dict(config.callbacks)) == ({}, {})


def test_callbacks_merge_and_can_be_removed() -> None:
    config = composed("callbacks=[default,early_stopping]", "~callbacks.progress_bar")
    assert set(config.callbacks) == {"model_checkpoint", "run_summary", "loader_monitor", "early_stopping"}


@pytest.mark.parametrize("recipe", options("experiment"))
def test_command_line_beats_the_experiment(recipe: str) -> None:
    config = composed(f"experiment={recipe}", "trainer.max_epochs=123", "model.hidden_channels=7", "seed=5")
    assert (config.trainer.max_epochs, config.model.hidden_channels) == (123, 7)
    assert config.data.seed == 5  # interpolated


def test_experiment_beats_the_defaults() -> None:
    config = composed("experiment=cora")
    assert config.data.name == "cora"
    assert config.model.net == "gcn"
    assert config.trainer.max_epochs != composed().trainer.max_epochs


def test_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNNOPT_DATA", "/some/folder")
    assert composed().data.root == "/some/folder"
    monkeypatch.delenv("GNNOPT_DATA")
    assert composed().data.root is None


def test_every_file_holds_a_comment() -> None:
    for path in CONF.glob("*/*.yaml"):
        text = path.read_text()
        assert "#" in text, f"{path} explains nothing"


def test_plain_types_reach_the_model() -> None:
    model: Any = instantiate(composed().model, in_channels=5, out_channels=3, _convert_="all")
    assert type(model.hparams["optimizer"]) is dict

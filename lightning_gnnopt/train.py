"""Train a GNN from a config: ``python -m lightning_gnnopt.train`` or ``gnnopt-train``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import hydra
import lightning as L
import rich
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lightning_gnnopt._cli import run
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.analysis import RunSummary
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.parallel import PartitionDataModule
from lightning_gnnopt.sweeping import record_result


def train(config: DictConfig) -> float | None:
    """Run one job: build everything the config names, fit, test the best weights, print the summary.

    Args:
        config: A composed config of ``conf/train.yaml``.

    Returns:
        The metric named by ``optimized_metric`` as it stood at the end, for a sweeper; None if none is named.

    Raises:
        ValueError: If ``optimized_metric`` was not logged, or a part refuses its arguments.
    """
    if config.seed is not None:
        L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule, model = build(config)
    callbacks = build_members(config.callbacks)
    trainer: L.Trainer = instantiate(
        config.trainer, callbacks=callbacks, logger=build_members(config.logger) or False, _convert_="all"
    )
    metrics: dict[str, Any] = {}
    if config.fit:
        # what a checkpoint holds are tensors and plain types: others are refused, as they could run code
        trainer.fit(model, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
        metrics.update(trainer.callback_metrics)
        _record(metrics, callbacks)
    if config.test and not trainer.interrupted:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        path = "best" if best else config.ckpt_path
        trainer.test(model, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
        metrics.update(trainer.callback_metrics)
        _record(metrics, callbacks)
    for callback in callbacks:
        if isinstance(callback, RunSummary):
            rank_zero_only(rich.print)(callback)
    return _optimized(config.optimized_metric, metrics)


def build(config: DictConfig) -> tuple[Any, NodeClassifier]:
    """Build what a config trains: the graph's DataModule, and a model of its sizes.

    Args:
        config: With the groups ``data``, ``sampler`` and ``model``.
    """
    datamodule = instantiate(config.data, sampler=instantiate(config.sampler), _convert_="all")
    return datamodule, build_model(config.model, datamodule)


def build_model(config: DictConfig, datamodule: GraphDataModule | PartitionDataModule) -> NodeClassifier:
    """Build the model of a group ``model``, of the sizes of a graph."""
    model: NodeClassifier = instantiate(
        config,
        in_channels=datamodule.num_features,
        out_channels=datamodule.num_classes,
        multilabel=datamodule.multilabel,
        _convert_="all",
    )
    return model


def build_members(group: DictConfig | None) -> list[Any]:
    """Build the members of a group that is a dict by name; a member set to null is left out."""
    return [instantiate(member, _convert_="all") for member in (group or {}).values() if member is not None]


def _record(metrics: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Tell what was reached as soon as it was: a test that fails does not lose the fit."""
    peaks = [callback.peak_bytes for callback in callbacks if isinstance(callback, RunSummary)]
    record_result(metrics, peak_bytes=peaks[0] if peaks else None)


def _optimized(name: str | None, metrics: Mapping[str, Any]) -> float | None:
    if name is None:
        return None
    if name not in metrics:
        raise ValueError(unknown_name("optimized_metric", name, metrics))
    return float(metrics[name])


@hydra.main(version_base="1.3", config_path="pkg://lightning_gnnopt.conf", config_name="train")
def _app(config: DictConfig) -> float | None:
    # Lightning's own use of torch: nothing a user could act on. Here, as a launcher may run jobs in other processes
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    return train(config)


def main() -> None:
    """Run the command line."""
    run(_app)


if __name__ == "__main__":
    main()

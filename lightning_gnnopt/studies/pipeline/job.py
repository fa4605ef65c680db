"""One job of the study: a model on a graph, setting by setting, each kept as soon as it is complete."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from torch_geometric.data import Data

from lightning_gnnopt._cli import explain
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.studies.cells import Cell, is_complete, save_cell
from lightning_gnnopt.studies.jobs import judge, plain
from lightning_gnnopt.studies.pipeline.loaders import with_fewer_labels
from lightning_gnnopt.studies.pipeline.measuring import measure_setting
from lightning_gnnopt.studies.pipeline.settings import Setting, describe_setting, settings_of

_OURS = ("_target_", "hidden_channels", "num_layers", "heads")
"""Arguments of the model in whose place the study has its own."""
_MEASURING = ("max_train", "num_neighbors", "clusters_per_batch", "epochs", "epoch_s", "num_workers")
"""What a cell depends on beside its setting. How long it may take is no part of what it is."""

_log = logging.getLogger(__name__)


def run_job(config: DictConfig) -> list[Path]:
    """Measure a model on a graph in all settings that are not complete yet.

    A setting that cannot be run (out of memory, a graph that is too small) is kept with its error, and is complete.
    If the graph's files are missing, each setting is kept with that error and tried again next time. Other exceptions
    are faults of the program: they are kept as well, and the first one is raised once all settings are through.

    Args:
        config: A composed config of ``conf/pipeline_study.yaml``.

    Returns:
        Files of the cells that were run.

    Raises:
        ValueError: If the config is refused.
        OSError: If the folder cannot be written to.
    """
    study = plain(config.pipeline)
    data_name, model_name, folder = str(config.data.name), str(config.model.net), Path(config.dir)
    options = {**plain(config.data.options), **((study["options"] or {}).get(data_name) or {})}
    surroundings = {
        "data": data_name,
        "model": model_name,
        "net": {key: value for key, value in plain(config.model).items() if key not in _OURS},
        "options": options,
        "seed": config.seed,
        **{key: study[key] for key in _MEASURING},
    }
    todo: dict[Setting, dict[str, Any]] = {}
    for setting in settings_of(study, data=data_name, has_heads="heads" in config.model):
        wanted = describe_setting(setting, **surroundings)
        if not is_complete(folder, f"{data_name}/{model_name}/{setting.name}", wanted):
            todo[setting] = wanted
    if not todo:
        _log.info("%s, %s: complete", data_name, model_name)
        return []
    try:
        data = load_dataset(data_name, root=config.data.root, **options)
        data = with_fewer_labels(data, study["max_train"], seed=config.seed)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _log.warning("%s, %s: %s", data_name, model_name, sentence)
        return [
            save_cell(folder, Cell(f"{data_name}/{model_name}/{setting.name}", wanted, {}, sentence, complete=False))
            for setting, wanted in todo.items()
        ]
    job = _Job(config, study, data, folder)
    files = [job.run(setting, wanted) for setting, wanted in todo.items()]
    if job.faults:
        raise job.faults[0]
    return files


class _Job:
    def __init__(self, config: DictConfig, study: Mapping[str, Any], data: Data, folder: Path) -> None:
        self._config, self._study, self._data, self._folder = config, study, data, folder
        self._graph = {
            "nodes": int(data.num_nodes or 0),
            "edges": int(data.num_edges),
            "features": int(data.num_features),
            "train": int(data.train_mask.sum()),
            "val": int(data.val_mask.sum()),
        }
        self.faults: list[Exception] = []

    def run(self, setting: Setting, wanted: Mapping[str, Any]) -> Path:
        """Measure one setting and keep what came of it."""
        name = f"{self._config.data.name}/{self._config.model.net}/{setting.name}"
        result: dict[str, Any] = {}
        error, complete = "", True
        try:
            found = measure_setting(
                setting,
                lambda: self._module(setting),
                self._data,
                self._study,
                seed=self._config.seed,
                turn=zlib.crc32(name.encode()),  # so that no side is the first in all cells
            )
            result = {"graph": self._graph, **found}
            self._say(name, result)
        except Exception as caught:
            error, complete = judge(caught)
            if not complete:
                self.faults.append(caught)
            _log.warning("%s: %s", name, error)
        return save_cell(self._folder, Cell(name, wanted, result, error, complete))

    def _say(self, name: str, result: Mapping[str, Any]) -> None:
        numbers = ", ".join(
            f"{side} {found['speedup']:.2f}" for side, found in result["sides"].items() if side != "baseline"
        )
        _log.info("%s: %s (%.0f s)", name, numbers, result["seconds"])
        if not (result["losses_equal"] and result["val_losses_equal"]):
            _log.warning("%s: losses differ between %s", name, ", ".join(result["compared_sides"]))

    def _module(self, setting: Setting) -> LightningModule:
        y = self._data.y
        heads = {} if setting.heads is None else {"heads": setting.heads}
        torch.manual_seed(self._config.seed)
        module: LightningModule = instantiate(
            self._config.model,
            in_channels=self._graph["features"],
            out_channels=y.size(1) if y.dim() == 2 else int(y.max()) + 1,
            hidden_channels=setting.hidden,
            num_layers=setting.layers,
            multilabel=y.dim() == 2,
            _convert_="all",
            **heads,
        )
        return module

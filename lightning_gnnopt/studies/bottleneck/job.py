"""One job of the study: a model on a graph, setting by setting, each kept as soon as it is complete."""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch_geometric.data import Data

from lightning_gnnopt._cli import explain
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.datasets import describe, load_dataset
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.models.base import count_in_edges
from lightning_gnnopt.studies.bottleneck.folder import is_complete, save_cell
from lightning_gnnopt.studies.bottleneck.settings import Setting, describe_setting, settings_of
from lightning_gnnopt.studies.bottleneck.steps import WHOLE_DEGREE, profile_setting
from lightning_gnnopt.studies.jobs import judge, plain

_OURS = ("_target_", "hidden_channels", "num_layers", "heads", "optimizer", "scheduler")
"""Arguments of the model in whose place the study has its own."""

_log = logging.getLogger(__name__)


def run_job(config: DictConfig) -> list[Path]:
    """Profile a model on a graph in all settings that are not complete yet.

    A setting that cannot be run (out of memory, a graph that is too small) is kept with its error, and is complete.
    If the graph's files are missing, each setting is kept with that error and tried again next time. Other exceptions
    are faults of the program: they are kept as well, and the first one is raised once all settings are through.

    Args:
        config: A composed config of ``conf/study.yaml``.

    Returns:
        Folders of the settings that were run.

    Raises:
        ValueError: If the config is refused.
        OSError: If the folder cannot be written to.
    """
    study = plain(config.study)
    data_name, model_name = str(config.data.name), str(config.model.net)
    folder = Path(config.dir) / data_name / model_name
    options = {**plain(config.data.options), **((study["options"] or {}).get(data_name) or {})}
    surroundings = {
        "model": {key: value for key, value in plain(config.model).items() if key not in _OURS},
        "options": options,
        "seed": config.seed,
        "device": study["device"],
        "learning_rate": study["learning_rate"],
        "max_s": study["max_s"],
    }
    todo: dict[Setting, dict[str, Any]] = {}
    for setting in settings_of(study, data=data_name, has_heads="heads" in config.model):
        wanted = describe_setting(setting, **surroundings, **_of_sampling(setting, study))
        if not is_complete(folder / setting.name, wanted):
            todo[setting] = wanted
    if not todo:
        _log.info("%s, %s: complete", data_name, model_name)
        return []
    try:
        data = _load(config, options)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _log.warning("%s, %s: %s", data_name, model_name, sentence)
        return [
            save_cell(folder / setting.name, wanted, Records(), graph={}, error=sentence, complete=False)
            for setting, wanted in todo.items()
        ]
    job = _Job(config, study, data)
    folders = [job.run(setting, wanted, folder / setting.name) for setting, wanted in todo.items()]
    if job.faults:
        raise job.faults[0]
    return folders


class _Job:
    def __init__(self, config: DictConfig, study: Mapping[str, Any], data: Data) -> None:
        self._config, self._study, self._data = config, study, data
        self._graph = {
            "nodes": int(data.num_nodes or 0),
            "edges": int(data.num_edges),
            "features": int(data.num_features),
            "classes": data.y.size(1) if data.y.dim() == 2 else int(data.y.max()) + 1,
            "train": int(data.train_mask.sum()),
            "published_edges": describe(config.data.name).num_edges,
        }
        self.faults: list[Exception] = []

    def run(self, setting: Setting, wanted: Mapping[str, Any], folder: Path) -> Path:
        """Profile one setting and keep what came of it."""
        name = f"{self._config.data.name}, {self._config.model.net}, {setting.name}"
        records, error, complete, began_s = Records(), "", True, time.perf_counter()
        try:
            torch.manual_seed(self._config.seed)
            model = self._model(setting)
            data = self._data
            if model.needs_in_degree:  # outside a Trainer the loader does not know of it
                data = copy.copy(data)
                data[WHOLE_DEGREE] = count_in_edges(data.edge_index, int(data.num_nodes or 0))
            records = profile_setting(setting, model, data, self._study, seed=self._config.seed)
        except Exception as caught:
            error, complete = judge(caught)
            if not complete:
                self.faults.append(caught)
            _log.warning("%s: %s", name, error)
            caught.__traceback__ = None if complete else caught.__traceback__  # its frames hold the step's tensors
            del caught
        else:
            _log.info("%s: %.1f s", name, time.perf_counter() - began_s)
        gc.collect()
        return save_cell(folder, wanted, records, graph=self._graph, error=error, complete=complete)

    def _model(self, setting: Setting) -> NodeClassifier:
        multilabel = self._data.y.dim() == 2
        heads = {} if setting.heads is None else {"heads": setting.heads}
        model: NodeClassifier = instantiate(
            self._config.model,
            in_channels=self._graph["features"],
            out_channels=self._graph["classes"],
            hidden_channels=setting.hidden,
            num_layers=setting.layers,
            multilabel=multilabel,
            _convert_="all",
            **heads,
        )
        return model.to(self._study["device"])


def _load(config: DictConfig, options: Mapping[str, Any]) -> Data:
    data = load_dataset(config.data.name, root=config.data.root, **options)
    if data.x.layout != torch.strided:
        raise ValueError(
            f"`{config.data.name}` has sparse features, which no full batch can have."
            f" HINT: +data.options.features=dense"
        )
    return data


def _of_sampling(setting: Setting, study: Mapping[str, Any]) -> dict[str, Any]:
    if setting.batch_size is None:
        return {}
    key = {"neighbor": "num_neighbors", "cluster": "clusters_per_batch"}[setting.sampler]
    return {key: study["sampled"][key]}

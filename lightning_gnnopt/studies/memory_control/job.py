"""One job of the memory study: a model on a graph, part by part, each kept as soon as it is complete."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_gnnopt._cli import explain
from lightning_gnnopt.studies.cells import Cell, is_complete, save_cell
from lightning_gnnopt.studies.jobs import judge, plain
from lightning_gnnopt.studies.memory_control.settings import Part, parts_of
from lightning_gnnopt.studies.memory_control.setup import Setup

_OURS = ("_target_", "hidden_channels", "num_layers")
"""Arguments of the model in whose place the study has its own."""
_SHARED = ("hidden", "num_neighbors", "batch_size", "clusters", "clusters_per_batch", "max_features")
"""Settings of the study that all parts depend on."""

_log = logging.getLogger(__name__)


def run_job(config: DictConfig) -> list[Path]:
    """Measure a model on a graph in all parts that are not complete yet.

    A part that cannot be run (out of memory, a graph that is too small) is kept with its error, and is complete. If the
    graph's files are missing, each part is kept with that error and tried again next time. Other exceptions are faults
    of the program: they are kept as well, and the first one is raised once all parts are through.

    Args:
        config: A composed config of ``conf/memory_study.yaml``.

    Returns:
        Files of the cells that were written.

    Raises:
        ValueError: If the config is refused.
        OSError: If the folder cannot be written to.
    """
    study = plain(config.memory)
    data_name, model_name = str(config.data.name), str(config.model.net)
    options = {**plain(config.data.options), **((study["options"] or {}).get(data_name) or {})}
    surroundings = {
        "data": data_name,
        "model": {key: value for key, value in plain(config.model).items() if key not in _OURS},
        "options": options,
        "seed": config.seed,
        **{key: study[key] for key in _SHARED},
    }
    prefix = f"{data_name}/{model_name}"
    todo: list[tuple[Part, Mapping[str, Any]]] = []
    for part in parts_of(study, data=data_name):
        wanted = {**surroundings, "part": part.kind, "variant": part.variant, "settings": dict(part.options)}
        if not is_complete(config.dir, f"{prefix}/{part.name}", wanted):
            todo.append((part, wanted))
    if not todo:
        _log.info("%s: complete", prefix)
        return []
    try:
        setup = Setup(config, study, options)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _log.warning("%s: %s", prefix, sentence)
        return [
            save_cell(config.dir, Cell(f"{prefix}/{part.name}", wanted, {}, sentence, complete=False))
            for part, wanted in todo
        ]
    faults: list[Exception] = []
    files = [save_cell(config.dir, _run(part, wanted, f"{prefix}/{part.name}", setup, faults)) for part, wanted in todo]
    if faults:
        raise faults[0]
    return files


def _run(part: Part, wanted: Mapping[str, Any], name: str, setup: Setup, faults: list[Exception]) -> Cell:
    began_s = time.perf_counter()
    result: dict[str, Any] = {"graph": setup.graph}
    error, complete = "", True
    try:
        result |= part.measure(setup)
    except Exception as caught:
        error, complete = judge(caught)
        _log.warning("%s: %s", name, error)
        if complete:
            caught.__traceback__ = None  # its frames hold the step's tensors
        else:
            faults.append(caught)
        del caught
    else:
        _log.info("%s: %.1f s", name, time.perf_counter() - began_s)
    return Cell(name, wanted, result, error, complete)

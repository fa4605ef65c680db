"""Predictors compared on the same measured batches of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.predictors import AnalyticPredictor, Predictor, resolve_predictor
from lightning_gnnopt.memory.prober import STEP
from lightning_gnnopt.studies.memory_control.errors import prediction_errors
from lightning_gnnopt.studies.memory_control.setup import Setup
from lightning_gnnopt.studies.memory_control.watched import Step, watched_fit

_UNCOUNTED = 2
"""Steps at the beginning that control does not judge, at most."""


def measure_predictors(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train for some batches, fit each predictor to the first of them, and predict the others.

    What is predicted is what a step adds to what was held when it began. The analytic predictor has seen none of the
    batches: it is solved from probes, which are its time of fitting.

    Args:
        setup: The graph and the model.
        options: `sampler`; `train` and `test`, numbers of batches; `kinds`, predictors by name with their arguments;
            `predictions`, how many are timed.

    Returns:
        ``measured``, bytes of each unseen batch, and ``kinds``: by predictor what `prediction_errors` gives,
        ``predicted``, ``fit_s`` and ``predict_s``; or ``error``, why there is none.

    Raises:
        ValueError: If a predictor is unknown, or no batch is left to predict.
    """
    num_train, num_test = int(options["train"]), int(options["test"])
    run = watched_fit(
        setup.module(),
        setup.datamodule(options["sampler"]),
        on_exceed="watch",
        trainer={"max_epochs": -1, "max_steps": num_train + num_test + _UNCOUNTED},
    )
    steps = [step for step in run.steps if step.predicted is not None and step.features is not None]
    if len(steps) <= num_train:
        raise ValueError(
            f"Of {len(run.steps)} steps {len(steps)} were measured, which leaves none to predict behind the"
            f" {num_train} to fit to. HINT: a smaller `memory.predictors.train`, and no profiler beside the study."
        )
    assert run.control.controller is not None
    learned = run.control.controller.learned["train", 0]
    features, growths = _table(steps[: num_train + num_test])
    seen, unseen = slice(num_train), slice(num_train, None)
    kinds: dict[str, Any] = {}
    for kind, arguments in options["kinds"].items():
        try:
            predictor, fit_s = _fitted(kind, dict(arguments or {}), learned, features[seen], growths[seen])
        except _NoTapeError as error:
            kinds[kind] = {"error": str(error)}
            continue
        predicted = np.asarray(predictor.predict(features[unseen]))
        kinds[kind] = {
            **prediction_errors(predicted, growths[unseen]),
            "fit_s": fit_s,
            "predict_s": _seconds_of_one(predictor, features[unseen], int(options["predictions"])),
            "predicted": predicted.tolist(),
        }
    return {"fitted_to": num_train, "measured": growths[unseen].tolist(), "kinds": kinds}


class _NoTapeError(Exception):
    pass


def _fitted(
    kind: str,
    arguments: Mapping[str, Any],
    learned: Learned,
    features: NDArray[np.float64],
    growths: NDArray[np.float64],
) -> tuple[Predictor, float]:
    make = resolve_predictor(kind)
    names = learned.footprint.reader.names
    if make is AnalyticPredictor:
        if not learned.tapes:
            raise _NoTapeError(f"The step has no allocation tape: {learned.reason}")
        return learned.footprint.predictors[STEP], learned.probe_s
    predictor = make(names, **arguments)
    return predictor, _seconds(partial(predictor.fit, features, growths))


def _table(steps: Sequence[Step]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [step.features for step in steps if step.features is not None]
    return np.stack(rows), np.array([step.growth_bytes for step in steps])


def _seconds_of_one(predictor: Predictor, features: NDArray[np.float64], number: int) -> float:
    predictor.predict(features[0])  # what is compiled or cached is not what a batch costs
    return statistics.median(
        _seconds(partial(predictor.predict, features[place % len(features)])) for place in range(number)
    )


def _seconds(run: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s

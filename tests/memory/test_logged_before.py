"""What a step changes of logs and metrics is taken back to the bit: the reference is a deep copy made before."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_gnnopt.memory.logged_before import LoggedBefore

METRICS = {
    "numbers": MeanMetric,
    "counts": partial(MulticlassAccuracy, 7, average="micro"),
    "a count for each class": partial(MulticlassAccuracy, 7, average="macro"),
    "more than a few": partial(MulticlassConfusionMatrix, 7),
    "lists": CatMetric,
}


def update(metric: Metric, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(metric, (MeanMetric, CatMetric)):
        metric.update(torch.rand(3, generator=generator))
    else:
        metric.update(torch.randint(7, (30,), generator=generator), torch.randint(7, (30,), generator=generator))


def states(metric: Metric) -> dict[str, Any]:
    return deepcopy({name: vars(metric)[name] for name in (*metric._defaults, "_update_count", "_computed")})


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        ours, theirs = (values if isinstance(values, list) else [values] for values in (found[name], value))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert type(one) is type(other)
            if isinstance(one, Tensor):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_metrics_are_as_before_the_step_and_go_on_from_there(name: str, num_before: int) -> None:
    metric, reference = METRICS[name](), METRICS[name]()
    for seed in range(num_before):
        update(metric, seed)
        update(reference, seed)
    expected = states(metric)
    before = LoggedBefore({}, [metric])
    for seed in (8, 9):  # the step that fails
        update(metric, seed)
        metric.compute()
        before.restore({})
        assert_same(states(metric), expected)
    for each in (metric, reference):
        update(each, 5)
    np.testing.assert_array_equal(metric.compute(), reference.compute())


def test_values_are_kept_to_the_bit_and_without_their_tensors() -> None:
    results = _ResultCollection(training=True)
    log = partial(results.log, "training_step", on_step=True, on_epoch=True, batch_size=3)
    third = torch.tensor(1.0) / 3
    log("loss", third)
    metric = results["training_step.loss"]
    value, weight = metric.value.clone(), metric.cumulated_batch_size.clone()
    kept = metric.value
    before = LoggedBefore(results)
    log("loss", torch.tensor(2.0))
    log("other", torch.tensor(1.0))
    before.restore(results)
    assert list(results) == ["training_step.loss"]
    assert torch.equal(metric.value, value)
    assert metric.value.dtype == value.dtype
    assert metric.value is not kept
    assert torch.equal(metric.cumulated_batch_size, weight)
    log("loss", torch.tensor(5.0))
    assert float(metric.compute()) == pytest.approx((1 / 3 + 5) / 2)

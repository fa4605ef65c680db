"""What was logged before a step, should the step have to be run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_FEW = 16


class LoggedBefore:
    """Remembers what was logged before a step: one that is run again must not count twice.

    Args:
        results: Lightning's collection of what is logged.
        metrics: The module's own metrics, which a step may update.
    """

    def __init__(self, results: Any, metrics: Sequence[Metric] = ()) -> None:
        self._metrics = [(metric, _states_of(metric)) for metric in metrics]
        self._values = {name: _attributes_of(metric) for name, metric in results.items() if metric.is_tensor}
        self._names = set(results)

    def restore(self, results: Any) -> None:
        """Bring the metrics and what is logged back to what they were."""
        for metric, states in self._metrics:  # what was kept stays so: a step may fail a second time
            vars(metric).update({name: _copied_state(_made(value)) for name, value in states.items()})
        for name in set(results) - self._names:
            del results[name]
        for name, attributes in self._values.items():
            for key, value in attributes.items():
                vars(results[name])[key] = _made(value)


def _states_of(metric: Metric) -> dict[str, Any]:
    attributes = vars(metric)
    states = {name: _kept_state(attributes[name]) for name in metric._defaults}
    states.update({name: attributes[name] for name in ("_update_count", "_computed") if name in attributes})
    return states


def _kept_state(value: Any) -> Any:
    is_few = isinstance(value, Tensor) and value.is_cpu and value.numel() <= _FEW
    return _maker(value) if is_few else _copied_state(value)


def _copied_state(value: Any) -> Any:
    if isinstance(value, list):
        return list(value)
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone()


def _attributes_of(metric: Metric) -> dict[str, Any]:
    """Copy a metric's attributes, of which few are tensors: this is done before each step.

    Numbers on a device are kept as they are, which waits for nothing: they are replaced, never changed in place.
    """
    attributes = dict(vars(metric))
    for key in [key for key, value in attributes.items() if _is_tensor(type(value))]:  # type: ignore[arg-type]
        value = attributes[key]
        if value.is_cpu and value.ndim == 0:
            attributes[key] = _maker(value)
    return attributes


def _made(value: Any) -> Any:
    return value() if isinstance(value, partial) else value


def _maker(value: Tensor) -> Callable[[], Tensor]:
    """Keep numbers without their tensor, whose release in a later step a recording would see; and faster than it."""
    return partial(torch.tensor, value.tolist(), dtype=value.dtype)


@cache
def _is_tensor(kind: type) -> bool:
    # Of a tensor's metaclass `isinstance` asks more than that, for each attribute anew.
    return issubclass(kind, Tensor)

"""What is logged in a step that is run in parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_gnnopt.memory.parts import Part


class PartValues:
    """Averages what is logged with a step over the parts of the step.

    Lightning weighs a value by the batch size it is logged with; over an epoch, a step weighs as much as all its parts.

    Args:
        results: Lightning's collection of what is logged.
    """

    def __init__(self, results: Any) -> None:
        self._results = results
        # As numbers: the release of a tensor would be seen in a recording.
        self._before = {
            name: (metric.value.item(), metric.cumulated_batch_size.item())
            for name, metric in results.items()
            if metric.is_tensor and metric.meta.is_mean_reduction and metric.meta.on_epoch
        }
        self._values: dict[str, list[tuple[Tensor, float]]] = {}

    def add(self, part: Part, loss: Tensor | None) -> None:
        """Note what a part logged; the value that is its loss weighs as in the whole batch's."""
        for name, metric in self._results.items():
            if metric.is_tensor and metric.meta.is_mean_reduction:
                value = metric._forward_cache
                if value is not None:
                    is_loss = loss is not None and bool(value == loss.detach())
                    self._values.setdefault(name, []).append((value, part.weight if is_loss else part.num_seeds))

    def write(self) -> None:
        """Put the averages in place of what the last part logged."""
        for name, values in self._values.items():
            total = sum(weight for _, weight in values)
            if total == 0:
                continue
            mean = sum(value * weight for value, weight in values) / total
            metric = self._results[name]
            if metric.meta.on_step:
                metric._forward_cache = mean
            if metric.meta.on_epoch:
                value, size = self._before.get(name, (0.0, 0))
                mean = (value + mean * (metric.cumulated_batch_size - size)).to(metric.value.dtype)
            metric.value = mean

"""The parts of a batch that is run as several, and one output out of theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """A micro-batch.

    Attributes:
        make: Cuts it out of the batch; called when it is its turn.
        num_seeds: Its number of seeds.
        weight: Its share of the batch's loss.
    """

    make: Callable[[], Any]
    num_seeds: int
    weight: float


def logged_sizes(batch: Any, parts: Sequence[Part]) -> list[float]:
    """Share out among the parts what Lightning takes for the batch's size where a value is logged without one."""
    num_seeds = sum(part.num_seeds for part in parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        size = num_seeds
    return [size * part.num_seeds / num_seeds for part in parts]


def loss_of(output: Any) -> Tensor | None:
    """Find the loss in what `training_step` returned; None if it has none."""
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss


def detached(output: Any) -> Any:
    """Let go of the graph behind a step's output, and of rows that are not in it."""
    if isinstance(output, Mapping):
        return {name: detached(value) for name, value in output.items()}
    if not isinstance(output, Tensor):
        return output
    # A view of some rows would keep all of them.
    is_part = output.layout == torch.strided and output.untyped_storage().nbytes() > output.nbytes
    return output.detach().clone() if is_part else output.detach()


def merged(outputs: Sequence[Any], parts: Sequence[Part]) -> Any:
    """Make one output of the parts': rows of seeds behind each other, numbers weighted like the loss.

    Raises:
        ValueError: If it cannot be told how.
    """
    first, sizes = outputs[0], [part.num_seeds for part in parts]
    if all(output is None for output in outputs):
        return None
    if isinstance(first, Mapping):
        return {name: merged([output[name] for output in outputs], parts) for name in first}
    if isinstance(first, Tensor) and first.dim() and [output.shape[0] for output in outputs] == sizes:
        return torch.cat(list(outputs))
    if isinstance(first, Tensor) and first.dim() == 0 and first.is_floating_point():
        # The last has its graph: the sum's value is the whole's, its gradient that of the last part.
        return sum(output * part.weight for output, part in zip(outputs, parts, strict=True))
    if isinstance(first, float):
        return sum(output * part.weight for output, part in zip(outputs, parts, strict=True))
    if isinstance(first, (tuple, list)):
        if isinstance(first, list) and [len(output) for output in outputs] == sizes:
            return [item for output in outputs for item in output]
        if len({len(output) for output in outputs}) == 1:
            items = [merged(values, parts) for values in zip(*outputs, strict=True)]
            return items if isinstance(first, list) else tuple(items)
    elif not isinstance(first, Tensor) and all(type(output) is type(first) and output == first for output in outputs):
        return first
    shape = f" of shape {tuple(first.shape)}" if isinstance(first, Tensor) else ""
    raise ValueError(
        f"A step that is run in {len(parts)} parts must return what can be put together again, but returned a"
        f" {type(first).__name__}{shape}. HINT: return rows of the seeds, or averages, or let batches be pruned."
    )

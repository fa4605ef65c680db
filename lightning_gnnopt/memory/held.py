"""What is held whatever the batch: the model and what its optimizer keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


def held_bytes(pl_module: nn.Module, optimizers: Iterable[Any] = (), *, steady: bool = False) -> int:
    """Count the bytes of parameters, gradients, buffers and optimizer state; shared memory counts once.

    Args:
        pl_module: The model.
        optimizers: Its optimizers.
        steady: Whether to count gradients that are not there yet, but are there when a later step begins.

    Returns:
        The bytes.

    Examples:
        >>> held_bytes(nn.Linear(10, 10, bias=False)), held_bytes(nn.Linear(10, 10, bias=False), steady=True)
        (400, 800)
    """
    tensors = [*pl_module.parameters(), *pl_module.buffers()]
    for parameter in pl_module.parameters():
        if parameter.grad is not None:
            tensors.append(parameter.grad)
        elif steady and parameter.requires_grad:
            tensors.append(torch.empty_like(parameter, device="meta"))
    tensors += [tensor for optimizer in optimizers for tensor in _tensors_of(optimizer.state)]
    return sum({_place(tensor): stored_bytes(tensor) for tensor in tensors}.values())


def bucket_bytes(strategy: Any) -> int:
    """Count the bytes of the buckets in which `DistributedDataParallel` gathers gradients."""
    model = getattr(strategy, "model", None)
    if not isinstance(model, nn.parallel.DistributedDataParallel) or model.gradient_as_bucket_view:
        return 0
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def fingerprint(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Name what a step's memory depends on beside the batch, as far as can be seen without running it.

    Two runs with the same fingerprint have the same modules, shapes, types and frozen parameters, optimizers,
    precision, number of accumulated batches and kind of device.
    """
    parts = [f"{name}:{type(module).__qualname__}:{module.extra_repr()}" for name, module in pl_module.named_modules()]
    named = [*pl_module.named_parameters(), *pl_module.named_buffers()]
    parts += [f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:{tensor.requires_grad}" for name, tensor in named]
    parts += [f"{type(optimizer).__qualname__}:{_options_of(optimizer)}" for optimizer in trainer.optimizers]
    parts += [
        str(trainer.precision),
        str(trainer.accumulate_grad_batches),
        str(trainer.gradient_clip_val),
        trainer.strategy.root_device.type,
        torch.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _options_of(optimizer: Any) -> str:
    # Flags choose the kernels; numbers such as the learning rate change from step to step and no size.
    flags = [
        {name: value for name, value in group.items() if isinstance(value, (bool, type(None)))}
        for group in optimizer.param_groups
    ]
    return repr(flags)


def _tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_of(item)


def _place(tensor: Tensor) -> tuple[Any, int]:
    if tensor.is_meta or tensor.layout != torch.strided:
        return id(tensor), 0
    storage = tensor.untyped_storage()
    return tensor.device, storage.data_ptr() or id(tensor)


def stored_bytes(tensor: Tensor) -> int:
    """Count the bytes behind a tensor: those of its storage, or of a sparse one's parts."""
    if tensor.layout == torch.strided:
        return int(tensor.untyped_storage().nbytes())
    if tensor.layout == torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices().nbytes + tensor.col_indices().nbytes + tensor.values().nbytes
    return 0

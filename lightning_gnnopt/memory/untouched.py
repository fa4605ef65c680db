"""Run a user's steps and leave everything as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

LARGE_BYTES = 256 * 2**20
"""A tensor that is no parameter and larger than this is not copied: that it was left alone is checked instead."""

_Restore = Callable[[], Any]


@contextmanager
def untouched(trainer: L.Trainer, pl_module: L.LightningModule, loop: Any) -> Iterator[None]:
    """Let steps of `pl_module` run within this context, and take back what they did when it ends.

    Taken back, to the bit: parameters and their gradients, buffers, the state of optimizers, schedulers and of the
    gradient scaler, what hangs on modules (metrics, lists of outputs, counters), what was logged, Lightning's progress
    and the random number generators of torch, NumPy and Python. Callbacks, loggers and Lightning's profiler see nothing
    of it. Objects of other kinds that a step changes in place stay changed.

    Args:
        trainer: The Trainer, in the middle of a stage.
        pl_module: Its module.
        loop: The loop whose results `self.log` writes to.
    """
    with ExitStack() as stack:
        stack.callback(_set_rng_states, _collect_rng_states(include_cuda=True))
        stack.enter_context(_swapped(trainer, callbacks=[], _loggers=[DummyLogger()]))
        stack.enter_context(_swapped(trainer, profiler=PassThroughProfiler()))
        stack.enter_context(_alone(trainer.strategy))
        if hasattr(loop, "_results"):
            stack.enter_context(_swapped(loop, _results=_ResultCollection(training=trainer.training)))
        connector = trainer._logger_connector
        stack.enter_context(
            _swapped(connector, **{name: value for name, value in vars(connector).items() if name[0] == "_"})
        )
        stack.callback(_progress(trainer))
        stack.callback(_optimization(trainer))
        stack.callback(_modules(pl_module))
        yield


@contextmanager
def _alone(strategy: Any) -> Iterator[None]:
    """Let logged values be those of this process: others may not run the same number of steps."""
    before = vars(strategy).get("reduce")
    vars(strategy)["reduce"] = lambda tensor, *args, **kwargs: tensor
    try:
        yield
    finally:
        vars(strategy).pop("reduce")
        if before is not None:
            vars(strategy)["reduce"] = before


@contextmanager
def _swapped(target: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, copy.copy(value) if isinstance(value, dict) and value is before[name] else value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def _progress(trainer: L.Trainer) -> _Restore:
    """Remember where Lightning's training loop stands."""
    fit_loop = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    places = [
        (epoch_loop, "batch_progress"),
        (epoch_loop.automatic_optimization, "optim_progress"),
        (epoch_loop.manual_optimization, "optim_step_progress"),
    ]
    states = [(getattr(owner, name), copy.deepcopy(vars(getattr(owner, name)))) for owner, name in places]
    plain = {"accumulate_grad_batches": trainer.accumulate_grad_batches}
    max_batches = fit_loop.max_batches

    def restore() -> None:
        for tracker, state in states:
            vars(tracker).update(state)
        trainer.accumulate_grad_batches = plain["accumulate_grad_batches"]
        fit_loop.max_batches = max_batches

    return restore


def _optimization(trainer: L.Trainer) -> _Restore:
    """Remember the state of optimizers, schedulers and the gradient scaler."""
    kept: list[_Restore] = []
    for optimizer in trainer.optimizers:
        kept += [_keep(optimizer.state), _keep(optimizer.param_groups), _keep_attributes(optimizer)]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for scheduler in schedulers:  # some hold others
        kept.append(_keep_attributes(scheduler))
        schedulers.extend(getattr(scheduler, "_schedulers", ()))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scaler_state = None if scaler is None else copy.deepcopy(scaler.state_dict())

    def restore() -> None:
        for restore_one in kept:
            restore_one()
        if scaler is not None and scaler_state:
            scaler.load_state_dict(scaler_state)

    return restore


def _modules(pl_module: nn.Module) -> _Restore:
    """Remember parameters, gradients, buffers and whatever else hangs on modules."""
    parameters = [(parameter, _copied(parameter), parameter.grad) for parameter in pl_module.parameters()]
    gradients = [(grad, _copied(grad)) for _, _, grad in parameters if grad is not None]
    kept = [(module, {name: _keep(value) for name, value in vars(module).items()}) for module in pl_module.modules()]

    def restore() -> None:
        for parameter, value, grad in parameters:
            _write(parameter, value)
            parameter.grad = grad
        for grad, value in gradients:
            _write(grad, value)
        for module, attributes in kept:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            for name, restore_one in attributes.items():
                vars(module)[name] = restore_one()

    return restore


def _keep_attributes(owner: Any) -> _Restore:
    """Remember an object's numbers, flags and lists, but not the objects it refers to."""
    names = [
        name for name, value in vars(owner).items() if isinstance(value, (bool, int, float, str, list, type(None)))
    ]
    kept = {name: _keep(vars(owner)[name]) for name in names if name != "param_groups"}

    def restore() -> None:
        for name in [
            name for name, value in vars(owner).items() if isinstance(value, (bool, int)) and name not in kept
        ]:
            del vars(owner)[name]  # such as a scheduler's note that the optimizer has stepped
        for name, restore_one in kept.items():
            vars(owner)[name] = restore_one()

    return restore


def _write(tensor: Tensor, value: Tensor) -> None:
    """Write a value into a tensor if it has another one: not every tensor can be written to."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if not torch.equal(tensor.detach().to("cpu"), value):
            tensor.copy_(value)


def _copied(tensor: Tensor) -> Tensor:
    """Copy a tensor into host memory, which is the larger one."""
    return tensor.detach().to("cpu", copy=True)


def _keep(value: Any, memo: dict[int, _Restore] | None = None) -> _Restore:
    """Remember what a tensor or a container holds; of any other object, which one it is."""
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        return _keep_tensor(value)
    if isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
        return _keep_generator(value)
    if not isinstance(value, (dict, list, set, deque, tuple)):
        return lambda: value
    memo[id(value)] = lambda: value  # for containers that hold themselves
    if isinstance(value, dict):
        items = [(key, _keep(item, memo)) for key, item in value.items()]

        def restore_dict() -> Any:
            restored = [(key, restore()) for key, restore in items]
            if [(id(key), id(item)) for key, item in value.items()] != [(id(k), id(item)) for k, item in restored]:
                # A subclass may have an `update` of its own, such as `Counter`; an `OrderedDict` keeps its order.
                kind: type[dict[Any, Any]] = OrderedDict if isinstance(value, OrderedDict) else dict
                kind.clear(value)
                for key, item in restored:
                    kind.__setitem__(value, key, item)
            return value

        return restore_dict
    kept = [_keep(item, memo) for item in value]

    def restore_sequence() -> Any:
        restored = [restore() for restore in kept]
        if isinstance(value, list):
            value[:] = restored
        elif isinstance(value, (set, deque)):
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(restored)
        return value

    return restore_sequence


def _keep_tensor(tensor: Tensor) -> _Restore:
    if isinstance(tensor, nn.Parameter):  # remembered with the module it is of
        return lambda: tensor
    if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() > LARGE_BYTES:
        version = None if tensor.is_inference() else tensor._version

        def check() -> Tensor:
            if version is not None and tensor._version != version:
                rank_zero_warn(
                    f"A tensor of shape {tuple(tensor.shape)} that hangs on the model was changed in place while"
                    " `MemoryControl` ran its probes, and is too large to be taken back."
                )
            return tensor

        return check
    value = _copied(tensor)

    def restore() -> Tensor:
        _write(tensor, value)
        return tensor

    return restore


def _keep_generator(generator: Any) -> _Restore:
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: generator.set_state(state)
    if isinstance(generator, np.random.Generator):
        words = copy.deepcopy(generator.bit_generator.state)

        def restore() -> Any:
            generator.bit_generator.state = words
            return generator

        return restore
    get, put = ("getstate", "setstate") if isinstance(generator, random.Random) else ("get_state", "set_state")
    kept = getattr(generator, get)()

    def put_back() -> Any:
        getattr(generator, put)(kept)
        return generator

    return put_back

"""Run a step in parts: micro-batches of a batch's seeds whose gradients add up to the whole batch's."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

from lightning_gnnopt.memory.oom import is_out_of_memory

_EVALUATION = {"validation_step": "val", "test_step": "test", "predict_step": "predict"}


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


Parts = Callable[[Any, str], "Sequence[Part] | None"]
MoreParts = Callable[[Any, str, int], "Sequence[Part] | None"]


class SplitSteps:
    """Takes the place of a strategy's steps, and runs those in parts that would not fit.

    The optimizer, clipping, schedulers and Lightning's counters see one step: all parts but the last are run backward
    at once, and their gradients wait until Lightning, which first clears what the step before left, runs the last
    one's `backward`, whose loss has the value of the whole batch's. Under DDP the parts before the last are not
    synchronised. Values logged in each step are averaged over the parts.

    A step that runs out of memory is run again in twice as many parts. That cannot be done where gradients of batches
    before have been mixed with those of half a backward pass, nor where other processes wait for the rest of it: the
    error is raised then.

    Args:
        trainer: The Trainer.
        parts: Says how a batch of a stage is to be run: in parts, or as it is (None).
        more_parts: Cuts a batch into at least so many parts; None if it cannot be cut further.
        on_out_of_memory: Called with the batch, the stage and the error when a step ran out of memory.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        *,
        parts: Parts,
        more_parts: MoreParts,
        on_out_of_memory: Callable[[Any, str, BaseException], None],
    ) -> None:
        self._trainer: Any = trainer
        self._strategy: Any = trainer.strategy
        self._parts, self._more_parts = parts, more_parts
        self._on_out_of_memory = on_out_of_memory
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._running: tuple[Any, tuple[Any, ...], int] | None = None
        self._before = _Logged({})
        self._metrics = [module for module in trainer.lightning_module.modules() if isinstance(module, Metric)]
        self._has_mixed = False
        self.enabled = True
        self._is_alone = False
        names = (*_EVALUATION, "training_step", "backward", "reduce")
        self._originals = {name: getattr(self._strategy, name) for name in names}
        vars(self._strategy).update(training_step=self._training_step, backward=self._backward)
        if trainer.world_size > 1:
            vars(self._strategy)["reduce"] = self._reduce
        for name, stage in _EVALUATION.items():
            vars(self._strategy)[name] = self._evaluation_step(name, stage)

    def remove(self) -> None:
        """Give the strategy its own steps back."""
        for name in self._originals:
            vars(self._strategy).pop(name, None)

    # Training

    def _training_step(self, *args: Any) -> Any:
        original = self._originals["training_step"]
        self._before = _Logged(
            self._trainer._results, self._metrics
        )  # in probes, too: what it holds on to is seen in a recording
        if not self.enabled or not self._trainer.lightning_module.automatic_optimization:
            return original(*args)
        batch, rest = args[0], args[1:]
        self._waiting = []
        self._running, self._has_mixed = (batch, rest, 1), False
        parts = self._parts(batch, "train")
        while True:
            try:
                return original(*args) if parts is None else self._run_parts(batch, rest, parts)
            except Exception as error:
                parts = self._after(error, batch, 1 if parts is None else len(parts), clean=self._is_clean)
                self._before.restore(self._trainer._results)

    def _run_parts(self, batch: Any, rest: tuple[Any, ...], parts: Sequence[Part]) -> Any:
        """Run all parts forward and all but the last backward; return what the step of the whole would."""
        trainer = self._trainer
        self._running = (batch, rest, len(parts))
        self._waiting = []
        if self._starts_window:
            self._clear_gradients()
        outputs: list[Any] = []
        logged = _StepValues(trainer._results)
        sizes = self._logged_sizes(batch, parts)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self._unsynchronised():
                output = self._run_part(self._originals["training_step"], part, rest, sizes[number - 1])
                loss = _loss_of(output)
                logged.add(part, loss)
                if loss is None and number == 1 and output is None:  # Lightning's way to skip a batch
                    return None
                if loss is None:
                    raise ValueError(
                        "`training_step` must return a loss for each part of a batch that is split, or for none, but"
                        f" part {number} of {len(parts)} has none. HINT: use another `on_exceed`."
                    )
                if number < len(parts):
                    self._backward_part(loss * part.weight / trainer.accumulate_grad_batches)
            outputs.append(output if number == len(parts) else _detached(output))
            del output, loss
        logged.write()
        trainer._results.batch, trainer._results.batch_size = batch, None
        self._waiting = [(p, p.grad) for p in trainer.lightning_module.parameters() if p.grad is not None]
        for parameter, _ in self._waiting:
            parameter.grad = None  # Lightning may clear gradients now, before it runs the last part backward
        return _merged(outputs, parts)

    def _run_part(self, step: Callable[..., Any], part: Part, rest: tuple[Any, ...], logged_size: float) -> Any:
        """Run a part, of which there is one at a time; values logged without a batch size weigh as it says."""
        results = self._trainer._results
        if results is not None:
            results.batch, results.batch_size = None, logged_size
        return step(part.make(), *rest)

    def _logged_sizes(self, batch: Any, parts: Sequence[Part]) -> list[float]:
        """Share out among the parts what Lightning takes for the batch's size where a value is logged without one."""
        num_seeds = sum(part.num_seeds for part in parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                size = extract_batch_size(batch)
        except (MisconfigurationException, RecursionError):
            size = num_seeds
        return [size * part.num_seeds / num_seeds for part in parts]

    def _backward_part(self, loss: Tensor) -> None:
        """Run a part backward without the hooks: these see the last part, when all gradients are there."""
        self._has_mixed = True
        precision = self._strategy.precision_plugin
        scaler = getattr(precision, "scaler", None)
        loss = loss if scaler is None else scaler.scale(loss)
        precision.backward(loss, self._trainer.lightning_module, self._trainer.optimizers[0])

    def _backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        original = self._originals["backward"]
        for parameter, gradient in self._waiting:
            parameter.grad = gradient
        running, self._waiting, self._running = self._running, [], None
        before = self._before
        if not self.enabled or running is None:
            return original(closure_loss, optimizer, *args, **kwargs)
        # Nothing but the parts' own gradients can be told from those of half a backward pass.
        clean = self._starts_window
        try:
            return original(closure_loss, optimizer, *args, **kwargs)
        except Exception as error:
            batch, rest, num_parts = running
            closure_loss.detach_()  # which frees the graph
            module, results = self._trainer.lightning_module, self._trainer._results
            while True:
                parts = self._after(error, batch, num_parts, clean=clean and self._trainer.world_size == 1)
                before.restore(results)
                module._current_fx_name = "training_step"  # where `self.log` belongs to
                try:
                    loss = _loss_of(self._run_parts(batch, rest, parts))
                    for parameter, gradient in self._waiting:
                        parameter.grad = gradient
                    self._waiting, self._running = [], None
                    assert loss is not None
                    return original(loss / self._trainer.accumulate_grad_batches, optimizer, *args, **kwargs)
                except Exception as again:
                    error, num_parts = again, len(parts)

    def _after(self, error: Exception, batch: Any, num_parts: int, *, clean: bool) -> Sequence[Part]:
        """Say in which parts to go on after an error; raise it if that cannot be."""
        if not is_out_of_memory(error):
            raise error
        self._on_out_of_memory(batch, "train", error)
        if not clean:
            error.add_note(
                "The batch could not be run again in parts: gradients of other batches or other processes depend on"
                " the backward pass that was broken off. HINT: lower `budget`."
            )
            raise error
        error.__traceback__ = None  # its frames hold the tensors of the step that failed
        error.__context__ = None
        gc.collect()
        if self._starts_window:
            self._clear_gradients()
        parts = self._more_parts(batch, "train", 2 * num_parts)
        if parts is None:
            error.add_note("The batch could not be run in more parts than it was.")
            raise error
        return parts

    @property
    def _is_clean(self) -> bool:
        """Whether an error in a forward pass leaves no gradients that cannot be taken back."""
        return self._starts_window or not self._has_mixed

    @property
    def _starts_window(self) -> bool:
        """Whether gradients of batches before are dropped in this step."""
        return bool(self._trainer.fit_loop.epoch_loop.batch_idx % self._trainer.accumulate_grad_batches == 0)

    def _clear_gradients(self) -> None:
        for parameter in self._trainer.lightning_module.parameters():
            parameter.grad = None

    @contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        """Keep a part from waiting for processes that may run another number of parts."""
        block = getattr(self._strategy, "block_backward_sync", nullcontext)
        with block(), self._alone():
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let logged values be those of this process."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False

    def _reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        # One method for the whole run: `self.log` compares it from call to call.
        return tensor if self._is_alone else self._originals["reduce"](tensor, *args, **kwargs)

    # Evaluation

    def _evaluation_step(self, name: str, stage: str) -> Callable[..., Any]:
        original = self._originals[name]

        def step(*args: Any) -> Any:
            if not self.enabled:
                return original(*args)
            batch, rest = args[0], args[1:]
            parts = self._parts(batch, stage)
            while True:
                try:
                    if parts is None:
                        return original(*args)
                    sizes = self._logged_sizes(batch, parts)
                    with self._alone():
                        outputs = [
                            _detached(self._run_part(original, part, rest, size))
                            for part, size in zip(parts, sizes, strict=True)
                        ]
                    return _merged(outputs, parts)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self._on_out_of_memory(batch, stage, error)
                    parts = self._more_parts(batch, stage, 2 if parts is None else 2 * len(parts))
                    if parts is None:
                        raise
                    error.__traceback__ = None
                gc.collect()

        return step


class _Logged:
    """Remembers what was logged before a step: one that is run again must not count twice."""

    def __init__(self, results: Any, metrics: Sequence[Metric] = ()) -> None:
        self._metrics = [
            (metric, {name: _copied_state(vars(metric)[name]) for name in _state_names(metric)}) for metric in metrics
        ]
        self._values = {
            name: {key: _without_memory(value) for key, value in vars(metric).items()}
            for name, metric in results.items()
            if metric.is_tensor
        }
        self._names = set(results)

    def restore(self, results: Any) -> None:
        for metric, state in self._metrics:
            vars(metric).update(state)
        for name in set(results) - self._names:
            del results[name]
        for name, values in self._values.items():
            for key, value in values.items():
                vars(results[name])[key] = value() if isinstance(value, partial) else value


def _state_names(metric: Metric) -> list[str]:
    return [*metric._defaults, *(name for name in ("_update_count", "_computed") if name in vars(metric))]


def _copied_state(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if isinstance(value, list) else value


def _without_memory(value: Any) -> Any:
    """Keep a number without its tensor, whose release in a later step a recording would see; its maker instead.

    On a device that would wait for it. There tensors are kept: they are replaced, never changed in place.
    """
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.dim() == 0:
        return partial(torch.tensor, value.item(), dtype=value.dtype)
    return value


class _StepValues:
    """Averages what is logged in each step over the parts of a step."""

    def __init__(self, results: Any) -> None:
        self._results = results
        self._values: dict[str, list[tuple[Tensor, float]]] = {}

    def add(self, part: Part, loss: Tensor | None) -> None:
        for name, metric in self._results.items():
            if metric.is_tensor and metric.meta.on_step and metric.meta.is_mean_reduction:
                value = metric._forward_cache
                if value is not None:  # the loss weighs as in the whole batch's
                    is_loss = loss is not None and bool(value == loss.detach())
                    self._values.setdefault(name, []).append((value, part.weight if is_loss else part.num_seeds))

    def write(self) -> None:
        for name, values in self._values.items():
            total = sum(weight for _, weight in values)
            if total == 0:
                continue
            mean = sum(value * weight for value, weight in values) / total
            metric = self._results[name]
            metric._forward_cache = mean
            if not metric.meta.on_epoch:
                metric.value = mean


def _loss_of(output: Any) -> Tensor | None:
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss


def _detached(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {name: _detached(value) for name, value in output.items()}
    if not isinstance(output, Tensor):
        return output
    # A view of some rows would keep all of them.
    is_part = output.layout == torch.strided and output.untyped_storage().nbytes() > output.nbytes
    return output.detach().clone() if is_part else output.detach()


def _merged(outputs: Sequence[Any], parts: Sequence[Part]) -> Any:
    """Make one output of the parts': rows of seeds behind each other, numbers weighted like the loss.

    Raises:
        ValueError: If it cannot be told how.
    """
    first, sizes = outputs[0], [part.num_seeds for part in parts]
    if all(output is None for output in outputs):
        return None
    if isinstance(first, Mapping):
        return {name: _merged([output[name] for output in outputs], parts) for name in first}
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
            merged = [_merged(values, parts) for values in zip(*outputs, strict=True)]
            return merged if isinstance(first, list) else tuple(merged)
    elif not isinstance(first, Tensor) and all(type(output) is type(first) and output == first for output in outputs):
        return first
    shape = f" of shape {tuple(first.shape)}" if isinstance(first, Tensor) else ""
    raise ValueError(
        f"A step that is run in {len(parts)} parts must return what can be put together again, but returned a"
        f" {type(first).__name__}{shape}. HINT: return rows of the seeds, or averages, or let batches be pruned."
    )

"""Run a step in parts: micro-batches of a batch's seeds whose gradients add up to the whole batch's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
from torch import Tensor
from torchmetrics import Metric

from lightning_gnnopt.memory.logged_before import LoggedBefore
from lightning_gnnopt.memory.oom import is_out_of_memory
from lightning_gnnopt.memory.part_values import PartValues
from lightning_gnnopt.memory.parts import Part, detached, logged_sizes, loss_of, merged

_EVALUATION = {"validation_step": "val", "test_step": "test", "predict_step": "predict"}


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
        self._before = LoggedBefore({})
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
        self._before = LoggedBefore(
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
        logged = PartValues(trainer._results)
        sizes = logged_sizes(batch, parts)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self._unsynchronised():
                output = self._run_part(self._originals["training_step"], part, rest, sizes[number - 1])
                loss = loss_of(output)
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
            outputs.append(output if number == len(parts) else detached(output))
            del output, loss
        logged.write()
        trainer._results.batch, trainer._results.batch_size = batch, None
        self._waiting = [(p, p.grad) for p in trainer.lightning_module.parameters() if p.grad is not None]
        for parameter, _ in self._waiting:
            parameter.grad = None  # Lightning may clear gradients now, before it runs the last part backward
        return merged(outputs, parts)

    def _run_part(self, step: Callable[..., Any], part: Part, rest: tuple[Any, ...], logged_size: float) -> Any:
        """Run a part, of which there is one at a time; values logged without a batch size weigh as it says."""
        results = self._trainer._results
        if results is not None:
            results.batch, results.batch_size = None, logged_size
        return step(part.make(), *rest)

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
                    loss = loss_of(self._run_parts(batch, rest, parts))
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
                    sizes = logged_sizes(batch, parts)
                    with self._alone():
                        outputs = [
                            detached(self._run_part(original, part, rest, size))
                            for part, size in zip(parts, sizes, strict=True)
                        ]
                    return merged(outputs, parts)
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

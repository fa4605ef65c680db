"""What goes wrong in a run, and what must come of it."""

from __future__ import annotations

import dataclasses
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gnnopt.loading.plan import Field, Part
from lightning_gnnopt.loading.sources import NodeSource
from lightning_gnnopt.sampling import Subgraph

from .signals import Interrupts, KillsValidation

if TYPE_CHECKING:
    from .parts import Parts
    from .plans import Plan

HOOKS = (
    "setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_end",
    "on_fit_end", "teardown",
)  # fmt: skip
_FULL_BYTES = 1000


class InjectedError(RuntimeError):
    """What a fault raises."""


class InjectedDeath(BaseException):
    """What ends a thread that nobody expects to end."""


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        arm: Prepares it; what it registers on the stack is undone after the fit.
        error: The types that the fit may end with; empty if it must go to its end.
        names: What the error's text must have in it.
        may_pass: Whether the fit may go well, because the fault came too late.
        needs: What the plan must be like.
        weight: How often it is drawn, next to the others.
    """

    arm: Callable[[Parts, ExitStack], None]
    error: tuple[type[BaseException], ...] = (InjectedError,)
    names: str = ""
    may_pass: bool = False
    needs: Callable[[Plan], bool] = lambda plan: True
    weight: float = 1.0

    def fits(self, plan: Plan) -> bool:
        """Whether a plan can have this fault."""
        return plan.kind == "fit" and self.needs(plan)


class _At:
    """Acts once, at a call that is drawn."""

    def __init__(self, place: int, act: Callable[[], Any]) -> None:
        self._left, self._act = place, act
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            self._left -= 1
            is_due = self._left == -1
        if is_due:
            self._act()


def _raise(where: str, kind: type[BaseException] = InjectedError) -> Callable[[], None]:
    def act() -> None:
        raise kind(f"a fault in {where}")

    return act


def _in_sampling(parts: Parts, stack: ExitStack) -> None:
    at, sample = _At(parts.step, _raise("sampling")), NodeSource.sample

    def faulty(self: NodeSource, *args: Any, **kwargs: Any) -> Subgraph:
        at()
        return sample(self, *args, **kwargs)

    stack.enter_context(mock.patch.object(NodeSource, "sample", faulty))


def _in_slicing(parts: Parts, stack: ExitStack) -> None:
    """While the largest tensor is written: a slab is held then."""
    at, plan = _At(parts.step, _raise("slicing")), NodeSource.plan

    def faulty(self: NodeSource, *args: Any, **kwargs: Any) -> Any:
        planned = plan(self, *args, **kwargs)
        fields = list(planned.fields)
        place = max(range(len(fields)), key=lambda i: fields[i].part.nbytes)
        whole = fields[place].part

        def written(out: Any) -> None:
            at()
            whole.write(out)

        fields[place] = Field(Part(whole.dtype, whole.shape, written))
        return dataclasses.replace(planned, fields=fields)

    stack.enter_context(mock.patch.object(NodeSource, "plan", faulty))


class _Transform:
    """Looks at training subgraphs, and does something at one of them."""

    def __init__(self, at: _At) -> None:
        self._at = at

    def __call__(self, subgraph: Any, resample: Callable[[int], Any]) -> Any:
        self._at()
        return subgraph


def _in_transform(act: Callable[[], None]) -> Callable[[Parts, ExitStack], None]:
    def arm(parts: Parts, stack: ExitStack) -> None:
        parts.datamodule.transforms.append(_Transform(_At(parts.step, act)))

    return arm


def _hangs(parts: Parts, stack: ExitStack) -> None:
    """In a worker, for longer than a loader waits."""
    is_over = threading.Event()
    stack.callback(is_over.set)
    parts.datamodule.transforms.append(_Transform(_At(parts.step, lambda: is_over.wait(4.0))))
    parts.datamodule._options = dataclasses.replace(parts.datamodule._options, timeout_s=1.0)


def _in_transfer(*, on_device: bool) -> Callable[[Parts, ExitStack], None]:
    """When a copy is submitted, or on the device itself, which reports it later."""

    def arm(parts: Parts, stack: ExitStack) -> None:
        at, submit = _At(parts.step, _raise("the transfer")), parts.device.copies.submit

        def faulty(work: Callable[[], object], **kwargs: Any) -> Any:
            if getattr(work, "__name__", "") == "view":  # not a copy: memory that is let go of, in a finalizer
                return submit(work, **kwargs)

            def copied() -> None:
                at()
                work()

            if not on_device:
                at()
            return submit(copied if on_device else work, **kwargs)

        stack.enter_context(mock.patch.object(parts.device.copies, "submit", faulty))

    return arm


def _in_module(stage: str) -> Callable[[Parts, ExitStack], None]:
    def arm(parts: Parts, stack: ExitStack) -> None:
        parts.module.fails_in, parts.module.fails_at = stage, parts.step

    return arm


def _in_hook(hook: str) -> Callable[[Parts, ExitStack], None]:
    def arm(parts: Parts, stack: ExitStack) -> None:
        # As a share of its calls: a hook of the fit comes once, one of an epoch with each of them.
        calls = parts.num_steps if "batch" in hook or "backward" in hook or "zero" in hook or "optimizer" in hook else 1
        if "epoch" in hook or hook.startswith("on_validation"):
            calls = parts.plan.recipe.epochs
        callback, at = Callback(), _At(int(parts.plan.when * calls), _raise(hook))
        setattr(callback, hook, at)
        parts.callbacks.insert(int(parts.plan.when * 97) % (len(parts.callbacks) + 1), callback)

    return arm


class _FullDisk(Callback):
    """From a step on, no file can be written that is larger than some bytes."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, resource.RLIM_INFINITY))


def _disk_full(parts: Parts, stack: ExitStack) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    parts.callbacks.insert(0, _FullDisk(parts.step))


def _interrupt(parts: Parts, stack: ExitStack) -> None:
    # A process takes longer to come up than these fits take.
    seconds = parts.usual_s + (5.0 if parts.plan.is_async else 0.0)
    stack.enter_context(Interrupts(1.1 * seconds * parts.plan.when))


def _kill(*, stopped_s: float) -> Callable[[Parts, ExitStack], None]:
    def arm(parts: Parts, stack: ExitStack) -> None:
        stack.enter_context(KillsValidation(8.0 * parts.plan.when, stopped_s=stopped_s))

    return arm


def _in_process(orders: str) -> Callable[[Parts, ExitStack], None]:
    def arm(parts: Parts, stack: ExitStack) -> None:
        (parts.folder / "orders").write_text(orders)

    return arm


def _no_memory(parts: Parts, stack: ExitStack) -> None:
    for callback in parts.callbacks:
        if hasattr(callback, "budget"):
            callback.budget = "1KiB"


@contextmanager
def armed(parts: Parts) -> Iterator[None]:
    """Have the fault of a fit happen within the block."""
    with ExitStack() as stack:
        if parts.plan.fault is not None:
            FAULTS[parts.plan.fault].arm(parts, stack)
        yield


def _is_async(plan: Plan) -> bool:
    return plan.is_async


def _has_device(plan: Plan) -> bool:
    return plan.on_device


def _calls(hook: str) -> Callable[[Plan], bool]:
    """Whether Lightning calls a hook: not those of a validation that another process does."""
    return lambda plan: not (plan.is_async and hook.startswith("on_validation"))


FAULTS: dict[str, Fault] = {
    "sampling": Fault(_in_sampling, names="a fault in sampling"),
    "transform": Fault(_in_transform(_raise("a transform")), names="a fault in a transform"),
    "slicing": Fault(_in_slicing, names="a fault in slicing"),
    "transfer": Fault(_in_transfer(on_device=False), names="a fault in the transfer", needs=_has_device),
    "transfer-on-device": Fault(
        _in_transfer(on_device=True), names="a fault in the transfer", may_pass=True, needs=_has_device
    ),
    "worker-dies": Fault(_in_transform(_raise("a worker", InjectedDeath)), error=(InjectedDeath,), names="a worker"),
    "worker-hangs": Fault(
        _hangs, error=(TimeoutError,), names="has made no progress", needs=lambda plan: plan.num_workers > 0
    ),
    "training_step": Fault(_in_module("training_step"), names="a fault in training_step"),
    "backward": Fault(_in_module("backward"), names="a fault in backward"),
    "optimizer": Fault(_in_module("optimizer"), names="a fault in optimizer"),
    "validation_step": Fault(
        _in_module("validation_step"), names="a fault in validation_step", needs=lambda plan: not plan.is_async
    ),
    **{
        f"hook {hook}": Fault(_in_hook(hook), names=f"a fault in {hook}", needs=_calls(hook), weight=0.25)
        for hook in HOOKS
    },
    "disk-full": Fault(
        _disk_full, error=(OSError,), names="File too large", may_pass=True, needs=lambda plan: not plan.is_async
    ),
    "interrupt": Fault(_interrupt, error=(SystemExit, KeyboardInterrupt), may_pass=True, weight=4.0),
    "too-little-memory": Fault(
        _no_memory, error=(ValueError,), names="`budget` must be larger than", needs=lambda plan: bool(plan.control)
    ),
    # Those of the validation process cost no verdict; few plans have one.
    # Lightning, which goes on without the process, needs room for the best weights.
    "disk-full-for-snapshots": Fault(
        _disk_full, error=(OSError,), names="File too large", may_pass=True, needs=_is_async
    ),
    "kill-validation": Fault(_kill(stopped_s=0.0), error=(), needs=_is_async, weight=4.0),
    "stop-and-kill-validation": Fault(_kill(stopped_s=0.7), error=(), needs=_is_async, weight=4.0),
    "validation-raises": Fault(_in_process("raise,"), error=(), needs=_is_async, weight=4.0),
    "validation-dies-twice": Fault(_in_process("die,die,"), error=(), needs=_is_async, weight=4.0),
}

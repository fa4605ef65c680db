"""The validation process, which `ChildProcess` starts.

It reads frames from its standard input and writes frames to its standard output; a frame is its length in 8 bytes, and
a pickle. First come its surroundings and the packed `Blueprint`, then jobs; an empty frame ends it. It answers with one
frame for the blueprint, and one for each job.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import pickle
import queue
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_gnnopt.evaluation.blueprint import Blueprint
from lightning_gnnopt.evaluation.child_logger import ChildLogger
from lightning_gnnopt.evaluation.messages import Job, Verdict
from lightning_gnnopt.evaluation.packing import unpack
from lightning_gnnopt.evaluation.weights import load_weights, read_weights

_NICE = 10  # a tenth of the processor time of a process that competes
_LOOK_S = 0.25  # how often to look whether the parent lives
_HOOKS = ("prepare_data", "setup", "configure_model", "configure_sharded_model", "teardown")


class Validator:
    """Validates weights with one Trainer.

    Args:
        payload: A packed `Blueprint`.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._build()

    def _build(self) -> None:
        blueprint: Blueprint = unpack(self._payload)
        blueprint.configure_torch()
        self._blueprint, self._module = blueprint, blueprint.module
        self._module._metric_attributes = None  # found again: they are by the ids of the other process's objects
        self._logger = ChildLogger(blueprint.logger)
        self._trainer: L.Trainer | None = blueprint.make_trainer(self._logger)
        connector = self._trainer._logger_connector
        connector.log_metrics = _silently(self._logger, connector.log_metrics)  # type: ignore[method-assign]
        self._datamodule = blueprint.datamodule
        # They were set up in the training process; to do so again could draw another split, or make new weights.
        _skip_hooks(self._module, _HOOKS)
        if blueprint.datamodule_factory is not None:
            self._datamodule = blueprint.datamodule_factory()
            _skip_hooks(self._datamodule, ("teardown",))
        elif self._datamodule is not None:
            _skip_hooks(self._datamodule, _HOOKS)

    def validate(self, job: Job) -> Verdict:
        """Judge a snapshot's weights.

        Raises:
            BaseException: What the user's code raises. The next job finds everything as it was in the beginning.
        """
        started_s = time.monotonic()
        if self._trainer is None:
            self._build()
        try:
            return self._validate(job, started_s)
        except BaseException:
            # A half validation may have left anything anywhere, such as in the metrics' states.
            self._trainer = None
            raise

    def _validate(self, job: Job, started_s: float) -> Verdict:
        trainer, blueprint = self._trainer, self._blueprint
        assert trainer is not None
        load_weights(self._module, read_weights(job.weights))
        _set_progress(trainer, job)
        L.seed_everything(blueprint.seed, workers=blueprint.seed_workers, verbose=False)
        trainer.validate(self._module, dataloaders=blueprint.loaders, datamodule=self._datamodule, verbose=False)
        if blueprint.datamodule_factory is not None and self._datamodule is not None:
            _skip_hooks(self._datamodule, _HOOKS)  # once is enough
        return Verdict(
            step=job.step,
            epoch=job.epoch,
            metrics=_on_cpu(trainer.callback_metrics),
            logged=_on_cpu(trainer.logged_metrics),
            shown=_on_cpu(trainer.progress_bar_metrics),
            records=self._logger.take(),
            started_s=started_s,
            ended_s=time.monotonic(),
        )


def _on_cpu(values: Any) -> dict[str, Tensor]:
    # Floats are Lightning's; in 64 bits they stay what they are.
    with torch.inference_mode(False):
        return {
            name: value.detach().cpu().clone()
            if isinstance(value, Tensor)
            else torch.tensor(value, dtype=torch.float64)
            for name, value in values.items()
        }


def _silently(logger: ChildLogger, method: Callable[..., Any]) -> Callable[..., None]:
    def log_metrics(*args: Any, **kwargs: Any) -> None:
        with logger.silent():
            method(*args, **kwargs)

    return log_metrics


def _set_progress(trainer: L.Trainer, job: Job) -> None:
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    epochs.processed = epochs.completed = job.epoch
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = job.step
    loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = job.step
    loop.epoch_loop._batches_that_stepped = job.step


def _skip_hooks(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if is_overridden(name, owner) and not isinstance(getattr(owner, name), partial):
            setattr(owner, name, partial(_unless_of_trainer, name, getattr(owner, name)))


def _unless_of_trainer(name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # A datamodule may set itself up when a loader is asked of it; it says the stage in a word, and a Trainer does not.
    stage = kwargs.get("stage", args[0] if args else None)
    if name in ("setup", "teardown") and not isinstance(stage, TrainerFn):
        return method(*args, **kwargs)
    return None


# Talking with the parent


class _Line:
    """Frames from and to the parent. The process ends when the parent does, whatever it is doing."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._in, self._out = os.dup(0), os.dup(1)
        # What the user's code prints goes where errors go, and what it reads is nothing.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self.frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="gnnopt-parent", daemon=True).start()

    def send(self, *message: Any) -> None:
        frame = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(len(frame).to_bytes(8, "little") + frame)
        try:
            while rest:
                rest = rest[os.write(self._out, rest) :]
        except BrokenPipeError:
            self._end()

    def _listen(self) -> None:
        while length := int.from_bytes(self._read(8), "little"):
            self.frames.put(self._read(length))
        os._exit(0)  # the parent has said so, and looks after the workers

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            # The parent's forked workers may keep the pipe open when it has ended.
            if os.getppid() != self._parent:
                self._end()
            if select.select([self._in], [], [], _LOOK_S)[0]:
                part = os.read(self._in, min(length - len(parts), 2**20))
                if not part:
                    self._end()
                parts += part
        return bytes(parts)

    def _end(self) -> NoReturn:
        os.killpg(0, signal.SIGKILL)  # loader workers, too
        os._exit(1)


def _surround(path: list[str], folder: str, environment: dict[str, str]) -> None:
    sys.path[:] = path
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def _quieten() -> None:
    # The training process has said it already.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")  # Lightning's own use of torch


def main() -> None:
    """Serve the parent, whose id is the only argument, until it ends the process, or ends."""
    line = _Line(int(sys.argv[1]))
    if hasattr(os, "nice"):
        os.nice(_NICE)  # where both want the same cores, training has them
    faulthandler.enable()
    try:
        _surround(**pickle.loads(line.frames.get()))
        _quieten()
        validator = Validator(line.frames.get())
    except BaseException:
        line.send("failed", traceback.format_exc())
        os._exit(1)
    # A first validation would else be held up by a look at all that the imports have made.
    gc.collect()
    gc.freeze()
    line.send("ready", None)
    while True:
        job = pickle.loads(line.frames.get())
        if hasattr(signal, "SIGUSR1"):
            # To see where it hangs. Each time, since Lightning puts back the handlers that Python knows.
            faulthandler.unregister(signal.SIGUSR1)
            faulthandler.register(signal.SIGUSR1, all_threads=False)
        try:
            answer: tuple[str, Any] = ("verdict", validator.validate(job))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        sys.stdout.flush()
        line.send(*answer)
        del answer


if __name__ == "__main__":
    main()

"""OutcomeWriter: keeps what becomes of each job, and lets the others go on when one fails."""

from __future__ import annotations

import gc
import logging
import shlex
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import rich
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_gnnopt._cli import explain
from lightning_gnnopt._machine import versions
from lightning_gnnopt.memory.oom import is_out_of_memory
from lightning_gnnopt.sweeping.collecting import Job, collect_jobs
from lightning_gnnopt.sweeping.outcome import OUTCOME_FILE, Outcome, write_outcome
from lightning_gnnopt.sweeping.overrides import plain_overrides
from lightning_gnnopt.sweeping.report import SweepReport
from lightning_gnnopt.sweeping.result import close_result, open_result

_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"
_MOST_NAMED = 10  # failed jobs in a sentence

_log = logging.getLogger(__name__)


class OutcomeWriter(Callback):
    """Hydra callback: writes `outcome.json` into each job's folder, when it starts and when it ends.

    In a multirun it keeps a failed job from ending the others: its error goes into its `outcome.json`, and the job
    counts as one that returned nothing. After the last one a table of all is printed, and the exit status is 1 if one
    has failed. A job that is no part of a multirun fails as ever.

    It works with every launcher, as Hydra sends its callbacks along with the jobs. Under several processes a job only
    the first one writes.

    Examples:
        In a Hydra config::

            hydra:
              callbacks:
                outcome:
                  _target_: lightning_gnnopt.sweeping.OutcomeWriter
    """

    def __init__(self) -> None:
        self._sweep: str | None = None
        self._outcome = Outcome("running")
        self._mark_s = 0.0

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_sweeper(config)
        self._sweep = uuid.uuid4().hex

    @override
    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        self._mark_s = time.perf_counter()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._outcome = Outcome("running", started=started, sweep=self._sweep, versions=versions())
        open_result()
        self._outcome.overrides = plain_overrides(config.hydra.overrides.task)
        self._write(config)

    @override
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        outcome, result = self._outcome, close_result()
        outcome.seconds = round(time.perf_counter() - self._mark_s, 3)
        outcome.metrics, outcome.peak_bytes = result.metrics, result.peak_bytes
        failed = job_return.status == JobStatus.FAILED
        outcome.status = "failed" if failed else "ok"
        if failed:
            outcome.error = one_sentence(job_return._return_value)
            outcome.traceback = "".join(traceback.format_exception(job_return._return_value))
        self._write(config)
        if self._sweep is None:
            return
        if failed:
            # Hydra would raise it once all jobs of a batch are through, and a launcher may be unable to send it. With
            # its traceback it also holds the job's model and batches.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
            _log.error("Job %s failed: %s", config.hydra.job.num, outcome.error)
        _let_go()

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._tell(Path(config.hydra.sweep.dir))

    @rank_zero_only
    def _write(self, config: DictConfig) -> None:
        write_outcome(self._outcome, Path(config.hydra.runtime.output_dir))

    @rank_zero_only
    def _tell(self, folder: Path) -> None:
        jobs, _ = collect_jobs([folder])
        rich.print(SweepReport(jobs))
        print(f"This table again, with a figure: gnnopt-collect {shlex.quote(str(folder))}", flush=True)
        own = [job for job in jobs if job.outcome.sweep == self._sweep]
        failed = [job for job in own if job.outcome.status != "ok"]
        if failed:
            _end(_say_failed(failed, len(own), folder))


def one_sentence(error: BaseException) -> str:
    """Say in one line why a job failed, whoever is to blame."""
    cause = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    message = " ".join(str(cause).split())
    if is_out_of_memory(cause):
        return f"Out of memory: {message or type(cause).__name__}"
    return explain(error) or f"{type(cause).__name__}: {message}".removesuffix(": ")


def _say_failed(failed: Sequence[Job], count: int, folder: Path) -> str:
    names = ", ".join(job.name for job in failed[:_MOST_NAMED])
    if len(failed) > _MOST_NAMED:
        names += f" and {len(failed) - _MOST_NAMED} more"
    return (
        f"{len(failed)} of {count} jobs failed: {names} in `{folder}`."
        f" HINT: each one's `{OUTCOME_FILE}` has its traceback."
    )


def _let_go() -> None:
    """Leave the next job of this process the memory that it would have in a process of its own."""
    gc.collect()  # a Trainer is a ring of references
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _check_sweeper(config: DictConfig) -> None:
    """Refuse at once what no job could do."""
    if not str(OmegaConf.select(config, "hydra.sweeper._target_")).startswith(_OPTUNA):
        return
    if find_spec("optuna") is None or find_spec(_OPTUNA) is None:
        _end("This sweeper needs optuna, which is not installed. HINT: pip install 'lightning-gnnopt[optuna]'.")
    if "optimized_metric" in config and config.optimized_metric is None:
        _end("`optimized_metric` must name what optuna is to optimize, but is null. HINT: optimized_metric=val/acc.")


def _end(sentence: str) -> NoReturn:
    # Hydra turns what a callback raises into a warning, except this
    sys.stderr.write(f"Error: {sentence}\n")
    sys.exit(1)

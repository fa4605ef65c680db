"""GNNProfiler: where the time and the memory of training go, per phase, layer and step of message passing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn
from typing_extensions import override

from lightning_gnnopt._units import parse_bytes
from lightning_gnnopt.analysis.fits.fit_profile import FitProfile
from lightning_gnnopt.analysis.fits.fit_watch import FitWatch
from lightning_gnnopt.analysis.fits.loop_profile import LoopProfile
from lightning_gnnopt.analysis.folders import make_writable
from lightning_gnnopt.analysis.recording.profile_options import ProfileOptions
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.analysis.reporting.report import BottleneckReport

T = TypeVar("T")


class GNNProfiler(Profiler):
    """Finds out where the time and the memory of training a graph neural network go.

    Of each step: waiting for the batch, transfer, forward, backward, optimizer, callbacks, validation; of each layer of
    message passing (any `torch_geometric.nn.MessagePassing`, as it is): vertex and edge computation, the latter by
    gather, message, aggregate and update, forward and backward; of some steps their memory by the same parts, and the
    largest tensors at the peak with the lines that made them. :meth:`report` says what follows from it.

    Give it to a Trainer, or, outside of Lightning, use :meth:`watch` and :meth:`steps`. It prints a summary when the
    fit ends, as Lightning's own profilers do.

    Times are those of the device: CUDA events on its stream, which nobody waits for; the processor's clock on the
    CPU. Memory is recorded in steps of its own, as recording makes them slower.

    Args:
        dirpath: Folder of the summary's file; by default the Trainer's `log_dir`.
        filename: Name of the summary's file, without its ending; None prints the summary instead.
        report_dir: Folder to write the report into when the run ends, also by an error: a page, tables, figures.
        skip_batches: Steps at the beginning that are not timed: they compile and warm up.
        memory_every: After those, of every so many steps one is recorded for its memory, and not timed; 0 records none.
        detail_batches: Of so many of those each tensor is followed, which makes them a few times slower, and in some
            models a little larger, as autograd may then add up a gradient in new memory (0.3 % where it was seen).
        max_batches: Steps that are recorded at all; later ones run untouched.
        limit: Bytes that model and step may take together, as a number or with a unit (``"6GiB"``), to be told how
            many steps are above them.
        trace_batches: Of so many timed steps each stretch is kept for :meth:`write_trace`.

    Raises:
        ValueError: If a number is negative, `max_batches` not above `skip_batches`, or `limit` no number of bytes.
        OSError: When a fit begins, if `report_dir` cannot be written to.

    Examples:
        >>> import lightning as L
        >>> profiler = GNNProfiler(limit="6GiB")
        >>> trainer = L.Trainer(profiler=profiler, max_epochs=3, logger=False, enable_checkpointing=False)
        >>> # trainer.fit(model, datamodule); profiler.report().save("profile")
        >>> profiler.records.batches
        []
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        report_dir: str | Path | None = None,
        skip_batches: int = 3,
        memory_every: int = 10,
        detail_batches: int = 2,
        max_batches: int = 1000,
        limit: int | str | None = None,
        trace_batches: int = 0,
    ) -> None:
        super().__init__(dirpath=dirpath, filename=filename)
        self.report_dir = None if report_dir is None else Path(report_dir)
        self.options = ProfileOptions(
            skip_batches=skip_batches,
            memory_every=memory_every,
            detail_batches=detail_batches,
            max_batches=max_batches,
            trace_batches=trace_batches,
        )
        self.limit_bytes = None if limit is None else parse_bytes(limit, name="limit")
        self._fit: FitProfile | None = None
        self._loop: LoopProfile | None = None
        self._profile: FitProfile | LoopProfile | None = None  # the last one

    @property
    def records(self) -> Records:
        """What has been recorded; complete once the fit, or the block of :meth:`watch`, has ended."""
        return Records() if self._profile is None else self._profile.records

    def report(self) -> BottleneckReport:
        """What follows from the records: a sentence, advice, tables, figures, a page.

        Raises:
            RuntimeError: If nothing has been profiled.
        """
        if self._profile is None:
            raise RuntimeError(
                "`GNNProfiler` has recorded nothing yet. HINT: call `trainer.fit` with it, or use `watch(model)`; where"
                " a strategy trains in processes of its own (`ddp_spawn`), have them write with `report_dir=`."
            )
        return BottleneckReport(self.records)

    def write_trace(self, path: str | Path) -> Path:
        """Write when what ran: the traced steps, the loader's threads and the validation process.

        Args:
            path: A JSON file for https://ui.perfetto.dev or ``chrome://tracing``.

        Returns:
            The file.

        Raises:
            RuntimeError: If nothing was traced.
            OSError: If the file cannot be written.
        """
        if self._profile is None or self.options.trace_batches == 0:
            raise RuntimeError("`GNNProfiler` has traced nothing. HINT: `trace_batches=20`, say, and run a fit.")
        return self._profile.write_trace(Path(path))

    # Lightning

    @override
    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        trainer: Any = getattr(getattr(self, "_lightning_module", None), "_trainer", None)
        if stage != "fit" or trainer is None:
            return
        self._drop()
        if self.report_dir is not None and self.local_rank == 0:
            make_writable(self.report_dir)
        fit = self._fit = FitProfile(self.options, self.limit_bytes)
        watch = FitWatch(fit)
        trainer.callbacks.append(watch)
        fit.on_start = lambda: setattr(self, "_profile", fit)
        fit.on_end = lambda: self._ended(trainer, watch)

    @override
    def start(self, action_name: str) -> None:
        if self._fit is not None:
            self._fit.start(action_name)

    @override
    def stop(self, action_name: str) -> None:
        if self._fit is not None:
            self._fit.stop(action_name)

    @override
    def summary(self) -> str:
        if self._profile is None or self._stage not in ("fit", None):
            return ""
        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(self.report())
        return console.export_text()

    # Outside of Lightning

    @contextmanager
    def watch(self, model: nn.Module, *, device: torch.device | str | None = None) -> Iterator[GNNProfiler]:
        """Profile a training loop of your own.

        A step begins when :meth:`steps` is asked for a batch or, without it, when the model is called after a backward
        pass.

        Args:
            model: The model; its layers are found within it.
            device: The device that computes; by default that of its parameters.

        Yields:
            This profiler.

        Raises:
            RuntimeError: If something is being profiled already.

        Examples:
            >>> from torch_geometric.nn import GCNConv
            >>> x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
            >>> model, profiler = GCNConv(8, 3), GNNProfiler(skip_batches=0, memory_every=0)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with profiler.watch(model):
            ...     for _ in range(2):
            ...         model(x, edge_index).sum().backward()
            ...         optimizer.step()
            >>> len(profiler.records.batches), profiler.records.layers[0].type
            (2, 'GCNConv')
        """
        if self._loop is not None or self._fit is not None:
            raise RuntimeError("`GNNProfiler` is profiling already. HINT: use a second profiler, one after the other.")
        if device is None:
            parameter = next(model.parameters(), None)
            device = torch.device("cpu") if parameter is None else parameter.device
        self._loop = self._profile = LoopProfile(model, torch.device(device), self.options, self.limit_bytes)
        try:
            with ExitStack() as stack:
                stack.callback(setattr, self, "_loop", None)
                stack.enter_context(self._loop.running())
                yield self
        finally:
            self._write_report()

    def steps(self, loader: Iterable[T]) -> Iterator[T]:
        """Iterate over a loader, a step for each batch: waiting is timed, and batches are counted.

        Raises:
            RuntimeError: If it is not called within :meth:`watch`.
        """
        if self._loop is None:
            raise RuntimeError("`steps` belongs into a `with profiler.watch(model):` block.")
        return self._loop.steps(loader)

    def _ended(self, trainer: Any, watch: FitWatch) -> None:
        fit, self._fit = self._fit, None
        # A new list: Lightning may be going through the one that is there.
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not watch]
        if self._profile is fit:
            self._write_report()

    def _drop(self) -> None:
        """Forget a fit that never came to its end."""
        if self._fit is not None:
            self._fit.abandon()

    def _write_report(self) -> None:
        if self.report_dir is None or self.local_rank != 0:
            return
        try:
            self.report().save(self.report_dir)
        except Exception as error:  # whatever it is, it must not cost a fit, nor hide the error that ended it
            rank_zero_warn(
                f"The report of `GNNProfiler` was not written: {type(error).__name__}: {error}. HINT: the records are"
                " there still: `profiler.report().save(folder)`."
            )

"""The stages between a batch's number and its place: sample, slice, transfer, in threads and in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from lightning_gnnopt._machine import usable_cores
from lightning_gnnopt._units import parse_bytes
from lightning_gnnopt.loading.ordered import OrderedPrefetch
from lightning_gnnopt.loading.placement import NOTE, HostPlacement, Placed, Placement
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.loading.stage_log import note_stage
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.streams import Event

AUTO = "auto"
"""As `num_workers`: find out whether threads pay."""

_AUTO_THREADS = 2  # that ``"auto"`` tries at most


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How far and with what a pipeline works ahead.

    Attributes:
        num_workers: Threads that prepare batches, each a whole batch; 0 prepares each batch when it is asked for;
            ``"auto"`` finds out which is faster, see `WorkerChoice`.
        prefetch_factor: Batches prepared ahead, per worker.
        max_bytes_in_flight: Bytes of the batches that are being written or wait to be asked for, all together, as a
            number or with a unit (``"2GiB"``); a batch that is larger goes alone. None counts batches only.
        timeout_s: Seconds without a sign of the worker whose batch is due after which it is reported by name; None
            waits for ever.

    Raises:
        ValueError: If `num_workers` is negative or another word, `prefetch_factor` below 1, `max_bytes_in_flight` no
            positive number of bytes, or `timeout_s` not positive.
    """

    num_workers: int | str = 2
    prefetch_factor: int = 2
    max_bytes_in_flight: int | str | None = "2GiB"
    timeout_s: float | None = 600.0

    def __post_init__(self) -> None:
        if self.num_workers != AUTO and (isinstance(self.num_workers, str) or self.num_workers < 0):
            raise ValueError(
                f"`num_workers` must be 0 or more, or 'auto', but got {self.num_workers!r}. HINT: 0 uses no threads;"
                " 'auto' tries out whether threads pay."
            )
        if self.prefetch_factor < 1:
            raise ValueError(
                f"`prefetch_factor` must be at least 1, but got {self.prefetch_factor}."
                " HINT: `num_workers=0` prepares no batch ahead."
            )
        if self.max_bytes == 0:
            raise ValueError(
                f"`max_bytes_in_flight` must be above 0, but got {self.max_bytes_in_flight!r}."
                " HINT: `num_workers=0` prepares no batch ahead; None does not count bytes."
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"`timeout_s` must be above 0, but got {self.timeout_s}. HINT: None waits for ever.")

    @property
    def max_bytes(self) -> int | None:
        """`max_bytes_in_flight` as a number."""
        given = self.max_bytes_in_flight
        return None if given is None else parse_bytes(given, name="max_bytes_in_flight")

    @property
    def threads(self) -> int:
        """Threads that prepare batches; of ``"auto"``, as many as are tried: up to two, and a core is left to train."""
        if isinstance(self.num_workers, str):
            return max(1, min(_AUTO_THREADS, usable_cores() - 1))
        return self.num_workers

    @property
    def max_ahead(self) -> int:
        """Batches that are in preparation or ready at any time."""
        return max(1, self.threads * self.prefetch_factor)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What is done for one batch before it is written.

    Attributes:
        sample: Draws batch ``i``.
        plan: Lays out what was drawn.
        describe: Says which batch ``i`` is, for error messages.
    """

    sample: Callable[[int], Any]
    plan: Callable[[int, Any], BatchPlan]
    describe: Callable[[int], str]


class BatchPipeline:
    """Prepares batches ahead of their consumer and delivers them in order.

    A worker takes a batch from its number to its place. On a device it does not wait for the transfer: the next batch
    is sampled while the last one travels and the one before it is computed on.

    Args:
        stages: What is done for a batch.
        items: Numbers of the batches, in order.
        options: How far to work ahead.
        placement: Where batches go; host memory by default.
    """

    def __init__(
        self, stages: Stages, items: Sequence[int], *, options: PipelineOptions, placement: Placement | None = None
    ) -> None:
        self._stages = stages
        self._items = items
        self._placement = HostPlacement() if placement is None else placement
        self._placement.expect(options.max_ahead, options.max_bytes)
        self._spans: list[tuple[Event, Event]] = []
        self._prefetch = OrderedPrefetch(
            self._prepare,
            items,
            num_workers=options.threads,
            max_ahead=options.max_ahead,
            max_bytes=options.max_bytes,
            timeout_s=options.timeout_s,
        )

    @property
    def bytes_ahead(self) -> int:
        """Bytes of the batches that are being written or wait to be asked for."""
        return self._prefetch.bytes_ahead

    def __iter__(self) -> Generator[tuple[Placed, LoaderStats], None, None]:
        """Deliver the batches, each to be taken, with what was counted for it; to be called once."""
        with closing(iter(self._prefetch)) as results:
            asked_s, queued = time.perf_counter(), 0
            for placed, stats in results:
                came_s = time.perf_counter()
                stats.wait_s, stats.queued = came_s - asked_s, queued
                note_stage("wait", -1, asked_s, came_s)
                stats.transfer_s = self.transfers_s()
                if placed.span is not None:
                    self._spans.append(placed.span)
                yield placed, stats
                asked_s, queued = time.perf_counter(), self._prefetch.num_ready

    def transfers_s(self, *, wait: bool = False) -> float:
        """Sum up the seconds of the transfers that have ended and were not counted yet.

        Args:
            wait: Whether to wait for those of all batches that were taken.
        """
        if wait:
            for _, end in self._spans:
                end.synchronize()
        ended = [(start, end) for start, end in self._spans if end.query()]
        if ended:
            self._spans = [span for span in self._spans if span not in ended]
        return sum(end.elapsed_s(start) for start, end in ended)

    def _prepare(self, item: int) -> tuple[Placed, LoaderStats]:
        try:
            return self._through_stages(item)
        except Exception as error:
            if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
                error.add_note(f"{NOTE} {self._stages.describe(item)} was prepared.")
            raise

    def _through_stages(self, item: int) -> tuple[Placed, LoaderStats]:
        stages, prefetch = self._stages, self._prefetch
        prefetch.stage("sample")
        started_s = time.perf_counter()
        sampled = stages.sample(item)
        sampled_s = time.perf_counter()
        prefetch.stage("plan")
        plan = stages.plan(item, sampled)
        planned_s = time.perf_counter()
        prefetch.reserve(plan.nbytes)  # may wait
        prefetch.stage("slice")
        granted_s = time.perf_counter()
        placed = self._placement.place(plan, stages.describe(item))
        placed_s = time.perf_counter()
        prefetch.stage("deliver")
        note_stage("sample", item, started_s, sampled_s)
        note_stage("plan", item, sampled_s, planned_s)
        # The host's part only: a copy to a device is timed by the device's clock, whose zero is not the host's.
        note_stage("slice", item, granted_s, placed_s)
        return placed, LoaderStats(
            batches=1,
            nodes=plan.num_nodes,
            edges=plan.num_edges,
            sample_s=sampled_s - started_s,
            slice_s=planned_s - sampled_s + placed_s - granted_s - placed.waited_s,
            nbytes=plan.nbytes,
            moved_bytes=placed.moved_bytes,
            copies=placed.copies,
            cache_lookups=plan.cache_lookups,
            cache_hits=plan.cache_hits,
        )

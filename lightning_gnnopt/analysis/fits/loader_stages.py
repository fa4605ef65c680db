"""What preparing each batch took, of whichever loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning_gnnopt.analysis.records import LoadRecord
from lightning_gnnopt.loading import LoaderStats


class LoaderStages:
    """Reads the counters of a `PrefetchLoader`, and times the stages of a PyG loader without workers.

    PyG's `NodeLoader` and `LinkLoader` sample through their sampler and slice in `filter_fn`; both are wrapped on the
    loader itself until :meth:`restore`. Their worker processes are out of sight.

    Args:
        loader: The loader of the training batches.

    Attributes:
        loader: That loader.
        num_workers: Its workers; None if it does not say.
        beside: Whether batches are prepared in threads or processes of their own.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._undo: list[Callable[[], None]] = []
        stats = getattr(loader, "stats", None)
        self._stats: LoaderStats | None = stats.copy() if isinstance(stats, LoaderStats) else None
        self._spent: dict[str, float] | None = None
        workers = getattr(loader, "num_workers", None)
        self.num_workers: int | None = workers if isinstance(workers, int) else None
        self.beside = bool(self.num_workers)
        if self._stats is None and self.num_workers == 0:
            self._wrap()

    def begin(self) -> None:
        """A batch is asked for: what a sampler that several loaders share has done before was for another one."""
        if self._spent is not None:
            self._spent.update(sample=0.0, slice=0.0)

    def take(self, batch: int, wait_s: float) -> LoadRecord:
        """Say what the batch that has just been delivered took.

        Args:
            batch: Number of the step that it was delivered to.
            wait_s: Seconds that the training loop waited for it.
        """
        sample_s = slice_s = None
        transfer_s = queued = 0.0
        if self._stats is not None:
            now = self.loader.stats.copy()
            took = now - self._stats
            self._stats = now
            sample_s, slice_s, transfer_s, queued = took.sample_s, took.slice_s, took.transfer_s, float(took.queued)
        elif self._spent is not None:
            sample_s, slice_s = self._spent["sample"], self._spent["slice"]
            self.begin()
        return LoadRecord(batch, sample_s, slice_s, transfer_s, wait_s, self.beside, queued)

    def restore(self) -> None:
        """Leave the loader as it was."""
        while self._undo:
            self._undo.pop()()

    def _wrap(self) -> None:
        loader = self.loader
        sampler = getattr(loader, "node_sampler", None) or getattr(loader, "link_sampler", None)
        name = "sample_from_nodes" if hasattr(loader, "node_sampler") else "sample_from_edges"
        if sampler is None or not hasattr(loader, "filter_fn") or not hasattr(sampler, name):
            return
        self._spent = {"sample": 0.0, "slice": 0.0}
        self._time(sampler, name, "sample")
        self._time(loader, "filter_fn", "slice")

    def _time(self, owner: Any, name: str, stage: str) -> None:
        plain, spent = getattr(owner, name), self._spent
        assert spent is not None
        had_own = name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                spent[stage] += time.perf_counter() - began_s

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, plain) if had_own else delattr(owner, name))

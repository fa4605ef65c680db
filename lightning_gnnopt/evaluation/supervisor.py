"""What goes on beside training: snapshots are written, judged by the other process, and ranked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gnnopt.evaluation.backlog import Backlog
from lightning_gnnopt.evaluation.child import ChildProcess
from lightning_gnnopt.evaluation.copying import Copied
from lightning_gnnopt.evaluation.messages import Job, ValidationFailed, Verdict
from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder
from lightning_gnnopt.evaluation.timeline import Timeline
from lightning_gnnopt.evaluation.writing import Item, SnapshotWriter

_LOST_IN_A_ROW = 2
_GRACE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a snapshot.

    Attributes:
        snapshot: The snapshot.
        verdict: What validation said; None if its verdict was lost.
        notice: What the user must know, such as why it was lost.
        error: Why validation cannot go on beside training; a `ValueError` if the user's settings are to blame.
    """

    snapshot: Snapshot | None = None
    verdict: Verdict | None = None
    notice: str = ""
    error: Exception | None = None


class Supervisor:
    """Takes snapshots from the training thread, and has outcomes ready for it.

    One thread writes files, another one waits for verdicts; the training thread waits for neither.

    A validation process that fails is started again once, and judges the same snapshot again. If that fails as well,
    the supervisor gives up: the last outcome has the error, and snapshots without a verdict stay where they are.

    Args:
        make_child: Makes a validation process, not started yet.
        folder: Where snapshots lie.
        ranking: Which are the best.
        backlog: Those without a verdict.
        timeout_s: Longest time that one validation may take.
        timeline: Who did what when.
        step_now: Says at which step training is.

    Attributes:
        lock: Held while the ranking changes.
    """

    def __init__(
        self,
        make_child: Callable[[], ChildProcess],
        *,
        folder: SnapshotFolder,
        ranking: Ranking,
        backlog: Backlog[Item],
        timeout_s: float | None,
        timeline: Timeline,
        step_now: Callable[[], int],
    ) -> None:
        self.lock = threading.Lock()
        self._make_child = make_child
        self._folder, self._ranking, self._backlog = folder, ranking, backlog
        self._timeout_s = timeout_s
        self._timeline = timeline
        self._step_now = step_now
        self._outcomes: deque[Outcome] = deque()
        self._is_stopping = False
        self._num_lost = 0
        self.has_failed = False
        self._child = make_child()
        self._writer = SnapshotWriter(folder, timeline)
        self._thread = threading.Thread(target=self._judge_all, name="gnnopt-verdicts", daemon=True)

    # For the training thread

    def start(self) -> None:
        """Start the process and the threads; return at once."""
        self._child.start()
        self._writer.start()
        self._thread.start()

    def submit(self, snapshot: Snapshot, copied: Copied | None) -> Snapshot | None:
        """Hand over a snapshot.

        Args:
            snapshot: Names its files.
            copied: ``{"weights": ..., "checkpoint": ...}``, to be written; None if the files are there, of an earlier
                run: all of these are judged.

        Returns:
            The snapshot that will not be judged because of it, which may be itself; None if all will.
        """
        item = Item(snapshot, copied)
        offer = self._backlog.offer(item, always=copied is None)
        if offer.accepted:
            self._writer.put(item)
        elif copied is not None:
            copied.release()
        if offer.dropped is not None:
            self._writer.drop(offer.dropped)
            return offer.dropped.snapshot
        return None if offer.accepted else snapshot

    @property
    def is_full(self) -> bool:
        """Whether a snapshot would not be taken now, so that it need not be made."""
        return self._backlog.refuses

    def collect(self) -> list[Outcome]:
        """Take what became of snapshots since the last call; wait for nothing."""
        found = []
        while self._outcomes:
            found.append(self._outcomes.popleft())
        return found

    @property
    def has_outcomes(self) -> bool:
        """Whether :meth:`collect` would give something."""
        return bool(self._outcomes)

    @property
    def waiting(self) -> list[Snapshot]:
        """The snapshots without a verdict, oldest first."""
        return [item.snapshot for item in self._backlog.pending]

    def drain(self, timeout_s: float | None, *, while_waiting: Callable[[Sequence[Snapshot], float], Any]) -> bool:
        """Wait until all snapshots have their verdicts.

        Args:
            timeout_s: Longest time to wait for the next one; None for ever. It begins anew with a process that is
                started again, and the time that a process takes to start does not count.
            while_waiting: Called a few times a second with the snapshots that wait and the seconds so far.

        Returns:
            Whether all have one now.
        """
        started_s = since_s = time.monotonic()
        before: Any = None
        while not self._backlog.wait_until_empty(0.25):
            now_s, waiting, child = time.monotonic(), self.waiting, self._child
            if (len(waiting), child) != before or child.startup_s is None:
                before, since_s = (len(waiting), child), now_s
            # The validation itself times out first, and is tried again.
            if self.has_failed or (timeout_s is not None and now_s - since_s > timeout_s + _GRACE_S):
                return False
            while_waiting(waiting, now_s - started_s)
        return not self.has_failed

    def stop(self) -> None:
        """End the process and the threads; what is to be written still is. May be called again."""
        self._is_stopping = True
        self._backlog.close()
        self._child.stop()
        self._writer.stop()
        for item in self._backlog.pending:  # one that an interrupt has kept from the writer
            item.has_weights.set()
            item.is_written.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._child.stop()  # one that was started again meanwhile

    # Verdicts

    def _judge_all(self) -> None:
        while not self._is_stopping:
            item = self._backlog.take(None)
            if item is None:
                return
            item.has_weights.wait()
            if self._is_stopping:
                return
            try:
                outcome = self._lost(item, item.error) if item.error is not None else self._judge(item)
            except ValidationFailed as error:
                if error.kind != "stopped":
                    self._give_up(item, error)
                return
            except ValueError as error:  # the user's settings do not fit the metrics
                self._give_up(item, error)
                return
            except Exception as error:  # a bug must not leave training waiting for ever
                told = ValidationFailed("raised", f"{type(error).__name__}: {error}")
                told.__cause__ = error
                self._give_up(item, told)
                return
            self._outcomes.append(outcome)
            self._backlog.done(item)

    def _give_up(self, item: Item, error: Exception) -> None:
        self._outcomes.append(Outcome(snapshot=item.snapshot, error=error))
        self.has_failed = True  # after that, so that who sees it finds the error
        self._backlog.close()  # training may be waiting for room
        self._child.stop()

    def _lost(self, item: Item, error: OSError) -> Outcome:
        self._num_lost += 1
        told = f"The weights of step {item.snapshot.step:,} could not be written ({error})"
        if self._num_lost >= _LOST_IN_A_ROW:
            raise ValidationFailed("raised", f"{told}, and those before could not be, either.")
        return Outcome(snapshot=item.snapshot, notice=f"{told}: they are not validated.")

    def _judge(self, item: Item) -> Outcome:
        verdict, notice = self._ask(item.job)
        self._timeline.record(
            "validation", f"step {verdict.step}", verdict.started_s, verdict.ended_s, step=verdict.step
        )
        item.is_written.wait()
        self._num_lost = 0
        try:
            if item.checkpoint_error is not None:
                raise item.checkpoint_error
            self._rank(item.snapshot, verdict)
        except OSError as error:
            notice += f"The checkpoint of step {verdict.step:,} could not be kept: {error}"
            self._writer.remove(item.snapshot)
        return Outcome(snapshot=item.snapshot, verdict=verdict, notice=notice)

    def _ask(self, job: Job) -> tuple[Verdict, str]:
        try:
            return self._child.run(job, timeout_s=self._timeout_s), ""
        except ValidationFailed as error:
            if error.kind == "stopped" or self._is_stopping:
                raise ValidationFailed("stopped", str(error)) from error
            first = error
        self._child.stop()
        self._child = self._make_child()
        self._child.start()
        if self._is_stopping:
            self._child.stop()
        verdict = self._child.run(job, timeout_s=self._timeout_s)
        return verdict, f"The validation process was started again, because it failed at step {job.step:,}: {first}\n"

    def _rank(self, snapshot: Snapshot, verdict: Verdict) -> None:
        path = ""
        with self.lock:
            if self._ranking.judge(verdict) and snapshot.checkpoint is not None:
                path = str(self._folder.promote(snapshot, verdict))
                for worse in self._ranking.enter(path, verdict):
                    self._folder.remove(worse)
        self._folder.drop(snapshot)
        score = self._ranking.score(verdict)
        self._folder.record(verdict, path=path, score=score, lag=self._step_now() - verdict.step)

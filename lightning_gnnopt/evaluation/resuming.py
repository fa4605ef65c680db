"""What an earlier run left to the one that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder


def take_up(
    loaded: Mapping[str, Any], folder: SnapshotFolder, ranking: Ranking, *, step_now: int
) -> list[tuple[Snapshot, int]]:
    """Take up verdicts that came after a run's last state was saved, and find its snapshots that have none.

    A checkpoint's state is of the moment before its own snapshot was taken, so files say more than it does. Those of
    steps that this run is yet to come to are of another future.

    Args:
        loaded: The state.
        folder: Where this run's checkpoints go; the earlier run's may have gone elsewhere.
        ranking: Gets the verdicts, if it keeps any checkpoints.
        step_now: The step at which this run goes on.

    Returns:
        The snapshots without a verdict and the steps that they are logged under, the oldest first.
    """
    places = {Path(loaded["folder"]), folder.folder}
    folders = [SnapshotFolder(place, filename=folder.filename, run=folder.run) for place in places]
    verdicts = [found for place in folders for found in place.read_verdicts() if ranking.save_top_k]
    for verdict, path in verdicts:
        if not path or verdict.step > step_now or path in ranking.kept or not Path(path).is_file():
            continue
        for worse in ranking.enter(path, verdict):
            folder.remove(worse)
    waiting = {snapshot.weights: (snapshot, snapshot.step - 1) for place in folders for snapshot in place.unjudged()}
    for state in loaded["waiting"]:
        snapshot = Snapshot.from_state(state)
        if snapshot.weights.exists():
            waiting[snapshot.weights] = (snapshot, int(state["log_step"]))
    return sorted((found for found in waiting.values() if found[0].step <= step_now), key=lambda found: found[0].step)

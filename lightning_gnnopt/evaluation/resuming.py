"""What an earlier run left to the one that resumes it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder


def take_up(
    loaded: Mapping[str, Any], folder: SnapshotFolder, ranking: Ranking, *, step_now: int
) -> list[tuple[Snapshot, int]]:
    """Take up verdicts that came after a run's last state was saved, and find its snapshots that have none.

    A checkpoint's state is of the moment before its own snapshot was taken, so files say more than it does. Those of
    steps that this run is yet to come to are of another future. A state may come from someone else, so it cannot name
    any file as a snapshot, and a snapshot is not judged if it holds more than tensors: to read that can run code.

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
        if not folder.owns(snapshot):
            rank_zero_warn(
                f"'{snapshot.weights}' is not taken up: the checkpoint says that it is a snapshot, but it is not named"
                f" as one of run {folder.run}. HINT: resume from a checkpoint that `AsyncValidation` has written."
            )
        elif snapshot.weights.exists():
            waiting[snapshot.weights] = (snapshot, int(state["log_step"]))
    found = [(snapshot, step) for snapshot, step in waiting.values() if snapshot.step <= step_now]
    return sorted((pair for pair in found if _holds_tensors(pair[0].weights)), key=lambda pair: pair[0].step)


def _holds_tensors(path: Path) -> bool:
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        rank_zero_warn(
            f"'{path}' is not validated: it holds more than tensors ({str(error).partition(chr(10))[0]}), which is read"
            " only in the run that wrote it. HINT: allow the classes of its module's `get_extra_state` with"
            " `torch.serialization.add_safe_globals` before `fit`."
        )
        return False
    except (OSError, RuntimeError, EOFError):  # damaged or gone, which validation tells
        return True
    return True

"""Ranks that are lost; tests run ``python -m tests.parallel.lost_ranks`` in a process of its own, which forks."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from typing_extensions import override

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.parallel import GraphParallelStrategy, PartitionDataModule
from lightning_gnnopt.parallel.channel import GroupChannel
from lightning_gnnopt.parallel.rank_lost import RankLost
from tests.parallel.fits import N, Net, make_graph
from tests.parallel.process_ranks import fork, pairwise, reap

SIZE, LOST, ROWS = 3, 1, 30_000
WAYS = ("all-to-all", "pairwise", "sum")
TIMEOUTS_S = {"killed": 60.0, "raised": 60.0, "stopped": 3.0, "late": 2.0}
"""What happens to a rank, and how long the others wait; their group would wait two minutes."""


def exchange(channel: GroupChannel, way: str) -> Callable[[], Any]:
    rows = torch.ones(SIZE * ROWS, 4)  # too much for what sockets keep
    if way == "sum":
        return partial(channel.sum, rows)
    return channel.start(rows, [ROWS] * SIZE, [ROWS] * SIZE, kind="backward")


def lose(how: str, timeout_s: float) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "raised":
        raise ZeroDivisionError("of this rank only")
    time.sleep(timeout_s + 1)


def until_lost(channel: GroupChannel, how: str, way: str) -> tuple[Any, ...]:
    """Exchange until that fails; say how, and how the exchange after it does."""
    is_lost = channel.rank == LOST
    if how == "late" and is_lost:  # the first time all wait for it
        time.sleep(TIMEOUTS_S[how] + 1)
    given, channel = channel, pairwise(channel) if way == "pairwise" else channel
    for _ in range(3):
        exchange(channel, way)()
    wait = exchange(channel, way) if not is_lost or how == "killed" else None  # that one in the midst of it
    if is_lost:
        lose(how, TIMEOUTS_S[how])
    errors = []
    for again in (wait, wait, None):  # rows that have not come do not come when they are asked for again
        try:
            (again or exchange(channel, way))()
        except RankLost as error:
            errors.append(error)
    given.group = channel.group = None  # else it is not destroyed
    dist.destroy_process_group()  # waits for what gloo has not given up
    return tuple((error.rank, error.kind, error.waited_s, str(error)) for error in errors)


def exchanges(folder: Path, *hows: str) -> None:
    """Lose a rank in each way, all at once."""
    groups = {
        (how, way): fork(
            SIZE, partial(until_lost, how=how, way=way), folder / f"{how}-{way}", timeout=TIMEOUTS_S[how]
        )
        for how in hows
        for way in WAYS
    }  # fmt: skip
    others = [child for ids in groups.values() for rank, child in enumerate(ids) if rank != LOST]
    try:
        print("ENDED " + json.dumps(reap(others, timeout=60)), flush=True)
    finally:
        for (how, _), ids in groups.items():
            if how == "stopped":
                os.kill(ids[LOST], signal.SIGKILL)
        reap([ids[LOST] for ids in groups.values()], timeout=60)


class Lose(L.Callback):
    """The second process is lost in the midst of the fourth epoch."""

    def __init__(self, how: str) -> None:
        self.how = how

    @override
    def on_before_zero_grad(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 3:
            lose(self.how, 0.0)


def fit(folder: Path, how: str) -> None:
    """Say what the process that has started the others gets to know."""
    L.seed_everything(3, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=GraphParallelStrategy(start_method="fork", probe=False), max_epochs=10,
        callbacks=[Lose(how)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    datamodule = PartitionDataModule(make_graph(), folder=folder / "parts", owner=torch.arange(N) * 2 // N)
    try:
        trainer.fit(NodeClassifier(Net()), datamodule)
    except Exception as error:
        print("FIT " + json.dumps([how, type(error).__name__, str(error)]), flush=True)


def main() -> None:
    """A folder, and what happens in turn: ``exchanges,killed,raised``, ``fit,killed``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for given in sys.argv[2:]:
        kind, *hows = given.split(",")
        if kind == "exchanges":
            exchanges(Path(sys.argv[1]), *hows)
        else:
            fit(Path(sys.argv[1]), *hows)


if __name__ == "__main__":
    main()

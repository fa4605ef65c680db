"""Two real processes that train together with one that validates beside them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EarlyStopping

from lightning_gnnopt.evaluation import AsyncValidation

from .runs import Recorder, Rows, Tiny, floats, judged_alone, ledger, same, trainer_of, weights_in

WORLD = 2
STEPS = 3  # of an epoch, of 24 rows in batches of 4 in two processes


class Together(Tiny):
    """Falls back to the worse: its rate is far too high, so that training is stopped soon."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # As far as training goes, no process is ahead of the verdicts.
        session: Any = self.trainer.checkpoint_callback._session  # type: ignore[union-attr]
        if session._supervisor is not None and not self.trainer.checkpoint_callback.is_blocking:  # type: ignore[union-attr]
            from .runs import wait_until

            wait_until(lambda: not session._supervisor.waiting or session._supervisor.has_failed)
        dist.barrier()


class Counts(L.Callback):
    """How many processes this one has below it, while it trains."""

    def __init__(self) -> None:
        self.most = 0

    def on_train_batch_end(self, *args: Any) -> None:
        names = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        self.most = max(self.most, sum("lightning_gnnopt.evaluation.worker" in name for name in names))


def trained(folder: Path, order: str) -> dict[str, Any]:
    orders = folder / "orders"
    if order and int(os.environ["LOCAL_RANK"]) == 0:
        orders.write_text(order)
    validation = AsyncValidation(when_busy="queue", monitor="val/loss", mode="min", save_top_k=-1)
    stopper = EarlyStopping("val/loss", mode="min", patience=1, min_delta=10.0)
    recorder, counts = Recorder(), Counts()
    L.seed_everything(7, verbose=False)
    trainer = trainer_of(
        folder, [recorder, counts, stopper, validation], devices=WORLD, strategy="ddp", max_epochs=5,
        num_sanity_val_steps=0,
    )  # fmt: skip
    module = Together(orders, dropout=0.0)
    trainer.fit(module, datamodule=Rows(shuffle=False))
    if dist.get_rank() == 0:
        torch.save(recorder.weights, folder / "weights")
    return {
        "global_step": trainer.global_step,
        "held": [(step, where, metrics.get("val/loss")) for step, where, metrics in recorder.held],
        "metrics": {name: value for name, value in floats(trainer.callback_metrics).items() if "val/" in name},
        "should_stop": trainer.should_stop,
        "stopped_epoch": stopper.stopped_epoch,
        "best_model_path": validation.best_model_path,
        "best_model_score": None if validation.best_model_score is None else validation.best_model_score.item(),
        "kept": validation.best_k_models,
        "is_blocking": validation.is_blocking,
        "lags": validation.lags,
        "num_children": counts.most,
        "left": len(psutil.Process().children(recursive=True)),
        "validated": list(recorder.validated),
    }


def child(folder: str) -> None:
    torch.set_num_threads(1)
    rank, results = int(os.environ["LOCAL_RANK"]), {}
    for name, order in (("good", ""), ("bad", "die,die,")):
        where = Path(folder, name)
        where.mkdir(exist_ok=True)
        results[name] = trained(where, order)
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", f"from {__name__} import child; child({str(folder)!r})"]
    processes = []
    for rank in range(WORLD):  # started from outside, as torchrun does
        environment = {**os.environ, **shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        environment.pop("PL_GLOBAL_SEED", None)
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=280)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-6000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


Found = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("name", ["good", "bad"])
def test_all_know_the_same(name: str, found: Found) -> None:
    first, second = (rank[name] for rank in found[1])
    # What Lightning finds itself in a process is of its half, unless the module asks for more.
    own = {"num_children", "held", "metrics"} if name == "bad" else {"num_children"}
    for what in first.keys() - own:
        assert first[what] == second[what], what
    assert first["best_model_path"] != ""
    assert first["left"] == 0


def test_one_process_validates(found: Found) -> None:
    assert [rank["good"]["num_children"] for rank in found[1]] == [1, 0]
    assert found[1][0]["good"]["validated"] == []


def test_all_stop_at_the_same_verdict(found: Found) -> None:
    """The second verdict is no better by 10: it is handed out at the last batch of the third epoch."""
    result = found[1][0]["good"]
    assert result["should_stop"]
    assert result["stopped_epoch"] == 2
    assert result["global_step"] == 3 * STEPS
    assert result["lags"][:2] == [STEPS, STEPS]
    held = [(step, where) for step, where, loss in result["held"] if loss is not None]
    assert held == [(6, "epoch"), (9, "epoch")]


def test_verdicts_are_of_all_rows(found: Found) -> None:
    """As one process would judge them, although two train."""
    folder = found[0] / "good"
    weights = torch.load(folder / "weights")
    verdicts = ledger(folder)
    assert [verdict["step"] for verdict in verdicts] == [3, 6, 9]
    for verdict in verdicts:
        assert verdict["metrics"] == judged_alone(Tiny(dropout=0.0), weights[verdict["step"]])
        assert same(weights_in(verdict["path"]), weights[verdict["step"]])
    best = min(verdicts, key=lambda verdict: verdict["score"])
    for rank in found[1]:
        assert rank["good"]["best_model_path"] == best["path"]
        assert rank["good"]["best_model_score"] == best["score"]
        assert rank["good"]["metrics"] == verdicts[-1]["metrics"]


def test_where_the_process_fails_all_validate(found: Found) -> None:
    """At the end of the second epoch it is known that it failed; what it left waits for a resumed run."""
    folder = found[0] / "bad"
    result = found[1][0]["bad"]
    assert result["is_blocking"]
    assert result["validated"] == [6, 9]
    assert result["stopped_epoch"] == 2
    assert result["lags"] == []
    weights = torch.load(folder / "weights")
    assert [verdict["step"] for verdict in ledger(folder)] == [6, 9]
    for path in result["kept"]:
        step = torch.load(path, weights_only=False)["global_step"]
        assert same(weights_in(path), weights[step])
    assert sorted(result["kept"].values()) == sorted(verdict["score"] for verdict in ledger(folder))
    pending = sorted(path.name.split("-")[1] for path in (folder / "checkpoints" / "pending").iterdir())
    assert pending == ["step=3", "step=3"]

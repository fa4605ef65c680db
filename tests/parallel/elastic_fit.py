"""A fit whose number of processes changes; tests run ``python -m tests.parallel.elastic_fit``, which forks nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch
from typing_extensions import override

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.parallel import GraphParallelStrategy, PartitionDataModule
from tests.parallel.fits import N, Net, make_graph
from tests.parallel.process_ranks import reap

EPOCHS, LOST_IN, ALONE_UNTIL = 12, 4, 8


class LinesLogger(Logger):
    """Adds the loss of each epoch, and over how many processes it was, to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path, **others: Any) -> None:
        super().__init__()
        self.path, self.others = path, others

    @property
    @override
    def name(self) -> str:
        return "lines"

    @property
    @override
    def version(self) -> int:
        return 0

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are of no interest here."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss_epoch" in metrics:
            line = {"epoch": int(metrics["epoch"]), "loss": metrics["train/loss_epoch"], **self.others}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


class Events(L.Callback):
    """The node "second" is lost in the midst of an epoch; alone, the first one stays at an epoch until another comes.

    Args:
        node: The name of this one.
    """

    def __init__(self, node: str) -> None:
        self.node = node

    @override
    def on_before_zero_grad(self, trainer: L.Trainer, *args: Any) -> None:
        """Between the backward pass, which exchanges, and the next forward pass."""
        if self.node == "second" and trainer.current_epoch == LOST_IN:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        until = time.monotonic() + 120
        while trainer.world_size == 1 and trainer.current_epoch == ALONE_UNTIL and not trainer.received_sigterm:
            if time.monotonic() > until:
                raise TimeoutError("No other node has come.")
            time.sleep(0.02)


def train(folder: Path, logger: LinesLogger, **trainer_arguments: Any) -> L.Trainer:
    """Train on from the last checkpoint in a folder, if there is one."""
    L.seed_everything(3, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=logger, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, **trainer_arguments,
    )  # fmt: skip
    owner = torch.arange(N) * trainer.world_size // N
    datamodule = PartitionDataModule(make_graph(), folder=folder / "parts", owner=owner)
    module = NodeClassifier(Net(), optimizer={"name": "Adam", "lr": 0.01})
    trainer.fit(module, datamodule, ckpt_path="last", weights_only=False)
    return trainer


def work(folder: str) -> None:
    """What each node's process does, whenever the number of nodes has changed."""
    node = os.environ["TEST_NODE"]
    strategy = GraphParallelStrategy(probe=False)
    logger = LinesLogger(Path(folder) / "losses", size=int(os.environ["WORLD_SIZE"]), node=node)
    checkpoints = Path(folder) / "checkpoints"
    saving = ModelCheckpoint(checkpoints, save_last=True, every_n_epochs=1, enable_version_counter=False)
    train(
        Path(folder), logger, strategy=strategy, devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]), callbacks=[saving, Events(node)],
    )  # fmt: skip
    print(f"CLUSTER {type(strategy.cluster_environment).__name__}", flush=True)


def agent(folder: Path, node: str, port: int) -> int:
    """Fork what ``torchrun`` with these options is, but for its workers, which are forked as well; return its id."""
    if (child := os.fork()) != 0:
        return child
    status = 1
    try:
        os.environ["TEST_NODE"] = node
        # A node that is later than the last call finds a run of the other one alone: once more a change of size.
        conf = f"is_host={int(node == 'first')},last_call_timeout=8,keep_alive_interval=1,keep_alive_max_attempt=5"
        options = torchrun.parse_args([  # type: ignore[no-untyped-call]
            "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", f"--rdzv-conf={conf}", "--local-addr=127.0.0.1",
            "script",
        ])  # fmt: skip
        config = torchrun.config_from_args(options)[0]
        config.start_method = "fork"
        elastic_launch(config, work)(str(folder))
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def sizes(folder: Path) -> list[int]:
    """Over how many processes epochs were, so far."""
    path = folder / "losses"
    return [json.loads(line)["size"] for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """A folder, in which there are parts already: nodes would cut the graph at once."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Else torch 2.13 does not tell a node that comes later where the store is.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    folder = Path(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [agent(folder, "first", port), agent(folder, "second", port)]
    until = time.monotonic() + 100
    while 1 not in sizes(folder) and time.monotonic() < until:
        time.sleep(0.05)
    agents.append(agent(folder, "third", port))
    print("ENDED " + json.dumps(reap(agents, timeout=100)), flush=True)


if __name__ == "__main__":
    main()

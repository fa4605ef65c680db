"""A resumed run draws the random numbers that were to come: dropout, and whatever else takes torch's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.random_state import restore_random_state, save_random_state

from .graphs import make_data
from .modules import Recorder, make_trainer


class Dropping(Recorder):
    """Drops half of the features; draws before it trains and, if it is to, in validation and before an epoch."""

    draws = True

    def setup(self, stage: str) -> None:
        torch.rand(3)

    def on_train_start(self) -> None:
        torch.rand(5)

    def on_train_epoch_start(self) -> None:
        torch.rand(2 * self.draws)

    def _loss(self, batch: Data) -> Tensor:
        x = torch.nn.functional.dropout(batch.x, training=self.training)
        logits = self.net(x, batch.edge_index)[: batch.batch_size]
        return torch.nn.functional.cross_entropy(logits, batch.y[: batch.batch_size])

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        torch.rand(1 * self.draws)
        super().validation_step(batch, batch_idx)


class Save(Callback):
    """Saves a checkpoint in a hook, when so many steps were taken, and draws before each batch."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self._save)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        torch.rand(1)

    def _save(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and not self.path.exists():
            trainer.save_checkpoint(self.path)


def fit(
    module: L.LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, seed: int = 11, **options: Any
) -> L.Trainer:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=5)
    trainer = make_trainer(3, callbacks=list(callbacks), **options)
    torch.manual_seed(99 if ckpt_path else seed)  # a resumed run is another process, with another state
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


@pytest.mark.parametrize(
    ("hook", "step", "options"),
    [
        ("on_train_batch_end", 3, {}),
        ("on_train_batch_end", 5, {}),  # the last of an epoch, after which Lightning's resumed run does not validate
        ("on_train_batch_end", 9, {}),
        ("on_validation_end", 7, {"val_check_interval": 2}),
        ("on_validation_end", 5, {}),
        ("on_train_epoch_end", 5, {}),
    ],
)
def test_a_resumed_run_with_dropout_goes_on_to_the_bit(
    hook: str, step: int, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "middle.ckpt"
    whole, resumed = Dropping(), Dropping()
    whole.draws = resumed.draws = (hook, step) != ("on_train_batch_end", 5)
    fit(whole, Save(hook, step, path), **options)
    trainer = fit(resumed, Save(hook, -1, path), ckpt_path=path, **options)
    assert resumed.losses == whole.losses[step:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert [type(callback) for callback in trainer.callbacks] == [Save]


def test_without_the_state_it_differs(tmp_path: Path) -> None:
    """Or the test above shows nothing."""
    path = tmp_path / "middle.ckpt"
    whole, resumed = Dropping(), Dropping()
    fit(whole, Save("on_train_batch_end", 3, path))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["GraphDataModule"]
    torch.save(checkpoint, path)
    fit(resumed, Save("", -1, path), ckpt_path=path)
    assert len(resumed.losses) == 12
    assert resumed.losses != whole.losses[3:]


def test_a_run_that_is_over_leaves_the_trainer_and_the_numbers_alone(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    fit(Dropping(), Save("on_train_end", 15, path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(Dropping(), ckpt_path=path)
    assert trainer.callbacks == []
    after = torch.rand(4)
    torch.manual_seed(99)
    torch.rand(3)  # in `setup`
    assert torch.equal(after, torch.rand(4))


def test_a_test_of_a_checkpoint_does_not_touch_the_numbers(tmp_path: Path) -> None:
    path, module = tmp_path / "middle.ckpt", Dropping()
    trainer = fit(module, Save("on_train_batch_end", 3, path))
    torch.manual_seed(4)
    trainer.test(module, GraphDataModule(make_data(), num_neighbors=[3, 2]), ckpt_path=path, verbose=False)
    after = torch.rand(4)
    torch.manual_seed(4)
    torch.rand(3)
    assert torch.equal(after, torch.rand(4))
    assert [type(callback) for callback in trainer.callbacks] == [Save]


def test_each_rank_has_a_state_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = make_trainer()
    others = {"cpu": torch.Generator().manual_seed(8).get_state()}

    def gather(found: list[Any], own: Any) -> None:
        found[:] = [others, own]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    monkeypatch.setattr(type(trainer), "global_rank", 1)
    state = save_random_state(trainer)["random_state"]
    assert list(state) == [0, 1]
    assert torch.equal(state[0]["cpu"], others["cpu"])
    assert torch.equal(state[1]["cpu"], torch.get_rng_state())
    trainer.state.status = "interrupted"  # the other process may be anywhere
    assert [*save_random_state(trainer)["random_state"]] == [1]


def test_there_may_be_no_trainer_and_no_state() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2])
    assert datamodule.state_dict() == {}
    datamodule.load_state_dict({})
    trainer: Any = make_trainer()
    trainer.state.fn = "fit"
    restore_random_state(trainer, {"random_state": {3: {"cpu": torch.get_rng_state()}}})
    assert trainer.callbacks == []


# ---- two processes ---------------------------------------------------------------------------------------------------


def child(folder: str) -> None:
    torch.set_num_threads(1)
    rank, losses = int(os.environ["LOCAL_RANK"]), {}
    for step in (2, 3):  # within an epoch of three batches, and at its end
        path, options = Path(folder, f"{step}.ckpt"), {"devices": 2, "strategy": "ddp", "num_sanity_val_steps": 0}
        whole, resumed = Dropping(), Dropping()
        whole.draws = resumed.draws = False
        fit(whole, Save("on_train_epoch_end" if step == 3 else "on_train_batch_end", step, path), seed=rank, **options)
        fit(resumed, Save("", -1, path), ckpt_path=path, **options)
        losses[step] = (whole.losses, resumed.losses)
    Path(folder, f"{rank}.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_of_two_processes_goes_on_to_the_bit(tmp_path: Path) -> None:
    """From states that differ, as ranks with a seed of their own have."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", f"from {__name__} import child; child({str(tmp_path)!r})"]
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "LOCAL_RANK": rank, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=280)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-6000:]
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for step in ("2", "3"):
        for whole, resumed in (losses[step] for losses in both):
            assert len(whole) == 9
            assert resumed == whole[int(step) :]
        assert both[0][step][0] != both[1][step][0]

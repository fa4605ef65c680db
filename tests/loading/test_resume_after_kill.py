"""A run killed in the middle of an epoch goes on, from Lightning's own checkpoint, as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_S = 120.0

RUN = """
import sys, time, torch
from pathlib import Path
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_gnnopt.loading import GraphDataModule
from tests.loading.graphs import make_data
from tests.loading.modules import Recorder, make_trainer

torch.set_num_threads(1)
folder, losses, stop_at, resume, num_workers = sys.argv[1:]

class Written(Recorder):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        with open(losses, "a") as file:
            file.write(f"{self.current_epoch} {batch_idx} {float(outputs['loss']).hex()}\\n")
        if self.global_step == int(stop_at):
            time.sleep(600)  # until it is killed

saver = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
trainer = make_trainer(3, callbacks=[saver], enable_checkpointing=True)
datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=5, num_workers=int(num_workers))
trainer.fit(Written(), datamodule, ckpt_path=resume or None, weights_only=True if resume else None)
"""


def start(folder: Path, losses: Path, *, stop_at: int = 0, resume: str = "", workers: int = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(folder), str(losses), str(stop_at), resume, str(workers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, killed, resumed = (tmp_path / f"{name}.txt" for name in ("whole", "killed", "resumed"))
    undisturbed = start(tmp_path / "a", whole)
    # Five batches an epoch: the eighth step is the third of the second epoch, two after a checkpoint.
    victim = start(tmp_path / "b", killed, stop_at=8)
    try:
        give_up = time.monotonic() + DEADLINE_S
        while not killed.exists() or len(killed.read_text().splitlines()) < 8:
            assert victim.poll() is None, victim.communicate()[1]
            assert time.monotonic() < give_up, "the run never came to its eighth step"
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=DEADLINE_S)
        assert victim.returncode == -signal.SIGKILL
        assert {path.name for path in (tmp_path / "b").iterdir()} == {"step=3.ckpt", "step=6.ckpt"}
        finish(start(tmp_path / "c", resumed, resume=str(tmp_path / "b" / "step=6.ckpt"), workers=0))
        finish(undisturbed)
    finally:
        for process in (undisturbed, victim):
            process.kill()
    expected = whole.read_text().splitlines()
    assert len(expected) == 15
    assert killed.read_text().splitlines() == expected[:8]
    assert resumed.read_text().splitlines() == expected[6:]  # it goes on within the epoch, with other workers

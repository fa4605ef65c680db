"""A run that loses a node and gets another one goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch

from lightning_gnnopt.parallel import partition_graph
from tests.parallel.elastic_fit import EPOCHS, LOST_IN, LinesLogger, train
from tests.parallel.fits import N, make_graph

ROOT = Path(__file__).resolve().parents[2]


def epochs_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_two_nodes_then_one_then_two_learn_what_one_process_does(tmp_path: Path) -> None:
    """Under the agents of ``torchrun --nnodes=1:2``: the second node is killed, a third one comes."""
    for size in (1, 2):
        partition_graph(make_graph(), size, folder=tmp_path / f"parts/{size}-parts", owner=torch.arange(N) * size // N)
    command = [sys.executable, "-m", "tests.parallel.elastic_fit", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout[-3000:] + done.stderr[-6000:]
    assert done.returncode == 0, said
    assert "ENDED [0, -9, 0]" in done.stdout, said
    assert done.stdout.count("CLUSTER TorchElasticEnvironment") == 2  # of the two that were there in the end

    whole = LinesLogger(tmp_path / "whole")
    train(tmp_path / "alone", whole, devices=1, enable_checkpointing=False)  # of Lightning's, without our strategy
    got, expected = epochs_of(tmp_path / "losses"), epochs_of(whole.path)
    assert [line["epoch"] for line in got] == [line["epoch"] for line in expected] == list(range(EPOCHS))
    assert [line["loss"] for line in got] == pytest.approx([line["loss"] for line in expected], abs=1e-4)
    assert expected[0]["loss"] - expected[-1]["loss"] > 0.1  # it learns
    over = [line["size"] for line in got]
    assert [size for size, _ in groupby(over)] == [2, 1, 2]
    assert over[LOST_IN - 1 : LOST_IN + 1] == [2, 1]

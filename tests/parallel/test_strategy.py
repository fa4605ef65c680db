"""Fits over one and two processes: the same numbers, and checkpoints that go on with another number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_gnnopt.parallel import BNS, GraphParallelStrategy, Quantized

ROOT = Path(__file__).resolve().parents[2]


def fits(folder: Path, *given: str) -> list[dict[str, float]]:
    """Fit in turn, in a process that forks: torch is imported once."""
    command = [sys.executable, "-m", "tests.parallel.fits", str(folder), *given]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("METRICS ")]
    assert (done.returncode, len(lines)) == (0, len(given)), done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line.removeprefix("METRICS ")) for line in lines]


def assert_same_weights(one: Path, other: Path) -> None:
    weights, others = (torch.load(path, weights_only=False)["state_dict"] for path in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], atol=1e-4), name


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """With uneven numbers of nodes, with a part that has none of a stage, and on from files of two processes."""
    one, two, one_without, two_without, whole, _, one_resumed, two_resumed = fits(
        tmp_path,
        "a,1,20,uneven", "b,2,20,uneven", "c,1,12,one-part", "d,2,12,one-part",
        "e,1,12,uneven", "e,2,6,uneven", "f,1,12,uneven,e/2-6.ckpt", "g,2,12,uneven,e/2-6.ckpt",
    )  # fmt: skip
    assert one["train/loss_epoch"] < min(1.4, whole["train/loss_epoch"])  # it learns, if by heart
    for expected, got in [(one, two), (one_without, two_without), (whole, one_resumed), (whole, two_resumed)]:
        for name in expected.keys() - {"train/loss"}:  # that of the last step is rank 0's
            assert got[name] == pytest.approx(expected[name], abs=1e-4), name
    assert_same_weights(tmp_path / "a" / "1-20.ckpt", tmp_path / "b" / "2-20.ckpt")
    assert_same_weights(tmp_path / "c" / "1-12.ckpt", tmp_path / "d" / "2-12.ckpt")
    assert_same_weights(tmp_path / "e" / "1-12.ckpt", tmp_path / "f" / "1-12.ckpt")
    assert_same_weights(tmp_path / "e" / "1-12.ckpt", tmp_path / "g" / "2-12.ckpt")


@pytest.mark.slow
def test_nodes_move_from_a_slow_process_and_nothing_else_changes(tmp_path: Path) -> None:
    one, two = fits(tmp_path, "a,1,14,slow", "b,2,14,slow")
    assert one.pop("own_nodes") == 300
    assert two.pop("own_nodes") < 100  # of 150
    for name in one.keys() - {"train/loss"}:
        assert two[name] == pytest.approx(one[name], abs=1e-4), name
    assert_same_weights(tmp_path / "a" / "1-14.ckpt", tmp_path / "b" / "2-14.ckpt")
    assert len(list((tmp_path / "b" / "slow" / "2-parts-moved").iterdir())) == 1  # the last one


def test_policies_are_read_at_once() -> None:
    strategy = GraphParallelStrategy([BNS(0.1), "quantized"])
    assert (strategy.policies.sampled, strategy.policies.quantized) == (BNS(0.1), Quantized(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "exakt"}, "exakt.*exact"),
        ({"loss_reduction": "max"}, "'max'.*mean"),
        ({"balance": "learnt"}, "'learnt'.*learned"),
    ],
)
def test_unknown_names_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphParallelStrategy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["halo", "sar", "bns", "quantized", "stale", "columns"])
def test_a_trainer_knows_the_strategies_by_name(policy: str) -> None:
    strategy = L.Trainer(accelerator="cpu", devices=2, strategy=f"gnn_{policy}", logger=False).strategy
    assert isinstance(strategy, GraphParallelStrategy)
    assert strategy.policy == ("exact" if policy == "halo" else policy)

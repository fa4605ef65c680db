"""Two processes that train together, with probes within `untouched`."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from tests.memory.runs import Batches, Net, Watch, make_datamodule, make_graph, make_trainer, no_warnings, watched

# Two processes that train together


WAYS = ("prune", "split", "resample-prune", "shrink-prune")
TRAIN_SEEDS = 128


class OneRankRaises(Net):
    """Raises in the probes of one process, where a Trainer has no callbacks."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.callbacks and self.trainer.global_rank == 1:
            raise KeyError("only here")
        return super().training_step(batch, batch_idx)


class OneRankDiffers(Net):
    """Has other allocations for each batch in one process."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1:
            self.kept = [torch.zeros(3) for _ in range(batch.num_edges % 4)]
        return super().training_step(batch, batch_idx)


def trained(*callbacks: Callback, batch_norm: bool = False, make_module: Callable[..., Net] = Net) -> dict[str, Any]:
    module = make_module(batch_norm=batch_norm, dropout=0.3 if batch_norm else 0.0).double()
    seen, watch = Batches(), Watch()
    trainer = make_trainer(*callbacks, seen, watch, devices=2, strategy="ddp")
    L.seed_everything(11, verbose=False)
    with no_warnings():
        trainer.fit(module, datamodule=make_datamodule(make_graph(dtype=torch.float64), batch_size=16))
    return {
        "weights": torch.cat([value.flatten().double() for value in module.state_dict().values()]).tolist(),
        "losses": seen.losses,
        "seeds": [batch.input_id.tolist() for batch in seen.batches],
        "epochs": seen.epochs,
        "steps": trainer.global_step,
        "peaks": watch.peaks["train"],
        "rng": [torch.rand(3).tolist(), random.random(), np.random.random()],
    }


def in_two_processes(folder: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for batch_norm in (False, True):
        results[f"plain {batch_norm}"] = trained(batch_norm=batch_norm)
        control = watched(on_exceed="split")
        results[f"within {batch_norm}"] = trained(control, batch_norm=batch_norm)
    control = watched(on_exceed="prune")
    results["plain"] = trained(control)
    assert control.controller is not None
    held = control.controller.learned["train", 0].footprint.held_bytes
    results["uncontrolled"] = max(results["plain"]["peaks"])
    # Each decides for its own batches, by its own budget.
    budget = held + int((0.75 + 0.05 * int(os.environ["LOCAL_RANK"])) * (results["uncontrolled"] - held))
    for way in WAYS:
        control = watched(budget, on_exceed=tuple(way.split("-")))
        results[way] = {**trained(control), "tally": control.tally.to_dict(), "budget": budget}
    for make_module in (OneRankRaises, OneRankDiffers):
        control = watched(on_exceed=("resample", "prune"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = trained(control, make_module=make_module)
        assert control.controller is not None
        found["reason"] = control.controller.learned["train", 0].reason
        found["pairs"] = len(control.controller.pairs)
        found["said"] = [str(w.message) for w in caught if "`MemoryControl`" in str(w.message)]
        results[make_module.__name__] = found
    Path(folder, f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", f"from {__name__} import in_two_processes; in_two_processes({str(folder)!r})"]
    processes = []
    for rank in ("0", "1"):  # started from outside, as torchrun does
        environment = {**os.environ, **shared, "LOCAL_RANK": rank, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        environment.pop("PL_GLOBAL_SEED", None)
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_two_processes_train_to_the_bit_as_without(batch_norm: bool, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        plain, within = rank[f"plain {batch_norm}"], rank[f"within {batch_norm}"]
        for name in ("weights", "losses", "seeds", "steps", "rng"):
            assert within[name] == plain[name], name


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_equally_many_steps(way: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[way] for rank in ranks)
    assert first["steps"] == second["steps"]
    assert len(first["losses"]) == len(second["losses"]) == first["steps"]
    if "shrink" not in way:
        assert first["steps"] == ranks[0]["plain"]["steps"]
    for rank in ranks:
        assert rank["uncontrolled"] > rank[way]["budget"]
        assert rank[way]["tally"]["over"] > 0
        assert max(rank[way]["peaks"]) <= rank[way]["budget"]
    length = len(first["weights"])
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-12)
    assert length == len(second["weights"])


@pytest.mark.slow
def test_two_processes_that_split_train_as_without_a_budget(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["split"]["tally"]["splits"] > 0
        assert rank["split"]["losses"] == pytest.approx(rank["plain"]["losses"], rel=1e-9)
        assert rank["split"]["weights"] == pytest.approx(rank["plain"]["weights"], rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_each_seed_once_an_epoch(way: str, ranks: list[dict[str, Any]]) -> None:
    for epoch in range(2):
        seen: list[int] = []
        repeats: list[list[bool]] = []
        for rank in ranks:
            own: set[int] = set()
            repeats.append([])
            for seeds, of_epoch in zip(rank[way]["seeds"], rank[way]["epochs"], strict=True):
                if of_epoch == epoch:
                    assert len(set(seeds)) == len(seeds)
                    # All of a batch's seeds are new, or none is: then it is there for the other process' sake.
                    assert own.isdisjoint(seeds) or own.issuperset(seeds)
                    repeats[-1].append(own.issuperset(seeds))
                    seen += [] if repeats[-1][-1] else seeds
                    own.update(seeds)
        assert sorted(seen) == list(range(TRAIN_SEEDS))
        # All must make as many steps, but none is made in which both repeat.
        assert len(repeats[0]) == len(repeats[1])
        assert not any(map(all, zip(*repeats, strict=True)))
        assert any(map(any, repeats)) <= ("shrink" in way)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OneRankRaises", "OneRankDiffers"])
def test_two_processes_go_the_same_way(name: str, ranks: list[dict[str, Any]]) -> None:
    """Of one process' step there is no tape, or its probe raises: neither waits for the other, and both train on."""
    first, second = (rank[name] for rank in ranks)
    for rank in ranks:
        for what in ("weights", "losses", "seeds", "steps", "rng"):
            assert rank[name][what] == rank["plain"][what], what
        assert rank[name]["pairs"] >= 4
    assert second["said"] == []  # the first process speaks for all
    if name == "OneRankRaises":
        assert first["reason"] == "the step of another process raised an error on a tiny batch"
        assert second["reason"] == "the step raised KeyError on a tiny batch: 'only here'"
        assert any(first["reason"] in said and "learns from the batches that are run" in said for said in first["said"])
    else:
        assert first["reason"] == "The step of another process has no allocation tape."
        assert second["reason"].startswith("Every probe must allocate and release in the same order")
        assert any(first["reason"] in said and "learns the memory of 'train' steps" in said for said in first["said"])

"""The benchmark of the profiler's cost: what it compares, never how long it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch_geometric.nn import GCNConv

from benchmarks import profiler as module
from benchmarks.profiler import Steps, _Stamp, figures_of
from lightning_gnnopt import GNNProfiler, GraphDataModule
from lightning_gnnopt.analysis.records import BatchRecord, Records
from lightning_gnnopt.datasets import load_dataset


def test_costs_are_ratios_of_one_round() -> None:
    runs = {
        "GCN, without": [
            Steps(step_s=1.0, cpu_s=1.0, mean_s=1.0),
            Steps(step_s=2.0, cpu_s=2.0, mean_s=2.0),
            Steps(step_s=4.0, cpu_s=4.0, mean_s=5.0),
        ],
        "GCN, profiled": [
            Steps(step_s=1.1, cpu_s=1.3, mean_s=1.2, memory_s=3.0, stated=0.02),
            Steps(step_s=2.08, cpu_s=2.2, mean_s=2.6, memory_s=5.0, stated=0.04),
            Steps(step_s=4.0, cpu_s=4.8, mean_s=5.5, memory_s=7.0, stated=0.03),
        ],
    }
    (cost, cores, mean, stated), rows = figures_of(runs)
    assert cost.value == pytest.approx(1.04)
    assert (cost.reach, cost.sense, cost.met) == (1.05, "<=", True)
    assert cores.value == pytest.approx(1.2)
    assert mean.value == pytest.approx(1.2)
    assert stated.value == 0.03
    assert (cores.reach, mean.reach, stated.reach) == (None, None, None)
    assert rows == [{"steps of": "GCN", "plain ms": 2000.0, "timed ms": 2080.0, "with memory ms": 5000.0}]


def record(number: int, *, timed: bool, peak_bytes: int | None = None) -> BatchRecord:
    return BatchRecord(number, "", 1, 1, 4, 4, 8, 0.5, peak_bytes, timed)


def test_each_step_is_counted_as_what_was_recorded_of_it() -> None:
    timed = [record(number, timed=True) for number in (4, 5, 6, 7)]
    skipped = [record(number, timed=False) for number in range(3)]
    records = Records(batches=[*skipped, record(3, timed=False, peak_bytes=9), *timed], info={"overhead_s": 0.1})
    took = [*(_Stamp(wall_s, wall_s / 4) for wall_s in (90.0, 80.0, 70.0, 6.0, 1.0, 2.0, 5.0)), None]
    found = module._profiled(cast(GNNProfiler, SimpleNamespace(records=records)), took)
    assert found == Steps(step_s=2.0, cpu_s=0.5, mean_s=3.5, memory_s=6.0, stated=0.05)
    assert module._plain(took) == Steps(step_s=3.5, cpu_s=0.875, mean_s=3.5)


def test_a_step_lasts_until_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = module._StepClock()
    times = iter([1.0, 3.0, 6.0, 20.0, 24.0])
    monkeypatch.setattr(module, "_now", lambda: _Stamp(wall_s := next(times), 10 * wall_s))
    anything: Any = None
    for steps in (3, 2):
        for number in range(steps):
            clock.on_train_batch_start(anything, anything, anything, number)
        clock.on_train_epoch_end(anything, anything)
    assert clock.took == [(2.0, 20.0), (3.0, 30.0), None, (4.0, 40.0), None]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODES", 50)
    monkeypatch.setattr(module, "EDGES", 200)


@pytest.mark.usefixtures("small")
def test_a_loop_has_timed_steps_and_steps_recorded_for_their_memory() -> None:
    plain = module._loop(GCNConv, 25, is_profiled=False)
    assert (plain.memory_s, plain.stated) == (None, None)
    profiled = module._loop(GCNConv, 25, is_profiled=True)
    assert profiled.memory_s is not None
    assert profiled.stated is not None
    assert 0 < profiled.stated < 1


def test_a_fit_is_compared_with_the_same_fit() -> None:
    datamodule = GraphDataModule(
        load_dataset("dcsbm", num_nodes=600, avg_degree=6.0), num_neighbors=[3, 3], batch_size=20, num_workers=0
    )
    assert module._fit(datamodule, is_profiled=False).stated is None
    profiled = module._fit(datamodule, is_profiled=True)
    assert profiled.step_s > 0
    assert profiled.memory_s is not None

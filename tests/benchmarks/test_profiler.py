"""The benchmark of the profiler's cost: what it compares, never how long it takes."""

from __future__ import annotations

import pytest
from torch_geometric.nn import GCNConv

from benchmarks import profiler as module
from benchmarks.profiler import Steps, figures_of
from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.datasets import load_dataset


def test_costs_are_ratios_of_one_round() -> None:
    runs = {
        "GCN, without": [Steps(step_s=1.0), Steps(step_s=2.0), Steps(step_s=4.0)],
        "GCN, profiled": [
            Steps(step_s=1.1, memory_s=3.0, stated=0.02),
            Steps(step_s=2.08, memory_s=5.0, stated=0.04),
            Steps(step_s=4.0, memory_s=7.0, stated=0.03),
        ],
    }
    (cost, stated), rows = figures_of(runs)
    assert cost.value == pytest.approx(1.04)
    assert (cost.reach, cost.sense, cost.met) == (1.05, "<=", True)
    assert stated.value == 0.03
    assert stated.reach is None
    assert rows == [{"steps of": "GCN", "plain ms": 2000.0, "timed ms": 2080.0, "with memory ms": 5000.0}]


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

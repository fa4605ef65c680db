"""The benchmark of validation beside training: what it counts and plans, never how long anything takes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import (
    async_clocks,
    async_cores,
    async_effect,
    async_scale,
    async_snapshot,
    async_validation,
    memory_runs,
    rounds,
)
from benchmarks.async_clocks import RunClock
from benchmarks.async_effect import plan, theory
from benchmarks.async_runs import Again, Case, Run, fit
from benchmarks.async_scale import QUICK
from lightning_gnnopt.evaluation.timeline import Timeline

TINY = dataclasses.replace(
    QUICK,
    stand_in_nodes=200,
    features=8,
    samplings=("sampled",),
    hidden=4,
    fanouts=(3, 2),
    batch_size=16,
    epochs=2,
    epoch_s=0.02,
    snapshot_width=8,
    snapshots=2,
    snapshot_steps=2,
)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No published graph is there, so that synthetic ones stand in; and garbage of other tests is left alone."""
    monkeypatch.setenv("GNNOPT_DATA", str(tmp_path))
    monkeypatch.setattr(rounds, "gc", SimpleNamespace(collect=lambda: 0))
    memory_runs.load_graph.cache_clear()
    yield
    memory_runs.load_graph.cache_clear()


def run(clock: RunClock, *, timeline: Timeline | None = None, hook_s: float = 0.0) -> Any:
    validation = SimpleNamespace(timeline=timeline or Timeline(), hook_s=[hook_s])
    return Run(clock=clock, validation=validation, best="", other_cores=0.0)  # type: ignore[arg-type]


def clock(**values: Any) -> RunClock:
    made = RunClock()
    for name, value in values.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_validation, "QUICK", TINY)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    path = tmp_path / "report.json"
    assert async_validation.main(["--quick", "--json", str(path)]) == 0
    assert "effect, X = 0.3" in capsys.readouterr().out
    if cores is not None:
        assert os.sched_getaffinity(0) == cores

    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.async_validation --quick"
    figures: dict[str, dict[str, Any]] = {figure["name"]: figure for figure in found["figures"]}
    effect = figures["effect, X = 0.3"]
    assert (effect["reach"], effect["sense"], len(effect["runs"])) == (0.95, ">=", 1)
    assert effect["value"] > 0
    assert figures["effect with the start-up waited for"]["value"] < effect["value"]
    assert figures["hooks per validation, of an epoch of 1 s"]["reach"] == 0.02
    assert figures["snapshot of 0.0 M parameters, save_top_k=1"]["reach"] == 0.02

    rows = found["rows"]
    assert [row["part"] for row in rows] == ["effect", "snapshot", "snapshot", "process", "process"]
    assert "a dcsbm graph stands in" in rows[0]["note"]
    assert 0 < rows[0]["X"] < 1
    # The same weights are the best ones, beside training as within it.
    assert "best epoch" not in rows[0]["note"]
    assert not any(str(tmp_path) in str(value) for row in rows for value in row.values())


def test_each_promise_of_the_issue_has_its_reach() -> None:
    assert (async_effect.EFFECT, async_effect.HOOKS, async_effect.SLOWER) == (0.95, 0.02, 1.03)
    assert async_snapshot.REACH_S == 0.02
    full = async_scale.FULL
    assert full.shares == (0.1, 0.3, 0.5, 0.7)
    assert (len(full.graphs), full.models, full.samplings) == (2, ("gcn", "gat"), ("full", "sampled"))
    assert full.epoch_s >= 1.0
    model = async_snapshot.LargeModule(full.snapshot_width, full.snapshot_layers)
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_010_000


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_theory_is_the_time_of_a_schedule(share: float) -> None:
    """Each validation starts when its epoch has ended and the validation before is over."""
    epochs, trained_s, judged_s = 9, 0.0, 0.0
    for _ in range(epochs):
        trained_s += 1 - share
        judged_s = max(trained_s, judged_s) + share
    assert theory(share, epochs) == pytest.approx(judged_s / epochs)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("step_s", "val_step_s"), [(0.01, 0.004), (0.2, 0.09), (0.003, 0.01), (0.09, 0.2)])
def test_plan_meets_the_share_in_an_epoch_that_is_long_enough(share: float, step_s: float, val_step_s: float) -> None:
    train, val = plan(share, step_s=step_s, val_step_s=val_step_s, epoch_s=1.0)
    epoch_s = train * step_s + val * val_step_s
    assert 1.0 <= epoch_s + 1e-9 <= 2.0
    assert abs(val * val_step_s / epoch_s - share) <= 0.02


def test_plan_of_batches_longer_than_an_epoch_has_one_at_least() -> None:
    assert plan(0.1, step_s=5.0, val_step_s=3.0, epoch_s=0.1) == (5, 1)  # 3 of 28 s


def test_effect_is_one_where_a_run_takes_what_theory_says() -> None:
    within = clock(total_s=10.0, val_s=[0.3] * 10, cpu_s=10.0, val_cpu_s=3.0)
    beside = clock(total_s=10 * theory(0.3, 10), cpu_s=7.0, child_cpu_s=3.0, startup_s=7.3)
    pair = async_effect._Pair(run(within), run(beside), run(clock(total_s=2 * beside.total_s)), 10)
    assert pair.share == pytest.approx(0.3)
    assert pair.effect == pytest.approx(1.0)
    assert pair.effect_by_cpu == pytest.approx(1.0)
    assert pair.cold_effect == pytest.approx(0.5)
    assert pair.effect_after_startup == pytest.approx(0.5)


def test_steps_are_told_apart_by_what_the_other_side_does() -> None:
    """Steps of 1 s while nothing happens, of 2 s while the process validates, of 3 s while a file is written."""
    timeline = Timeline()
    steps, now_s = [], 0.0
    for length_s, side in ((3.0, "writing"), (2.0, "validation"), (1.0, None)):
        start_s = now_s
        for _ in range(5):
            steps.append((now_s, now_s + length_s, length_s**2))
            now_s += length_s
        if side is not None:
            timeline.record(side, "step 1", start_s, now_s, step=1)  # type: ignore[arg-type]
    pair = async_effect._Pair(
        run(clock()), run(clock(steps=[[(0.0, 99.0, 99.0)] * 9, steps]), timeline=timeline), None, epochs=2
    )
    assert pair.slower("validation") == 2.0
    assert pair.slower("validation", by_cpu=True) == 4.0
    assert pair.slower("writing") == 3.0 / 1.5  # over the others, those beside validation among them
    assert async_effect._Pair(run(clock()), run(clock(steps=[[], []])), None, 2).slower("validation") is None


def test_loader_starts_again_until_there_are_enough_batches() -> None:
    batches = Again([1, 2, 3], 7)
    assert len(batches) == 7
    assert list(batches) == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("sampling", ["full", "sampled"])
def test_run_within_training_counts_steps_and_validations(sampling: str) -> None:
    case = Case(graph="amazon-computers", model="gat", sampling=sampling)
    module, datamodule = case.make(TINY, 5, 3)
    counted = {"train": 0, "val": 0}
    for stage, method in (("train", module.training_step), ("val", module.validation_step)):

        def step(*args: Any, stage: str = stage, method: Any = method, **kwargs: Any) -> Any:
            counted[stage] += 1
            return method(*args, **kwargs)

        setattr(module, method.__name__, step)
    found = fit(module, datamodule, epochs=2, beside=False)
    assert counted == {"train": 10, "val": 6}
    assert [len(epoch) for epoch in found.clock.steps] == [4, 4]
    assert (len(found.clock.train_s), len(found.clock.val_s)) == (2, 2)
    parts_s = sum(found.clock.train_s) + sum(found.clock.val_s)
    assert 0 < parts_s <= found.total_s
    assert found.best.startswith("epoch=")


def test_memory_is_read_as_the_system_tells_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = """00400000-ffffff [rollup]
Rss:                 700 kB
Pss:                 500 kB
Pss_Anon:            300 kB
Shared_Clean:        100 kB
Shared_Dirty:         50 kB
Private_Clean:        40 kB
Private_Dirty:         2 kB
Private_Hugetlb:       7 kB
"""
    (tmp_path / "smaps_rollup").write_text(text)
    monkeypatch.setattr(async_clocks, "Path", lambda path: tmp_path / Path(path).name)
    assert async_clocks.read_memory(1) == {"private": 42 * 1024, "shared": 150 * 1024, "pss": 500 * 1024}
    (tmp_path / "smaps_rollup").unlink()
    assert async_clocks.read_memory(1) == {}


def test_cores_and_threads_are_given_back() -> None:
    before, num_threads = async_cores.two_cores(), torch.get_num_threads()
    if before is None:
        pytest.skip("needs two cores that a process may choose from")
    cores = os.sched_getaffinity(0)
    with async_cores.on_one_core():
        assert os.sched_getaffinity(0) == {before[0]}
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == cores
    assert torch.get_num_threads() == num_threads

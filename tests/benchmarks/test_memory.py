"""The benchmark of memory control on graphs of some hundred nodes: what it counts, never how long it takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from benchmarks import (
    memory,
    memory_accuracy,
    memory_budget,
    memory_exact,
    memory_published,
    memory_runs,
    memory_scale,
    memory_share,
    memory_speed,
    rounds,
)
from benchmarks.memory_accuracy import HalfCut
from benchmarks.memory_runs import MemoryGraph, Step, StepWatch, make_datamodule, make_model, watched_fit
from benchmarks.memory_scale import QUICK, MemoryScale
from lightning_gnnopt.memory import MemoryBudgetError
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology

TINY = dataclasses.replace(
    QUICK,
    graphs=("cora", "amazon-photo"),
    stand_in_nodes=300,
    models=("sage",),
    hidden=8,
    fanouts=(4, 3),
    batch_size=32,
    parts=8,
    exact_batches=3,
    budget_graphs=("amazon-photo",),
    budget_models=("sage",),
    budget_shares=(0.7,),
    budget_batches=42,
    prune_edges=300,
    prune_rounds=2,
    share_rounds=1,
    share_epochs=1,
    share_nodes=400,
    accuracy_graphs=("amazon-photo",),
    accuracy_seeds=1,
    accuracy_steps=3,
    published_draws=2,
)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No published graph is there, so that synthetic ones stand in; and garbage of other tests is left alone."""
    monkeypatch.setenv("GNNOPT_DATA", str(tmp_path))
    for module in (rounds, memory_runs):
        monkeypatch.setattr(module, "gc", SimpleNamespace(collect=lambda: 0))
    memory_runs.load_graph.cache_clear()
    memory_runs._parts.cache_clear()
    yield
    memory_runs.load_graph.cache_clear()
    memory_runs._parts.cache_clear()


def tiny_graph() -> MemoryGraph:
    return memory_runs.load_graph("cora", TINY.stand_in_nodes)


def step(bytes_: float, predicted: float | None = None, *, stage: str = "train", touched: bool = False) -> Step:
    return Step(stage=stage, bytes=bytes_, predicted=predicted, touched=touched, seeds_bytes=0.0)


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "QUICK", TINY)
    path = tmp_path / "report.json"
    assert memory.main(["--quick", "--json", str(path)]) == 0
    assert "predicted to the byte" in capsys.readouterr().out

    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.memory --quick"
    figures: dict[str, dict[str, Any]] = {figure["name"]: figure for figure in found["figures"]}
    assert figures["share of unseen batches predicted to the byte"]["value"] == 1.0
    assert figures["largest error of all predictions"]["value"] == 0.0
    assert figures["share of batches of changed models predicted to the byte"]["value"] == 1.0
    assert figures["steps over the budget"]["value"] == 0
    assert figures["steps under budgets"]["value"] >= TINY.budget_batches
    assert 0 < figures["budget used by touched batches, mean"]["value"] <= 1
    assert figures["split against whole, 64-true: largest difference of a loss"]["value"] <= 1e-6
    assert figures["split against whole, 64-true: of the final parameters"]["value"] <= 1e-6

    rows = found["rows"]
    assert {row["part"] for row in rows} >= {"exact", "relearn", "budget", "speed", "share", "accuracy", "split"}
    stood_in = [row for row in rows if row["part"] in ("exact", "budget", "accuracy", "split")]
    assert all("a dcsbm graph stands in" in row["note"] for row in stood_in)
    assert not any(str(tmp_path) in str(value) for row in rows for value in row.values())
    policies = [(row["case"].split()[-1], row["policy"]) for row in rows if row["part"] == "budget"]
    assert policies == [
        *(("neighbor", policy) for policy in ("resample prune", "prune", "split", "shrink")),
        *(("cluster", policy) for policy in ("resample prune", "prune", "split")),
    ]


def test_each_promise_of_the_issue_has_its_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (memory_exact.REACH, memory_exact.LARGEST_ERROR, memory_exact.LARGEST_SHORTAGE) == (0.99, 0.005, 0.001)
    assert memory_exact.RELEARN_S == 1.0
    assert memory_budget.USED == 0.95
    assert (memory_speed.PREDICTION_S, memory_speed.PRUNING_S) == (5e-5, {"degree": 2e-3, "pagerank": 15e-3})
    assert (memory_share.IN_WORKERS, memory_share.INLINE) == (0.01, 0.03)
    assert memory_published.REACH == 0.0035
    full = memory_scale.FULL
    assert (len(full.models), len(full.graphs), full.budget_batches) == (5, 4, 10_000)
    assert full.budget_shares == (0.5, 0.7, 0.9)
    assert full.prune_edges == 100_000


def test_watch_counts_what_a_known_step_takes() -> None:
    """A step that holds 3 tensors of known size, of which two are alive at the peak, on top of model and batch."""

    class Known(memory_runs.L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

        def training_step(self, batch: Data, batch_idx: int) -> None:
            first = torch.empty(100_000)
            del first
            second, third = torch.empty(70_000), torch.empty(60_000)
            del second, third

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batch = next(iter_batches(make_datamodule(tiny_graph(), "neighbor", TINY)))
    values = [value for value in batch.to_dict().values() if isinstance(value, torch.Tensor)]
    control = memory_runs.MemoryControl(0.9)
    watch, module = StepWatch(control), Known()
    watch._start(SimpleNamespace(optimizers=[], training=True), module, batch)  # type: ignore[arg-type]
    module.training_step(batch, 0)
    watch._end("train", batch)
    (found,) = watch.steps
    assert found.bytes == 5 * 4 + sum(value.nbytes for value in values) + 4 * 130_000
    assert (found.predicted, found.touched, found.seeds_bytes) == (None, False, 0.0)


def iter_batches(datamodule: Any) -> Iterator[Data]:
    datamodule.setup("fit")
    return iter(datamodule.train_dataloader())


def test_a_storage_counts_once() -> None:
    whole = torch.zeros(10)
    assert memory_runs.sum_bytes([whole, whole.view(2, 5), "no tensor", torch.zeros(0), torch.zeros(3)]) == 40 + 12


def test_errors_are_told_apart_by_side() -> None:
    steps = [step(100.0, 100.4), step(200.0, 199.0), step(400.0, 408.0, stage="val"), step(7.0)]
    assert memory_exact.exact_share(steps) == pytest.approx(1 / 3)  # 100.4 is 100 bytes
    assert memory_exact.exact_share([step(7.0)]) is None
    values = {figure.name: (figure.value, figure.met) for figure in memory_exact._figures(steps, "of these")}
    assert values == {
        "share of these predicted to the byte": (pytest.approx(1 / 3), False),
        "largest error of all predictions": (pytest.approx(0.02), False),
        "largest prediction below what was measured": (pytest.approx(0.005), False),
        "batches that were predicted": (3.0, None),
    }


def test_fanouts_are_one_per_layer() -> None:
    assert [memory_exact._fanouts(TINY, depth) for depth in (1, 2, 3, 4)] == [[4], [4, 3], [4, 3, 3], [4, 3, 3, 3]]


def test_steps_over_a_budget_are_counted_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control that lets all batches through is found out."""
    settings = {"budget_batches": 14, "budget_shares": (0.7,)}

    def run(setting: Any, scale: MemoryScale, num_steps: int, *, on_exceed: Any, budget: int | None = None) -> Any:
        if on_exceed == ("prune",):
            raise MemoryBudgetError("Nothing fits. HINT: none.")
        steps = [step(100.0), step(80.0, touched=True), step(60.0, touched=True)]
        return SimpleNamespace(steps=steps, control=SimpleNamespace(tally=memory_runs.MemoryControl(0.9).tally))

    monkeypatch.setattr(memory_budget, "_run", run)
    figures, rows = memory_budget.measure_budget(dataclasses.replace(TINY, **settings))
    values = {figure.name: figure.value for figure in figures}
    assert values["steps over the budget"] == 2 * 5  # 100 and 80 are over 70, of each of the runs
    assert values["steps under budgets"] == 3 * 5
    assert values["runs that were refused as nothing fits"] == 2
    assert values["budget used by touched batches, mean"] == pytest.approx((80 / 70 + 60 / 70) / 2)
    assert figures[0].met is False
    assert [row["note"].rpartition("; ")[2] for row in rows if row["policy"] == "prune"] == [
        "refused: Nothing fits."
    ] * 2


def test_budget_is_raised_to_what_seeds_take(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int] = []

    def run(setting: Any, scale: MemoryScale, num_steps: int, *, on_exceed: Any, budget: int | None = None) -> Any:
        budgets.extend([] if budget is None else [budget])
        steps = [dataclasses.replace(step(1000.0), seeds_bytes=800.0), step(500.0)]
        return SimpleNamespace(steps=steps, control=SimpleNamespace(tally=memory_runs.MemoryControl(0.9).tally))

    monkeypatch.setattr(memory_budget, "_run", run)
    _, rows = memory_budget.measure_budget(dataclasses.replace(TINY, budget_shares=(0.5, 0.9)))
    assert sorted(set(budgets)) == [816, 900]
    raised = {row["share"]: "the seeds alone take 0.80 of the largest peak" in row["note"] for row in rows}
    assert raised == {0.5: True, 0.9: False}


def test_half_of_the_edges_are_cut_and_seeds_stay() -> None:
    graph = tiny_graph().data
    topology = Topology.from_edge_index(graph.edge_index, graph.num_nodes)
    seeds = np.arange(20)
    batch = NeighborSampler(topology, [5, 4]).sample(seeds, SampleKey(seed=0))
    for score, by_destination in memory_accuracy.CUTS:
        cut = HalfCut(score, by_destination=by_destination)(batch, lambda attempt: batch)
        assert (cut.n_id[:20] == seeds).all()
        # What no seed reaches any more goes as well.
        assert cut.num_edges <= batch.num_edges // 2
        if by_destination:  # a node keeps its best edges until its share is less than one
            before, after = (np.bincount(part.col, minlength=20)[:20] for part in (batch, cut))
            assert (after[before >= 3] > 0).all()


def test_speed_is_of_a_batch_of_the_edges_wanted() -> None:
    datamodule = memory_share.make_block_model_datamodule(TINY, num_workers=0)
    batch = memory_speed._batch_of(datamodule, 900)
    one_less = datamodule.sampler.sample(
        np.flatnonzero(datamodule.data.train_mask.numpy())[: batch.batch_size - 1], SampleKey(seed=1)
    )
    assert one_less.num_edges < 900 <= batch.num_edges


def test_share_of_control_is_what_time_without_does_not_explain() -> None:
    assert memory_share._shares([2.0, 1.0], [1.0, 1.0]) == [0.5, 0.0]


def test_published_rows_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_published, "FOLDER", tmp_path)
    assert memory_published.measure_published(TINY) == (
        [],
        [{"part": "published", "side": "-", "note": "not measured: its files are not in ../shared/gpu_memory"}],
    )


def test_published_rows_on_a_line_are_predicted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    nodes, edges = generator.integers(100, 1000, 400), generator.integers(1000, 9000, 400)
    peaks = 5000 + 20 * nodes + 3 * edges
    lines = [f"{n},{e},{p}" for n, e, p in zip(nodes, edges, peaks, strict=True)]
    (tmp_path / "gcn_random_graphs.csv").write_text("\n".join(["nodes,edges,peak_memory_bytes", *lines]))
    configs = ["cluster_0.01"] * 200 + ["graphsage_0.01"] * 200
    lines = [f"{config},{line}" for config, line in zip(configs, lines, strict=True)]
    header = "config,nodes,edges,peak_memory_bytes"
    (tmp_path / "gat_pubmed_training_batches.csv").write_text("\n".join([header, *lines]))
    monkeypatch.setattr(memory_published, "FOLDER", tmp_path)
    figures, rows = memory_published.measure_published(TINY)
    errors = {figure.name: figure.value for figure in figures if "mean error" in figure.name}
    assert list(errors) == [
        f"mean error on random graphs, GCN, {kind} of {number} rows"
        for kind in ("linear", "max_affine")
        for number in (10, 20)
    ]
    assert max(errors.values()) < 1e-7
    assert max(row["mape"] for row in rows if "mape" in row) < 1e-7


def test_model_and_datamodule_fit_each_other() -> None:
    for sampling, has_hops in (("neighbor", True), ("cluster", False)):
        datamodule = make_datamodule(tiny_graph(), sampling, TINY)
        batch = next(iter_batches(datamodule))
        assert ("num_sampled_nodes" in batch) is has_hops
        run = watched_fit(
            make_model("gcn", datamodule, hidden_channels=8),
            datamodule,
            trainer_limit_train_batches=3,
            trainer_limit_val_batches=2,
        )
        assert [found.stage for found in run.steps] == ["train"] * 3 + ["val"] * 2
        # The first training step makes the optimizer's state, and is not predicted.
        assert [found.predicted is None for found in run.steps] == [True, False, False, False, False]
        assert all(found.predicted == found.bytes for found in run.steps[1:])

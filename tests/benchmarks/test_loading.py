"""The benchmarks of loading on graphs of a thousand nodes: what they count, never how long it takes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.typing
from torch_geometric.data import Data

from benchmarks import cache_rates, loading, loading_sides, overlap, preparation, pure_compute, rounds, training
from benchmarks.backends import SimulatedBackend
from benchmarks.loading_scale import FULL, QUICK
from benchmarks.loading_sides import LoadingGraph, Preparation
from benchmarks.overlap import Pass, Shares
from benchmarks.timed_source import TimedSource, wait_until
from benchmarks.training import EpochClock, Epochs
from lightning_gnnopt.loading import PrefetchLoader, SeedOrder, SimulatedDevice
from lightning_gnnopt.sampling import SampleKey

TINY = dataclasses.replace(
    QUICK,
    graph=0.0005,
    fanouts=(4, 3),
    batch_size=64,
    workers=(0, 1),
    rounds=1,
    batches=2,
    shares=(0.2, 0.4),
    cycle_s=0.001,
    cycles=3,
    epoch_batches=3,
    train_fanouts=(4, 3),
    train_steps=2,
    cache_nodes=2_000,
    cache_epochs=2,
)
NOT_HERE = "ModuleNotFoundError: No module named 'pyg_lib'"
needs_torch_sparse = pytest.mark.skipif(
    "torch-sparse" in loading_sides.missing_peers(), reason="PyG samples with torch-sparse, which is not installed"
)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each run of a side garbage is collected: of all tests' objects, that takes longer than the run."""
    monkeypatch.setattr(rounds, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(scope="module")
def graph() -> LoadingGraph:
    return loading_sides.products_like(TINY.graph)


@pytest.fixture
def backend() -> Iterator[SimulatedBackend]:
    backend = SimulatedBackend(bytes_per_s=1e6)
    yield backend
    backend.close()


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"torch-sparse": "not here", "pyg-lib": NOT_HERE}
    for module in (preparation, training):
        monkeypatch.setattr(module, "missing_peers", lambda: missing)


def in_turn(runs: dict[str, list[Any]]) -> Any:
    """Stand for `alternate`: give these results for the sides' names."""

    def alternate(sides: dict[str, Any], **options: Any) -> dict[str, list[Any]]:
        return {name: runs[name] for name in sides}

    return alternate


@pytest.mark.parametrize("num_batches", [1, 2, 20])
@pytest.mark.parametrize("stages", [(0.1, 0.1, 0.8), (0.5, 0.3, 0.2), (0.2, 0.7, 0.1), (1 / 3, 1 / 3, 1 / 3)])
def test_the_ideal_time_is_that_of_a_pipeline_of_three_stages(
    stages: tuple[float, float, float], num_batches: int
) -> None:
    ends = [0.0, 0.0, 0.0]  # of each stage's last batch
    for _ in range(num_batches):
        arrived = 0.0
        for number, seconds in enumerate(stages):
            arrived = ends[number] = max(arrived, ends[number]) + seconds
    ratio = overlap.ideal_ratio(Shares(sample=stages[0], transfer=stages[1]), num_batches)
    assert ratio == pytest.approx(ends[-1] / num_batches)


def test_the_grid_leaves_something_to_compute() -> None:
    points = overlap.grid(FULL.shares)
    assert len(points) == 36
    assert len({(point.sample, point.transfer) for point in points}) == 36
    assert min(point.compute for point in points) == pytest.approx(0.1)


def test_the_effect_is_the_speed_up_over_the_ideal_one(
    backend: SimulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_pass(point: Shares, backend: Any, *, cycle_s: float, num_batches: int, num_workers: int) -> Pass:
        base_s = cycle_s * num_batches
        late = 1.25 if point.sample == 0.4 else 1.0
        return Pass(
            seconds=late * base_s * overlap.ideal_ratio(point, num_batches) if num_workers else base_s, shares=point
        )

    monkeypatch.setattr(overlap, "run_pass", run_pass)
    figures, rows = overlap.measure_effect(TINY, backend=backend)
    assert [row["effect"] for row in rows] == pytest.approx([1.0, 1.0, 0.8, 0.8])
    # Three batches, and computing takes 0.6 of each.
    assert rows[0]["ideal"] == pytest.approx(1 / (1 / 3 + 2 / 3 * 0.6))
    assert [figure.value for figure in figures] == pytest.approx([0.8, 0.9, 0.8])
    assert [(figure.reach, figure.sense) for figure in figures] == [(0.97, ">="), (None, None), (None, None)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_copies_each_batch_once_and_computes_on_it(backend: SimulatedBackend, num_workers: int) -> None:
    point, computed = Shares(sample=0.2, transfer=0.3), []
    kernel = backend.kernel
    backend.kernel = lambda seconds: computed.append(seconds) or kernel(seconds)  # type: ignore[method-assign, func-returns-value]
    one = overlap.run_pass(point, backend, cycle_s=0.001, num_batches=4, num_workers=num_workers)
    assert one.shares == point
    assert one.seconds > 0
    assert backend.streams.copied_bytes == [300] * (4 + 1)  # one to warm up; 0.3 ms at 1 MB/s
    assert computed == pytest.approx([0.0005])


def test_shares_are_measured_where_a_device_is_not_exact(backend: SimulatedBackend) -> None:
    backend.exact = False  # type: ignore[misc]
    point = Shares(sample=0.2, transfer=0.3)
    shares = overlap.run_pass(point, backend, cycle_s=0.002, num_batches=3, num_workers=0).shares
    assert shares != point
    assert 0 < shares.sample < 1
    assert 0 < shares.transfer < 1
    assert 0 < shares.compute < 1


def test_timed_batches_are_as_large_as_asked_for_and_take_no_less_than_their_time() -> None:
    end = time.perf_counter() + 0.001
    wait_until(end)
    assert time.perf_counter() >= end
    source = TimedSource(2, sample_s=0.0, nbytes=77)
    source.sample(np.arange(1), SampleKey(0))
    assert source.plan(None, np.arange(1)).nbytes == 77
    batches = list(PrefetchLoader(source, SeedOrder(2, 1), num_workers=1))
    assert [(batch.dtype, tuple(batch.shape)) for batch in batches] == [(torch.uint8, (77,))] * 2


def test_the_first_batches_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(loading_sides, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    closed, arrived = [], []

    def batches() -> Iterator[Any]:
        try:
            for number in range(10):
                yield SimpleNamespace(num_nodes=10**number, edge_index=torch.empty(2, number))
        finally:
            closed.append(True)

    def arrive(batch: Any) -> Any:
        arrived.append(batch.num_nodes)
        return batch

    run = loading_sides.prepare(batches(), batches=3, skip=2, arrive=arrive)
    assert (run.batches, run.nodes, run.edges, run.batch_s) == (3, 11_100, 9, 2.0)
    assert (len(arrived), closed) == (5, [True])


def test_the_best_of_each_library_are_compared(graph: LoadingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(*seconds: float) -> list[Preparation]:
        return [Preparation(batches=2, nodes=20, edges=200, seconds=2 * s) for s in seconds]

    found = {
        "ours, 0 workers": runs(2.0, 2.0, 2.0),
        "ours, 1 workers": runs(1.0, 1.0, 4.0),
        "PyG with torch-sparse, 0 workers": runs(30.0, 20.0, 100.0),
        "PyG with torch-sparse, 1 workers": runs(40.0, 40.0, 1.0),
    }
    monkeypatch.setattr(preparation, "alternate", in_turn(found))
    monkeypatch.setattr(preparation, "missing_peers", lambda: {"pyg-lib": NOT_HERE})
    figures, rows = preparation.measure_preparation(graph, TINY)
    assert [(figure.value, figure.runs) for figure in figures] == [(1.0, (1.0, 1.0, 4.0)), (25.0, (30.0, 20.0, 25.0))]
    assert [(figure.reach, figure.sense) for figure in figures] == [(None, None), (15.0, ">=")]
    best = [row["side"] for row in rows if row["note"] == "best of its library"]
    assert sorted(best) == ["PyG with torch-sparse, 0 workers", "ours, 1 workers"]
    assert [(row["nodes_per_batch"], row["edges_per_batch"]) for row in rows[:-1]] == [(10, 100)] * 4
    assert rows[-1]["note"] == f"not measured: {NOT_HERE}"
    with pytest.raises(ValueError, match=r"`prefix` must start the name of a side, but got 'DGL'.* HINT: "):
        loading_sides.best_side({"ours": [1.0]}, "DGL")


def test_a_peer_that_is_not_there_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert loading_sides.missing_peers()["pyg-lib"] == NOT_HERE


def test_pyg_samples_with_the_peer_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    typing: Any = torch_geometric.typing
    monkeypatch.setattr(typing, "WITH_PYG_LIB", True)
    with loading_sides.pyg_samples_with("torch-sparse"):
        assert not typing.WITH_PYG_LIB
    assert typing.WITH_PYG_LIB
    with loading_sides.pyg_samples_with("pyg-lib"):
        assert typing.WITH_PYG_LIB
    monkeypatch.setattr(typing, "WITH_PYG_LIB", False)
    with loading_sides.pyg_samples_with("pyg-lib"):
        assert not typing.WITH_PYG_LIB  # PyG does not have it


def check_batches(graph: LoadingGraph, batches: list[Any]) -> None:
    assert [batch.batch_size for batch in batches] == [64] * 12  # 612 training nodes, some of them twice
    train = set(graph.train_nodes.tolist())
    seeds = torch.cat([batch.n_id[:64] for batch in batches])
    assert set(seeds.tolist()) == train
    for batch in batches:
        assert torch.equal(batch.x, graph.data.x[batch.n_id])
        assert torch.equal(batch.y, graph.data.y[batch.n_id])


def test_our_loader_has_the_batches_that_were_asked_for(graph: LoadingGraph) -> None:
    check_batches(graph, list(graph.loader((4, 3), batch_size=64, num_workers=0, num_batches=12)))
    assert len(graph.loader((4, 3), batch_size=64, num_workers=0)) == 612 // 64


@needs_torch_sparse
def test_theirs_has_them_too(graph: LoadingGraph) -> None:
    with loading_sides.pyg_samples_with("torch-sparse"):
        loader = graph.pyg_loader((4, 3), batch_size=64, num_workers=0, num_batches=12)
        check_batches(graph, list(loader))


def test_packed_bytes_are_those_of_the_copies(graph: LoadingGraph, backend: SimulatedBackend) -> None:
    (copies, packed), (row,) = preparation.measure_packing(graph, TINY, backend=backend)
    loader = graph.loader(TINY.fanouts, batch_size=TINY.batch_size, num_workers=0)
    batches = [batch for batch, _ in zip(loader, range(TINY.batches), strict=False)]
    tensors = [value for batch in batches for _, value in batch if isinstance(value, torch.Tensor)]
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert copies.value == 1
    assert row["batch_mib"] == nbytes / TINY.batches / 2**20
    moved = backend.streams.copied_bytes[: TINY.batches]
    assert packed.value == sum(moved) / nbytes < 1


def test_slicing_is_measured_on_sampled_rows(graph: LoadingGraph) -> None:
    (over, rate), rows = preparation.measure_gather(graph, TINY)
    assert [row["side"] for row in rows] == ["ours", "torch.index_select"]
    ours, theirs = rows
    nbytes = 400 * int(str(ours["nodes_per_batch"]))
    assert float(str(ours["gb_per_s"])) == pytest.approx(nbytes / float(str(ours["batch_ms"])) / 1e6, rel=0.01)
    assert over.value > 0
    assert len(rate.runs) == 3
    assert theirs["nodes_per_batch"] == ours["nodes_per_batch"]


def test_an_epoch_is_compared_with_its_computing(
    graph: LoadingGraph, backend: SimulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    kernel = backend.kernel
    monkeypatch.setattr(backend, "kernel", lambda seconds: asked.append(seconds) or kernel(0.001))
    monkeypatch.setattr(pure_compute, "preparation_s", lambda *_, **__: 0.004)
    monkeypatch.setattr(pure_compute, "alternate", in_turn({"computing alone": [2.0], "ours, 1 workers": [2.5]}))
    figures, rows = pure_compute.measure_epoch(graph, TINY, backend=backend)
    assert asked == pytest.approx([0.006])
    (figure,) = figures
    assert (figure.value, figure.reach, figure.sense) == (1.25, 1.03, "<=")
    assert [row["batch_ms"] for row in rows] == pytest.approx([2000 / 3, 2500 / 3])


def test_epochs_are_timed_with_their_waits_and_the_first_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))
    trainer: Any = None
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    clock = EpochClock()
    for wait_s in (5.0, 1.0, 2.0):
        clock.on_train_epoch_start(trainer, module)
        for step in range(2):
            now += wait_s
            clock.on_train_batch_start(trainer, module, None, step)
            now += 3.0
            clock.on_train_batch_end(trainer, module, None, None, step)
        now += 0.5
        clock.on_train_epoch_end(trainer, module)
    counted = clock.counted()
    assert (counted.steps, counted.epoch_s) == (2, (8.5 + 10.5) / 2)
    assert counted.wait_share == pytest.approx(6.0 / 19.0)


def test_the_best_epochs_of_each_library_are_compared(graph: LoadingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(seconds: float, wait_share: float) -> list[Epochs]:
        return [Epochs(steps=2, epoch_s=seconds, wait_share=wait_share)]

    found = {
        "ours, 0 workers": runs(2.0, 0.3),
        "ours, 1 workers": runs(1.0, 0.1),
        "PyG with torch-sparse, 0 workers": runs(4.0, 0.7),
        "PyG with torch-sparse, 1 workers": runs(5.0, 0.6),
    }
    monkeypatch.setattr(training, "alternate", in_turn(found))
    monkeypatch.setattr(training, "missing_peers", lambda: {"pyg-lib": NOT_HERE})
    figures, rows = training.measure_training(graph, TINY)
    assert [(figure.value, figure.reach) for figure in figures] == [(0.1, None), (0.25, 0.75), (0.7, None)]
    assert rows[0]["batch_ms"] == 1000.0
    assert rows[-1] == {"part": "training", "side": "PyG with pyg-lib", "note": f"not measured: {NOT_HERE}"}


@needs_torch_sparse
def test_both_libraries_prepare_batches_of_a_size(graph: LoadingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "missing_peers", lambda: {"pyg-lib": NOT_HERE})
    _, rows = preparation.measure_preparation(graph, dataclasses.replace(TINY, workers=(0,), batches=6))
    ours, theirs, _ = rows
    assert (ours["side"], theirs["side"]) == ("ours, 0 workers", "PyG with torch-sparse, 0 workers")
    for counted in ("nodes_per_batch", "edges_per_batch"):
        # Sampled from the same nodes by the same rule: the means of six batches are within some percent.
        assert theirs[counted] == pytest.approx(ours[counted], rel=0.1)


@needs_torch_sparse
def test_both_libraries_train_the_same_steps(graph: LoadingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "missing_peers", lambda: {"pyg-lib": NOT_HERE})
    _, rows = training.measure_training(graph, dataclasses.replace(TINY, workers=(0,)))
    assert [row["side"] for row in rows[:2]] == ["ours, 0 workers", "PyG with torch-sparse, 0 workers"]
    assert {row["note"] for row in rows[:2]} == {"2 steps, fan-outs 4/3, on the CPU"}


def test_hits_are_those_of_the_hottest_rows(backend: SimulatedBackend) -> None:
    rng = np.random.default_rng(0)
    edges = torch.from_numpy(np.stack([rng.zipf(1.5, 6000) % 600, rng.integers(0, 600, 6000)]))
    data = Data(x=torch.randn(600, 7), y=torch.zeros(600, dtype=torch.long), edge_index=edges)
    data.train_mask = torch.arange(600) < 300
    run = cache_rates.count_hits(data, TINY, "degree", streams=backend.streams, batch_size=50)

    reads = np.zeros(600, np.int64)
    loader = cache_rates._datamodule(data, TINY, backend.streams, 50).train_dataloader()
    for _ in range(TINY.cache_epochs):
        for batch in loader:
            backend.synchronize()
            reads += np.bincount(batch.n_id.numpy(), minlength=600)
    degree = np.bincount(edges[0].numpy(), minlength=600)
    hot = np.argsort(-degree, kind="stable")[:60]
    assert run.hit_rate == pytest.approx(reads[hot].sum() / reads.sum())
    assert run.best_rate == pytest.approx(np.sort(reads)[-60:].sum() / reads.sum())
    assert run.of_best == pytest.approx(run.hit_rate / run.best_rate)


def test_a_graph_that_is_not_there_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GNNOPT_DATA", str(tmp_path))
    with SimulatedDevice() as device:
        figures, rows = cache_rates.measure_caches(TINY, streams=device)
    assert len(figures) == 1
    assert [row["side"] for row in rows] == ["no cache", "degree", "presample", "vip", "-"]
    without, *cached = (float(str(row["moved_mib"])) for row in rows[:-1])
    assert max(cached) < without
    assert str(rows[-1]["note"]).startswith("not measured: ")
    assert str(tmp_path) not in str(rows[-1]["note"])


@pytest.mark.usefixtures("no_peers")
def test_quick_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loading, "QUICK", TINY)
    monkeypatch.setenv("GNNOPT_DATA", str(tmp_path))
    path = tmp_path / "report.json"
    assert loading.main(["--quick", "--json", str(path)]) == 0
    assert "effect of overlap" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.loading --quick"
    reaches = {figure["name"]: figure["reach"] for figure in found["figures"] if figure["reach"] is not None}
    assert reaches == {
        "effect of overlap, the least of the grid": 0.97,
        "epoch over computing alone, 1 workers": 1.03,
        "hit rate over the best static cache's, rmat, better of presample and vip": 0.95,
        "copies to the device per batch": 1.0,
    }
    parts = {row["part"] for row in found["rows"]}
    assert parts == {"preparation", "effect of overlap", "epoch", "training", "cache", "transfer", "slicing"}
    assert sum(row["part"] == "effect of overlap" for row in found["rows"]) == 4

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import SAGEConv
from typing_extensions import override

from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.analysis.records import SweepRecord
from lightning_gnnopt.analysis.sweeps import sweep_points
from lightning_gnnopt.analysis.sweeps.sweep import graph_sweep, sampling_sweep
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.memory.features import batch_bytes
from lightning_gnnopt.memory.meter import PeakMeter
from lightning_gnnopt.sampling import ClusterSampler

FANOUTS = [4, 3]


class Plain(L.LightningModule):
    """A LightningModule as a user writes it; it keeps what it was trained on."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(64, width), SAGEConv(width, 10)
        self.form = "optimizer"

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = slice(batch["batch_size"]) if "batch_size" in batch else batch.train_mask
        loss = nn.functional.cross_entropy(self(batch.x, batch.edge_index)[rows], batch.y[rows])
        self.log("loss", loss)
        return loss

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {
            "optimizer": optimizer,
            "list": [optimizer],
            "lists": ([optimizer], [scheduler]),
            "dict": {"optimizer": optimizer, "lr_scheduler": scheduler},
            "two": [optimizer, torch.optim.SGD(self.parameters())],
            "none": None,
        }[self.form]


SEEN: list[Any] = []


class Seeing(Plain):
    """Keeps the batches; copies of it share the list."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        SEEN.append(batch)
        return super().training_step(batch, batch_idx)


class Full(Plain):
    """Runs out of memory from a number of nodes on."""

    def __init__(self, error: Exception, *, nodes: int) -> None:
        super().__init__()
        self.error, self.nodes = error, nodes

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch.num_nodes >= self.nodes:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_dataset("digits-knn")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def batches_of(data: Data, batch_size: int, count: int, **options: Any) -> list[Data]:
    """The same batches, through worker threads and over epochs."""
    datamodule = GraphDataModule(
        data, num_neighbors=FANOUTS, batch_size=batch_size, seed=5, drop_last=True, num_workers=2, **options
    )
    loader = datamodule.train_dataloader()
    found: list[Data] = []
    while len(found) < count:
        found += list(loader)
    return found[:count]


def hand_peaks(model: Plain, batches: list[Data]) -> list[int]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    peaks = []
    for place, batch in enumerate([batches[0], batches[0], *batches]):
        with PeakMeter("cpu") as meter:
            rows = slice(batch["batch_size"]) if "batch_size" in batch else batch.train_mask
            loss = nn.functional.cross_entropy(model(batch.x, batch.edge_index)[rows], batch.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del loss
        if place >= 2:
            peaks.append(meter.peak.allocated_bytes)
    return peaks


def sweep(data: Any, model: Any, **options: Any) -> list[SweepRecord]:
    common: dict[str, Any] = {"batches": 5, "seed": 5, "num_neighbors": FANOUTS}
    if isinstance(data, GraphDataModule):
        del common["num_neighbors"]
    return sampling_sweep(data, model, **(common | options))


def test_counts_bytes_and_peaks_are_those_of_the_same_batches(data: Data) -> None:
    model = Plain()
    points = sweep(data, model, batch_sizes=[64, 256])
    assert [(point.sampler, point.value, point.batches) for point in points] == [
        ("NeighborSampler", 64, 5),
        ("NeighborSampler", 256, 5),
        ("full", 898, 3),
    ]
    for point in points[:2]:  # 256: an epoch has three batches, so this goes into the second
        batches = batches_of(data, int(point.value), 5)
        assert point.nodes == np.mean([batch.num_nodes for batch in batches])
        assert point.edges == np.mean([batch.num_edges for batch in batches])
        assert point.loaded_bytes == np.mean([batch_bytes(batch) for batch in batches])
        assert point.peak_bytes == max(hand_peaks(model, batches))
    for point in points:
        assert (point.sweep, point.error) == ("batch_size", "")
        assert (point.graph_nodes, point.graph_edges) == (1797, 24678)
        assert point.transfer_s == 0.0
        assert (point.sample_s > 0, point.slice_s > 0) == (point.sampler != "full",) * 2


def test_the_full_batch_is_the_whole_graph(data: Data) -> None:
    (point,) = sweep(data, Seeing(), batch_sizes=[])
    assert (point.nodes, point.edges, point.value) == (1797, 24678, 898)
    assert (point.sample_s, point.slice_s, point.transfer_s) == (0, 0, 0)
    assert point.loaded_bytes == batch_bytes(data)
    assert [point.peak_bytes] == hand_peaks(Plain(), [data])
    for batch in SEEN:
        assert torch.equal(batch.x, data.x)
        assert torch.equal(batch.edge_index, data.edge_index)
        assert torch.equal(batch.train_mask, data.train_mask)


@pytest.mark.parametrize("batches", [1, 2])
def test_fewer_full_steps_than_usual_if_asked_for(data: Data, batches: int) -> None:
    (point,) = sweep(data, Plain(), batch_sizes=[], batches=batches)
    assert point.batches == batches


def test_sparse_features_become_dense_in_the_full_batch(data: Data) -> None:
    sparse = copy.copy(data)
    sparse.x = data.x.to_sparse_csr()
    (point,) = sweep(sparse, Seeing(), batch_sizes=[])
    assert all(torch.equal(batch.x, data.x) for batch in SEEN)
    assert sparse.x.layout == torch.sparse_csr
    assert point.error == ""


def test_sizes_above_the_training_nodes_are_cut_and_run_once(data: Data) -> None:
    points = sweep(data, Plain(), batch_sizes=[898, 2000, 32, 4096, 32], full_batch=False, batches=2)
    assert [point.value for point in points] == [898, 32]


def test_the_median_step_is_told(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = iter([0.0, 1.0, 10.0, 12.0, 20.0, 27.0])  # 1, 2 and 7 seconds
    monkeypatch.setattr(sweep_points, "time", SimpleNamespace(perf_counter=lambda: next(stamps)))
    (point,) = sweep(data, Plain(), batch_sizes=[64], full_batch=False, batches=3)
    assert point.step_s == 2.0
    assert next(stamps, None) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("std::bad_alloc\nat line 3"), "out of memory: std::bad_alloc"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: CUDA out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), None),
    ],
)
def test_a_point_without_memory_is_told_and_the_others_go_on(data: Data, error: Exception, told: str | None) -> None:
    points = sweep(data, Full(error, nodes=700), batch_sizes=[512, 16], batches=2)
    assert [bool(point.error) for point in points] == [True, False, True]
    assert [point.value for point in points] == [512, 16, 898]
    for point in (points[0], points[2]):
        assert point.error == (told or f"out of memory: {error}")
        assert (point.peak_bytes, point.batches, point.step_s, point.graph_edges) == (None, 0, 0.0, 24678)
    assert points[1].peak_bytes


@pytest.mark.parametrize("error", [ValueError("mine"), RuntimeError("shape mismatch")])
def test_other_errors_end_the_sweep_with_what_there_is(data: Data, error: Exception) -> None:
    points: list[SweepRecord] = []
    with pytest.raises(type(error), match=str(error)):
        sweep(data, Full(error, nodes=700), batch_sizes=[16, 512], batches=2, on_point=points.append)
    assert [point.value for point in points] == [16]


def test_a_hopeless_full_batch_is_not_tried(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_points, "read_budget", lambda budget, device: 2**20)
    small, full = sweep(data, Seeing(), batch_sizes=[64], batches=2)
    assert small.peak_bytes is not None
    grows = max(1797 / small.nodes, 24678 / small.edges)
    needed = (small.peak_bytes + small.loaded_bytes) * grows / 2**20
    assert full.error == f"out of memory: not run, as about {needed:.1f} MiB would be needed and 1.0 MiB are free"
    assert {batch.get("batch_size") for batch in SEEN} == {64}


def test_a_full_batch_alone_is_tried_in_any_case(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_points, "read_budget", lambda budget, device: 1)
    (full,) = sweep(data, Plain(), batch_sizes=[])
    assert full.error == ""


def test_model_and_random_state_are_left_as_they_were(data: Data) -> None:
    model = Plain().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    state = torch.get_rng_state()
    sweep(data, model, batch_sizes=[64], batches=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert set(vars(model)) == attributes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fitted_model_forgets_its_trainer_in_the_copy_only(data: Data) -> None:
    datamodule = GraphDataModule(data, num_neighbors=FANOUTS, batch_size=256)
    model = NodeClassifier("sage", in_channels=64, out_channels=10, hidden_channels=8)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, datamodule)
    points = sweep(datamodule, model, batch_sizes=[64], batches=2)
    assert [point.error for point in points] == ["", ""]
    assert model.trainer is trainer


def test_a_datamodule_lends_its_sampler_and_transforms_and_stays_as_it_was(data: Data) -> None:
    class Counting:
        calls = 0

        def __call__(self, subgraph: Any, context: Any) -> Any:
            self.calls += 1
            return subgraph

    counting = Counting()
    datamodule = GraphDataModule(
        data, num_neighbors=[2, 2], sampler="labor", batch_size=256, seed=1, transforms=[counting]
    )
    before = [batch.n_id for batch in GraphDataModule(
        data, num_neighbors=[2, 2], sampler="labor", batch_size=256, seed=1
    ).train_dataloader()]  # fmt: skip
    loader = datamodule.train_dataloader()
    (point,) = sweep(datamodule, Plain(), batch_sizes=[64], batches=3, full_batch=False)
    assert point.sampler == "LaborSampler"
    assert counting.calls == 1 + 3 + 3  # to warm up, to time, to measure
    assert all(torch.equal(batch.n_id, n_id) for batch, n_id in zip(loader, before, strict=True))
    assert (datamodule.batch_size, datamodule.num_workers) == (256, 2)


def test_batches_bring_what_the_model_needs(data: Data) -> None:
    class Net(Seeing):
        needs_in_degree = True

    sweep(data, Net(), batch_sizes=[64], batches=1)
    in_degrees = torch.bincount(data.edge_index[1], minlength=1797)
    sampled = [batch for batch in SEEN if "batch_size" in batch]
    assert sampled
    assert all(torch.equal(batch.in_degree.long(), in_degrees[batch.n_id]) for batch in sampled)


def test_a_network_is_wrapped_and_a_function_is_told_the_sizes(data: Data) -> None:
    def make(datamodule: GraphDataModule) -> NodeClassifier:
        sizes = (datamodule.num_features, datamodule.num_classes)
        assert sizes == (64, 10)
        return NodeClassifier("sage", in_channels=64, out_channels=10, hidden_channels=8)

    made = sweep(data, make, batch_sizes=[64], batches=2)
    wrapped = sweep(data, make(GraphDataModule(data)).net, batch_sizes=[64], batches=2)
    assert [point.peak_bytes for point in made] == [point.peak_bytes for point in wrapped]


@pytest.mark.parametrize("form", ["list", "lists", "dict"])
def test_every_form_of_one_optimizer(data: Data, form: str) -> None:
    model = Plain()
    model.form = form
    (point,) = sweep(data, model, batch_sizes=[], batches=1)
    assert [point.peak_bytes] == hand_peaks(Plain(), [data])


@pytest.mark.parametrize("form", ["two", "none"])
def test_other_than_one_optimizer_is_refused(data: Data, form: str) -> None:
    model = Plain()
    model.form = form
    with pytest.raises(ValueError, match=r"`configure_optimizers` of Plain must make one optimizer, but made"):
        sweep(data, model, batch_sizes=[], batches=1)


def test_manual_optimization_is_refused(data: Data) -> None:
    model = Plain()
    model.automatic_optimization = False
    with pytest.raises(ValueError, match=r"`model` must leave optimization to Lightning, but Plain sets"):
        sweep(data, model, batch_sizes=[])


def test_what_is_no_model_is_refused(data: Data) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a module or a function that makes one .*, but made a int"):
        sweep(data, lambda datamodule: 3, batch_sizes=[])


def test_clusters_have_no_batch_size(data: Data) -> None:
    datamodule = GraphDataModule(data, sampler=lambda topology: ClusterSampler(topology, 10), eval_num_neighbors=[2, 2])
    with pytest.raises(ValueError, match=r"`batch_sizes` must be empty with ClusterSampler"):
        sweep(datamodule, Plain(), batch_sizes=[64])
    (point,) = sweep(datamodule, Plain(), batch_sizes=[])
    assert point.sampler == "full"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [64, 0]}, "`batch_sizes` must be at least 1, but got 0."),
        ({"batch_sizes": [64], "batches": 0}, "`batches` must be at least 1, but got 0."),
        ({"batch_sizes": [], "full_batch": False}, "`batch_sizes` is empty and `full_batch` is False"),
        ({"batch_sizes": [64], "num_neighbors": [0]}, "positive or -1"),
    ],
)
def test_numbers_out_of_range(data: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(data, Plain(), **options)


def test_arguments_that_a_datamodule_has_itself(data: Data) -> None:
    with pytest.raises(ValueError, match="`num_neighbors` must be left out where `data` is a DataModule"):
        sweep(GraphDataModule(data), Plain(), batch_sizes=[64], num_neighbors=[2, 2])


def test_a_graph_without_training_nodes(data: Data) -> None:
    bare = Data(x=data.x, y=data.y, edge_index=data.edge_index)
    with pytest.raises(ValueError, match="`data` must hold `train_mask` to train on, but it has none"):
        sweep(bare, Plain(), batch_sizes=[64])


def test_graphs_of_several_types_are_refused(data: Data) -> None:
    hetero = HeteroData()
    hetero["a"].x, hetero["a"].y = data.x, data.y
    hetero["a"].train_mask = data.train_mask
    hetero["a", "to", "a"].edge_index = data.edge_index
    with pytest.raises(TypeError, match="one type of nodes and edges"):
        sweep(hetero, Plain(), batch_sizes=[64])


def test_graphs_grow_in_size_and_degree() -> None:
    seen: list[SweepRecord] = []
    points = graph_sweep(
        NodeClassifier("sage", in_channels=16, out_channels=4, hidden_channels=8),
        num_nodes=[500, 1000],
        avg_degrees=[2, 6.5],
        fixed_num_nodes=600,
        fixed_avg_degree=4,
        batch_size=2000,
        batches=2,
        seed=3,
        graph_options={"num_features": 16, "num_classes": 4},
        num_neighbors=[3, 3],
        on_point=seen.append,
    )
    assert seen == points
    assert [(point.sweep, point.value, point.sampler) for point in points] == [
        (sweep, value, sampler)
        for sweep, value in [("num_nodes", 500), ("num_nodes", 1000), ("avg_degree", 2), ("avg_degree", 6.5)]
        for sampler in ("NeighborSampler", "full")
    ]
    sizes = [(point.graph_nodes, point.graph_edges) for point in points[::2]]
    assert sizes == [(500, 2000), (1000, 4000), (600, 1200), (600, 3900)]
    graph = load_dataset("rmat", seed=3, num_nodes=600, avg_degree=6.5, num_features=16, num_classes=4)
    (alone, _) = sampling_sweep(
        graph,
        NodeClassifier("sage", in_channels=16, out_channels=4, hidden_channels=8),
        batch_sizes=[2000],
        batches=2,
        seed=3,
        num_neighbors=[3, 3],
    )
    last = points[-2]
    assert (last.nodes, last.edges, last.peak_bytes) == (alone.nodes, alone.edges, alone.peak_bytes)
    assert alone.value == int(graph.train_mask.sum())


def test_a_graph_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> Data:
        if options["num_nodes"] > 500:
            raise MemoryError("Unable to allocate 1 TiB")
        return load_dataset(name, **options)

    monkeypatch.setattr("lightning_gnnopt.analysis.sweeps.sweep.load_dataset", load)
    model = NodeClassifier("sage", in_channels=64, out_channels=8, hidden_channels=8)
    points = graph_sweep(model, num_nodes=[1000, 500], avg_degrees=[], batches=1, full_batch=False)
    assert [(point.value, point.error) for point in points] == [
        (1000, "out of memory: Unable to allocate 1 TiB"),
        (500, ""),
    ]


def test_a_sweep_over_no_graph() -> None:
    with pytest.raises(ValueError, match="`num_nodes` and `avg_degrees` are both empty"):
        graph_sweep(Plain(), num_nodes=[], avg_degrees=[])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_on_a_gpu_batches_are_copied_and_peaks_are_the_allocators(data: Data) -> None:
    sampled, full = sweep(data, Plain(), batch_sizes=[64], device="cuda", batches=3)
    batches = batches_of(data, 64, 3)
    assert (sampled.nodes, sampled.edges) == (
        np.mean([batch.num_nodes for batch in batches]),
        np.mean([batch.num_edges for batch in batches]),
    )
    assert sampled.transfer_s > 0
    assert full.transfer_s > 0
    assert sampled.peak_bytes is not None
    assert full.peak_bytes is not None
    assert 0 < sampled.peak_bytes < full.peak_bytes

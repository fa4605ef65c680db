from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.analysis.records import SweepRecord
from lightning_gnnopt.analysis.sweeps import sweep_points
from lightning_gnnopt.memory.features import batch_bytes

from .sweeping import FANOUTS, SEEN, Plain, Seeing, batches_of, hand_peaks, sweep


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

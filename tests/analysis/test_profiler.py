from __future__ import annotations

import copy
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.analysis import BottleneckReport, GNNProfiler
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.datasets import load_dataset
from tests.analysis.profiled import QUIET, fit, make_parts, total


@pytest.fixture(scope="module")
def data() -> Data:
    return load_dataset("digits-knn")


def test_a_fit_is_cut_into_phases_and_layers_that_add_up(data: Data) -> None:
    profiler = GNNProfiler(limit="1GiB", memory_every=5, detail_batches=0)
    trainer, model = fit(data, profiler)
    records = profiler.records

    assert [batch.batch for batch in records.batches] == list(range(16))
    assert [batch.batch for batch in records.batches if batch.timed] == [4, 5, 6, 7, 8, 9, 10, 12, 13, 15]
    assert [batch.batch for batch in records.batches if batch.peak_bytes] == [3, 11, 14]
    for batch in records.batches:
        if batch.timed:
            parts = [r.seconds for r in records.times if r.batch == batch.batch and r.phase != "validation"]
            assert sum(parts) == pytest.approx(batch.step_s, rel=1e-9)
    assert {r.phase for r in records.times} == {
        "wait", "transfer", "forward", "backward", "optimizer", "callbacks", "validation", "other",
    }  # fmt: skip
    for layer in ("net.convs.0", "net.convs.1"):
        assert {(r.phase, r.kind, r.part) for r in records.times if r.layer == layer} >= {
            ("forward", "vertex", ""),
            ("forward", "edge", "gather"),
            ("forward", "edge", "message"),
            ("forward", "edge", "aggregate"),
            ("backward", "edge", "gather"),
            ("backward", "edge", "message"),
            ("backward", "vertex", ""),
        }
    assert [(layer.layer, layer.type, layer.calls) for layer in records.layers] == [
        ("net.convs.0", "GCNConv", 13),
        ("net.convs.1", "GCNConv", 13),
    ]
    # four epochs of four steps, each with a validation at its end
    assert [(v.batch, v.beside) for v in records.validations] == [(4, False), (8, False), (12, False), (16, False)]
    info = records.info
    assert (info["model"], info["steps"], info["steps_per_epoch"], info["num_workers"]) == ("GCN", 16, 4, 0)
    assert info["limit_bytes"] == 2**30
    weights = sum(p.nbytes for p in model.parameters())
    assert info["static_bytes"] >= 3 * weights  # Adam keeps two more of each
    assert info["fit_s"] > sum(b.step_s for b in records.batches)
    assert (info["async_validation"], info["memory_control"]) == (False, False)
    assert info["notes"] == []
    assert trainer.callbacks == []


def test_batches_are_counted_as_the_loader_delivers_them(data: Data) -> None:
    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    fit(data, profiler, epochs=1, num_sanity_val_steps=0)
    _, datamodule = make_parts(data)
    torch.manual_seed(1)
    trainer = L.Trainer(max_epochs=1, **QUIET)
    seen: list[tuple[int, int, int]] = []

    class Seeing(NodeClassifier):
        @override
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            seen.append((batch.batch_size, batch.num_nodes, batch.num_edges))
            return super().training_step(batch, batch_idx)

    model = Seeing("gcn", in_channels=64, out_channels=10, hidden_channels=8)
    trainer.fit(model, datamodule)
    assert [(b.seeds, b.nodes, b.edges) for b in profiler.records.batches] == seen
    assert {b.batch_size for b in profiler.records.batches} == {256}
    assert {b.sampler for b in profiler.records.batches} == {"NeighborSampler"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_the_loader_does_is_known(data: Data, num_workers: int) -> None:
    profiler = GNNProfiler(skip_batches=0)
    fit(data, profiler, epochs=2, num_workers=num_workers)
    loads = profiler.records.loads
    assert [load.batch for load in loads] == list(range(8))
    assert {load.beside for load in loads} == {num_workers > 0}
    assert all(load.sample_s is not None and load.slice_s is not None for load in loads)
    for load in loads:
        if num_workers == 0:
            assert 0 < (load.sample_s or 0) + (load.slice_s or 0) <= load.wait_s


def test_training_is_the_same_bits_with_and_without(data: Data) -> None:
    _, with_it = fit(data, GNNProfiler(skip_batches=0, memory_every=2))
    _, without = fit(data, None)
    for (name, mine), theirs in zip(with_it.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_nothing_is_left_in_the_model_the_trainer_or_the_process(data: Data) -> None:
    threads = threading.active_count()
    trainer, model = fit(data, GNNProfiler(trace_batches=2), num_workers=1)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "edge_updater" not in vars(module)
        assert not any(value for key, value in vars(module).items() if key.startswith("_message") and "hooks" in key)
    assert trainer.callbacks == []
    assert threading.active_count() == threads
    copy.deepcopy(model)


def test_it_can_be_used_again_and_other_stages_leave_its_records(data: Data) -> None:
    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    trainer, model = fit(data, profiler, epochs=1)
    first = profiler.records
    _, datamodule = make_parts(data)
    trainer.validate(model, datamodule, verbose=False)
    assert profiler.records is first
    fit(data, profiler, epochs=2)
    assert len(profiler.records.batches) == 8
    assert len(first.batches) == 4


def test_a_step_that_raises_leaves_the_records_so_far_and_the_report(data: Data, tmp_path: Path) -> None:
    class Breaking(NodeClassifier):
        @override
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            if self.trainer.global_step == 6:
                raise RuntimeError("no such luck")
            return super().training_step(batch, batch_idx)

    _, datamodule = make_parts(data)
    model = Breaking("gcn", in_channels=64, out_channels=10, hidden_channels=8)
    profiler = GNNProfiler(skip_batches=1, report_dir=tmp_path / "report")
    trainer = L.Trainer(profiler=profiler, max_epochs=4, **QUIET)
    with pytest.raises(RuntimeError, match="no such luck"):
        trainer.fit(model, datamodule)
    assert [batch.batch for batch in profiler.records.batches] == list(range(6))
    assert profiler.records.info["notes"] == ["The fit ended early, in step 6: RuntimeError: no such luck"]
    assert trainer.callbacks == []
    assert not model.net.convs[0]._forward_hooks
    assert len(Records.load(tmp_path / "report" / "records").batches) == 6
    assert "no such luck" in (tmp_path / "report" / "report.html").read_text()


def test_what_lies_between_epochs_is_known(data: Data) -> None:
    class Slow(Callback):
        @override
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            time.sleep(0.05)

    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    fit(data, profiler, epochs=3, callbacks=[Slow()])
    info, records = profiler.records.info, profiler.records
    assert info["epochs"] == 3
    assert info["between_s"] >= 3 * 0.05
    validation_s = sum(validation.seconds for validation in records.validations)
    steps_s = sum(batch.step_s for batch in records.batches)
    # nothing is counted twice; what is left is the profiler's own
    assert info["between_s"] + validation_s + steps_s <= info["fit_s"]
    assert "before, between and after epochs" in profiler.summary()


def test_a_fit_without_a_step_leaves_nothing(data: Data) -> None:
    profiler = GNNProfiler()
    trainer, model = fit(data, profiler, limit_train_batches=0)
    assert trainer.callbacks == []
    assert profiler.records.batches == []
    with profiler.watch(model):
        pass


def test_a_report_that_cannot_be_written_is_said_before_the_fit_and_does_not_cost_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="The report cannot be written to"):
        fit(data, GNNProfiler(report_dir=tmp_path / "file"), epochs=1)

    def fail(self: BottleneckReport, folder: Path) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(BottleneckReport, "save", fail)
    profiler = GNNProfiler(report_dir=tmp_path / "report", skip_batches=0)
    with pytest.warns(UserWarning, match="was not written: RuntimeError: no ink"):
        trainer, _ = fit(data, profiler, epochs=1)
    assert trainer.state.finished
    assert len(profiler.records.batches) == 4


def test_loaders_that_are_made_anew_for_each_epoch_go_on_telling(data: Data) -> None:
    profiler = GNNProfiler(skip_batches=0)
    fit(data, profiler, epochs=3, reload_dataloaders_every_n_epochs=1)
    loads = profiler.records.loads
    assert len(loads) == 12
    assert all(load.sample_s and load.slice_s for load in loads)


def test_a_callback_behind_the_profilers_own_is_not_skipped(data: Data) -> None:
    heard: list[str] = []

    class Late(Callback):
        @override
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            heard.append("end")

        @override
        def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            heard.append("teardown")

    class Adding(Callback):
        @override
        def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
            trainer.callbacks.append(Late())

    trainer, _ = fit(data, GNNProfiler(), epochs=1, callbacks=[Adding()])
    assert heard == ["end", "teardown"]
    assert [type(callback) for callback in trainer.callbacks] == [Adding, Late]


def test_a_model_without_message_passing_has_its_phases_timed() -> None:
    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 1)

        @override
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.lin(batch).sum()

        @override
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    trainer = L.Trainer(profiler=profiler, max_epochs=1, **QUIET)
    trainer.fit(Plain(), DataLoader(torch.randn(12, 4), batch_size=4))  # type: ignore[arg-type]
    assert len(profiler.records.batches) == 3
    assert {r.layer for r in profiler.records.times} == {""}
    assert total(profiler.records, phase="forward") > 0
    assert total(profiler.records, phase="backward") > 0
    assert "No layers of message passing" in profiler.records.info["notes"][0]
    assert profiler.records.loads[0].sample_s is None


def test_manual_optimization_has_the_same_phases(data: Data) -> None:
    class Manual(NodeClassifier):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.automatic_optimization = False

        @override
        def training_step(self, batch: Data, batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()  # type: ignore[union-attr]

    _, datamodule = make_parts(data)
    profiler = GNNProfiler(skip_batches=0, memory_every=0)
    trainer = L.Trainer(profiler=profiler, max_epochs=1, **QUIET)
    trainer.fit(Manual("gcn", in_channels=64, out_channels=10, hidden_channels=8), datamodule)
    for phase in ("forward", "backward", "optimizer"):
        assert total(profiler.records, phase=phase) > 0, phase
    assert total(profiler.records, phase="backward", layer="net.convs.1", part="aggregate") > 0


def test_the_summary_is_printed_or_written_as_lightnings_profilers_do(data: Data, tmp_path: Path) -> None:
    profiler = GNNProfiler(dirpath=tmp_path, filename="profile")
    fit(data, profiler, epochs=2)
    [path] = tmp_path.glob("*.txt")
    assert path.name == "fit-profile.txt"
    assert profiler.report().verdict in " ".join(path.read_text().split())

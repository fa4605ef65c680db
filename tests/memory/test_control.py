"""MemoryControl in a Trainer where nothing is over the budget: predictions to the byte, and what is logged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD, Adam, AdamW
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.loading import LinkSplit, LinkTask
from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.sampling import ClusterSampler, LadiesSampler
from tests.memory.runs import (
    CLASSES,
    FEATURES,
    NODES,
    PLENTY,
    Batches,
    ManualNet,
    Net,
    Watch,
    fit,
    inexact,
    is_subsequence,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    same_state,
    watched,
)


def check_exact(control: MemoryControl, watch: Watch, *, at_least: int, skip: int = 0) -> None:
    """Predictions, what the control measured and what the test counted by itself are the same numbers.

    Of the first `skip` steps, the optimizer's state is counted, but not there yet.
    """
    assert control.controller is not None
    assert inexact(control) == []
    assert len(control.controller.pairs) >= at_least
    assert is_subsequence([int(measured) for _, measured in control.controller.pairs][skip:], watch.all)
    assert control.tally.exact == control.tally.measured == len(control.controller.pairs)
    assert all(not learned.reason for learned in control.controller.learned.values())


# To the byte


NETS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": partial(SGD, lr=0.1)},
    "momentum": {"optimizer": partial(SGD, lr=0.1, momentum=0.9, foreach=True)},
    "adam-foreach": {"optimizer": partial(Adam, foreach=True, amsgrad=True)},
    "adam-loop": {"optimizer": partial(Adam, foreach=False)},
    "adamw-fused": {"optimizer": partial(AdamW, fused=True)},
    "adamw": {"conv": "gcn", "optimizer": partial(AdamW, lr=0.01)},
    "batch-norm-dropout": {"batch_norm": True, "dropout": 0.4},
    "gat": {"conv": "gat"},
    "gat-norm-dropout": {"conv": "gat", "batch_norm": True, "dropout": 0.3},
    "wide": {"hidden": 200},
    "dict": {"as_dict": True},
}


@pytest.mark.parametrize("name", NETS)
def test_every_step_is_predicted_to_the_byte(name: str) -> None:
    control, watch = watched(), Watch()
    fit(Net(**NETS[name]), make_datamodule(), control, watch)
    # All but the first step of an epoch, which starts without the gradients that later ones find there.
    check_exact(control, watch, at_least=6 + 4)


TRAINERS: dict[str, dict[str, Any]] = {
    "accumulate-2": {"accumulate_grad_batches": 2},
    "accumulate-3": {"accumulate_grad_batches": 3, "max_epochs": 3},
    "clip-norm": {"gradient_clip_val": 0.1},
    "clip-value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "accumulate-and-clip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "sanity-check": {"num_sanity_val_steps": 2},
    "limited": {"limit_train_batches": 3, "limit_val_batches": 1, "max_epochs": 3},
}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_step_of_a_trainer_is_predicted_to_the_byte(name: str) -> None:
    control, watch = watched(), Watch()
    fit(Net("gat"), make_datamodule(), control, watch, **TRAINERS[name])
    check_exact(control, watch, at_least=4 + 3, skip=TRAINERS[name].get("accumulate_grad_batches", 1) - 1)


def test_bf16_is_predicted_to_the_byte() -> None:
    control, watch = watched(), Watch()
    fit(Net("gat"), make_datamodule(), control, watch, precision="bf16-mixed")
    check_exact(control, watch, at_least=6 + 4)


def test_bf16_of_a_wide_net_is_never_under() -> None:
    # Workspaces of products in bfloat16 are bounded: see test_workspaces.py for how closely.
    control = watched()
    fit(Net(hidden=64), make_datamodule(), control, precision="bf16-mixed")
    assert control.controller is not None
    assert len(control.controller.pairs) >= 6 + 4
    for predicted, measured in control.controller.pairs:
        assert measured <= predicted


def with_attributes(data: Data) -> Data:
    generator = torch.Generator().manual_seed(5)
    data.edge_attr = torch.randn(data.num_edges, 3, generator=generator)
    data.weight = torch.rand(data.num_edges, generator=generator) + 0.1
    data.names = torch.arange(NODES).reshape(-1, 1).repeat(1, 2)
    return data


def with_times(data: Data) -> Data:
    data.time = torch.arange(NODES) % 50
    return data


def links_of(data: Data) -> LinkTask:
    generator = torch.Generator().manual_seed(9)
    pairs = torch.randint(NODES, (2, 128), generator=generator)
    return LinkTask(train=LinkSplit(pairs), val=LinkSplit(pairs[:, :64]), negatives="binary", amount=1.0)


class LinkNet(Net):
    """Scores pairs of nodes."""

    def training_step(self, batch: Data, batch_idx: int) -> torch.Tensor:
        x = self(batch)
        source, destination = batch.edge_label_index
        scores = (x[source] * x[destination]).sum(dim=-1)
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.edge_label.float())

    def validation_step(self, batch: Data, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        return self.training_step(batch, batch_idx)


LOADERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "multilabel": (Net, lambda: make_datamodule(make_graph(multilabel=True))),
    "edge-attributes": (partial(Net, "gine"), lambda: make_datamodule(with_attributes(make_graph()), edge_id=True)),
    "weighted": (Net, lambda: make_datamodule(with_attributes(make_graph()), weight_attr="weight")),
    "temporal": (partial(Net, "gat"), lambda: make_datamodule(with_times(make_graph()), time_attr="time")),
    "all-neighbours": (partial(Net, "gcn"), lambda: make_datamodule(num_neighbors=[-1, -1])),
    "csc": (Net, lambda: make_datamodule(edge_format="csc")),
    "labor": (Net, lambda: make_datamodule(sampler="labor")),
    "ladies": (Net, lambda: make_datamodule(sampler=partial(LadiesSampler, layer_sizes=[60, 60]), num_neighbors=None)),
    "shadow": (partial(Net, "gat"), lambda: make_datamodule(sampler="shadow", num_neighbors=[4, 3])),
    "clusters": (
        partial(Net, "gat"),
        lambda: make_datamodule(
            sampler=partial(ClusterSampler, num_parts=12, clusters_per_batch=3),
            num_neighbors=None,
            eval_num_neighbors=[6, 4],
        ),
    ),
    "saint": (
        Net,
        lambda: make_datamodule(sampler="saint-node", num_neighbors=None, eval_num_neighbors=[6, 4], batch_size=60),
    ),
    "saint-layerwise": (
        partial(NodeClassifier, "sage", in_channels=FEATURES, out_channels=CLASSES, hidden_channels=16),
        lambda: make_datamodule(sampler="saint-node", num_neighbors=None, eval_mode="layerwise", batch_size=60),
    ),
    "trimmed": (
        partial(NodeClassifier, "gcn", in_channels=FEATURES, out_channels=CLASSES, hidden_channels=24),
        make_datamodule,
    ),
    "ggnn": (
        partial(NodeClassifier, "ggnn", in_channels=FEATURES, out_channels=CLASSES, hidden_channels=12),
        make_datamodule,
    ),
    "links": (
        partial(LinkNet, "gat"),
        lambda: make_datamodule(make_graph(), links=links_of(make_graph())),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_batch_is_predicted_to_the_byte(name: str) -> None:
    make_module, make_loader = LOADERS[name]
    control, watch = watched(), Watch()
    fit(make_module(), make_loader(), control, watch)
    check_exact(control, watch, at_least=3)


def test_evaluation_and_prediction_are_predicted_to_the_byte() -> None:
    control, watch = watched(), Watch()
    trainer, module, datamodule = make_trainer(control, watch), Net("gat", batch_norm=True), make_datamodule()
    with no_warnings():
        trainer.validate(module, datamodule, verbose=False)
        check_exact(control, watch, at_least=2)
        trainer.test(module, datamodule, verbose=False)
        check_exact(control, watch, at_least=2)
        predicted = trainer.predict(module, datamodule)
        check_exact(control, watch, at_least=NODES // 32)
    assert torch.cat([batch["n_id"] for batch in predicted]).tolist() == list(range(NODES))


def test_manual_optimization_is_predicted_to_the_byte() -> None:
    control, watch = watched(), Watch()
    fit(ManualNet(conv="gat"), make_datamodule(), control, watch)
    check_exact(control, watch, at_least=6 + 4)


def test_a_layer_that_is_unfrozen_is_learned_anew() -> None:
    class Thaws(Net):
        def __init__(self) -> None:
            super().__init__("gat", hidden=40)
            self.convs[0].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.convs[0].requires_grad_(self.current_epoch >= 1)

    control, watch = watched(), Watch()
    fit(Thaws(), make_datamodule(), control, watch, max_epochs=3)
    check_exact(control, watch, at_least=8 + 6)
    assert max(watch.peaks["train"][5:]) > max(watch.peaks["train"][:4]) + 1000  # the step did change


# What is logged, kept and shown


def test_what_is_logged(tmp_path: Path) -> None:
    control, logger = watched(), CSVLogger(tmp_path, name="log", version=0)
    watch = Watch()
    fit(Net(), make_datamodule(), control, watch, logger=logger, max_epochs=1)
    logger.save()
    rows = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    column = {name: [row.split(",")[header.index(name)] for row in rows[1:]] for name in header}
    assert {"memory/predicted_bytes", "memory/peak_bytes", "memory/pruned_edges_pct"} < set(header)
    assert {"memory/resamples", "memory/splits"} < set(header)
    measured = [float(value) for value in column["memory/peak_bytes"] if value]
    assert set(measured[:-1]) <= {float(peak) for peak in watch.peaks["train"]}
    assert len(set(measured)) == 4  # three training steps, and the last of validation
    for name in ("memory/resamples", "memory/splits", "memory/pruned_edges_pct"):
        assert {float(value) for value in column[name] if value} == {0.0}


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}

    def whole() -> Net:
        module = Net(dropout=0.0, batch_norm=True)
        fit(module, make_datamodule(), watched(), max_epochs=3)
        return module

    keeper = ModelCheckpoint(tmp_path, filename="half", save_last=False, every_n_train_steps=6)
    fit(Net(batch_norm=True), make_datamodule(), watched(), keeper, max_steps=6, max_epochs=3, **options)
    control, module = watched(), Net(batch_norm=True)
    trainer = make_trainer(control, max_epochs=3)
    with no_warnings():
        trainer.fit(module, make_datamodule(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert trainer.global_step == 12
    assert inexact(control) == []
    assert same_state(module.state_dict(), whole().state_dict())


def test_explain_names_the_tensors_at_the_peak() -> None:
    control, watch, batches = watched(), Watch(), Batches()
    fit(Net("gat"), make_datamodule(), control, watch, batches, max_epochs=1)
    text = control.explain(batches.batches[2])
    assert "convs.0" in text
    assert "aten::" in text
    with pytest.raises(ValueError, match=r"`stage` must have started.*'test' has not.* HINT: "):
        control.explain(batches.batches[2], stage="test")


def test_what_is_shown_without_a_run() -> None:
    with pytest.raises(ValueError, match=r"`MemoryControl` has not been in a run yet\. HINT: "):
        watched().plot()
    assert watched().budget_bytes is None


def test_the_budget_is_what_was_asked_for() -> None:
    control = watched("1GiB")
    fit(Net(), make_datamodule(), control, max_epochs=1)
    assert control.budget_bytes == PLENTY

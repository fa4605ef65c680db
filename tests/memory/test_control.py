"""MemoryControl in a Trainer where nothing is over the budget: predictions to the byte, and no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
    Hooks,
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


class ManualNet(Net):
    """Two optimizers that take turns."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return Adam(self.convs[0].parameters(), lr=0.02), SGD(self.convs[1].parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch: Data, batch_idx: int) -> None:
        loss = self.loss(batch, self(batch)[: batch.batch_size])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


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


# No trace


class Run:
    """All that can be told of a run."""

    def __init__(self, make_module: Callable[[], Any], make_loader: Callable[[], Any], *extra: Any, **kw: Any) -> None:
        hooks, batches = Hooks(), Batches()
        self.module = make_module()
        self.trainer = fit(self.module, make_loader(), *extra, hooks, batches, **kw)
        self.calls, self.batches = hooks.calls, batches
        self.random = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
            "gradients": [p.grad for p in self.module.parameters()],
            "attributes": {k: v for k, v in vars(self.module).items() if isinstance(v, (int, float, str, list))},
            "metrics": dict(self.trainer.callback_metrics),
            "losses": self.batches.losses,
            "logged": self.batches.logged,
            "outputs": self.batches.outputs,
            "batches": [batch.to_dict() for batch in self.batches.batches],
            "global_steps": self.batches.global_steps,
            "loops": self.trainer.fit_loop.state_dict(),
            "calls": self.calls,
            "random": self.random,
        }


class Noisy(Net):
    """Leaves traces wherever a step can."""

    def __init__(self) -> None:
        super().__init__("gat", batch_norm=True, dropout=0.4)
        self.register_buffer("ema", torch.zeros(CLASSES))
        self.count, self.seen, self.sums = 0, [], {"loss": 0.0}

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        self.count += 1
        self.seen.append(float(output.detach()))
        self.sums["loss"] += self.seen[-1]
        self.ema.lerp_(torch.rand(CLASSES) + float(np.random.rand()) + random.random(), 0.1)
        return output


PLAIN_RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (Net, {}),
    "noisy": (Noisy, {}),
    "clipped-accumulated": (partial(Net, batch_norm=True), {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
    "bf16": (partial(Net, dropout=0.2), {"precision": "bf16-mixed"}),
    "sanity": (partial(Net, dropout=0.2), {"num_sanity_val_steps": 2, "val_check_interval": 2}),
    "manual": (ManualNet, {}),
}


@pytest.mark.parametrize("name", PLAIN_RUNS)
def test_a_run_within_the_budget_is_the_same_to_the_bit(name: str) -> None:
    make_module, options = PLAIN_RUNS[name]
    plain = Run(make_module, make_datamodule, **options).state()
    for policy in (("resample", "prune"), "watch" if name == "manual" else "split"):
        control = watched(on_exceed=policy)
        controlled = Run(make_module, make_datamodule, control, **options).state()
        for what, value in plain.items():
            assert same_state(value, controlled[what]), (policy, what)
        assert control.tally.batches > 0
        assert control.tally.over == control.tally.resamples == control.tally.pruned == control.tally.splits == 0


def test_the_strategy_and_the_loaders_are_as_before() -> None:
    control, datamodule = watched(), make_datamodule()
    trainer = make_trainer(control)
    before = dict(vars(trainer.strategy))
    with no_warnings():
        trainer.fit(Net(), datamodule)
    after = vars(trainer.strategy)
    assert after.keys() == before.keys()
    assert not [name for name, value in after.items() if getattr(value, "__self__", None) is control.controller]
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    assert [loader.transforms for loader in loaders] == [(), ()]


def test_the_strategy_is_as_before_after_an_exception() -> None:
    class Breaks(Net):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            if self.trainer.global_step == 3:
                raise KeyError("three")
            return super().training_step(batch, batch_idx)

    control = watched(on_exceed="split")
    trainer = make_trainer(control)
    names = set(vars(trainer.strategy))
    with no_warnings(), pytest.raises(KeyError, match=r"^'three'$"):
        trainer.fit(Breaks(), make_datamodule())
    assert set(vars(trainer.strategy)) == names
    assert trainer.train_dataloader.transforms == ()


def test_two_fits_one_after_the_other_and_of_other_trainers() -> None:
    control = watched()
    first, second = Net("gat"), Net("sage")
    one = fit(first, make_datamodule(), control)
    assert inexact(control) == []
    pairs = list(control.controller.pairs)
    other = fit(second, make_datamodule(), control)  # as in a sweep that makes its callbacks once
    assert inexact(control) == []
    assert list(control.controller.pairs) != pairs
    assert control.tally.batches == 2 * (4 + 2)
    assert "training_step" not in vars(one.strategy)
    assert "training_step" not in vars(other.strategy)


def test_fit_again_with_the_same_trainer() -> None:
    def run(*callbacks: Any) -> Any:
        module, datamodule = Net(batch_norm=True), make_datamodule()
        trainer = fit(module, datamodule, *callbacks)
        trainer.fit_loop.max_epochs = 4
        with no_warnings():
            trainer.fit(module, datamodule)
        return module.state_dict(), trainer.global_step

    control = watched(on_exceed="split")
    assert same_state(run(), run(control))
    assert inexact(control) == []


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

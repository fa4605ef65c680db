"""on_exceed='split': a run in parts is the unlimited run, to float error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.sampling import ClusterSampler
from tests.memory.runs import (
    CLASSES,
    FEATURES,
    NODES,
    Batches,
    Hooks,
    Net,
    Watch,
    fit,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    watched,
)

close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)


def double_data() -> Data:
    data = make_graph(dtype=torch.float64)
    data.edge_attr = torch.randn(data.num_edges, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return data


def datamodule(**kwargs: Any) -> Any:
    return make_datamodule(double_data(), **kwargs)


def path_data() -> Data:
    """Few edges, between nodes of near numbers: a part of a cluster does not reach all of it."""
    data, near = double_data(), torch.arange(NODES - 2)
    data.edge_index = torch.cat([torch.stack([near, near + 1]), torch.stack([near + 2, near])], dim=1)
    data.edge_attr = None
    return data


def clusters() -> Any:
    sampler = partial(ClusterSampler, num_parts=12, clusters_per_batch=4)
    return make_datamodule(path_data(), sampler=sampler, num_neighbors=None, eval_num_neighbors=[6, 4])


def saint() -> Any:
    options = {"num_neighbors": None, "eval_num_neighbors": [6, 4], "batch_size": 100}
    return make_datamodule(path_data(), sampler="saint-node", **options)


def net(*args: Any, **kwargs: Any) -> Net:
    return Net(*args, **kwargs).double()


def classifier(name: str, **kwargs: Any) -> NodeClassifier:
    torch.manual_seed(2)
    options: dict[str, Any] = {"in_channels": FEATURES, "out_channels": CLASSES, "hidden_channels": 16, "dropout": 0.0}
    return NodeClassifier(name, **{**options, **kwargs}).double()


class Run:
    """A run, with a copy of all that should not depend on parts."""

    def __init__(
        self, make_module: Callable[[], Any], make_loader: Callable[[], Any], *control: MemoryControl, **options: Any
    ) -> None:
        self.hooks, self.kept, self.watch = Hooks(), Batches(), Watch()
        self.module = make_module()
        self.trainer = fit(self.module, make_loader(), *control, self.watch, self.hooks, self.kept, **options)

    def numbers(self) -> dict[str, Any]:
        return {
            "losses": self.kept.losses,
            "outputs": [
                {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
                for outputs in self.kept.outputs
            ],
            "logged": self.kept.logged,
            "metrics": {name: float(value) for name, value in self.trainer.callback_metrics.items()},
            "parameters": dict(self.module.state_dict()),
            "gradients": [p.grad for p in self.module.parameters()],
            "optimizer": [list(state.values()) for o in self.trainer.optimizers for state in o.state.values()],
        }


def check_same(
    make_module: Callable[[], Any],
    make_loader: Callable[[], Any] = datamodule,
    *,
    share: float = 0.6,
    parts: int = 2,
    options: dict[str, Any] | None = None,
    **control_options: Any,
) -> MemoryControl:
    plain = Run(make_module, make_loader, **(options or {}))
    budget = int(share * max(plain.watch.peaks["train"]))
    control = watched(budget, **{"on_exceed": "split", "exact": True, **control_options})
    split = Run(make_module, make_loader, control, **(options or {}))
    assert control.tally.splits >= 4
    assert control.tally.parts >= parts * control.tally.splits
    ours, theirs = split.numbers(), plain.numbers()
    for what, value in theirs.items():
        close(ours[what], value, msg=lambda text, what=what: f"{what}: {text}")
    assert split.kept.global_steps == plain.kept.global_steps
    assert all(
        torch.equal(a.n_id, b.n_id) and torch.equal(a.edge_index, b.edge_index)
        for a, b in zip(plain.kept.batches, split.kept.batches, strict=True)
    )
    assert max(split.watch.peaks["train"]) <= budget
    return control


NETS: dict[str, Callable[[], Any]] = {
    "sage": net,
    "gat": partial(net, "gat"),
    "gine": partial(net, "gine"),
    "sgd-momentum": partial(net, optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True)),
    "adamw": partial(net, "gat", optimizer=partial(AdamW, lr=0.01, weight_decay=0.1)),
    "dict": partial(net, as_dict=True),
    "classifier-gcn": partial(classifier, "gcn"),
    "classifier-sage": partial(classifier, "sage"),
    "classifier-gat": partial(classifier, "gat", heads=2),
    "classifier-ggnn": partial(classifier, "ggnn"),
}


@pytest.mark.parametrize("name", NETS)
def test_a_split_run_is_the_unlimited_run(name: str) -> None:
    check_same(NETS[name])


OPTIONS: dict[str, dict[str, Any]] = {
    "clip-norm": {"gradient_clip_val": 0.05},
    "clip-value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulate-2": {"accumulate_grad_batches": 2},
    "accumulate-3-and-clip": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05, "max_epochs": 3},
    "validate-within": {"val_check_interval": 2, "num_sanity_val_steps": 1},
    "limited": {"limit_train_batches": 3, "max_epochs": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_split_run_with_options_is_the_unlimited_run(name: str) -> None:
    check_same(partial(net, "gat"), options=OPTIONS[name])


def test_split_into_many_parts() -> None:
    check_same(net, share=0.35, parts=4)


def test_split_after_resampling_that_is_not_allowed_to_draw() -> None:
    check_same(net, on_exceed=("resample", "split"), max_resamples=0)


def test_split_with_workers() -> None:
    check_same(net, partial(datamodule, num_workers=2, prefetch_factor=1, max_bytes_in_flight=1))


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_a_summed_loss(options: dict[str, Any]) -> None:
    make = partial(net, reduction="sum", optimizer=partial(SGD, lr=1e-3))
    plain = Run(make, datamodule, **options)
    control = watched(int(0.6 * max(plain.watch.peaks["train"])), on_exceed="split", loss_reduction="sum")
    split = Run(make, datamodule, control, **options)
    assert control.tally.splits > 4
    close(split.kept.losses, plain.kept.losses)
    close(dict(split.module.state_dict()), dict(plain.module.state_dict()))


def test_node_norms_weigh_the_parts() -> None:
    # Lightning weighs what parts log over an epoch by the `batch_size` that they pass, which knows no norms.
    check_same(net, saint, share=0.7)


def test_clusters_are_split_by_the_models_depth() -> None:
    check_same(net, clusters, share=0.8)
    check_same(partial(net, "gat"), clusters, share=0.8)


def test_shadow_trees() -> None:
    # What a tree has beyond the model's depth goes with the cut: one part may do.
    check_same(partial(net, "gat"), partial(datamodule, sampler="shadow", num_neighbors=[4, 3]), parts=1)


def test_temporal_trees() -> None:
    def make() -> Any:
        data = double_data()
        data.time = torch.arange(NODES) % 50
        return make_datamodule(data, time_attr="time")

    check_same(net, make)


def test_multilabel() -> None:
    def make() -> Any:
        data = double_data()
        data.y = torch.randint(2, (NODES, CLASSES), generator=torch.Generator().manual_seed(1))
        return make_datamodule(data)

    check_same(partial(classifier, "sage", multilabel=True), make)


class Stepwise(Net):
    """Logs in every way that Lightning has for a step."""

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("step", loss, batch_size=batch.batch_size)
        self.log("guessed", loss, on_step=True, on_epoch=True)
        self.log_dict({"a": loss * 2, "b": loss + 1}, on_step=True, on_epoch=False, batch_size=batch.batch_size)
        self.log("seeds", float(batch.batch_size), on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("lr", self.optimizers().param_groups[0]["lr"], on_step=True)
        return loss


def test_logs_of_every_kind_are_those_of_whole_steps() -> None:
    check_same(lambda: Stepwise().double())


class Hooked(Net):
    """Notes which hooks of the module are called, and what gradients they find."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.noted.append("zero_grad")

    def on_before_backward(self, loss: torch.Tensor) -> None:
        self.noted.append(("before_backward", round(float(loss.detach()), 9)))

    def on_after_backward(self) -> None:
        self.noted.append(("after_backward", round(float(self.convs[0].lin_l.weight.grad.norm()), 9)))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.noted.append(("step", round(float(self.convs[0].lin_l.weight.grad.norm()), 9)))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.noted.append("optimizer_step")
        super().optimizer_step(*args, **kwargs)

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        self.noted.append(("start", batch.batch_size))

    def on_train_batch_end(self, outputs: Any, batch: Data, batch_idx: int) -> None:
        self.noted.append(("end", batch.batch_size))


@pytest.mark.parametrize("name", ["accumulate-3-and-clip", "validate-within", "plain"])
def test_callbacks_see_one_step(name: str) -> None:
    options = {**OPTIONS, "plain": {}}[name]
    plain = Run(net, datamodule, **options)
    control = watched(int(0.6 * max(plain.watch.peaks["train"])), on_exceed="split")
    split = Run(net, datamodule, control, **options)
    assert control.tally.splits >= 4
    assert split.hooks.calls == plain.hooks.calls


def test_hooks_of_the_module_see_one_step() -> None:
    plain = Run(lambda: Hooked().double(), datamodule, accumulate_grad_batches=2)
    control = watched(int(0.6 * max(plain.watch.peaks["train"])), on_exceed="split")
    split = Run(lambda: Hooked().double(), datamodule, control, accumulate_grad_batches=2)
    assert control.tally.splits >= 8
    assert split.module.noted == plain.module.noted


def test_a_scheduler_steps_once_a_batch() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    check_same(lambda: Scheduled().double())


def test_a_step_that_returns_no_loss_now_and_then_is_skipped() -> None:
    class Skips(Net):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    plain = Run(lambda: Skips().double(), datamodule)
    control = watched(int(0.6 * max(plain.watch.peaks["train"])), on_exceed="split")
    split = Run(lambda: Skips().double(), datamodule, control)
    assert control.tally.splits >= 4
    close(dict(split.module.state_dict()), dict(plain.module.state_dict()))


# Evaluation


def evaluated(stage: str, make_module: Callable[[], Any], *control: MemoryControl) -> tuple[Any, Watch]:
    watch = Watch()
    trainer = make_trainer(*control, watch)
    with no_warnings():
        result = getattr(trainer, stage)(make_module(), datamodule())
    return result, watch


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", ["sage", "gat", "classifier-gcn"])
def test_exact_evaluation_in_parts(stage: str, name: str) -> None:
    make = NETS[name]
    expected, watch = evaluated(stage, make)
    peaks = watch.peaks[{"validate": "val"}.get(stage, stage)]
    control = watched(int(0.6 * max(peaks)), exact=True)
    found, split_watch = evaluated(stage, make, control)
    assert control.tally.splits > 0
    assert max(split_watch.peaks[{"validate": "val"}.get(stage, stage)]) <= int(0.6 * max(peaks))
    close(found, expected)


def test_predictions_are_in_order() -> None:
    expected, watch = evaluated("predict", net)
    control = watched(int(0.45 * max(watch.peaks["predict"])), exact=True)
    found, _ = evaluated("predict", net, control)
    assert control.tally.parts >= 2 * control.tally.splits > 0
    assert len(found) == len(expected)
    assert torch.cat([part["n_id"] for part in found]).tolist() == list(range(NODES))


def test_two_validation_loaders_in_parts() -> None:
    data = double_data()

    def loaders() -> list[Any]:
        one, two = make_datamodule(data), make_datamodule(data, num_neighbors=[3, 2], seed=9)
        for module in (one, two):
            module.setup("fit")
        return [one.val_dataloader(), two.val_dataloader()]

    def run(*callbacks: Any) -> Any:
        watch = Watch()
        trainer = make_trainer(*callbacks, watch)
        with no_warnings():
            return trainer.validate(net(), loaders(), verbose=False), watch

    expected, watch = run()
    budget = int(0.6 * max(watch.peaks["val"]))
    control = watched(budget, exact=True)
    found, split_watch = run(control)
    assert control.tally.splits > 0
    assert max(split_watch.peaks["val"]) <= budget
    close(found, expected)


# What is refused


def test_split_of_manual_optimization_is_refused() -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    for way in ("split", "shrink"):
        trainer = make_trainer(watched(on_exceed=way))
        with no_warnings(), pytest.raises(ValueError, match=r"needs automatic optimization, but Manual runs.* HINT: "):
            trainer.fit(Manual(), make_datamodule())

"""MemoryControl with loaders that are not ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TensorLoader
from torch.utils.data import TensorDataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader, NodeLoader

from lightning_gnnopt.memory import MemoryControl
from tests.memory.runs import (
    CLASSES,
    NODES,
    Batches,
    Net,
    Watch,
    fit,
    is_subsequence,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    node_loader,
    same_state,
    watched,
)


def double() -> NodeLoader:
    return node_loader(make_graph(dtype=torch.float64))


# PyG's NodeLoader


def check_close(control: MemoryControl) -> None:
    """Small tensors of such a loader take the places of the step before's, which a recording cannot tell apart."""
    assert control.controller is not None
    assert all(not learned.reason for learned in control.controller.learned.values())
    assert [pair for pair in control.controller.pairs if abs(pair[0] - pair[1]) > 64] == []


@pytest.mark.parametrize("conv", ["sage", "gat"])
def test_node_loader_is_predicted_to_some_bytes(conv: str) -> None:
    control, watch = watched(), Watch()
    fit(Net(conv), node_loader(), control, watch, val_loader=node_loader(mask="val_mask"))
    check_close(control)
    assert len(control.controller.pairs) >= 6 + 4
    assert is_subsequence([int(measured) for _, measured in control.controller.pairs], watch.all)


@pytest.mark.parametrize("way", ["prune", ("resample", "prune"), "split", ("resample", "split")])
def test_node_loader_is_never_over_the_budget(way: Any) -> None:
    plain = Watch()
    fit(Net(), node_loader(), plain, val_loader=node_loader(mask="val_mask"))
    budget = int(0.7 * max(plain.peaks["train"]))
    control, watch = watched(budget, on_exceed=way, exact=way == "split"), Watch()
    fit(Net(), node_loader(), control, watch, val_loader=node_loader(mask="val_mask"))
    assert control.tally.over > 0
    assert [peak - budget for peak in watch.all if peak > budget] == []


def test_node_loader_is_resampled_around_the_same_seeds() -> None:
    plain, peaks = Batches(), Watch()
    fit(Net(), node_loader(), peaks, plain)
    budget = int(0.97 * max(peaks.peaks["train"]))
    control, drawn = watched(budget, on_exceed=("resample", "prune")), Batches()
    fit(Net(), node_loader(), control, drawn)
    assert control.tally.resamples > 0
    data = make_graph()
    for before, after in zip(plain.batches, drawn.batches, strict=True):
        assert torch.equal(after.input_id, before.input_id)
        assert torch.equal(after.n_id[:32], before.n_id[:32])
        assert torch.equal(after.x, data.x[after.n_id])
        edges = set(map(tuple, data.edge_index.T.tolist()))
        assert set(map(tuple, after.n_id[after.edge_index].T.tolist())) <= edges


def test_node_loader_in_parts_is_the_unlimited_run() -> None:
    make = lambda: Net("gat").double()  # noqa: E731 - a module for each run
    plain, kept = Watch(), Batches()
    module = make()
    fit(module, double(), plain, kept)
    control, split_kept, split = watched(int(0.6 * max(plain.peaks["train"])), on_exceed="split"), Batches(), make()
    fit(split, double(), control, split_kept)
    assert control.tally.splits > 4
    torch.testing.assert_close(split_kept.losses, kept.losses, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(dict(split.state_dict()), dict(module.state_dict()), rtol=1e-6, atol=1e-9)


def test_node_loader_within_the_budget_is_the_same_to_the_bit() -> None:
    def run(*control: MemoryControl) -> Any:
        kept, module = Batches(), Net(dropout=0.3, batch_norm=True)
        fit(module, node_loader(), *control, kept, val_loader=node_loader(mask="val_mask"))
        return module.state_dict(), kept.losses, [batch.to_dict() for batch in kept.batches], torch.get_rng_state()

    assert same_state(run(), run(watched()))
    assert same_state(run(), run(watched(on_exceed="split")))


def test_features_that_are_not_counted_do_not_matter() -> None:
    """Attributes of a batch that are neither of nodes nor of edges, NumPy arrays, strings and numbers."""
    data = make_graph()
    data.title, data.number = "a graph", 7
    data.table = np.zeros((3, 3))
    data.prior = torch.ones(CLASSES)
    data.scale = torch.tensor(2.0)
    control, watch = watched(), Watch()
    fit(Net(), node_loader(data), control, watch)
    check_close(control)
    assert len(control.controller.pairs) >= 6


# A whole graph in one batch


class WholeGraph(Net):
    def _scores(self, batch: Data, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch)[mask], batch.y[mask])

    def training_step(self, batch: Data, batch_idx: int) -> torch.Tensor:
        loss = self._scores(batch, batch.train_mask)
        self.log("train/loss", loss, batch_size=1)
        return loss

    def validation_step(self, batch: Data, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/loss", self._scores(batch, batch.val_mask), batch_size=1)


@pytest.mark.parametrize("way", ["watch", "prune"])
def test_a_whole_graph_within_the_budget(way: str) -> None:
    """The rows that a mask picks depend on values, so this is learned from samples; nothing may change."""

    def run(*control: MemoryControl) -> Any:
        module, kept = WholeGraph("gat", dropout=0.2), Batches()
        loader = DataLoader([make_graph()])
        fit(module, loader, *control, kept, val_loader=DataLoader([make_graph()]), max_epochs=4)
        return module.state_dict(), kept.losses

    assert same_state(run(), run(watched(on_exceed=way)))


def test_a_whole_graph_is_not_split() -> None:
    trainer = make_trainer(watched(on_exceed="split"))
    message = (
        r"`on_exceed` runs batches in parts, which needs .*`batch_size`.*the 'train' loader yields DataBatch.* HINT: "
    )
    with no_warnings(), pytest.raises(ValueError, match=message):
        trainer.fit(WholeGraph(), DataLoader([make_graph()]))
    assert "training_step" not in vars(trainer.strategy)


def test_a_whole_graph_is_pruned_to_the_budget() -> None:
    plain = Watch()
    fit(WholeGraph(), DataLoader([make_graph()]), plain, max_epochs=4)
    budget = int(0.8 * max(plain.peaks["train"]))
    control, watch, kept = watched(budget, on_exceed="prune"), Watch(), Batches()
    fit(WholeGraph(), DataLoader([make_graph()]), control, watch, kept, max_epochs=4)
    assert max(watch.peaks["train"]) <= budget
    for batch in kept.batches:  # all nodes are seeds
        assert batch.num_nodes == NODES
        assert batch.edge_index.shape[1] < make_graph().num_edges
        assert batch.train_mask.sum() == 128


# Several loaders


def test_two_validation_loaders_of_different_shapes() -> None:
    data = make_graph()

    def loaders() -> list[Any]:
        one, two = make_datamodule(data), make_datamodule(data, num_neighbors=[8, 6], seed=9)
        for module in (one, two):
            module.setup("fit")
        return [one.val_dataloader(), node_loader(data, "val_mask"), two.val_dataloader()]

    def run(*callbacks: Any) -> Watch:
        watch = Watch()
        torch.manual_seed(0)
        with no_warnings():
            make_trainer(*callbacks, watch).validate(Net(), loaders(), verbose=False)
        return watch

    plain = run()
    control = watched()
    found = run(control).peaks["val"]
    assert max(abs(a - b) for a, b in zip(found, plain.peaks["val"], strict=True)) <= 64
    check_close(control)
    assert [int(measured) for _, measured in control.controller.pairs] == found
    budget = int(0.6 * max(plain.peaks["val"]))
    limited = watched(budget)
    watch = run(limited)
    assert limited.tally.over > 0
    assert max(watch.peaks["val"]) <= budget
    assert len(watch.peaks["val"]) == 6


def test_a_dict_of_validation_loaders_in_fit() -> None:
    data = make_graph()

    class Two(Net):
        def val_dataloader(self) -> Any:
            return [node_loader(data, "val_mask"), node_loader(data, "test_mask")]

        def train_dataloader(self) -> Any:
            return node_loader(data)

    control, watch = watched(), Watch()
    trainer = make_trainer(control, watch)
    with no_warnings():
        trainer.fit(Two())
    check_close(control)
    assert {"val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1"} <= set(trainer.callback_metrics)


# What is refused


class Plain(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(x @ self.convs[0].lin_l.weight.T[:, :CLASSES], y)


def test_a_loader_of_plain_tensors_is_refused() -> None:
    data = make_graph()
    trainer = make_trainer(watched())
    loader = TensorLoader(TensorDataset(data.x, data.y), batch_size=16)
    message = r"`MemoryControl` needs batches that are PyG's `Data`.*but the 'train' loader yields list\. HINT: "
    with no_warnings(), pytest.raises(TypeError, match=message):
        trainer.fit(Plain(), loader)
    assert "batch_to_device" not in vars(trainer.strategy)


def test_shrink_needs_a_loader_that_brings_seeds_back() -> None:
    trainer = make_trainer(watched(on_exceed="shrink"))
    message = r"`on_exceed='shrink'` brings seeds back.*but the loader is a NodeLoader\. HINT: "
    with no_warnings(), pytest.raises(ValueError, match=message):
        trainer.fit(Net(), node_loader())
    assert "process_dataloader" not in vars(trainer.strategy)

"""Batches with several types of nodes: predicted from samples, drawn anew, neither pruned nor run in parts."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.memory import MemoryBudgetError, MemoryControl
from tests.memory.runs import Batches, Watch, fit, make_trainer, no_warnings, same_state, watched

PAPERS, AUTHORS = 300, 120
WRITES, CITES = ("author", "writes", "paper"), ("paper", "cites", "paper")
BACK = ("paper", "rev_writes", "author")


def graph() -> HeteroData:
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["paper"].x = torch.randn(PAPERS, 5, generator=generator)
    data["author"].x = torch.randn(AUTHORS, 3, generator=generator)
    data["paper"].y = torch.randint(3, (PAPERS,), generator=generator)
    for name, first in (("train", 0), ("val", 160)):
        data["paper"][f"{name}_mask"] = (torch.arange(PAPERS) >= first) & (torch.arange(PAPERS) < first + 160)
    for kind, sizes in {WRITES: (AUTHORS, PAPERS), CITES: (PAPERS, PAPERS), BACK: (PAPERS, AUTHORS)}.items():
        ends = [torch.randint(size, (2000,), generator=generator) for size in sizes]
        ends[1][:600] = torch.randint(15, (600,), generator=generator)  # hubs: batches differ
        data[kind].edge_index = torch.stack(ends)
    return data


def datamodule() -> GraphDataModule:
    options: dict[str, Any] = {"num_neighbors": [8, 6], "batch_size": 32, "num_workers": 0, "seed": 7}
    return GraphDataModule(graph(), input_type="paper", **options)


class Types(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            sizes = {"paper": 5, "author": 3}
            self.first = HeteroConv(
                {kind: SAGEConv((sizes[kind[0]], sizes[kind[2]]), 16) for kind in graph().edge_types}
            )
            self.second = HeteroConv({kind: SAGEConv((16, 16), 3) for kind in (WRITES, CITES)})

    def scores(self, batch: HeteroData) -> torch.Tensor:
        x = {name: value.relu() for name, value in self.first(batch.x_dict, batch.edge_index_dict).items()}
        return self.second(x, batch.edge_index_dict)["paper"][: batch["paper"].batch_size]

    def training_step(self, batch: HeteroData, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.scores(batch), batch["paper"].y[: batch["paper"].batch_size])

    def validation_step(self, batch: HeteroData, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=batch["paper"].batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def run(*control: MemoryControl) -> tuple[Types, Batches, Watch, list[str]]:
    module, batches, watch = Types(), Batches(), Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, datamodule(), *control, batches, watch)
    return module, batches, watch, [str(w.message) for w in caught if "`MemoryControl`" in str(w.message)]


@pytest.mark.parametrize("way", [("resample", "prune"), "watch"])
def test_within_the_budget_they_are_predicted_from_samples(way: Any) -> None:
    plain, plain_batches, _, _ = run()
    control = watched(on_exceed=way)
    module, batches, watch, said = run(control)
    assert same_state(module.state_dict(), plain.state_dict())
    assert batches.losses == plain_batches.losses
    assert [message.split(":")[0] for message in said] == [
        "`MemoryControl` learns the memory of 'train' steps from measured batches",
        "`MemoryControl` learns the memory of 'val' steps from measured batches",
    ]
    for message in said:
        assert "The batches have several types of nodes, which cannot be thinned for probes." in message
        assert "Predictions are close then, not exact, and have a margin." in message
    pairs = control.controller.pairs
    assert len(pairs) >= 10
    measured = [int(value) for _, value in pairs]
    assert set(measured) <= set(watch.all)
    assert max(abs(predicted - value) / value for predicted, value in pairs) < 0.1
    assert control.tally.over == control.tally.pruned == control.tally.splits == 0


class ByteLess(Callback):
    """Lowers the budget, once the step is learned, to a byte less than a batch needs."""

    def __init__(self, control: MemoryControl, batch: HeteroData) -> None:
        self.control, self.batch, self.budget = control, batch, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        fitter = self.control.controller._fitters["train", 0]
        self.budget = fitter.budget_bytes = int(fitter.footprint.upper(fitter.footprint.features(self.batch))) - 1


def test_they_are_drawn_anew_and_not_pruned() -> None:
    """Of a batch that is a byte too large, other neighbours of the same seeds fit."""
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    plain, batches, watch, control = Batches(), Batches(), Watch(), watched(max_resamples=50)
    fit(Types(), datamodule(), plain, **options)
    (whole,) = plain.batches
    lowered = ByteLess(control, whole)
    fit(Types(), datamodule(), control, lowered, batches, watch, **options)
    assert 0 < control.tally.resamples <= 50
    assert control.tally.over == 1
    assert control.tally.pruned == control.tally.splits == 0
    assert max(watch.peaks["train"]) <= lowered.budget
    (drawn,) = batches.batches
    assert torch.equal(drawn["paper"].input_id, whole["paper"].input_id)
    assert not all(torch.equal(drawn[kind].edge_index, whole[kind].edge_index) for kind in (WRITES, CITES, BACK))


@pytest.mark.parametrize("way", ["prune", "shrink"])
def test_what_cannot_be_done_is_said_where_nothing_else_helps(way: str) -> None:
    _, _, watch, _ = run()
    control = watched(int(0.8 * max(watch.peaks["train"])), on_exceed=("resample", way), max_resamples=2)
    expected = rf"{way}: batches of heterogeneous graphs cannot be cut.* HINT: "
    trainer = make_trainer(control)
    with no_warnings(), pytest.raises(MemoryBudgetError, match=expected):
        trainer.fit(Types(), datamodule())
    assert control.tally.pruned == control.tally.shrunk == 0


@pytest.mark.parametrize("options", [{"on_exceed": "split"}, {"on_exceed": ("resample", "prune"), "exact": True}])
def test_parts_are_refused_at_the_start(options: dict[str, Any]) -> None:
    name = "`exact=True`" if "exact" in options else "`on_exceed`"
    expected = (
        rf"{name} runs batches in parts, which needs batches of nodes of one type that say their seeds"
        r" \(`batch_size`\), but the '(train|val)' loader yields HeteroData with .* HINT: \('resample', 'prune'\)\."
    )
    module, batches = Types(), Batches()
    before = {name: value.clone() for name, value in module.state_dict().items() if value.numel()}
    trainer = make_trainer(watched(**options), batches)
    with no_warnings(), pytest.raises(ValueError, match=expected):
        trainer.fit(module, datamodule())
    if options["on_exceed"] == "split":
        assert batches.losses == []
        assert same_state({name: module.state_dict()[name] for name in before}, before)


def test_a_peak_without_a_tape_is_not_explained() -> None:
    control = watched()
    _, batches, _, _ = run(control)
    with pytest.raises(ValueError, match=r"several types of nodes.* HINT: "):
        control.explain(batches.batches[0])

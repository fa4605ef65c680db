"""MemoryControl where batches are over the budget: never over it, what is touched is right, what is not is the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torch_geometric.data import Data

from lightning_gnnopt.memory import MemoryBudgetError, MemoryControl
from lightning_gnnopt.sampling import ClusterSampler
from tests.memory.runs import (
    NODES,
    PLENTY,
    Batches,
    Net,
    Watch,
    fit,
    largest_peak,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    same_state,
    watched,
)

EVERY_WAY = {
    "resample-prune": ("resample", "prune"),
    "resample-only-then-split": ("resample", "split"),
    "prune": "prune",
    "split": "split",
    "shrink": "shrink",
    "resample-shrink": ("resample", "shrink"),
    "shrink-prune": ("shrink", "prune"),
}


uncontrolled_peak = cache(largest_peak)


def budget_at(
    share: float, make_module: Callable[[], Any] = Net, make_loader: Callable[[], Any] = make_datamodule
) -> int:
    return int(share * uncontrolled_peak(make_module, make_loader))


def check_within(control: MemoryControl, watch: Watch, budget: int) -> None:
    """By the test's own count."""
    assert control.budget_bytes == budget
    over = [peak - budget for peak in watch.peaks["train"] if peak > budget]
    assert over == []
    assert control.tally.measured_over == 0


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_no_step_is_over_the_budget(way: str, share: float) -> None:
    budget = budget_at(share)
    control, watch = watched(budget, on_exceed=EVERY_WAY[way], exact=way == "split"), Watch()
    fit(Net(), make_datamodule(), control, watch)
    check_within(control, watch, budget)
    assert max(watch.peaks["val"]) <= budget
    assert control.tally.over > 0  # it would have been


@pytest.mark.parametrize("way", ["prune", "split", "shrink"])
@pytest.mark.parametrize("conv", ["gcn", "gat"])
def test_no_step_of_other_nets_is_over_the_budget(conv: str, way: str) -> None:
    # A last batch of one seed without edges has no batch statistics.
    make = partial(Net, conv, batch_norm=way != "shrink", dropout=0.2, optimizer=partial(SGD, lr=0.05, momentum=0.9))
    budget = budget_at(0.6, make)
    control, watch = watched(budget, on_exceed=way, exact=True), Watch()
    fit(make(), make_datamodule(), control, watch, accumulate_grad_batches=2, gradient_clip_val=1.0)
    check_within(control, watch, budget)
    assert max(watch.peaks["val"]) <= budget
    assert control.tally.over > 0


@pytest.mark.parametrize(
    ("pruning", "keep_connected"), [("degree", True), ("pagerank", False), ("random", True), ("inverse_weight", False)]
)
def test_no_step_is_over_the_budget_with_any_score(pruning: str, keep_connected: bool) -> None:
    data = make_graph()
    data.weight = torch.rand(data.num_edges, generator=torch.Generator().manual_seed(1)) + 0.5
    budget = budget_at(0.6, Net, lambda: make_datamodule(data))
    options = {"weight_attr": "weight"} if pruning == "inverse_weight" else {}
    control = watched(budget, on_exceed="prune", pruning=pruning, keep_connected=keep_connected, **options)
    watch = Watch()
    fit(Net(), make_datamodule(data), control, watch)
    check_within(control, watch, budget)
    assert control.tally.pruned > 0
    assert control.tally.used / control.tally.touched >= 0.95


@pytest.mark.parametrize("way", ["prune", "split"])
def test_no_step_on_clusters_is_over_the_budget(way: str) -> None:
    near = torch.arange(NODES - 2)  # few edges, between nodes of near numbers
    data = make_graph()
    data.edge_index = torch.cat([torch.stack([near, near + 1]), torch.stack([near + 2, near])], dim=1)
    sampler = partial(ClusterSampler, num_parts=12, clusters_per_batch=4)
    make = partial(make_datamodule, data, sampler=sampler, num_neighbors=None, eval_num_neighbors=[6, 4])
    budget = budget_at(0.7, Net, make)
    control, watch = watched(budget, on_exceed=way), Watch()
    fit(Net(), make(), control, watch)
    check_within(control, watch, budget)
    assert control.tally.over > 0


def test_the_first_step_makes_the_optimizers_state_and_is_within_the_budget() -> None:
    make = partial(Net, hidden=512)  # whose state weighs more than its batches
    peaks = Watch()
    fit(make(), make_datamodule(), peaks)
    budget = int(0.97 * max(peaks.peaks["train"]))
    control, watch = watched(budget, on_exceed="prune"), Watch()
    fit(make(), make_datamodule(), control, watch)
    check_within(control, watch, budget)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("exact", [False, True])
def test_no_step_of_evaluation_is_over_the_budget(stage: str, exact: bool) -> None:
    def run(*callbacks: Any) -> None:
        with no_warnings():
            getattr(make_trainer(*callbacks), stage)(Net("gat"), make_datamodule())

    name = {"validate": "val"}.get(stage, stage)
    plain = Watch()
    run(plain)
    budget = int(0.6 * max(plain.peaks[name]))
    control, watch = watched(budget, exact=exact), Watch()
    run(control, watch)
    assert max(watch.peaks[name]) <= budget
    assert control.tally.over > 0
    assert (control.tally.splits > 0) == exact
    assert (control.tally.pruned > 0) != exact


# What is touched


def seen(make_loader: Callable[[], Any], *callbacks: Any, **options: Any) -> list[Data]:
    batches = Batches()
    fit(Net(), make_loader(), *callbacks, batches, **options)
    return batches.batches


def with_edge_ids(**kwargs: Any) -> Any:
    data = make_graph()
    data.number = torch.arange(data.num_edges)
    data.own = torch.arange(NODES) * 3
    return make_datamodule(data, edge_id=True, **kwargs)


def check_of_graph(batch: Data) -> None:
    """Every row and edge of a batch is the graph's."""
    data = make_graph()
    assert torch.equal(batch.x, data.x[batch.n_id])
    assert torch.equal(batch.y, data.y[batch.n_id])
    assert torch.equal(batch.own, batch.n_id * 3)
    assert torch.equal(batch.number, batch.e_id)
    assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    assert int(batch.num_nodes) == len(batch.n_id) == sum(batch.num_sampled_nodes)
    assert batch.edge_index.shape[1] == sum(batch.num_sampled_edges)
    assert batch.batch_size == batch.num_sampled_nodes[0] == len(batch.input_id)
    assert len(torch.unique(batch.e_id)) == len(batch.e_id)
    # Hops are distances: a node of hop h is a source of an edge of hop h, and that edge's end is of a hop before.
    node_hop = torch.repeat_interleave(torch.arange(3), torch.tensor(batch.num_sampled_nodes))
    edge_hop = torch.repeat_interleave(torch.arange(1, 3), torch.tensor(batch.num_sampled_edges))
    source, destination = batch.edge_index
    assert torch.equal(node_hop[destination], edge_hop - 1)
    assert bool((node_hop[source] <= edge_hop).all())
    for hop in (1, 2):
        reached = source[edge_hop == hop]
        assert set(torch.nonzero(node_hop == hop).flatten().tolist()) <= set(reached.tolist())


@pytest.mark.parametrize("pruning", ["degree", "random"])
def test_pruned_batches_keep_their_seeds_and_are_of_the_graph(pruning: str) -> None:
    budget = budget_at(0.6, Net, with_edge_ids)
    plain = seen(with_edge_ids)
    control = watched(budget, on_exceed="prune", pruning=pruning)
    pruned = seen(with_edge_ids, control)
    assert control.tally.pruned == len(pruned) + 4  # two epochs of training, two of two validation batches
    assert len(pruned) == len(plain) == 8
    for before, after in zip(plain, pruned, strict=True):
        check_of_graph(after)
        assert torch.equal(after.n_id[:32], before.n_id[:32])
        assert torch.equal(after.input_id, before.input_id)
        assert set(after.e_id.tolist()) < set(before.e_id.tolist())
        assert set(after.n_id.tolist()) < set(before.n_id.tolist())
    lost = sum(before.num_edges - after.num_edges for before, after in zip(plain, pruned, strict=True))
    assert 0 < lost < control.tally.pruned_edges


def test_resampled_batches_are_of_the_graph_and_lose_no_edge() -> None:
    budget = budget_at(0.97, Net, with_edge_ids)
    plain = seen(with_edge_ids)
    control = watched(budget, on_exceed=("resample", "prune"))
    drawn = seen(with_edge_ids, control, limit_val_batches=0)
    assert control.tally.resamples > 0
    assert control.tally.pruned == 0
    changed = 0
    for before, after in zip(plain, drawn, strict=True):
        check_of_graph(after)
        assert torch.equal(after.n_id[:32], before.n_id[:32])
        changed += not torch.equal(after.e_id.sort().values, before.e_id.sort().values)
    assert 0 < changed < len(plain)


@pytest.mark.parametrize("way", ["resample-prune", "prune", "shrink", "split"])
def test_batches_are_the_same_for_any_number_of_workers(way: str) -> None:
    budget = budget_at(0.75, Net, with_edge_ids)
    runs = []
    for num_workers in (0, 1, 3):
        # One batch ahead counts for the budget: give each run what its own batches ahead take.
        make = partial(with_edge_ids, num_workers=num_workers, prefetch_factor=1, max_bytes_in_flight=1)
        control = watched(budget + (1 if num_workers else 0), on_exceed=EVERY_WAY[way])
        runs.append([batch.to_dict() for batch in seen(make, control)])
        assert control.tally.over > 0
    assert same_state(runs[0], runs[1])
    assert same_state(runs[0], runs[2])


def test_batches_that_fit_are_not_touched() -> None:
    plain, peaks = Batches(), Watch()
    fit(Net(), with_edge_ids(), peaks, plain)
    budget = int(np.median(peaks.peaks["train"][1:]))
    control = watched(budget, on_exceed="prune")
    controlled = seen(with_edge_ids, control)
    touched = [not same_state(a.to_dict(), b.to_dict()) for a, b in zip(plain.batches, controlled, strict=True)]
    for first in (4, 0):  # these steps are smaller than predicted: gradients are not there yet
        del touched[first], peaks.peaks["train"][first]
    over = [peak > budget for peak in peaks.peaks["train"]]
    near = [budget - 512 < peak <= budget for peak in peaks.peaks["train"]]  # a few bytes are kept in reserve
    assert [a for a, unsure in zip(touched, near, strict=True) if not unsure] == [
        b for b, unsure in zip(over, near, strict=True) if not unsure
    ]
    assert 0 < sum(touched) < 6
    assert sum(near) < 3


def test_shrunk_seeds_come_back_once_an_epoch() -> None:
    budget = budget_at(0.6, Net, with_edge_ids)
    train = torch.nonzero(make_graph().train_mask).flatten().tolist()
    batches = Batches()
    control = watched(budget, on_exceed="shrink")
    trainer = fit(Net(), with_edge_ids(), control, batches, max_epochs=2)
    assert control.tally.shrunk > 0
    for epoch in (0, 1):
        of_epoch = [b for b, number in zip(batches.batches, batches.epochs, strict=True) if number == epoch]
        assert sorted(n for batch in of_epoch for n in batch.n_id[: batch.batch_size].tolist()) == sorted(train)
    assert trainer.global_step == len(batches.batches) > 8
    for batch in batches.batches:
        check_of_graph(batch)


def test_keep_connected_leaves_no_seed_alone() -> None:
    budget = budget_at(0.45, Net, with_edge_ids)

    def stranded(keep_connected: bool) -> int:
        control = watched(budget, on_exceed="prune", pruning="random", keep_connected=keep_connected)
        count = 0
        for batch in seen(with_edge_ids, control):
            ends = set(batch.edge_index[1].tolist())
            degrees = torch.bincount(make_graph().edge_index[1], minlength=NODES)
            count += sum(1 for seed in range(32) if seed not in ends and degrees[batch.n_id[seed]] > 0)
        return count

    assert stranded(True) == 0
    assert stranded(False) > 0


def test_watch_changes_nothing_and_counts() -> None:
    budget = budget_at(0.8, Net, with_edge_ids)
    peaks = Watch()
    plain = seen(with_edge_ids, peaks)
    control = watched(budget, on_exceed="watch")
    same = seen(with_edge_ids, control)
    assert all(same_state(a.to_dict(), b.to_dict()) for a, b in zip(plain, same, strict=True))
    counted = sum(
        peak > budget for peak in [*peaks.peaks["train"][1:4], *peaks.peaks["train"][5:], *peaks.peaks["val"]]
    )
    assert control.tally.measured_over == counted > 0


def test_self_loops_and_isolated_seeds_survive() -> None:
    """A training set of nothing but nodes without in-edges, and of hubs with loops."""
    data = make_graph()
    degrees = torch.bincount(data.edge_index[1], minlength=NODES)
    data.train_mask = (degrees == 0) | (torch.arange(NODES) < 5)
    make = partial(make_datamodule, data, batch_size=12)
    budget = budget_at(0.8, partial(Net, "gat"), make)
    for way in ("prune", "split", "shrink"):
        control, watch = watched(budget, on_exceed=way), Watch()
        trainer = fit(Net("gat"), make(), control, watch, limit_val_batches=0)
        check_within(control, watch, budget)
        assert trainer.global_step >= 6


# What cannot be done


def test_a_budget_that_the_seeds_alone_exceed() -> None:
    control = watched(12_000, on_exceed="prune")
    with pytest.raises(
        MemoryBudgetError, match=r"'train' batch does not fit.*12,000 bytes.*seeds alone.* HINT: "
    ) as it:
        fit(Net(), make_datamodule(), control)
    assert "nodes_0 32" in str(it.value)
    control = watched(8_000, on_exceed="prune")
    with pytest.raises(MemoryBudgetError, match="'val' batch does not fit"):
        fit(Net(), make_datamodule(), control, num_sanity_val_steps=1)


def test_a_budget_that_a_single_seed_exceeds() -> None:
    make = partial(Net, hidden=64)
    held = 4 * sum(p.numel() for p in make().convs.parameters())
    control = watched(5 * held, on_exceed="split", exact=True)
    with pytest.raises(MemoryBudgetError, match=r"split: one seed at a time is still too large.* HINT: "):
        fit(make(), make_datamodule(), control, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (100, r"`budget` must be larger than the [\d,]+ bytes that the model.*but is 100\. HINT: "),
        (-5, r"`budget` must be more than 0 bytes, but got -5\. HINT: "),
        (0, r"`budget` must be more than 0 bytes, but got 0\. HINT: "),
        ("-3GiB", r"`budget` must be more than 0 bytes, but got '-3GiB'\. HINT: "),
        (2**60, r"`budget` must be at most the [\d,]+ bytes .* of cpu, but got .* HINT: "),
        ("lots", r"`budget` must be 'auto', a size such as '6GiB'.*but got 'lots'\. HINT: "),
        (True, r"`budget` must be 'auto'.*but got True\. HINT: "),
        (None, r"`budget` must be 'auto'.*but got None\. HINT: "),
        (float("nan"), r"`budget` must be 'auto'.*but got nan\. HINT: "),
        (1.5, r"`budget` must be a share of at most 1\.0 or a whole number of bytes, but got 1\.5\. HINT: "),
    ],
)
def test_budgets_that_are_refused(budget: Any, message: str) -> None:
    trainer = make_trainer(watched(budget))
    with no_warnings(), pytest.raises(ValueError, match=message):
        trainer.fit(Net(), make_datamodule())
    assert "training_step" not in vars(trainer.strategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_exceed": "prun"}, r"Unknown on_exceed 'prun'\. Did you mean 'prune'\?"),
        ({"on_exceed": ()}, r"`on_exceed` must name each remedy once and at least one, but got \(\)\. HINT: "),
        ({"on_exceed": ("prune", "prune")}, "`on_exceed` must name each remedy once"),
        ({"on_exceed": "resample"}, r"`on_exceed` must end with what makes any batch smaller.* HINT: "),
        ({"on_exceed": ("watch", "prune")}, r"`on_exceed='watch'` changes no batch and must stand alone.* HINT: "),
        ({"pruning": "degre"}, "Did you mean 'degree'"),
        ({"pruning": "inverse_weight"}, r"needs the weights of edges\. HINT: pass `weight_attr`"),
        ({"predictor": "analytical"}, "Did you mean 'analytic'"),
        ({"coverage": 1.0}, r"`coverage` must be above 0 and below 1, but got 1\.0\. HINT: "),
        ({"coverage": 0.0}, "`coverage` must be above 0"),
        ({"max_resamples": -1}, r"`max_resamples` must be 0 or more, but got -1\. HINT: "),
        ({"depth": 0}, r"`depth` must be at least 1, but got 0\. HINT: "),
        ({"loss_reduction": "median"}, "Unknown loss_reduction 'median'"),
        ({"measure_every": 0}, r"`measure_every` must be at least 1, but got 0\. HINT: "),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryControl(PLENTY, **options)


def test_an_attribute_that_holds_no_weights() -> None:
    control = watched(60_000, on_exceed="prune", pruning="inverse_weight", weight_attr="wieght")
    with pytest.raises((ValueError, TypeError), match=r"`weight_attr`.*wieght.* HINT: "):
        fit(Net(), make_datamodule(), control)


def test_a_step_that_depends_on_values_is_learned_from_samples_with_one_warning() -> None:
    class Ragged(Net):
        def forward(self, batch: Data) -> torch.Tensor:
            out = super().forward(batch)
            picked = batch.x[batch.x[:, 0] > 0].repeat(1, 8)  # of as many rows as the values say
            return out + 0 * picked.exp().sum()

    budget = budget_at(0.75, Ragged)
    control, watch = watched(budget, on_exceed="prune"), Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Ragged(), make_datamodule(), control, watch, max_epochs=4)
    said = [str(w.message) for w in caught if "MemoryControl" in str(w.message)]
    assert len([text for text in said if "'train'" in text]) == 1
    assert "learns the memory of 'train' steps from measured batches" in said[0]
    assert control.tally.over > 0
    check_within(control, watch, budget)

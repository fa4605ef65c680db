"""Layers that count degrees in the batch, which its parts do not have: a warning where batches are run in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    ARMAConv,
    GATConv,
    GCNConv,
    GINConv,
    LGConv,
    PNAConv,
    SAGEConv,
    SGConv,
    TAGConv,
)

from lightning_gnnopt import NodeClassifier
from tests.memory.runs import (
    CLASSES,
    FEATURES,
    Batches,
    Net,
    Watch,
    fit,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    watched,
)

DEGREES = torch.tensor([0, 5, 9, 4, 2])


def pna(in_channels: int, out_channels: int) -> PNAConv:
    return PNAConv(in_channels, out_channels, ["mean", "max"], ["identity", "amplification"], DEGREES)


class Sized(nn.Module):
    """A convolution without weights, then a linear layer."""

    def __init__(self, conv: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.conv, self.linear = conv, linear

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x, edge_index))


class With(Net):
    """A convolution of the given kind, then one that counts nothing."""

    def __init__(self, conv: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.convs[0] = conv(FEATURES, 16)


COUNTING: dict[str, Callable[[int, int], nn.Module]] = {
    "GCNConv": GCNConv,
    "TAGConv": TAGConv,
    "SGConv": SGConv,
    "ARMAConv": ARMAConv,
    "LGConv": lambda in_channels, out_channels: Sized(LGConv(), nn.Linear(in_channels, out_channels)),
}
OTHERS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCNConv without": partial(GCNConv, normalize=False),
    "SAGEConv": SAGEConv,
    "SAGEConv that normalises rows": partial(SAGEConv, normalize=True),
    "GATConv": GATConv,
    "GINConv": lambda in_channels, out_channels: GINConv(nn.Linear(in_channels, out_channels)),
}


def said(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "degrees" in str(w.message)]


def fitted(module: Any, **options: Any) -> list[str]:
    return said(lambda: fit(module, make_datamodule(), watched(**options), max_epochs=1))


@pytest.mark.parametrize("name", COUNTING)
def test_a_layer_that_counts_degrees_is_named_once(name: str) -> None:
    (message,) = fitted(With(COUNTING[name]), on_exceed="split", exact=True)
    assert message == (
        f"Batches that are run in parts give {name} other degrees at the rim of a part than in the whole batch, so"
        " gradients do not add up exactly. HINT: `normalize=False` with weights from the whole graph, or this package's"
        " `GCN`."
    )


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_not_warned_of(name: str) -> None:
    assert fitted(With(OTHERS[name]), on_exceed="split", exact=True) == []


def test_this_packages_gcn_is_not_warned_of() -> None:
    module = NodeClassifier("gcn", in_channels=FEATURES, out_channels=CLASSES, hidden_channels=8)
    assert fitted(module, on_exceed="split", exact=True) == []


@pytest.mark.parametrize("way", [("resample", "prune"), "watch", "shrink"])
def test_there_is_no_warning_where_nothing_is_run_in_parts(way: Any) -> None:
    assert fitted(With(GCNConv), on_exceed=way) == []


def test_several_layers_are_named_together() -> None:
    module = With(GCNConv)
    module.convs[1] = TAGConv(16, CLASSES)
    (message,) = fitted(module, on_exceed=("resample", "split"))
    assert "parts give GCNConv, TAGConv other degrees" in message


def losses_in_parts(conv: Callable[[int, int], nn.Module]) -> tuple[list[float], list[float]]:
    """Losses of whole batches, and of the same in parts."""
    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    plain, watch = Batches(), Watch()
    fit(With(conv).double(), make_datamodule(make_graph(dtype=torch.float64)), plain, watch, **options)
    control, split = watched(int(0.6 * max(watch.peaks["train"])), on_exceed="split"), Batches()
    fit(With(conv).double(), make_datamodule(make_graph(dtype=torch.float64)), control, split, **options)
    assert control.tally.splits == len(split.losses) == 4
    return plain.losses, split.losses


def test_degrees_of_sources_are_others_in_parts() -> None:
    """What the warning is about."""
    whole, parts = losses_in_parts(GCNConv)
    assert parts != pytest.approx(whole, rel=1e-4)
    assert parts == pytest.approx(whole, rel=2e-2)


def test_degrees_of_destinations_are_whole_in_parts() -> None:
    whole, parts = losses_in_parts(pna)
    assert parts == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_evaluation_in_parts_is_warned_of(exact: bool) -> None:
    def run() -> None:
        with no_warnings():
            make_trainer(watched(exact=exact)).validate(With(GCNConv), make_datamodule(), verbose=False)

    assert len(said(run)) == exact

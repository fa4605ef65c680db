"""Labels of a `HeteroData` in `GraphDataModule`, and what is refused of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightning_gnnopt.sampling import HeteroNeighborSampler

from .graphs import make_data, prefetch_threads
from .hetero_graphs import AT, CITES, WRITES, WRITTEN, Typed, make_datamodule, make_hetero, make_masked
from .modules import make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


# ---- labels ----------------------------------------------------------------------------------------------------------


def labelled(y: Any) -> HeteroData:
    data = make_masked()
    data["paper"].y = y
    return data


def test_classes_are_counted() -> None:
    datamodule = make_datamodule()
    assert (datamodule.num_classes, datamodule.multilabel) == (3, False)
    assert make_datamodule(num_classes=9).num_classes == 9
    assert make_datamodule(labelled(torch.arange(40).view(-1, 1) % 4)).num_classes == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_node_may_have_several_labels(dtype: torch.dtype) -> None:
    datamodule = make_datamodule(labelled((torch.arange(160).view(40, 4) % 3 == 0).to(dtype)))
    assert (datamodule.num_classes, datamodule.multilabel) == (4, True)
    assert next(iter(datamodule.train_dataloader()))["paper"].y.shape[1:] == (4,)


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.arange(40) % 3 - 1, {}, "`y` must be from 0 to 1 (2 classes) for every node of `train_mask`, but 7 of"),
        (
            torch.arange(40) % 3,
            {"num_classes": 2},
            "`y` must be from 0 to 1 (2 classes) for every node of `train_mask`",
        ),
        (torch.arange(160).view(40, 4), {}, "`y` must be 0 or 1 (multi-label) for every node of `train_mask`, but"),
        (torch.full((40, 4), 0.5), {}, "`y` must be 0 or 1 (multi-label) for every node of `train_mask`, but"),
    ],
)
def test_wrong_labels_are_refused_at_once(y: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(labelled(y), **options)


@pytest.mark.parametrize("y", [torch.zeros(39).long(), torch.zeros(41).long(), torch.tensor(3)])
def test_labels_of_another_number_are_refused_at_once(y: Tensor) -> None:
    message = f"`y` must be of shape (N,) or (N, C) for the graph's 40 nodes, but its shape is {tuple(y.shape)}. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(labelled(y))


def test_labels_outside_the_masks_do_not_matter() -> None:
    data = labelled(torch.where(torch.arange(40) % 2 == 0, -1, 2))
    del data["paper"].val_mask, data["paper"].test_mask
    assert make_datamodule(data).num_classes == 3


@pytest.mark.parametrize("y", [torch.rand(40), torch.rand(40, 1)])
def test_numbers_to_predict_are_no_classes(y: Tensor) -> None:
    datamodule = make_datamodule(labelled(y))
    assert torch.equal(torch.cat([b["paper"].y[: b["paper"].batch_size] for b in datamodule.predict_dataloader()]), y)
    with pytest.raises(ValueError, match=r"^`num_classes` is not known, because 'paper' nodes hold no classes in `y`"):
        _ = datamodule.num_classes


def test_without_labels_the_number_of_classes_is_not_known() -> None:
    datamodule = make_datamodule(make_masked("author"))
    message = r"^`num_classes` is not known, because 'author' nodes hold no .* HINT: pass `num_classes=\.\.\.`\.$"
    with pytest.raises(ValueError, match=message):
        _ = datamodule.num_classes
    assert not datamodule.multilabel
    assert make_datamodule(make_masked("author"), num_classes=2).num_classes == 2


def test_a_type_without_features_says_so() -> None:
    with pytest.raises(ValueError, match=r"^`num_features` is not known: 'venue' nodes hold no `x`\. HINT: "):
        _ = make_datamodule(input_type="venue").num_features


# ---- refusals --------------------------------------------------------------------------------------------------------


KNOWN = "of the node types ['author', 'paper', 'venue']"


def empty_mask() -> HeteroData:
    data = make_masked()
    data["paper"].val_mask = torch.zeros(40, dtype=torch.bool)
    return data


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            make_hetero(),
            {},
            f"`input_type` must say which nodes are inputs, as none {KNOWN} have masks. HINT: name one",
        ),
        (
            make_masked("author", "paper"),
            {},
            f"`input_type` must say which nodes are inputs, as ['author', 'paper'] {KNOWN} have masks. HINT: name one",
        ),
        (
            make_masked(),
            {"input_type": "papers"},
            "Unknown input_type 'papers'. Did you mean 'paper'? Known: author, p",
        ),
        (
            make_data(),
            {"input_type": "paper"},
            "`input_type` is for a `HeteroData`, but `data` is a Data and `input_typ",
        ),
        (HeteroData(), {}, "`data` must hold nodes and edges of some types, but has node types [] and edge types []."),
        (empty_mask(), {}, "`val_mask` must choose at least one node, but all of its 40 values are False."),
        (make_masked(), {"sampler": "labor"}, "`sampler` must be 'neighbor' or a function for a `HeteroData`, but got"),
        (
            make_masked(),
            {"sampler": lambda topology: HeteroNeighborSampler(topology, [2])},
            "`num_neighbors` must be left out with a `sampler` function, but got [3, 2]. HINT: give the fan-outs to",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_once(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(data, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eval_mode='layerwise'", {"eval_mode": "layerwise"}),
        ("cache", {"cache": "1MB"}),
        ("cache", {"cache": "auto"}),
        ("features", {"features": "x.npy"}),
        ("feature_dtype", {"feature_dtype": "int8"}),
        ("weight_attr", {"weight_attr": "edge_weight"}),
        ("time_attr", {"time_attr": "year"}),
        ("input_time_attr", {"input_time_attr": "year"}),
        ("edge_format", {"edge_format": "csc"}),
    ],
)
def test_what_is_for_one_type_only_is_refused_at_once(name: str, options: dict[str, Any]) -> None:
    message = f"`{name}` is for homogeneous graphs, but `data` is a HeteroData. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.+"):
        make_datamodule(**options)


@pytest.mark.parametrize(
    ("fanouts", "message"),
    [
        ({CITES: [3, 2]}, "`num_neighbors` must have fan-outs for every edge type, but has none for"),
        (
            {CITES: [3, 2], WRITES: [1, 1], WRITTEN: [0, 0], AT: [0, 0], ("a", "b", "c"): [1, 1]},
            "`num_neighbors` must be for edge types of the graph, but ('a', 'b', 'c') is none of them:",
        ),
        ([], "`num_neighbors` must "),
    ],
)
def test_wrong_fan_outs_are_refused(fanouts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.* HINT: "):
        make_datamodule(num_neighbors=fanouts).setup("fit")
    with pytest.raises(
        ValueError, match=f"^{re.escape(message.replace('num_neighbors', 'eval_num_neighbors'))}.* HINT: "
    ):
        make_datamodule(eval_num_neighbors=fanouts).setup("fit")


def test_a_feature_that_is_no_number_is_refused_at_once() -> None:
    data = make_masked()
    data["author"].x[3, 1] = float("inf")
    message = "`x of 'author'` must be finite, but 1 of its 90 values are NaN or infinite. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(data)


@pytest.mark.parametrize("cache", [0, "0B"])
def test_no_cache_is_no_cache(cache: int | str) -> None:
    assert len(list(make_datamodule(cache=cache).train_dataloader())) == 3


def test_an_edge_that_points_past_the_last_node_is_refused() -> None:
    data = make_masked()
    data[WRITES].edge_index[0, 7] = 30
    with pytest.raises(
        ValueError, match=re.escape(f"`edge_index of {WRITES}` must hold sources from 0 to 29 (30 nodes)")
    ):
        make_datamodule(data).setup("fit")


def test_fewer_fan_outs_than_layers_are_refused() -> None:
    message = "`num_neighbors` must hold one fan-out for each of the model's 2 layers, but samples 1 hop"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_trainer(1).fit(Typed(), make_datamodule(num_neighbors=[3]))
    message = "`eval_num_neighbors` must hold one fan-out for each of the model's 2 layers, but samples 1 hop"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_trainer(1).fit(Typed(), make_datamodule(eval_num_neighbors=[3]))

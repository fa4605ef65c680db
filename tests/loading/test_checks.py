from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading.checks import (
    check_graph,
    check_labels,
    check_model,
    count_classes,
    is_multilabel,
    split_nodes,
)
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.sampling import NeighborSampler, SeedsOnlySampler, Topology

from .graphs import random_graph

NO_EDGE = torch.empty(2, 0, dtype=torch.long)
X = torch.ones(4, 3)
NAN = X.clone().index_fill_(0, torch.tensor([1]), float("nan"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta feature
    UNCOALESCED = torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (4, 3))
    CSR, CSR_NAN = X.to_sparse_csr(), NAN.to_sparse_csr()


def sampler(*fanouts: int) -> NeighborSampler:
    return NeighborSampler(Topology.from_edge_index(random_graph(), 60), fanouts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"x": X.half()},
        {"x": X.long()},
        {"x": CSR},
        {"x": X.to_sparse_coo()},
        {"x": UNCOALESCED},
        {"y": torch.tensor([0, 1, -1, 2])},
        {"y": torch.tensor([[0], [1], [-1], [2]])},  # OGB's shape
        {"y": torch.ones(4, 2)},
        {"edge_index": torch.tensor([[0], [3]])},
    ],
)
def test_a_graph_that_can_be_sampled_passes(changes: dict[str, Any]) -> None:
    check_graph(Data(**{"x": X, "edge_index": NO_EDGE, **changes}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(), "`data` must hold at least one node, but it is empty. HINT: check how the graph was loaded."),
        (Data(x=X[:0], edge_index=NO_EDGE), "`data` must hold at least one node, but it is empty."),
        (Data(x=X), "`data` must hold `edge_index` of shape (2, E), but it has none. HINT: leave out the"),
        (
            Data(edge_index=NO_EDGE, num_nodes=4),
            "`data` must hold node features `x` of shape (N, F), but it has none."
            " HINT: `torch_geometric.transforms.OneHotDegree` or a table of embeddings can serve as features.",
        ),
        (Data(x=X[:, 0], edge_index=NO_EDGE), "`x` must be of shape (N, F), but its shape is (4,). HINT: `x.view("),
        (
            Data(x=X, edge_index=NO_EDGE, num_nodes=1_000),
            "`x` must hold one row per node, but has 4 rows for 1,000 nodes."
            " HINT: set `data.num_nodes` to the number of rows, or drop it.",
        ),
        (
            Data(x=NAN, edge_index=NO_EDGE),
            "`x` must be finite, but 3 of its 12 values are NaN or infinite."
            " HINT: `torch.nan_to_num` replaces them; find out first where they come from.",
        ),
        (Data(x=X / 0, edge_index=NO_EDGE), "`x` must be finite, but 12 of its 12 values are NaN or infinite."),
        (Data(x=CSR_NAN, edge_index=NO_EDGE), "`x` must be finite, but 3 of its 12 values are NaN"),
        (Data(x=NAN.to_sparse_coo(), edge_index=NO_EDGE), "`x` must be finite, but 3 of its 12 values are NaN"),
        (Data(x=UNCOALESCED / 0, edge_index=NO_EDGE), "`x` must be finite, but 1 of its 1 values are NaN"),
        (
            Data(x=X, edge_index=NO_EDGE, y=torch.tensor([0, 1, 2])),
            "`y` must be of shape (N,) or (N, C) for the graph's 4 nodes, but its shape is (3,)."
            " HINT: unlabelled nodes have label -1 and stay out of the masks.",
        ),
        (Data(x=X, edge_index=NO_EDGE, y=torch.ones(4, 1, 1)), "but its shape is (4, 1, 1)."),
        (Data(x=X, edge_index=NO_EDGE, y=torch.tensor(1)), "but its shape is ()."),
        (
            Data(x=X, edge_index=NO_EDGE, y=torch.tensor([0.0, 1, 2, 3])),
            "`y` must hold integers, the class of each node, but its type is torch.float32."
            " HINT: `data.y = data.y.long()` if they are classes; there is no regression yet.",
        ),
    ],
)
def test_a_graph_that_cannot_is_refused(data: Data, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_graph(data)


@pytest.mark.parametrize("data", [HeteroData(), [Data(x=X, edge_index=NO_EDGE)], None])
def test_only_a_homogeneous_graph_is_taken(data: Any) -> None:
    message = (
        f"`data` must be a `torch_geometric.data.Data`, but got {type(data).__name__}."
        " HINT: a `Dataset` holds it as `dataset[0]`; `HeteroData.to_homogeneous()` makes one of several types."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_graph(data)


@pytest.mark.parametrize("mask", [torch.tensor([True, False, False, True]), [True, False, False, True]])
@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_a_split_is_where_its_mask_is_true(stage: str, mask: Any) -> None:
    data = Data(x=X, **{f"{stage}_mask": mask})
    nodes = split_nodes(data, stage)
    assert nodes.tolist() == [0, 3]
    assert nodes.dtype == torch.int64
    assert split_nodes(Data(x=X), stage) is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(4, dtype=torch.bool),
            "`val_mask` must choose at least one node, but all of its 4 values are False."
            " HINT: remove `data.val_mask` to go without this split, or make one with"
            " `torch_geometric.transforms.RandomNodeSplit`.",
        ),
        (
            torch.ones(4, 10, dtype=torch.bool),
            "`val_mask` must be a boolean tensor of shape (4,), but got torch.bool of shape (4, 10)."
            " HINT: of several splits choose one, as in `data.val_mask = data.val_mask[:, 0]`.",
        ),
        (torch.tensor([0, 3]), "`val_mask` must be a boolean tensor of shape (4,), but got torch.int64 of shape (2,)."),
        (torch.ones(4), "`val_mask` must be a boolean tensor of shape (4,), but got torch.float32 of shape (4,)."),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        split_nodes(Data(x=X, val_mask=mask), "val")


@pytest.mark.parametrize(
    ("y", "multilabel", "num_classes"),
    [
        ([0, 4, 2], False, 5),
        ([[0], [4], [2]], False, 5),
        ([-1, -1], False, 1),
        ([[0, 1, 1], [0, 0, 0]], True, 3),
    ],
)
def test_classes_are_counted(y: list[Any], multilabel: bool, num_classes: int) -> None:
    assert is_multilabel(torch.tensor(y)) is multilabel
    assert count_classes(torch.tensor(y)) == num_classes
    assert not is_multilabel(None)


@pytest.mark.parametrize(
    ("y", "nodes"),
    [
        ([0, 1, 2, -1], [0, 1, 2]),
        ([[0], [1], [2], [9]], [0, 1, 2]),
        ([[0.0, 1.0], [1.0, 1.0], [0.0, 7.0]], [0, 1]),
    ],
)
def test_good_labels_pass_whatever_stands_outside_the_splits(y: list[Any], nodes: list[int]) -> None:
    check_labels(torch.tensor(y), [("train", torch.tensor(nodes))], num_classes=3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            [0, 3, 5, 1],
            "`y` must be from 0 to 2 (3 classes) for every node of `test_mask`, but 2 of 4 labels are not, such as 3."
            " HINT: leave unlabelled nodes out of the masks.",
        ),
        ([0, -1, 1, 2], "but 1 of 4 labels are not, such as -1."),
        ([[0], [-1], [1], [3]], "but 2 of 4 labels are not, such as -1."),
        (
            [[0.0, 1.0], [0.5, 1.0], [0.0, float("nan")], [1.0, 1.0]],
            "`y` must be 0 or 1 (multi-label) for every node of `test_mask`, but 2 of 8 labels are not, such as 0.5.",
        ),
    ],
)
def test_labels_out_of_range_are_refused(y: list[Any], message: str) -> None:
    splits = [("train", torch.tensor([0])), ("test", torch.arange(4))]
    with pytest.raises(ValueError, match=re.escape(message)):
        check_labels(torch.tensor(y), splits, num_classes=3)


def test_missing_labels_are_refused() -> None:
    message = "`data` must hold labels `y` to train on, but it has none. HINT: use only `predict`."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_labels(None, [], num_classes=3)


def fake(**declared: Any) -> Any:
    return SimpleNamespace(**declared)


@pytest.mark.parametrize(
    "module",
    [
        fake(),
        fake(num_layers=2),
        fake(num_layers=None, out_channels=None),
        fake(num_layers="two"),
        fake(num_layers=2, out_channels=3),
        NodeClassifier("sage", in_channels=3, out_channels=3, hidden_channels=4, num_layers=2),
    ],
)
def test_a_model_that_the_batches_fit_passes_in_silence(module: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(module, {"num_neighbors": sampler(5, 5)}, num_classes=3, layerwise=False)


@pytest.mark.parametrize(
    "module", [fake(num_layers=3), NodeClassifier("gcn", in_channels=3, out_channels=3, num_layers=3)]
)
def test_too_few_hops_are_refused(module: Any) -> None:
    message = (
        "`num_neighbors` must hold one fan-out for each of the model's 3 layers, but samples 2 hops ([15, 10])."
        " HINT: lengthen it, or lower the model's `num_layers`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_model(module, {"num_neighbors": sampler(15, 10)}, num_classes=None, layerwise=False)
    message = "`eval_num_neighbors` must hold one fan-out for each of the model's 3 layers, but samples 1 hop ([-1])."
    samplers = {"num_neighbors": sampler(5, 5, 5), "eval_num_neighbors": sampler(-1)}
    with pytest.raises(ValueError, match=re.escape(message)):
        check_model(module, samplers, num_classes=None, layerwise=False)


def test_a_sampler_without_fan_outs_is_named_itself() -> None:
    seeds_only = SeedsOnlySampler(Topology.from_edge_index(random_graph(), 60))
    with pytest.raises(ValueError, match=r"the model's 1 layers, but samples 0 hops \(<.*SeedsOnlySampler"):
        check_model(fake(num_layers=1), {"sampler": seeds_only}, num_classes=None, layerwise=False)


@pytest.mark.parametrize(
    ("num_layers", "message"), [(1, "the model has 1 layer: what"), (2, "the model has 2 layers: what")]
)
def test_useless_hops_are_warned_of(num_layers: int, message: str) -> None:
    with pytest.warns(UserWarning, match=rf"`num_neighbors` samples 3 hops, but {message} lies beyond is sampled and"):
        check_model(fake(num_layers=num_layers), {"num_neighbors": sampler(5, 5, 5)}, num_classes=None, layerwise=False)


@pytest.mark.parametrize("module", [fake(out_channels=3), NodeClassifier("gcn", in_channels=3, out_channels=3)])
def test_too_few_outputs_are_refused(module: Any) -> None:
    message = (
        "The model's `out_channels` must be at least the graph's 4 classes, but is 3."
        " HINT: build it with `out_channels=datamodule.num_classes`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_model(module, {}, num_classes=4, layerwise=False)
    check_model(module, {}, num_classes=None, layerwise=False)


def test_layerwise_evaluation_needs_a_module_that_asks_for_it() -> None:
    message = (
        "`eval_mode='layerwise'` needs a LightningModule that asks for layer-wise outputs, but SimpleNamespace does"
        " not declare `supports_layerwise = True`."
        " HINT: use `NodeClassifier`, or `eval_mode='sampled'` with `eval_num_neighbors=[-1, ...]`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_model(fake(), {}, num_classes=None, layerwise=True)
    check_model(fake(supports_layerwise=True), {}, num_classes=None, layerwise=True)
    check_model(NodeClassifier("gcn", in_channels=3, out_channels=3), {}, num_classes=None, layerwise=True)

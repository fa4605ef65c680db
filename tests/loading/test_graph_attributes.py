"""What becomes of a graph's attributes: which a batch gets, which are refused, and how often features are held."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE
from typing_extensions import override

from lightning_gnnopt.loading import GraphDataModule, LinkSplit, LinkTask, SimulatedDevice, checks
from lightning_gnnopt.loading.checks import check_finite
from lightning_gnnopt.models import NodeClassifier

from .graphs import C, E, F, N, make_data, prefetch_threads, random_graph
from .modules import Recorder, make_trainer

STAGES = ("train", "val", "test", "predict")


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


def make_datamodule(data: Data, **options: Any) -> GraphDataModule:
    return GraphDataModule(data, **{"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options})


def batches(datamodule: GraphDataModule, stage: str = "train") -> list[Data]:
    return list(getattr(datamodule, f"{stage}_dataloader")())


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_device", [False, True])
def test_edges_may_have_labels_that_are_no_links(on_device: bool) -> None:
    data = make_data()
    data.edge_label = torch.arange(E) * 3
    with SimulatedDevice(host_computes=True) as device:
        datamodule = make_datamodule(data, edge_id=True, device=device if on_device else None)
        for stage in STAGES:
            for batch in batches(datamodule, stage):
                assert len(batch.edge_label) == batch.num_edges
                assert torch.equal(batch.edge_label, data.edge_label[batch.e_id])


def test_labels_of_links_are_not_those_of_edges() -> None:
    """What `RandomLinkSplit` leaves in a graph is of no use to nodes."""
    data = make_data()
    data.edge_label_index, data.edge_label = data.edge_index[:, :40], torch.arange(40) + 1
    for batch in batches(make_datamodule(data)):
        assert "edge_label" not in batch
        assert "edge_label_index" not in batch


@pytest.mark.parametrize("of_edges", [False, True])
def test_with_links_a_label_is_the_links(of_edges: bool) -> None:
    data = make_data()
    ends, label = data.edge_index[:, :40].clone(), torch.arange(40) + 1000
    if of_edges:
        data.edge_label = torch.arange(E)
    links = LinkTask(train=LinkSplit(ends, edge_label=label))
    seen = 0
    for batch in batches(make_datamodule(data, links=links)):
        assert torch.equal(batch.edge_label, label[batch.input_id])
        assert torch.equal(batch.n_id[batch.edge_label_index], ends[:, batch.input_id])
        seen += len(batch.edge_label)
    assert seen == 40


OURS = ("n_id", "input_id", "batch_size", "e_id", "in_degree", "num_sampled_nodes", "num_sampled_edges")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("make", [lambda: torch.arange(N), lambda: torch.arange(E), lambda: [1, 2]])
def test_names_that_batches_need_are_refused(name: str, make: Callable[[], Any]) -> None:
    """Whether it is an attribute of nodes, of edges or of the graph."""
    data = make_data()
    data[name] = make()
    message = (
        f"`{name}` of a batch is the loader's to say, but the graph has an attribute of that name too."
        f" HINT: rename `data.{name}`, or delete it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_datamodule(data, num_workers=0).setup("fit")


@pytest.mark.parametrize("edge_format", ["coo", "csc"])
def test_an_attribute_may_be_called_colptr(edge_format: str) -> None:
    data = make_data()
    data.colptr = torch.arange(N) * 7.0
    plain = batches(make_datamodule(make_data(), edge_format=edge_format))
    for batch, reference in zip(batches(make_datamodule(data, edge_format=edge_format)), plain, strict=True):
        assert torch.equal(batch.colptr, batch.n_id * 7.0)
        assert isinstance(batch.edge_index, EdgeIndex) == (edge_format == "csc")
        assert {name for name in batch.keys() if name not in reference} == {"colptr"}  # noqa: SIM118
        assert torch.equal(torch.as_tensor(batch.edge_index), torch.as_tensor(reference.edge_index))
        if edge_format == "csc":
            counts = np.bincount(reference.edge_index[1].numpy(), minlength=batch.num_nodes)
            assert batch.edge_index._indptr.tolist() == [0, *np.cumsum(counts).tolist()]


class Molecule(Data):
    """Counts nodes in the last dimension of one attribute, and knows more than a `Data`."""

    def mean_weight(self) -> float:
        return float(self.weight.mean())

    @override
    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == "weight" else super().__cat_dim__(key, value, *args, **kwargs)

    @override
    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1000 if key == "partner" else super().__inc__(key, value, *args, **kwargs)


@pytest.mark.parametrize("edge_format", ["coo", "csc"])
@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_of_the_graphs_class(on_device: bool, edge_format: str) -> None:
    data = Molecule(**make_data().to_dict())
    data.weight = torch.arange(2.0 * N).view(2, N)
    data.name = "water"
    before = sorted(data.keys())
    with SimulatedDevice(host_computes=True) as device:
        datamodule = make_datamodule(data, edge_format=edge_format, device=device if on_device else None)
        for stage in STAGES:
            for batch in batches(datamodule, stage):
                assert type(batch) is Molecule
                assert torch.equal(batch.weight, data.weight[:, batch.n_id])
                assert batch.mean_weight() == pytest.approx(float(data.weight[:, batch.n_id].mean()))
                assert batch.__cat_dim__("weight", batch.weight) == 1
                assert batch.__inc__("partner", None) == 1000
                assert batch.name == "water"
                assert batch.num_nodes == len(batch.n_id) == len(batch.x)
    assert sorted(data.keys()) == before
    assert data.x.shape == (N, F)


# ---- features are held once ------------------------------------------------------------------------------------------


def narrowed(data: Data) -> tuple[dict[str, Any], Tensor]:
    return {"feature_dtype": "float16"}, data.x.half().float()


def in_coo(data: Data) -> tuple[dict[str, Any], Tensor]:
    dense = data.x.relu()
    data.x = dense.to_sparse_coo()
    return {}, dense


def in_csr(data: Data) -> tuple[dict[str, Any], Tensor]:
    dense = data.x.relu()
    data.x = dense.to_sparse_csr()
    return {}, dense


def narrowed_csr(data: Data) -> tuple[dict[str, Any], Tensor]:
    dense = data.x.relu().bfloat16().float()
    data.x = dense.to_sparse_csr()
    return {"feature_dtype": "bfloat16"}, dense


def given_apart(data: Data) -> tuple[dict[str, Any], Tensor]:
    rows = torch.rand(N, F, generator=torch.Generator().manual_seed(9))
    return {"features": rows}, rows


CONVERTED = [narrowed, in_coo, in_csr, narrowed_csr, given_apart]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("convert", CONVERTED)
def test_no_second_copy_of_the_features_is_held(convert: Callable[[Data], tuple[dict[str, Any], Tensor]]) -> None:
    data = make_data()
    options, dense = convert(data)
    given, keys = data.x, sorted(data.keys())
    datamodule = make_datamodule(data, **options)
    datamodule.setup("fit")
    assert "x" not in datamodule.data
    assert datamodule.data.num_nodes == N
    assert datamodule.num_features == F
    assert data.x is given
    assert sorted(data.keys()) == keys
    for stage in STAGES:
        for batch in batches(datamodule, stage):
            assert torch.equal(batch.x, dense[batch.n_id])
            assert torch.equal(batch.y, data.y[batch.n_id])
    module = Recorder()
    make_trainer(1).fit(module, datamodule)
    assert len(module.losses) == 5
    found = make_trainer().predict(module, datamodule)
    assert torch.cat(found).tolist() == list(range(N))
    assert data.x is given


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("convert", CONVERTED)
def test_layerwise_evaluation_needs_no_second_copy(convert: Callable[[Data], tuple[dict[str, Any], Tensor]]) -> None:
    torch.manual_seed(0)
    data = make_data()
    options, dense = convert(data)
    model = NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=8).eval()
    datamodule = make_datamodule(data, eval_mode="layerwise", **options)
    found = torch.cat(make_trainer().predict(model, datamodule))
    assert "x" not in datamodule.data
    assert_close(found, model.net(dense, data.edge_index).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("error:Unable to accurately infer")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("convert", CONVERTED)
def test_a_graph_without_its_features_knows_its_nodes(convert: Callable[[Data], tuple[dict[str, Any], Tensor]]) -> None:
    """PyG tells their number from `x`, and without one from the edges: here the last nodes have none."""
    data = make_data()
    data.edge_index = random_graph(N - 9)
    options, dense = convert(data)
    datamodule = make_datamodule(data, **options)
    nodes = []
    for batch in batches(datamodule, "predict"):
        assert torch.equal(batch.x, dense[batch.n_id])
        assert torch.equal(batch.y, data.y[batch.n_id])
        assert torch.equal(batch.test_mask, data.test_mask[batch.n_id])
        nodes += batch.n_id[: batch.batch_size].tolist()
    assert nodes == list(range(N))
    assert datamodule.topology.num_nodes == datamodule.data.num_nodes == N


ROWS, COLUMNS = 4000, 100


def large_data(num_columns: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    data = Data(x=torch.randn(ROWS, num_columns, generator=generator), edge_index=random_graph(ROWS, 8000))
    data.y = torch.arange(ROWS) % C
    data.train_mask = torch.arange(ROWS) < 100
    return data


def pickled_bytes(value: Any) -> int:
    """Bytes of a pickle, without the addresses by which torch names storages, which are longer at times."""
    return len(re.sub(rb"\d{12,16}", b"", pickle.dumps(value)))


@pytest.mark.parametrize(("dtype", "value_bytes"), [(None, 4), ("float16", 2), ("int8", 1)])
@pytest.mark.parametrize("use", ["fresh", "used", "trained"])
def test_features_are_pickled_once(use: str, dtype: str | None, value_bytes: int) -> None:
    sizes = []
    for num_columns in (COLUMNS, 1):
        datamodule = make_datamodule(large_data(num_columns), feature_dtype=dtype)
        if use == "used":
            next(iter(datamodule.train_dataloader()))
        elif use == "trained":
            model = NodeClassifier("sage", in_channels=num_columns, out_channels=C, hidden_channels=4)
            make_trainer(1).fit(model, datamodule)
        sizes.append(pickled_bytes(datamodule))
    value_bytes = 4 if use == "fresh" else value_bytes  # nothing was converted yet
    once = ROWS * (COLUMNS - 1) * value_bytes
    assert once <= sizes[0] - sizes[1] < 1.05 * once + 2000


@pytest.mark.parametrize("kind", ["tensor", "array", "sparse"])
@pytest.mark.parametrize("used", [False, True])
def test_features_from_elsewhere_are_pickled_once(used: bool, kind: str) -> None:
    sizes = []
    for num_columns in (COLUMNS, 1):
        data = large_data(num_columns)
        rows: Any = data.x if kind == "tensor" else data.x.numpy().copy()
        if kind == "sparse":
            del data.x
            data.num_nodes = ROWS
            rows = torch.eye(ROWS, num_columns).add(1).to_sparse_coo()
        datamodule = make_datamodule(data, features=rows)
        if used:
            next(iter(datamodule.train_dataloader()))
        sizes.append(pickled_bytes(datamodule))
    once = ROWS * (COLUMNS - 1) * (8 if kind == "sparse" else 4)  # with an int32 column for each value
    assert once <= sizes[0] - sizes[1] < 1.05 * once + 2000


# ---- what is missing -------------------------------------------------------------------------------------------------


def sage() -> Any:
    torch.manual_seed(0)
    return GraphSAGE(F, 4, num_layers=2, out_channels=C).eval()


@pytest.mark.parametrize("stage", ["val", "test"])
def test_outputs_of_a_split_that_is_not_there_are_refused(stage: str) -> None:
    data = make_data()
    del data[f"{stage}_mask"]
    message = (
        f"`data` must hold `{stage}_mask` to run this stage, but it has none."
        " HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
    )
    datamodule = make_datamodule(data)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datamodule.layerwise_outputs(sage(), stage)
    assert datamodule.nodes(stage).tolist() == []


@pytest.mark.parametrize("ask", [GraphDataModule.nodes, lambda one, stage: one.layerwise_outputs(sage(), stage)])
def test_what_is_no_stage_is_refused(ask: Callable[[GraphDataModule, str], Any]) -> None:
    datamodule = make_datamodule(make_data())
    for stage in ("valid", "fit", ""):
        with pytest.raises(ValueError, match=f"^Unknown `?stage`? '{stage}'.* Known: predict, test, train, val"):
            ask(datamodule, stage)


# ---- finite values ---------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "csr": lambda x: x.to_sparse_csr(),
    "coo": lambda x: x.to_sparse_coo(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("at", [[0], [-1], [0, -1], [6], [7], [48, 49], range(50)])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_found_wherever_they_are(
    bad: float, at: list[int], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_CHECKED_AT_ONCE", 7)
    isfinite, looked_at = torch.isfinite, []
    monkeypatch.setattr(torch, "isfinite", lambda part: looked_at.append(part.numel()) or isfinite(part))
    x = torch.arange(50.0).add(1).view(10, 5)
    check_finite(LAYOUTS[layout](x), "x")
    assert sum(looked_at) == 50
    assert max(looked_at) == 7  # a mask of all of it would take more memory than it does
    x.view(-1)[list(at)] = bad
    with pytest.raises(ValueError, match=f"^`x` must be finite, but {len(at)} of its 50 values are NaN or infinite"):
        check_finite(LAYOUTS[layout](x), "x")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_is_finite(shape: tuple[int, int]) -> None:
    check_finite(torch.empty(shape), "x")


def test_a_nan_at_the_end_of_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_CHECKED_AT_ONCE", 64)
    data = make_data()
    data.x[-1, -1] = float("nan")
    with pytest.raises(ValueError, match=r"^`x` must be finite, but 1 of its 300 values are NaN or infinite"):
        make_datamodule(data)

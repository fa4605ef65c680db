"""`GraphDataModule` on a simulated device: under a Trainer, with compressed edges, and warmed up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from typing_extensions import override

from lightning_gnnopt.loading import DevicePlacement, GraphDataModule, HostPlacement, SimulatedDevice
from lightning_gnnopt.models import MODELS, NodeClassifier

from ..models.graphs import OPTIONS
from .graphs import C, F, N, make_data, prefetch_threads, same_batches, same_bits
from .modules import Recorder, make_trainer

STAGES = ("train", "val", "test", "predict")
OPTIONS_OF_BATCHES: list[dict[str, Any]] = [
    {},
    {"cache": 12 * F * 4},
    {"feature_dtype": "float16"},
    {"feature_dtype": "float16", "cache": 12 * F * 2, "cache_policy": "presample"},
    {"feature_dtype": "bfloat16"},
]


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(host_computes=True) as device:
        yield device


def round_data() -> Data:
    """Features that 16 bits hold exactly, in either form."""
    data = make_data()
    data.x = data.x.bfloat16().clamp(-4, 4).float().mul(4).round().div(4)
    assert torch.equal(data.x.half().float(), data.x)
    assert torch.equal(data.x.bfloat16().float(), data.x)
    return data


def make_datamodule(where: Any = None, data: Data | None = None, **options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options}
    return GraphDataModule(round_data() if data is None else data, device=where, **options)


def loader_of(datamodule: GraphDataModule, stage: str) -> Any:
    return getattr(datamodule, f"{stage}_dataloader")()


def cloned(loader: Any) -> list[dict[str, Any]]:
    """Batches as they were when they came: a slab is used again later."""
    return [
        {k: v.as_subclass(Tensor).clone() if isinstance(v, Tensor) else v for k, v in batch.to_dict().items()}
        for batch in loader
    ]


def same_dicts(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        left.keys() == right.keys() and all(same_bits(left[name], right[name]) for name in left)
        for left, right in zip(a, b, strict=True)
    )


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS_OF_BATCHES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_iterator_gives_the_hosts_batches(
    num_workers: int, options: dict[str, Any], device: SimulatedDevice
) -> None:
    there, here = make_datamodule(device, num_workers=num_workers, **options), make_datamodule(num_workers=0)
    for stage in STAGES:
        loader, reference = loader_of(there, stage), loader_of(here, stage)
        for _ in range(2):
            assert same_dicts(cloned(loader), cloned(reference))
        assert loader.stats.copies == loader.stats.batches == 2 * len(reference)
        assert reference.stats.copies == reference.stats.moved_bytes == 0


@pytest.mark.parametrize("edge_format", ["coo", "csc"])
@pytest.mark.parametrize("options", OPTIONS_OF_BATCHES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer_is_given_the_hosts_batches(
    num_workers: int, options: dict[str, Any], edge_format: str, device: SimulatedDevice
) -> None:
    there, here = Recorder(), Recorder()
    datamodule = make_datamodule(device, num_workers=num_workers, edge_format=edge_format, **options)
    make_trainer(2).fit(there, datamodule)
    make_trainer(2).fit(here, make_datamodule(num_workers=0, edge_format=edge_format))
    assert [entry[:2] for entry in there.batches] == [(epoch, number) for epoch in range(2) for number in range(5)]
    assert same_batches([batch for *_, batch in there.batches], [batch for *_, batch in here.batches])
    assert same_batches(there.validated, here.validated)
    assert there.losses == here.losses
    for name, value in there.state_dict().items():
        assert torch.equal(value, here.state_dict()[name])


def test_a_cache_and_narrow_rows_make_batches_smaller_on_the_way(device: SimulatedDevice) -> None:
    moved = []
    for options in ({}, {"feature_dtype": "float16"}, {"feature_dtype": "float16", "cache": 10**6}):
        data = make_data()
        data.x = torch.ones(N, 64)
        datamodule = make_datamodule(device, data, **options)
        loader = datamodule.train_dataloader()
        list(loader)
        moved.append((loader.stats.moved_bytes, loader.stats.nodes))
    (plain, nodes), (narrow, _), (cached, _) = moved
    # Each tensor of a batch begins at a multiple of 128 bytes: some play for each of the five batches' handful.
    assert plain - narrow == pytest.approx(nodes * 64 * 2, abs=5 * 128)
    assert narrow - cached == pytest.approx(nodes * (64 * 2 - 2 * 4), abs=5 * 4 * 128)


def test_each_batch_takes_one_copy_under_a_trainer(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device)
    trainer = make_trainer(3)
    trainer.fit(Recorder(), datamodule)
    train, val = trainer.train_dataloader, trainer.val_dataloaders
    assert (train.stats.batches, train.stats.copies) == (15, 15)
    assert val.stats.batches == val.stats.copies == 3 * 2 + 2  # with those that try whether all is well
    warm_ups = 2
    assert len(device.copied_bytes) == 15 + 8 + warm_ups
    assert sum(device.copied_bytes[warm_ups:]) == train.stats.moved_bytes + val.stats.moved_bytes


def test_predictions_are_in_the_order_of_the_seeds(device: SimulatedDevice) -> None:
    for edge_format in ("coo", "csc"):
        found = make_trainer().predict(Recorder(), make_datamodule(device, edge_format=edge_format))
        assert [len(part) for part in found] == [8] * 7 + [4]
        assert torch.cat(found).tolist() == list(range(N))


# ---- placement -------------------------------------------------------------------------------------------------------


def test_loaders_use_each_others_slabs(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, data=wide_data(), num_workers=2)
    loaders = {stage: loader_of(datamodule, stage) for stage in STAGES}
    placement = datamodule.placement
    assert isinstance(placement, DevicePlacement)
    assert all(loader.placement is placement for loader in loaders.values())
    seen: dict[str, set[int]] = {stage: set() for stage in STAGES}
    largest = 0
    for _ in range(3):
        for stage in ("predict", "train", "val", "test"):
            for batch in loaders[stage]:
                seen[stage].add(batch.x.untyped_storage().data_ptr())
                del batch
            largest = max(largest, placement._slabs.num_slabs)
    assert largest <= placement._slabs.target == 2 * 2 + 2
    assert placement._staging.num_slabs <= placement._staging.target == 2 * 2 + 1
    assert seen["train"] & seen["val"]
    assert seen["train"] & seen["predict"]


def wide_data() -> Data:
    data = make_data()
    data.x = torch.randn(N, 400, generator=torch.Generator().manual_seed(0))
    return data


def test_without_a_device_batches_stay_in_host_memory() -> None:
    for where in (None, "cpu", torch.device("cpu")):
        datamodule = make_datamodule(where)
        train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
        assert isinstance(datamodule.placement, HostPlacement)
        assert train.placement is val.placement is datamodule.placement


def test_a_trainer_on_the_cpu_keeps_the_given_streams(device: SimulatedDevice) -> None:
    """The name of a device gives way to the Trainer's: see `test_default_device`."""
    datamodule = make_datamodule(device)
    before = datamodule.placement
    trainer = make_trainer(1)
    trainer.fit(Recorder(), datamodule)
    assert datamodule.placement is before
    assert trainer.train_dataloader.placement is before


def test_buffers_that_wait_for_a_use_go_when_a_run_ends(device: SimulatedDevice) -> None:
    datamodule = make_datamodule(device, data=wide_data())
    placement = datamodule.placement
    assert isinstance(placement, DevicePlacement)
    for _ in range(2):
        model = NodeClassifier("sage", in_channels=400, out_channels=C, hidden_channels=8)
        make_trainer(1).fit(model, datamodule)
        assert datamodule.placement is placement
        assert placement._slabs.nbytes == placement._staging.nbytes == 0
    loader = datamodule.train_dataloader()
    for batch in loader:
        del batch
    assert placement._slabs.nbytes > 0
    datamodule.teardown("fit")
    assert placement._slabs.nbytes == 0
    reference = make_datamodule(data=wide_data()).train_dataloader()
    reference.set_epoch(1)
    assert same_dicts(cloned(loader), cloned(reference))


# ---- compressed edges ------------------------------------------------------------------------------------------------


def test_compressed_edges_are_those_of_pairs(device: SimulatedDevice) -> None:
    for where in (None, device):
        for stage in ("train", "val", "predict"):
            pairs = list(loader_of(make_datamodule(where), stage))
            compressed = list(loader_of(make_datamodule(where, edge_format="csc"), stage))
            assert len(pairs) == len(compressed)
            for coo, csc in zip(pairs, compressed, strict=True):
                assert type(coo.edge_index) is Tensor
                assert coo.edge_index.dtype == torch.int64
                assert isinstance(csc.edge_index, EdgeIndex)
                assert (
                    csc.edge_index.dtype == torch.int64
                )  # layers train on wrong gradients of int32, see `_compressed`
                assert csc.edge_index.sparse_size() == (coo.num_nodes, coo.num_nodes)
                assert csc.edge_index.is_sorted_by_col
                assert csc.edge_index.as_tensor().tolist() == coo.edge_index.tolist()
                indptr = csc.edge_index._indptr
                assert indptr.dtype == torch.int64
                counts = np.bincount(coo.edge_index[1].numpy(), minlength=coo.num_nodes)
                assert indptr.tolist() == [0, *np.cumsum(counts).tolist()]
                csc.edge_index.validate()
                assert torch.equal(csc.x, coo.x)
                assert torch.equal(csc.n_id, coo.n_id)


@pytest.mark.parametrize("kind", ["sage", "gcn", "gat"])
def test_pygs_layers_give_the_same_with_compressed_edges(kind: str, device: SimulatedDevice) -> None:
    torch.manual_seed(3)
    make = {"sage": SAGEConv, "gcn": GCNConv, "gat": GATConv}[kind]
    convs = [make(F, 8), make(8, C)]
    weight = torch.rand(N, C)
    pairs = make_datamodule(device).train_dataloader()
    compressed = make_datamodule(device, edge_format="csc").train_dataloader()
    for coo, csc in zip(list(pairs), list(compressed), strict=True):
        outputs = []
        for batch in (coo, csc):
            x = batch.x.clone().requires_grad_()
            out = convs[1](convs[0](x, batch.edge_index).relu(), batch.edge_index)
            (grad,) = torch.autograd.grad((out * weight[: len(out)]).sum(), x)
            outputs.append((out.detach(), grad))
        for a, b in zip(*outputs, strict=True):
            assert_close(b, a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_product_with_compressed_edges_is_that_of_a_dense_matrix(reduce: str, device: SimulatedDevice) -> None:
    """What reads only the compressed columns sees the same graph, forwards and backwards."""
    for batch in make_datamodule(device, edge_format="csc").train_dataloader():
        dense = torch.zeros(batch.num_nodes, batch.num_nodes)
        source, target = batch.edge_index.as_tensor()
        dense.index_put_((target, source), torch.ones(len(source)), accumulate=True)
        if reduce == "mean":
            dense /= dense.sum(1, keepdim=True).clamp(min=1)
        x = batch.x.clone().requires_grad_()
        weight = torch.rand(batch.num_nodes, F, generator=torch.Generator().manual_seed(0))
        out = batch.edge_index.matmul(x, reduce=reduce, transpose=True)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        assert_close(out.detach(), dense @ batch.x, atol=1e-5, rtol=1e-5)
        assert_close(grad, dense.T @ weight, atol=1e-5, rtol=1e-5)


def classifier(name: str) -> NodeClassifier:
    torch.manual_seed(0)
    options = {"in_channels": F, "out_channels": C, "hidden_channels": 6, "num_layers": 2, **OPTIONS[name]}
    return NodeClassifier(name, dropout=0.0, **options)


@pytest.mark.parametrize("name", MODELS)
def test_our_nets_train_alike_on_compressed_edges(name: str, device: SimulatedDevice) -> None:
    weights, metrics = [], []
    for edge_format in ("coo", "csc"):
        model = classifier(name)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        datamodule = make_datamodule(device, edge_format=edge_format)
        trainer = make_trainer(2)
        trainer.fit(model, datamodule)
        after = [parameter.detach() for parameter in model.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        weights.append(torch.cat([parameter.flatten() for parameter in after]))
        metrics.append(trainer.test(model, datamodule, verbose=False)[0])
    assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-4)
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)


# ---- layer-wise evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"feature_dtype": "float16"}, {"cache": 12 * F * 4}, {"edge_format": "csc"}])
@pytest.mark.parametrize("name", ["sage", "gcn"])
def test_layerwise_evaluation_equals_the_hosts(name: str, options: dict[str, Any], device: SimulatedDevice) -> None:
    model, data = classifier(name).eval(), round_data()
    expected = model.net(data.x, data.edge_index).detach()
    outputs = []
    for where, more in ((None, {}), (device, options)):
        for num_workers in (0, 2):
            datamodule = make_datamodule(
                where, eval_mode="layerwise", eval_batch_size=7, num_workers=num_workers, **more
            )
            found = make_trainer().predict(model, datamodule)
            outputs.append(torch.cat(found))
            (metrics,) = make_trainer().test(model, datamodule, verbose=False)
            right = expected[48:].argmax(-1) == data.y[48:]
            assert metrics["test/acc"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert_close(outputs[0], expected, atol=1e-5, rtol=1e-5)


# ---- warming up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "warmed"),
    [("fit", ["train", "val"]), ("validate", ["val"]), ("test", ["test"]), ("predict", ["predict"])],
)
def test_setup_warms_up_its_own_stages(stage: str, warmed: list[str], device: SimulatedDevice) -> None:
    first_bytes = {}
    for name in STAGES:  # what the first batch of a stage weighs on its way
        copied = len(device.copied_bytes)
        loader = loader_of(make_datamodule(device, num_workers=0), name)
        next(iter(loader))
        first_bytes[name] = device.copied_bytes[copied]
    copied = len(device.copied_bytes)
    datamodule = make_datamodule(device)
    datamodule.setup(stage)
    assert device.copied_bytes[copied:] == [first_bytes[name] for name in warmed]
    datamodule.setup(stage)  # the Trainer does so for each run
    assert len(device.copied_bytes) == copied + len(warmed)


def test_a_stage_that_the_graph_lacks_is_not_warmed_up(device: SimulatedDevice) -> None:
    data = make_data()
    del data.val_mask, data.test_mask
    datamodule = make_datamodule(device, data)
    datamodule.setup("fit")
    assert len(device.copied_bytes) == 1
    datamodule.setup("test")
    assert len(device.copied_bytes) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"cache": 12 * F * 4}])
def test_warming_up_leaves_no_trace(num_workers: int, options: dict[str, Any], device: SimulatedDevice) -> None:
    transformed = []

    def count(subgraph: Any, resample: Any) -> Any:
        transformed.append(subgraph)
        return subgraph

    warm = make_datamodule(device, num_workers=num_workers, transforms=[count], **options)
    for stage in ("fit", "validate", "test", "predict"):
        warm.setup(stage)
    assert prefetch_threads() == []
    assert transformed == []
    if warm.cached_features is not None:
        assert (warm.cached_features.hit_rate, warm.cached_features._counts.sum()) == (0.0, 0)
    for stage in STAGES:
        loader = loader_of(warm, stage)
        stats = loader.stats
        assert (stats.batches, stats.nodes, stats.copies, stats.nbytes, stats.sample_s, stats.wait_s) == (0,) * 6
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
        assert same_dicts(cloned(loader), cloned(loader_of(make_datamodule(), stage)))


def test_a_module_that_needs_degrees_is_warmed_up_with_them(device: SimulatedDevice) -> None:
    class Degrees(Recorder):
        needs_in_degree = True

        @override
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            assert "in_degree" in batch
            return super().training_step(batch, batch_idx)

    module = Degrees()
    make_trainer(1).fit(module, make_datamodule(device))
    reference = make_datamodule()
    degrees = reference.topology.in_degrees
    for _, _, batch in module.batches:
        assert batch.in_degree.tolist() == degrees[batch.n_id.numpy()].tolist()

"""Which device batches go to, and which it is none of: torch's default device changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.loading import (
    DevicePlacement,
    GraphDataModule,
    HostPlacement,
    LinkSplit,
    LinkTask,
    SimulatedDevice,
    residence,
    streams,
)
from lightning_gnnopt.models import NodeClassifier

from .graphs import C, F, N, make_data, prefetch_threads, same_batches
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


# ---- `device` --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices whose streams were asked for, of which CUDA's are refused."""
    asked: list[str] = []

    def streams_of(device: torch.device) -> None:
        asked.append(str(device))
        assert device.type != "cuda", "CUDA is touched"

    monkeypatch.setattr(residence, "streams_of", streams_of)
    return asked


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0), "cpu", None])
def test_a_trainers_device_comes_before_the_given_one(device: Any, opened: list[str]) -> None:
    """Of four ranks each has its own; what stands in the script may be one of them."""
    datamodule, module = make_datamodule(make_data(), device=device), Recorder()
    trainer = make_trainer(1)
    trainer.fit(module, datamodule)
    trainer.validate(module, datamodule, verbose=False)
    assert isinstance(datamodule.placement, HostPlacement)
    assert isinstance(trainer.val_dataloaders.placement, HostPlacement)
    assert set(opened) == {"cpu"}
    assert {tensor.device.type for *_, batch in module.batches for tensor in (batch.x, batch.y)} == {"cpu"}
    assert same_batches([batch for *_, batch in module.batches], batches(make_datamodule(make_data())))


def test_without_a_trainer_the_given_device_counts(opened: list[str]) -> None:
    for device in ("cuda:1", torch.device("cuda", 1)):
        with pytest.raises(AssertionError, match="CUDA is touched"):
            _ = make_datamodule(make_data(), device=device).placement
    assert opened == ["cuda:1"] * 2


def test_streams_come_before_a_trainers_device(opened: list[str]) -> None:
    with SimulatedDevice(host_computes=True) as device:
        datamodule = make_datamodule(make_data(), device=device)
        trainer = make_trainer(1)
        trainer.fit(Recorder(), datamodule)
        assert isinstance(datamodule.placement, DevicePlacement)
        assert datamodule.placement.streams is device
        assert trainer.train_dataloader.placement is datamodule.placement
        assert trainer.train_dataloader.stats.copies == 5
    assert opened == []


def test_a_name_that_is_no_device_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^`device` must be a torch device, such as .*, but got 'gpu'\. HINT: "):
        make_datamodule(make_data(), device="gpu")


def test_a_device_that_torch_does_not_find_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    datamodule = make_datamodule(make_data(), device="cuda")
    with pytest.raises(ValueError, match=r"^`device` must be one that torch finds, but got 'cuda', and .* HINT: "):
        datamodule.train_dataloader()
    assert streams.streams_of("cpu") is None


# ---- torch's default device ------------------------------------------------------------------------------------------


@contextmanager
def elsewhere() -> Iterator[None]:
    """Tensors that are made without a device hold nothing: any use of their values fails."""
    torch.set_default_device("meta")
    try:
        assert torch.empty(1).is_meta
        yield
    finally:
        torch.set_default_device(None)


def sparse(data: Data) -> Data:
    data.x = data.x.relu().to_sparse_csr()
    return data


def timed(data: Data) -> Data:
    data.time = torch.arange(N)
    return data


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (make_data, {}),
    "csc": (make_data, {"edge_format": "csc", "edge_id": True}),
    "float16": (make_data, {"feature_dtype": "float16"}),
    "int8": (make_data, {"feature_dtype": "int8"}),
    "sparse": (lambda: sparse(make_data()), {}),
    "sparse int8": (lambda: sparse(make_data()), {"feature_dtype": "int8"}),
    "features": (make_data, {"features": torch.arange(2.0 * N).view(N, 2)}),
    "times": (lambda: timed(make_data()), {"time_attr": "time", "input_time_attr": "time"}),
    "full": (make_data, {"eval_num_neighbors": [-1, -1]}),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_depend_on_the_default_device(kind: str, num_workers: int) -> None:
    make, options = KINDS[kind]
    data = make()
    expected = {stage: batches(make_datamodule(make(), num_workers=0, **options), stage) for stage in STAGES}
    with elsewhere():
        datamodule = make_datamodule(data, num_workers=num_workers, **options)
        found = {stage: batches(datamodule, stage) for stage in STAGES}
    for stage in STAGES:
        assert same_batches(found[stage], expected[stage])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nor_do_those_of_links_and_on_a_device(num_workers: int) -> None:
    data = make_data()
    links = LinkTask(train=LinkSplit(data.edge_index[:, :30].clone()), negatives="binary")
    for options in ({"links": links}, {"device": True}, {"device": True, "cache": 12 * F * 4}):
        found = []
        for surroundings in (None, elsewhere()):
            with SimulatedDevice(host_computes=True) as device:
                more = options | ({"device": device} if "device" in options else {})
                if surroundings is None:
                    found.append(batches(make_datamodule(data, num_workers=0, **more)))
                else:
                    with surroundings:
                        found.append(batches(make_datamodule(data, num_workers=num_workers, **more)))
        assert same_batches(*found)


@pytest.mark.parametrize("eval_mode", ["sampled", "layerwise"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_predictions_do_not_depend_on_the_default_device(num_workers: int, eval_mode: str) -> None:
    torch.manual_seed(0)
    model = NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=8)
    options: dict[str, Any] = {"eval_mode": eval_mode, "num_workers": num_workers}
    data, found = make_data(), []
    found.append(make_trainer().predict(model, make_datamodule(make_data(), **options)))
    with elsewhere():
        found.append(make_trainer().predict(model, make_datamodule(data, **options)))
    expected, outputs = (torch.cat(parts) for parts in found)
    assert isinstance(outputs, Tensor)
    assert outputs.shape == (N, C)
    assert torch.equal(outputs, expected)

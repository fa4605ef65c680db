"""`GraphDataModule` with features that lie elsewhere or in another form."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.data import Data

from lightning_gnnopt.loading import GraphDataModule, SimulatedDevice, feature_store
from lightning_gnnopt.loading.mapped_features import MappedFeatures
from lightning_gnnopt.models import NodeClassifier

from .graphs import C, F, N, make_data, prefetch_threads, same_batches
from .modules import Recorder, make_trainer

STAGES = ("train", "val", "test", "predict")


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


def without_x() -> Data:
    data = make_data()
    del data.x
    data.num_nodes = N
    return data


def saved(folder: Path, x: Any) -> Path:
    path = folder / "x.npy"
    np.save(path, np.asarray(x))
    return path


def make_datamodule(data: Data, **options: Any) -> GraphDataModule:
    return GraphDataModule(data, **{"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options})


def batches(datamodule: GraphDataModule, stage: str = "train") -> list[Data]:
    return list(getattr(datamodule, f"{stage}_dataloader")())


# What `features` can be, of these rows.
SOURCES: dict[str, Callable[[Path, Tensor], Any]] = {
    "path": lambda folder, x: saved(folder, x),
    "name": lambda folder, x: str(saved(folder, x)),
    "mapped": lambda folder, x: MappedFeatures(saved(folder, x), io_threads=2),
    "store": lambda folder, x: feature_store(x),
    "stored narrow": lambda folder, x: feature_store(x, stored_as="bfloat16"),
}


# ---- `features` ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_data, without_x])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_come_from_there(num_workers: int, kind: str, make: Callable[[], Data], tmp_path: Path) -> None:
    """Whether or not the graph has an `x`, which is not looked at then."""
    rows = torch.arange(N * 7, dtype=torch.float32).view(N, 7).bfloat16().float()
    datamodule = make_datamodule(make(), features=SOURCES[kind](tmp_path, rows), num_workers=num_workers)
    assert datamodule.num_features == 7
    reference = make_data()
    reference.x = rows
    expected = make_datamodule(reference, num_workers=0)
    for stage in STAGES:
        for batch, wanted in zip(batches(datamodule, stage), batches(expected, stage), strict=True):
            assert torch.equal(batch.x, rows[batch.n_id])
            assert batch.x.dtype == torch.float32
            assert torch.equal(batch.n_id, wanted.n_id)
            assert torch.equal(batch.edge_index, wanted.edge_index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8])
def test_a_batch_has_the_files_type(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = (torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    datamodule = make_datamodule(without_x(), features=saved(tmp_path, rows))
    for batch in batches(datamodule):
        assert batch.x.dtype == dtype
        assert torch.equal(batch.x, rows[batch.n_id])


def test_an_x_that_is_not_looked_at_may_be_anything(tmp_path: Path) -> None:
    data = make_data()
    data.x = torch.full((N, 2), float("nan"))
    datamodule = make_datamodule(data, features=saved(tmp_path, torch.ones(N, 4)))
    assert datamodule.num_features == 4
    assert all(torch.equal(batch.x, torch.ones(len(batch.n_id), 4)) for batch in batches(datamodule))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("cache", [0, 9 * F * 2])
def test_training_is_that_with_x_in_memory(kind: str, cache: int, tmp_path: Path) -> None:
    data, losses = make_data(), []
    data.x = data.x.bfloat16().float()
    with SimulatedDevice(host_computes=True) as device:
        for options in ({}, {"features": SOURCES[kind](tmp_path, data.x), "cache": cache, "device": device}):
            module = Recorder()
            graph = without_x() if options else data
            make_trainer(2).fit(module, make_datamodule(graph, **options))
            losses.append(module.losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10


def wrong_shape(shape: tuple[int, ...]) -> str:
    return (
        f"`features` must be of shape (N, F) for the graph's 60 nodes, but are of shape {shape}."
        " HINT: one row of features per node, in the order of the nodes."
    )


@pytest.mark.parametrize("num_rows", [N - 1, N + 1])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("make", [make_data, without_x])
def test_too_few_or_too_many_rows_are_refused(
    make: Callable[[], Data], kind: str, num_rows: int, tmp_path: Path
) -> None:
    """Rows are gathered without a look at the ids."""
    features = SOURCES[kind](tmp_path, torch.zeros(num_rows, F))
    with pytest.raises(ValueError, match=f"^{re.escape(wrong_shape((num_rows, F)))}"):
        make_datamodule(make(), features=features)


@pytest.mark.parametrize("shape", [(N,), (N, 2, 3)])
@pytest.mark.parametrize("kind", SOURCES)
def test_rows_that_are_no_vectors_are_refused(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    features = SOURCES[kind](tmp_path, torch.zeros(shape))
    with pytest.raises(ValueError, match=f"^{re.escape(wrong_shape(shape))}"):
        make_datamodule(without_x(), features=features)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = f"but there is none at '{tmp_path / 'none.npy'}'. HINT: `np.save(path, array)` writes one."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        make_datamodule(make_data(), features=tmp_path / "none.npy")


@pytest.mark.parametrize(("features", "kind"), [(3, "int"), ({"x": 1}, "dict")])
def test_what_holds_no_rows_is_refused(features: Any, kind: str) -> None:
    message = f"`features` must be a tensor, a numpy array, the path of an .npy file or a store, but got {kind}. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(make_data(), features=features)


def test_a_file_is_stored_already(tmp_path: Path) -> None:
    features = saved(tmp_path, torch.zeros(N, F))
    with pytest.raises(ValueError, match=r"^`feature_dtype` must be None for the file '.*x\.npy'.* HINT: "):
        make_datamodule(make_data(), features=features, feature_dtype="float16")


# ---- `feature_dtype` -------------------------------------------------------------------------------------------------


def test_int8_comes_back_within_half_a_scale() -> None:
    data = make_data()
    data.x = data.x * torch.tensor([1.0, 100.0, 0.01, 5.0, 0.0])
    given, scale = data.x.clone(), data.x.abs().amax(0) / 127
    datamodule = make_datamodule(data, feature_dtype="int8")
    assert (datamodule.num_features, datamodule._task.store.nbytes) == (F, N * F)
    for batch in batches(datamodule):
        assert batch.x.dtype == torch.float32
        error = (batch.x - data.x[batch.n_id]).abs()
        assert (error <= scale / 2 * (1 + 1e-5)).all()
        whole = torch.where(scale > 0, batch.x / scale, 0.0)
        assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    assert "x" not in datamodule.data  # it would be held twice
    assert torch.equal(data.x, given)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_come_back_rounded(name: str) -> None:
    data = make_data()
    datamodule = make_datamodule(data, feature_dtype=name)
    rounded = data.x.to(getattr(torch, name)).float()
    assert not torch.equal(rounded, data.x)
    for batch in batches(datamodule):
        assert batch.x.dtype == torch.float32
        assert torch.equal(batch.x, rounded[batch.n_id])
    assert datamodule._task.store.nbytes == N * F * 2


@pytest.mark.parametrize("name", ["float64", "int9"])
def test_an_unknown_type_is_refused_with_those_that_are_known(name: str) -> None:
    known = "Known: bfloat16, float16, float32, int8. HINT: "
    with pytest.raises(ValueError, match=rf"^Unknown `feature_dtype` '{name}'\. .*{re.escape(known)}"):
        make_datamodule(make_data(), feature_dtype=name)


def test_whole_numbers_are_not_narrowed() -> None:
    data = make_data()
    data.x = data.x.long()
    message = (
        "`feature_dtype` must be None for values that are no floating-point numbers, but got 'int8' for torch.int64"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.* HINT: "):
        make_datamodule(data, feature_dtype="int8")


def test_numbers_that_are_too_large_are_not_narrowed() -> None:
    data = make_data()
    data.x[7, 3] = 1e6
    with pytest.raises(ValueError, match=r"^`feature_dtype='float16'` must hold every value.*1e\+06.* HINT: "):
        make_datamodule(data, feature_dtype="float16").setup("fit")


# ---- sparse ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
@pytest.mark.parametrize("options", [{}, {"feature_dtype": "float16"}, {"feature_dtype": "int8"}, {"cache": 8 * F * 4}])
def test_sparse_rows_arrive_dense(layout: torch.layout, options: dict[str, Any]) -> None:
    data = make_data()
    dense = data.x.relu()
    data.x = dense.to_sparse(layout=layout)
    reference = make_data()
    reference.x = dense
    with SimulatedDevice(host_computes=True) as device:
        for where in (None, device):
            more = options if where is not None else {name: v for name, v in options.items() if name != "cache"}
            datamodule = make_datamodule(data, device=where, **more)
            assert datamodule.num_features == F
            for stage in STAGES:
                expected = make_datamodule(reference, **{name: v for name, v in options.items() if name != "cache"})
                assert same_batches(batches(datamodule, stage), batches(expected, stage))


# ---- layer-wise evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["sage", "gcn"])
def test_layerwise_evaluation_reads_a_file(name: str, num_workers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = NodeClassifier(name, in_channels=F, out_channels=C, hidden_channels=8).eval(), make_data()
    expected = model.net(data.x, data.edge_index).detach()
    datamodule = make_datamodule(
        without_x(),
        features=saved(tmp_path, data.x),
        eval_mode="layerwise",
        eval_batch_size=7,
        num_workers=num_workers,
    )
    assert_close(torch.cat(make_trainer().predict(model, datamodule)), expected, atol=1e-5, rtol=1e-5)
    (metrics,) = make_trainer().test(model, datamodule, verbose=False)
    right = expected[48:].argmax(-1) == data.y[48:]
    assert metrics["test/acc"] == pytest.approx(right.double().mean().item(), abs=1e-6)


def test_layerwise_evaluation_reads_narrow_rows() -> None:
    torch.manual_seed(0)
    model, data = NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=8).eval(), make_data()
    expected = model.net(data.x.half().float(), data.edge_index).detach()
    datamodule = make_datamodule(data, feature_dtype="float16", eval_mode="layerwise")
    assert_close(torch.cat(make_trainer().predict(model, datamodule)), expected, atol=1e-5, rtol=1e-5)


# ---- pickling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fresh", "set up", "trained"])
@pytest.mark.parametrize("kind", [*SOURCES, "float16", "int8", "sparse", "plain"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_it_travels_to_another_process(kind: str, state: str, tmp_path: Path) -> None:
    data, options = make_data(), {}
    if kind in SOURCES:
        options["features"] = SOURCES[kind](tmp_path, data.x)
        data = without_x()
    elif kind == "sparse":
        data.x = data.x.relu().to_sparse_csr()
    elif kind != "plain":
        options["feature_dtype"] = kind
    datamodule = make_datamodule(data, **options)
    expected = {stage: batches(make_datamodule(data, **options), stage) for stage in STAGES}
    if state == "set up":
        datamodule.setup("fit")
    elif state == "trained":
        make_trainer(1).fit(Recorder(), datamodule)
        datamodule.trainer = None
    there = pickle.loads(pickle.dumps(datamodule))
    assert there.num_features == F
    for stage in STAGES:
        assert same_batches(batches(there, stage), expected[stage])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_can_be_made_after_a_run(duplicate: Callable[[GraphDataModule], GraphDataModule]) -> None:
    """The Trainer is still attached, and has the loaders."""
    datamodule = make_datamodule(make_data())
    make_trainer(1).fit(Recorder(), datamodule)
    assert datamodule.trainer is not None
    expected = batches(make_datamodule(make_data()))
    assert same_batches(batches(duplicate(datamodule)), expected)
    assert datamodule.trainer is not None
    module = Recorder()
    make_trainer(1).fit(module, duplicate(datamodule))
    assert same_batches([batch for *_, batch in module.batches], expected)


def test_a_file_is_not_pickled_whole(tmp_path: Path) -> None:
    data = without_x()
    for kind in ("path", "mapped"):
        datamodule = make_datamodule(data, features=SOURCES[kind](tmp_path, torch.zeros(N, 50_000)))  # 12 MB
        datamodule.setup("fit")
        assert len(pickle.dumps(datamodule)) < 100_000

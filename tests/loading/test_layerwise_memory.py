"""Where layer-wise evaluation keeps a layer's outputs: in memory, or in a file that has no name."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.layerwise import NodeOutputs
from lightning_gnnopt.models import NodeClassifier

from .graphs import C, F, N, make_data, prefetch_threads
from .modules import make_trainer

HIDDEN = 8
LAYERS = [N * HIDDEN * 4, N * C * 4]  # bytes of each layer's outputs
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files would be seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert prefetch_threads() == []
    assert named_files(tmp_path) == []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes to which temporary files have grown."""
    sizes: list[int] = []
    real = tempfile.TemporaryFile

    @contextmanager
    def noted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with real(*args, **kwargs) as file:
            yield file
            sizes.append(os.fstat(file.fileno()).st_size)

    def chosen(*args: Any, prefix: str | None = None, **kwargs: Any) -> Any:
        return (noted if prefix == "gnnopt-layer-" else real)(*args, prefix=prefix, **kwargs)  # numba has files, too

    monkeypatch.setattr(tempfile, "TemporaryFile", chosen)
    return sizes


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_model() -> NodeClassifier:
    torch.manual_seed(0)
    return NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=HIDDEN, num_layers=2).eval()


def make_datamodule(**options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "eval_mode": "layerwise", "eval_batch_size": 7, **options}
    return GraphDataModule(make_data(), **options)


def outputs_of(model: NodeClassifier, **options: Any) -> NodeOutputs:
    datamodule = make_datamodule(**options)
    datamodule.setup("predict")
    return datamodule.layerwise_outputs(model.net, "predict")


def expected_of(model: NodeClassifier) -> Tensor:
    data = make_data()
    return model.net(data.x, data.edge_index).detach()


def named_files(folder: Path) -> list[str]:
    """Ours only: PyG writes the code it makes there."""
    return [path.name for path in folder.iterdir() if path.name.startswith("gnnopt")]


def files_in(folder: Path) -> tuple[int, int]:
    """Open descriptors and mappings of files in a folder, unlinked ones too."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:  # that of the loop itself
            continue
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(link.startswith(str(folder)) for link in links), sum(str(folder) in line for line in maps)


@pytest.mark.parametrize(
    ("budget", "in_files"),
    [
        (0, LAYERS),
        (1, LAYERS),
        (LAYERS[1] - 1, LAYERS),
        (LAYERS[1], LAYERS[:1]),
        ("1KiB", LAYERS[:1]),
        (LAYERS[0] - 1, LAYERS[:1]),
        (LAYERS[0], []),
        ("1GiB", []),
        (None, []),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_larger_lies_in_a_file_and_is_the_same(
    num_workers: int, budget: int | str | None, in_files: list[int], opened: list[int]
) -> None:
    model = make_model()
    outputs = outputs_of(model, layerwise_bytes=budget, num_workers=num_workers)
    assert opened == in_files
    assert torch.equal(outputs.values, outputs_of(model, layerwise_bytes="1GiB").values)
    assert torch.allclose(outputs.rows(torch.arange(N)), expected_of(model), atol=1e-5)
    found = outputs.rows(torch.tensor([59, 3, 3, 17]))
    assert torch.equal(found, outputs.values[torch.tensor([59, 3, 3, 17])])


@linux
@pytest.mark.parametrize("budget", [0, None])
def test_nothing_is_left_once_the_outputs_are_dropped(budget: int | None, folder: Path, no_collector: None) -> None:
    model = make_model()
    outputs = outputs_of(model, layerwise_bytes=budget)
    assert named_files(folder) == []  # a file has no name while it is in use
    count = 1 if budget == 0 else 0  # one layer's: the other one's is gone already
    assert files_in(folder) == (count, count)
    kept = outputs.values[5:8]
    expected = expected_of(model)[5:8]
    del outputs
    assert files_in(folder) == (count, count)
    assert torch.allclose(kept, expected, atol=1e-5)  # a view keeps it
    del kept
    assert files_in(folder) == (0, 0)


@linux
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_layers_outputs_at_a_time(num_workers: int, folder: Path, no_collector: None) -> None:
    """They are what takes memory: none may wait for the collector, which counts objects and not bytes."""
    torch.manual_seed(0)
    model = NodeClassifier("sage", in_channels=F, out_channels=C, hidden_channels=HIDDEN, num_layers=4).eval()
    real, seen = model.net.inference_per_layer, {}

    def noting(layer: int, *args: Any, **kwargs: Any) -> Tensor:
        out = real(layer, *args, **kwargs)
        seen[layer] = files_in(folder)
        return out

    model.net.inference_per_layer = noting
    outputs = outputs_of(model, layerwise_bytes=0, num_workers=num_workers)
    assert seen == {0: (1, 1), 1: (2, 2), 2: (2, 2), 3: (2, 2)}
    assert files_in(folder) == (1, 1)
    assert torch.allclose(outputs.values, expected_of(model), atol=1e-5)


@linux
def test_many_evaluations_leave_no_descriptor(folder: Path) -> None:
    model, process = make_model(), psutil.Process()
    outputs_of(model, layerwise_bytes=0)
    gc.collect()
    before = process.num_fds()
    for _ in range(5):
        outputs_of(model, layerwise_bytes=0, num_workers=2)
    gc.collect()  # threads that have ended
    assert process.num_fds() == before
    assert files_in(folder) == (0, 0)


@linux
@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_in_a_layer_leaves_nothing(layer: int, folder: Path) -> None:
    model = make_model()
    real, calls = model.net.inference_per_layer, []

    def fails(number: int, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(number)
        if number == layer and calls.count(layer) == 3:
            raise RuntimeError("out of patience")
        return real(number, *args, **kwargs)

    model.net.inference_per_layer = fails
    with pytest.raises(RuntimeError, match=r"^out of patience$") as caught:
        outputs_of(model, layerwise_bytes=0, num_workers=2)
    del caught  # its traceback holds what was in use
    assert calls.count(layer) == 3
    gc.collect()
    assert files_in(folder) == (0, 0)


@linux
def test_a_trainer_evaluates_through_files(folder: Path, opened: list[int]) -> None:
    model, data = make_model(), make_data()
    expected = expected_of(model)
    datamodule = make_datamodule(layerwise_bytes=10)
    trainer = make_trainer()
    found = torch.cat(trainer.predict(model, datamodule))
    assert torch.allclose(found, expected, atol=1e-5)
    (metrics,) = trainer.test(model, datamodule, verbose=False)
    right = expected[48:].argmax(-1) == data.y[48:]
    assert metrics["test/acc"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert opened[:2] == LAYERS
    assert len(opened) == 4
    assert opened[3] == 12 * C * 4  # the test nodes'
    trainer.fit(model, datamodule)
    assert len(opened) > 4
    gc.collect()
    assert named_files(folder) == []


@linux
def test_a_quarter_of_the_free_memory_is_the_default(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()
    model = make_model()
    for available, in_files in ((4 * LAYERS[1], LAYERS[:1]), (4 * LAYERS[1] - 4, LAYERS), (4 * LAYERS[0], [])):
        opened.clear()
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: free._replace(available=available))
        outputs_of(model)
        assert opened == in_files


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_outputs_keep_their_type(dtype: torch.dtype, opened: list[int]) -> None:
    model = make_model().to(dtype)
    data = make_data()
    data.x = data.x.to(dtype)
    values = []
    for budget in (0, None):
        datamodule = GraphDataModule(data, num_neighbors=[3, 2], eval_mode="layerwise", layerwise_bytes=budget)
        datamodule.setup("predict")
        values.append(datamodule.layerwise_outputs(model.net, "predict").values)
    assert opened == [N * HIDDEN * dtype.itemsize, N * C * dtype.itemsize]
    assert values[0].dtype == dtype
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("budget", ["some", -1, "1 page"])
def test_what_is_no_number_of_bytes_is_refused_at_once(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"^`layerwise_bytes` must be a number of bytes, but got .* HINT: "):
        make_datamodule(layerwise_bytes=budget)

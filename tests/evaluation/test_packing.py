from __future__ import annotations

import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from lightning_gnnopt.evaluation.packing import pack, unpack
from lightning_gnnopt.sampling.shared_arrays import SharedArrays

from .child_modules import Lazy, quiet_trainer

SMALL = 1024


def through(value: Any, min_bytes: int = SMALL) -> Any:
    packed = pack(value, min_bytes=min_bytes)
    return packed.unpack()


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.int64,
     torch.complex64, torch.uint16, torch.float8_e4m3fn],
)  # fmt: skip
@pytest.mark.parametrize("size", [10, 5000])
def test_tensor_of_any_type_comes_out_as_it_was(dtype: torch.dtype, size: int) -> None:
    x = torch.randint(0, 2, (size, 3)).to(dtype)
    y = through(x)
    assert y.dtype == dtype
    assert torch.equal(y.view(torch.uint8), x.view(torch.uint8))


def test_packed_on_a_sub_byte_type() -> None:
    x = torch.randint(0, 255, (3000,), dtype=torch.uint8)
    y = through(x.view(torch.uint4) if hasattr(torch, "uint4") else x)
    assert torch.equal(y.view(torch.uint8), x)


def test_large_memory_is_shared_once_and_views_stay_views() -> None:
    x = torch.randn(500, 40)
    views = {"x": x, "t": x[3:9].t(), "rows": x[:1].expand(5, 40), "same": x, "numpy": x.numpy()}
    packed = pack(views, min_bytes=SMALL)
    assert packed.shared_bytes == 500 * 40 * 4
    assert len(packed.payload) < 4000
    y = packed.unpack()
    assert y["same"] is y["x"]
    assert y["t"].stride() == (1, 40)
    assert y["rows"].stride() == (0, 1)
    for name in ("t", "rows"):
        assert torch.equal(y[name], views[name])
    y["x"][0, 0] = y["x"][3, 1] = 77.0
    assert y["rows"][4, 0] == y["t"][1, 0] == y["numpy"][3, 1] == 77.0
    assert x[3, 1] != 77.0
    assert packed.unpack()["x"][3, 1] == x[3, 1]


def test_small_storages_stay_shared_between_views() -> None:
    x = torch.zeros(6)
    y, tail = through([x, x[4:]])
    y[5] = 3.0
    assert tail.tolist() == [0.0, 3.0]


def test_storages_of_all_sizes_lie_aligned() -> None:
    tensors = [torch.full((n,), float(n)) for n in (1, 3, 255, 257, 1001, 5000, 2**22 + 3)]
    for x, y in zip(tensors, through(tensors), strict=True):
        assert torch.equal(x, y)
        assert y.data_ptr() % 64 == 0


def test_tensors_without_elements_and_without_memory() -> None:
    empty, meta = through([torch.empty(0, 3, dtype=torch.int32), torch.empty(7, 2, device="meta")])
    assert empty.shape == (0, 3)
    assert empty.dtype == torch.int32
    assert meta.device.type == "meta"
    assert meta.shape == (7, 2)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_tensor(layout: str) -> None:
    dense = torch.where(torch.rand(200, 100) < 0.3, torch.randn(200, 100), torch.zeros(()))
    sparse = {"coo": dense.to_sparse, "csr": dense.to_sparse_csr, "csc": dense.to_sparse_csc}[layout]()
    packed = pack(sparse, min_bytes=SMALL)
    y = packed.unpack()
    assert y.layout == sparse.layout
    assert torch.equal(y.to_dense(), dense)
    assert packed.shared_bytes > dense.count_nonzero() * 4


def test_edge_index_keeps_what_it_knows() -> None:
    edges = EdgeIndex(torch.randint(0, 50, (2, 4000)), sparse_size=(50, 50)).sort_by("col").values
    packed = pack(Data(x=torch.randn(50, 30), edge_index=edges), min_bytes=SMALL)
    y = packed.unpack().edge_index
    assert type(y) is EdgeIndex
    assert y.sort_order == edges.sort_order
    assert torch.equal(y.as_tensor(), edges.as_tensor())
    assert packed.shared_bytes >= 2 * 4000 * 8


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).random((50, 40)),
        np.asfortranarray(np.random.default_rng(0).random((50, 40))),
        np.random.default_rng(0).random((50, 40))[::-2, 1::3],
        np.broadcast_to(np.arange(3000.0), (4, 3000)),
        np.random.default_rng(0).random((6, 5, 70)).transpose(2, 0, 1),
        np.array(["2020-01-01", "2021-01-01"] * 2000, dtype="datetime64[D]"),
        np.zeros(900, dtype=[("a", "i4"), ("b", "f8")]),
        np.array([{"a": 1}, None, "x"] * 1000, dtype=object),
        np.empty((0, 4)),
        np.array(3.5),
    ],
    ids=["c", "fortran", "strided", "broadcast", "transposed", "dates", "records", "objects", "empty", "scalar"],
)
def test_array_comes_out_as_it_was(array: np.ndarray) -> None:
    y = through(array)
    assert y.dtype == array.dtype
    np.testing.assert_array_equal(y, array)
    if not array.dtype.hasobject and array.size > 1:
        assert y.strides == array.strides
        assert y.flags.writeable == array.flags.writeable


def test_read_only_array_stays_so_and_views_share() -> None:
    array = np.arange(5000)
    frozen = array[10:]
    frozen.flags.writeable = False
    a, b = through([array, frozen])
    assert not b.flags.writeable
    a[10] = -1
    assert b[0] == -1
    assert array[10] == 10


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_mapped_array_is_mapped_again(mode: Any, tmp_path: Path) -> None:
    path = tmp_path / "with a space.npy"
    np.save(path, np.arange(40_000.0).reshape(200, 200))
    mapped = np.load(path, mmap_mode=mode)
    packed = pack({"m": mapped, "rows": mapped[7:9], "plain": np.asarray(mapped)[:, 3]}, min_bytes=SMALL)
    assert packed.shared_bytes == 0
    assert len(packed.payload) < 4000
    y = packed.unpack()
    assert type(y["m"]) is np.memmap
    assert y["m"].filename == str(path)
    np.testing.assert_array_equal(y["m"], mapped)
    np.testing.assert_array_equal(y["rows"], mapped[7:9])
    np.testing.assert_array_equal(y["plain"], mapped[:, 3])
    y["rows"].flags.writeable = mode != "r"
    if mode != "r":
        y["rows"][0, 0] = -1.0
        assert y["m"][7, 0] == -1.0
    assert np.load(path)[7, 0] == 1400.0


def test_what_was_written_to_a_private_mapping_is_not_lost(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(5000))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    mapped[4321] = 5.0
    assert through(mapped)[4321] == 5.0


def test_mapped_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(5000))
    packed = pack(np.load(path, mmap_mode="r"), min_bytes=SMALL)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.npy', which an array was mapped from, is gone .* HINT: "):
        packed.unpack()


def test_tied_weights_stay_tied_and_parameters_parameters() -> None:
    net = nn.ModuleDict({"a": nn.Linear(30, 30), "b": nn.Linear(30, 30)})
    net["b"].weight = net["a"].weight
    net["b"].bias.requires_grad_(False)
    y = through(net)
    assert y["b"].weight is y["a"].weight
    assert isinstance(y["a"].weight, nn.Parameter)
    assert y["a"].weight.requires_grad
    assert not y["b"].bias.requires_grad
    assert torch.equal(y["a"].weight, net["a"].weight)


def test_results_of_autograd_are_packed_as_leaves() -> None:
    y = through((torch.ones(1000, requires_grad=True) * 2).sin())
    assert y.is_leaf
    assert y[0] == torch.tensor(2.0).sin()


def test_lazy_module_stays_lazy() -> None:
    y = through(Lazy())
    assert nn.parameter.is_lazy(y.net[0].weight)
    assert y.net(torch.randn(4, 5)).shape == (4, 2)


def test_trainers_loggers_and_iterators_stay_here(tmp_path: Path) -> None:
    module, trainer = BoringModel(), quiet_trainer()
    loader = DataLoader(torch.randn(8, 32), num_workers=1, persistent_workers=True)
    next(iter(loader))
    module.held, module.log_to, module.loader = trainer, [CSVLogger(tmp_path)], loader
    trainer.strategy._lightning_module = module
    module.trainer = trainer
    y = through(module)
    assert y.held is None
    assert y.log_to == [None]
    assert y._trainer is None
    assert y.loader._iterator is None
    assert torch.equal(torch.cat(list(y.loader)), loader.dataset)
    assert module.held is trainer
    assert module._trainer is trainer
    del loader._iterator, y.loader._iterator


def test_compiled_modules_are_packed_uncompiled() -> None:
    module = BoringModel()
    module.child = torch.compile(nn.Linear(32, 2), backend="eager")
    module.function = torch.compile(torch.nn.functional.relu, backend="eager")
    module.inplace = nn.Linear(2, 2)
    module.inplace.compile(backend="eager")
    compiled = torch.compile(module, backend="eager")
    trainer = quiet_trainer(fast_dev_run=1)
    trainer.fit(compiled)
    assert module._compiler_ctx is not None
    before = dict(vars(module))
    y = through(module)
    assert vars(module) == before
    assert y._compiler_ctx is None
    assert type(y.child) is nn.Linear
    assert y.inplace._compiled_call_impl is None
    assert y.forward.__func__ is BoringModel.forward
    x = torch.randn(3, 32)
    assert torch.equal(y(x), BoringModel.forward(module, x))
    assert y.function(torch.tensor(-1.0)) == 0


def test_nothing_is_changed_here_and_nothing_is_drawn() -> None:
    module = BoringModel()
    module.x = torch.randn(20_000)
    parameters, pointers = dict(module.named_parameters()), [p.data_ptr() for p in module.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    packed = pack(module, min_bytes=SMALL)
    packed.unpack()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert all(module.get_parameter(name) is value for name, value in parameters.items())
    assert [p.data_ptr() for p in module.parameters()] == pointers


class _Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


def test_what_cannot_be_pickled_is_named_by_its_path() -> None:
    module = BoringModel()
    module.net = nn.Sequential(nn.Linear(2, 2))
    module.net[0].helpers = {"a": [1, _Holder(back=module, lock=threading.Lock())]}
    with pytest.raises(
        TypeError, match=r"^`module\.net\.0\.helpers\['a'\]\[1\]\.lock` \(a `_thread\.lock`\) cannot"
    ) as e:
        pack(_Holder(module=module, x=torch.zeros(5)))
    assert " HINT: " in str(e.value)
    assert "datamodule_factory" in str(e.value)
    assert "__getstate__" in str(e.value)


def test_what_a_function_closes_over_is_named() -> None:
    lock = threading.Lock()

    def hook(*args: Any) -> None:
        lock.acquire()

    with pytest.raises(TypeError, match=r"^`hook\.<lock>` \(a `_thread\.lock`\)"):
        pack(_Holder(hook=hook))


def test_another_process_maps_what_was_packed_and_only_while_it_is_kept() -> None:
    script = (
        "import sys, torch, pickle\n"
        "from lightning_gnnopt.evaluation.packing import unpack\n"
        "for line in sys.stdin.buffer:\n"
        "    try: x = unpack(bytes.fromhex(line.decode()))['x']; print(int(x.sum()), flush=True)\n"
        "    except FileNotFoundError as e: print(type(e).__name__, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    packed = pack({"x": torch.arange(100_000)})
    line = packed.payload.hex().encode() + b"\n"
    process.stdin.write(line)
    process.stdin.flush()
    assert int(process.stdout.readline()) == sum(range(100_000))
    del packed
    out, _ = process.communicate(line, timeout=30)
    assert out.strip() == b"FileNotFoundError"


def test_classes_of_scripts_go_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, lightning as L\n"
        "from lightning_gnnopt.evaluation.packing import pack\n"
        "WIDTH = 3\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(2, WIDTH)\n"
        "    def doubled(self, x):\n        return 2 * super().forward(x)[..., :WIDTH]\n"
        "sys.stdout.write(pack(Net()).payload.hex())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    net = unpack(bytes.fromhex(done.stdout))
    x = torch.randn(5, 2)
    assert torch.equal(net.doubled(x), 2 * nn.functional.linear(x, net.weight, net.bias))


def test_payload_is_a_plain_pickle() -> None:
    places, small, source, _ = pickle.loads(pack({"a": torch.zeros(3)}).payload)
    assert len(places) == 1
    assert len(small) == 64
    assert source is None


def test_callbacks_keep_the_module_they_log_by() -> None:
    module, callback = BoringModel(), L.Callback()
    callback.log = module.log
    m, c = through((module, callback))
    assert c.log.__self__ is m


def test_unpacked_tensor_needs_no_gradient_of_inference() -> None:
    with torch.inference_mode():
        x: Tensor = torch.randn(1000)
    y = through(x)
    assert not y.is_inference()
    assert torch.equal(x, y)


def test_shared_memory_that_was_written_to_is_copied() -> None:
    """What this process writes to its map is not in the file that others map."""
    mapped = SharedArrays({"a": np.arange(100_000.0)}).arrays()["a"]
    (array,) = pack([mapped]).unpack()
    assert np.array_equal(array, mapped)
    mapped[7] = -1.0
    packed = pack([mapped])
    (array,) = packed.unpack()
    assert array[7] == -1.0
    assert packed.source is not None
    assert packed.source._others == []


def test_shared_memory_is_not_copied_again() -> None:
    mapped = torch.from_numpy(SharedArrays({"a": np.arange(100_000.0)}).arrays()["a"])
    packed = pack({"x": mapped, "again": mapped})
    assert packed.source is not None
    assert len(packed.source._others) == 1
    found = packed.unpack()
    assert torch.equal(found["x"], mapped)
    assert found["x"] is found["again"]

"""`GraphDataModule` in two real processes that train together: one copy of the graph, equally many steps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import SAGEConv
from typing_extensions import override

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask

from .graphs import C, F, make_data, random_graph, same_batches
from .modules import Recorder, make_trainer
from .sharing_child import mapping_of

slow = pytest.mark.slow  # what waits for the two processes
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LARGE_N, LARGE_F, LARGE_E = 20_000, 400, 1_000_000  # x of 32 MB
KINDS = ("plain", "float16", "own", "sparse", "hetero", "links", "set up before", "hetero set up before")
# Seeds per batch in training and in evaluation: of 35, 13 and 12 nodes none divides well.
SIZES = [(4, 3), (6, 6), (5, 1), (17, 12), (18, 13)]


# ---- what each process does ------------------------------------------------------------------------------------------


class WithBatchNorm(Recorder):
    """Waits for the other process in every step of training, and in every step of evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([SAGEConv(F, 8), nn.BatchNorm1d(8), SAGEConv(8, C)])
        self.seen: dict[str, list[list[int]]] = {stage: [] for stage in ("train", "val", "test", "predict")}
        self.n_ids: list[list[int]] = []

    @override
    def _loss(self, batch: Data) -> Tensor:
        first, norm, second = self.net
        logits = second(norm(first(batch.x, batch.edge_index)).relu(), batch.edge_index)[: batch.batch_size]
        return nn.functional.cross_entropy(logits, batch.y[: batch.batch_size])

    def _note(self, batch: Data, stage: str) -> Data:
        self.seen[stage].append(batch.n_id[: batch.batch_size].tolist())
        return batch

    @override
    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        self.n_ids.append(batch.n_id.tolist())
        return self._loss(self._note(batch, "train"))

    @override
    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("val", self._loss(self._note(batch, "val")), batch_size=batch.batch_size, sync_dist=True)

    @override
    def test_step(self, batch: Data, batch_idx: int) -> None:
        self.log("test", self._loss(self._note(batch, "test")), batch_size=batch.batch_size, sync_dist=True)

    @override
    def predict_step(self, batch: Data, batch_idx: int) -> Tensor:
        dist.barrier()
        return self._note(batch, "predict").n_id


def trained(sizes: tuple[int, int], rank: int, **options: Any) -> dict[str, Any]:
    datamodule = GraphDataModule(
        make_data(), num_neighbors=[3, 2], batch_size=sizes[0], eval_batch_size=sizes[1], seed=3, **options
    )
    module = WithBatchNorm()
    trainer = make_trainer(2, devices=2, strategy="ddp", num_sanity_val_steps=0)
    assert trainer.global_rank == rank
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule, verbose=False)
    trainer.predict(module, datamodule, return_predictions=False)
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return {"seen": module.seen, "n_ids": module.n_ids, "weights": weights.tolist()}


def large_data() -> Data:
    node = torch.arange(LARGE_N)
    data = Data(
        x=(torch.arange(LARGE_N * LARGE_F, dtype=torch.float32) % 1000).view(LARGE_N, LARGE_F),
        y=node % C,
        edge_index=random_graph(LARGE_N, LARGE_E),
    )
    data.train_mask, data.val_mask = node % 2 == 0, node % 2 == 1
    return data


def large_hetero() -> HeteroData:
    flat, data = large_data(), HeteroData()
    for name, value in flat.items():
        if name != "edge_index":
            data["paper"][name] = value
    data["author"].x = torch.ones(10, 3)
    data["paper", "cites", "paper"].edge_index = flat.edge_index
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 9], [3, 3]])
    return data


def large_datamodule(kind: str) -> GraphDataModule:
    """Nobody else holds the graph."""
    options: dict[str, Any] = {"num_neighbors": [3, 2], "batch_size": 64, "seed": 3, "share_memory": kind != "own"}
    if kind == "hetero":
        return GraphDataModule(large_hetero(), **options)
    data = large_data()
    if kind == "sparse":
        data.x = data.x[:, :100].to_sparse_csr()
    if kind == "links":
        options["links"] = LinkTask(train=LinkSplit(torch.tensor([[0, 1, 2], [3, 4, 5]])))
    if kind == "float16":
        options["feature_dtype"] = "float16"
    return GraphDataModule(data, **options)


def arrays_of(kind: str, datamodule: GraphDataModule) -> dict[str, np.ndarray]:
    """What is large: the graph's tensors, the sorted edges, and what the batches' rows are taken from."""
    task, data, topology = datamodule._task, datamodule.data, datamodule.topology
    if kind == "links":
        task = task.graph
    if kind == "hetero":
        cites = ("paper", "cites", "paper")
        storage, relation = data["paper"], topology.relations[cites]
        store, edge_index = task.builder.of_nodes["paper"]["x"].store, data[cites].edge_index
    else:
        storage, relation, edge_index = data, topology, data.edge_index
        store = task.builder.of_nodes["x"].store
    arrays = {"indptr": relation.indptr, "indices": relation.indices, "edge_index": edge_index.numpy()}
    if kind == "sparse":  # the store alone has the features
        return arrays | {"store": store._arrays["values"]}
    if kind == "float16":
        return arrays | {"store": store._rows}
    return arrays | {"x": storage.x.numpy(), "store": store._rows}


def sums_of(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Read all there is: the kernel calls private what a single process has looked at."""
    return {name: float(array.sum(dtype=np.float64)) for name, array in arrays.items()}


def private_bytes() -> int:
    """What this process alone has written, all mappings together."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc's: what is free goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"^Private_Dirty: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def grown_bytes(kind: str, trainer: L.Trainer) -> int:
    """How much more of its own a process has once the graph is set up."""
    before = private_bytes()
    datamodule = large_datamodule(kind)
    datamodule.trainer = trainer
    datamodule.setup("fit")
    sums_of(arrays_of(kind, datamodule))
    dist.barrier()
    grown = private_bytes() - before
    dist.barrier()
    return grown


def mapped(kind: str, trainer: L.Trainer) -> dict[str, Any]:
    is_early = kind.endswith("set up before")
    kind = kind.removesuffix("set up before").strip()
    datamodule = large_datamodule(kind)
    if is_early:  # by hand, and used, before a Trainer has come
        datamodule.setup("fit")
        next(iter(datamodule.train_dataloader()))
    datamodule.trainer = trainer
    datamodule.setup("fit")
    gc.collect()
    dist.barrier()
    arrays = arrays_of(kind, datamodule)
    sums = sums_of(arrays)
    dist.barrier()
    found = {name: mapping_of(array) for name, array in arrays.items()}
    dist.barrier()
    batch = next(iter(datamodule.train_dataloader()))
    storage = batch["paper"] if kind == "hetero" else batch
    places = storage.n_id.unsqueeze(1) * LARGE_F + torch.arange(storage.x.size(1))
    rows = (places % 1000).float()  # what `large_data` puts there
    result = {"arrays": found, "sums": sums, "same_rows": bool(torch.equal(storage.x, rows))}
    dist.barrier()
    return result


def child(folder: str) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    results: dict[str, Any] = {}
    for sizes in SIZES:
        results[f"sizes {sizes}"] = trained(sizes, rank)
    results["drop_last"] = trained(SIZES[0], rank, drop_last=True)
    results["workers"] = trained(SIZES[0], rank, num_workers=3 * rank)
    results["no_workers"] = trained(SIZES[0], rank, num_workers=0)
    trainer = make_trainer(1, devices=2, strategy="ddp")
    trainer.fit(WithBatchNorm(), GraphDataModule(make_data(), num_neighbors=[3, 2]))
    for kind in KINDS:
        results[kind] = mapped(kind, trainer)
    results["grown_bytes"] = {kind: grown_bytes(kind, trainer) for kind in ("plain", "own", "hetero")}
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


# ---- what came of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", f"from {__name__} import child; child({str(folder)!r})"]
    processes = []
    for rank in ("0", "1"):  # started from outside, as torchrun does
        environment = {**os.environ, **shared, "LOCAL_RANK": rank, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        environment.pop("PL_GLOBAL_SEED", None)
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=280)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@slow
@pytest.mark.parametrize("sizes", SIZES)
def test_both_make_equally_many_steps(sizes: tuple[int, int], ranks: list[dict[str, Any]]) -> None:
    train_size, eval_size = sizes
    found = [rank[f"sizes {sizes}"] for rank in ranks]
    steps = {"train": 2 * -(-18 // train_size), "val": 2 * -(-7 // eval_size), "test": -(-6 // eval_size)}
    steps["predict"] = -(-30 // eval_size)
    for stage, count in steps.items():
        assert [len(rank["seen"][stage]) for rank in found] == [count, count]
    for epoch in range(2):
        half = steps["train"] // 2
        nodes = [node for rank in found for batch in rank["seen"]["train"][half * epoch :][:half] for node in batch]
        assert set(nodes) == set(range(35))
        assert len(nodes) == 36
        half = steps["val"] // 2
        nodes = [node for rank in found for batch in rank["seen"]["val"][half * epoch :][:half] for node in batch]
        assert set(nodes) == set(range(35, 48))
        assert len(nodes) == (14 if eval_size == 1 else 13)  # two times seven steps of one seed each need 14
    for stage, nodes in (("test", range(48, 60)), ("predict", range(60))):
        assert sorted(node for rank in found for batch in rank["seen"][stage] for node in batch) == list(nodes)
    assert found[0]["weights"] == found[1]["weights"]
    assert max(len(batch) for rank in found for batch in rank["seen"]["train"]) <= train_size
    assert max(len(batch) for rank in found for batch in rank["seen"]["val"]) <= eval_size


@slow
def test_a_last_batch_that_is_smaller_may_be_left_out(ranks: list[dict[str, Any]]) -> None:
    batches = [rank["drop_last"]["seen"]["train"] for rank in ranks]
    assert [[len(batch) for batch in part] for part in batches] == [[4] * 8] * 2  # 4 of 18 / 4 in each of two epochs
    for epoch in range(2):
        nodes = [node for part in batches for batch in part[4 * epoch : 4 * epoch + 4] for node in batch]
        assert len(nodes) == 32
        assert len(set(nodes)) >= 31


@slow
def test_each_may_have_its_own_number_of_workers(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["workers"] == rank["no_workers"]
        assert rank["workers"] == rank[f"sizes {SIZES[0]}"]
        assert len(rank["workers"]["n_ids"]) == 10
    assert ranks[0]["workers"]["n_ids"] != ranks[1]["workers"]["n_ids"]


@slow
def test_alone_it_draws_what_both_draw_together(ranks: list[dict[str, Any]]) -> None:
    """Seeds of an epoch go round: rank 0, rank 1, rank 0, ..."""
    alone = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=1, seed=3).train_dataloader()
    for epoch in range(2):
        expected = [int(batch.n_id[0]) for batch in alone]
        shares = [
            [node for batch in rank["no_workers"]["seen"]["train"][5 * epoch : 5 * epoch + 5] for node in batch]
            for rank in ranks
        ]
        together = [node for pair in zip(*shares, strict=True) for node in pair]
        assert together == [*expected, expected[0]]


@slow
@linux
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own"])
def test_there_is_one_copy_of_the_graph(kind: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[kind] for rank in ranks)
    assert first["same_rows"]
    assert second["same_rows"]
    assert first["sums"] == second["sums"]
    stored = kind in ("float16", "sparse")  # the features are in the store alone
    assert set(first["arrays"]) == {"edge_index", "indptr", "indices", "store"} | (set() if stored else {"x"})
    for name, mine in first["arrays"].items():
        other = second["arrays"][name]
        assert mine["file"] == other["file"], name
        assert not mine["file"].endswith(":0"), name  # it is a file, if only in memory
        for mapping in (mine, other):
            assert mapping["Private_Dirty"] <= 64 * 1024, name
            assert mapping["Private_Clean"] <= 64 * 1024, name
    store = first["arrays"]["store"]
    if kind != "sparse":
        assert store["Size"] >= LARGE_N * LARGE_F * (2 if stored else 4)
        assert store["Rss"] >= LARGE_N * LARGE_F * (2 if stored else 4)
        assert store["Pss"] <= 0.51 * store["Rss"]  # either has half of it
    if not stored:
        assert store["file"] == first["arrays"]["x"]["file"]


@slow
@linux
def test_nothing_else_of_the_graph_stays_in_a_process(ranks: list[dict[str, Any]]) -> None:
    """Of 32 MB of features and 16 MB of edges, whichever process has made them."""
    for rank in ranks:
        assert rank["grown_bytes"]["own"] > 48 * 10**6
        assert rank["grown_bytes"]["plain"] < 4 * 10**6
        assert rank["grown_bytes"]["hetero"] < 4 * 10**6


@slow
@linux
def test_without_sharing_each_has_a_copy(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["own"]["same_rows"]
        assert rank["own"]["sums"] == ranks[0]["plain"]["sums"]
        for name in ("x", "store", "indices", "edge_index"):
            mapping = rank["own"]["arrays"][name]
            assert mapping["file"].endswith(":0"), name  # no file
            assert mapping["Shared_Dirty"] == mapping["Shared_Clean"] == 0, name


@pytest.mark.parametrize(
    ("batch_size", "world_size", "repeated"), [(1, 2, 1), (1, 4, 3), (2, 4, 0), (3, 2, 0), (100, 4, 0), (100, 20, 7)]
)
def test_who_judges_a_node_twice_is_told(batch_size: int, world_size: int, repeated: int) -> None:
    """Of 13 nodes, so that all make equally many steps."""
    datamodule = GraphDataModule(make_data(), num_neighbors=[3], batch_size=batch_size)
    shares = []
    for rank in range(world_size):
        datamodule.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=None, overfit_batches=0
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shares.append(list(datamodule.val_dataloader()))
        told = [str(warning.message) for warning in caught if "judged twice" in str(warning.message)]
        assert len(told) == (1 if repeated else 0)
        for message in told:
            assert message.startswith(
                f"{repeated} inputs of 'val' are judged twice, so that all {world_size} processes"
            )
            assert " HINT: " in message
    assert len({len(share) for share in shares}) == 1
    nodes = [node for share in shares for batch in share for node in batch.n_id[: batch.batch_size].tolist()]
    assert set(nodes) == set(range(35, 48))
    assert len(nodes) == 13 + repeated


def test_without_processes_nothing_is_copied() -> None:
    data = make_data()
    for share_memory in (True, False):
        datamodule = GraphDataModule(data, num_neighbors=[3, 2], batch_size=8, share_memory=share_memory)
        make_trainer(1).fit(Recorder(), datamodule)
        assert datamodule.data is data
        assert datamodule._task.store.rows(torch.arange(3)).tolist() == data.x[:3].tolist()
        assert same_batches(
            list(datamodule.train_dataloader()),
            list(GraphDataModule(data, num_neighbors=[3, 2], batch_size=8).train_dataloader()),
        )

from __future__ import annotations

import json
import os
import pickle
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
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule, PrefetchLoader
from lightning_gnnopt.sampling import NeighborSampler, SeedsOnlySampler, Topology
from lightning_gnnopt.sampling.shared_arrays import find_shared

from .graphs import C, E, F, N, make_data, make_loader, prefetch_threads, random_graph, same_batch, same_batches
from .modules import Recorder, classifier, make_trainer


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def seeds(loader: Any) -> list[int]:
    return [node for batch in loader for node in batch.n_id[: batch.batch_size].tolist()]


def test_each_split_has_its_loader() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
    test, predict = datamodule.test_dataloader(), datamodule.predict_dataloader()
    assert [len(loader) for loader in (train, val, test, predict)] == [5, 2, 2, 8]
    shuffled = seeds(train)
    assert shuffled != list(range(35))
    assert sorted(shuffled) == list(range(35))
    assert seeds(val) == list(range(35, 48))
    assert seeds(test) == list(range(48, 60))
    assert seeds(predict) == list(range(60))
    assert [datamodule.nodes(stage).tolist() for stage in ("train", "val", "test", "predict")] == [
        list(range(35)),
        list(range(35, 48)),
        list(range(48, 60)),
        list(range(60)),
    ]


def test_training_batches_are_those_of_a_loader_built_by_hand() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=5, edge_id=True)
    assert same_batches(list(datamodule.train_dataloader()), list(make_loader()))


def test_a_predict_mask_chooses_what_is_predicted() -> None:
    data = make_data()
    data.predict_mask = torch.zeros(N, dtype=torch.bool).index_fill_(0, torch.tensor([59, 3, 17]), True)
    assert seeds(GraphDataModule(data).predict_dataloader()) == [3, 17, 59]


def test_what_was_not_given_has_a_default() -> None:
    datamodule = GraphDataModule(make_data())
    loader = datamodule.train_dataloader()
    assert isinstance(datamodule.sampler, NeighborSampler)
    assert datamodule.sampler.num_neighbors == [15, 10]
    assert datamodule.eval_sampler is datamodule.sampler
    assert (loader.batch_size, loader.num_workers, loader.prefetch_factor) == (1024, 2, 2)
    assert (loader.order.shuffle, loader.order.drop_last, loader.order.seed) == (True, False, 0)
    assert (loader.order.rank, loader.order.world_size) == (0, 1)
    assert "e_id" not in next(iter(loader))


def test_arguments_reach_the_loaders() -> None:
    def keep(subgraph: Any, resample: Any) -> Any:
        return subgraph

    datamodule = GraphDataModule(
        make_data(),
        batch_size=8,
        eval_batch_size=5,
        num_workers=1,
        prefetch_factor=3,
        shuffle=False,
        drop_last=True,
        seed=9,
        transforms=[keep],
        edge_id=True,
    )
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
    assert (len(train), len(val)) == (4, 3)
    assert seeds(train) == list(range(32))
    for loader in (train, val):
        assert (loader.num_workers, loader.prefetch_factor, loader.order.seed) == (1, 3, 9)
    assert (train.transforms, val.transforms) == ((keep,), ())
    assert (train.redraw, val.redraw) == (True, False)
    assert torch.equal(next(iter(val)).e_id, next(iter(val)).e_id)


def test_evaluation_may_have_fan_outs_of_its_own() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], eval_num_neighbors=[-1, 4])
    assert datamodule.sampler.num_neighbors == [3, 2]
    assert datamodule.eval_sampler.num_neighbors == [-1, 4]
    assert datamodule.eval_sampler.topology is datamodule.sampler.topology
    first, second = ([*datamodule.val_dataloader()] for _ in range(2))
    assert same_batches(first, second)


def test_layerwise_evaluation_loads_no_neighbours() -> None:
    datamodule = GraphDataModule(make_data(), eval_mode="layerwise")
    assert isinstance(datamodule.eval_sampler, SeedsOnlySampler)
    (batch,) = datamodule.val_dataloader()
    assert (batch.num_edges, batch.num_nodes, batch.num_sampled_nodes) == (0, 13, [13])


def test_a_sampler_may_be_a_function() -> None:
    datamodule = GraphDataModule(make_data(), sampler=lambda topology: NeighborSampler(topology, [4]))
    assert datamodule.sampler.num_neighbors == [4]
    assert datamodule.train_dataloader().source.sampler is datamodule.sampler


def test_edge_attributes_are_cut_without_asking() -> None:
    data = make_data()
    data.edge_attr = torch.arange(E)
    batch = next(iter(GraphDataModule(data, batch_size=8).train_dataloader()))
    assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.edge_attr])
    assert GraphDataModule(make_data()).topology.edge_ids is None


@pytest.mark.parametrize(("multilabel", "num_classes"), [(False, 3), (True, 3)])
def test_sizes_are_read_off_the_graph(multilabel: bool, num_classes: int) -> None:
    datamodule = GraphDataModule(make_data(multilabel=multilabel))
    assert datamodule.num_features == F
    assert datamodule.num_classes == num_classes
    assert datamodule.multilabel is multilabel
    assert GraphDataModule(make_data(multilabel=multilabel), num_classes=7).num_classes == 7


def test_ogbs_labels_are_classes() -> None:
    data = make_data()
    data.y = data.y.view(-1, 1)
    datamodule = GraphDataModule(data, batch_size=8)
    assert (datamodule.multilabel, datamodule.num_classes) == (False, C)
    assert next(iter(datamodule.train_dataloader())).y.shape[1:] == (1,)


def test_a_graph_without_labels_can_be_predicted() -> None:
    data = Data(x=torch.randn(N, F), edge_index=random_graph())
    datamodule = GraphDataModule(data)
    assert seeds(datamodule.predict_dataloader()) == list(range(N))
    assert not datamodule.multilabel
    message = "`num_classes` is not known, because `data` holds no labels `y`. HINT: pass `num_classes=...`."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = datamodule.num_classes
    assert GraphDataModule(data, num_classes=4).num_classes == 4


def test_a_split_without_a_mask_is_left_out() -> None:
    data = make_data()
    del data.val_mask, data.test_mask
    datamodule, module = GraphDataModule(data, num_neighbors=[3, 2], batch_size=8), Recorder()
    make_trainer(1).fit(module, datamodule)
    assert len(module.losses) == 5
    assert module.validated == []
    assert make_trainer().test(module, datamodule, verbose=False) == []
    assert datamodule.nodes("val").tolist() == []


def test_training_needs_a_mask() -> None:
    data = make_data()
    del data.train_mask
    message = (
        "`data` must hold `train_mask` to train on, but it has none."
        " HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(1).fit(Recorder(), GraphDataModule(data, num_neighbors=[3, 2]))


def test_the_seed_is_that_of_seed_everything() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    assert datamodule.train_dataloader().order.seed == 0
    L.seed_everything(77, verbose=False)
    assert os.environ["PL_GLOBAL_SEED"] == "77"
    by_default = list(datamodule.train_dataloader())
    given = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=77)
    L.seed_everything(1, verbose=False)
    assert same_batches(by_default, list(given.train_dataloader()))
    assert not same_batches(by_default, list(datamodule.train_dataloader()))


class DegreeModule(Recorder):
    needs_in_degree = True


def test_in_degrees_come_if_the_module_needs_them_whoever_came_before() -> None:
    data = make_data()
    datamodule = GraphDataModule(data, num_neighbors=[3, 2], batch_size=8)
    datamodule.setup("fit")
    assert "in_degree" not in next(iter(datamodule.train_dataloader()))
    for module, present in [(Recorder(), False), (DegreeModule(), True), (Recorder(), False)]:
        make_trainer(1, limit_train_batches=1).fit(module, datamodule)
        (_, _, batch), *_ = module.batches
        assert ("in_degree" in batch) is present
        if present:
            source, target = data.edge_index
            assert batch.in_degree.tolist() == [int(((target == v) & (source != v)).sum()) for v in batch.n_id]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_seeds(world_size: int) -> None:
    """A trainer of rank r is faked; the run of two real processes is `test_two_real_processes...`."""
    trained, validated, lengths = [], [], set()
    for rank in range(world_size):
        datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=4, seed=3)
        datamodule.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=None, overfit_batches=0
        )
        trained += seeds(datamodule.train_dataloader())
        validated += seeds(datamodule.val_dataloader())
        lengths.add(len(datamodule.train_dataloader()))
    assert set(trained) == set(range(35))
    assert len(trained) == -(-35 // world_size) * world_size
    assert sorted(validated) == list(range(35, 48))
    assert len(lengths) == 1


ONE_OF_TWO_PROCESSES = """
import json, sys, torch
from lightning_gnnopt.loading import GraphDataModule
from tests.loading.graphs import make_data
from tests.loading.modules import Recorder, make_trainer

torch.set_num_threads(1)
datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=4, seed=3)
module = Recorder()
trainer = make_trainer(2, devices=2, strategy="ddp", num_sanity_val_steps=0)
trainer.fit(module, datamodule)
found = {
    "trained": [[epoch, batch.n_id[: batch.batch_size].tolist()] for epoch, _, batch in module.batches],
    "validated": [batch.n_id[: batch.batch_size].tolist() for batch in module.validated],
    "weights": [p.flatten().tolist() for p in module.parameters()],
}
with open(f"{sys.argv[1]}/{trainer.global_rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_two_real_processes_share_the_seeds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in ("0", "1"):  # started from outside, as torchrun does
        environment = {**os.environ, **shared, "LOCAL_RANK": rank, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors

    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in (0, 1):
        trained = [node for rank in ranks for e, batch in rank["trained"] if e == epoch for node in batch]
        assert set(trained) == set(range(35))
        assert len(trained) == 36  # one seed twice, so that both run five batches
        validated = [node for rank in ranks for batch in rank["validated"][2 * epoch : 2 * epoch + 2] for node in batch]
        assert sorted(validated) == list(range(35, 48))
    assert [len(rank["trained"]) for rank in ranks] == [10, 10]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_it_travels_to_another_process() -> None:
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=3)
    fresh = pickle.loads(pickle.dumps(datamodule))
    expected = list(datamodule.train_dataloader())
    used = pickle.loads(pickle.dumps(datamodule))
    for copy in (fresh, used):
        assert same_batches(list(copy.train_dataloader()), expected)
        assert same_batches(list(copy.val_dataloader()), list(datamodule.val_dataloader()))


def test_a_graph_on_another_device_or_of_another_type_is_loaded_too() -> None:
    data = make_data()
    data.x, data.edge_index = data.x.half(), data.edge_index.int()
    batch = next(iter(GraphDataModule(data, batch_size=8).train_dataloader()))
    assert batch.x.dtype == torch.float16
    assert batch.edge_index.dtype == torch.int64


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_a_graph_on_the_device_gives_the_batches_of_one_in_host_memory() -> None:
    on_host = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    on_device = GraphDataModule(make_data().cuda(), num_neighbors=[3, 2], batch_size=8)
    assert all(map(same_batch, on_host.train_dataloader(), on_device.train_dataloader()))


def test_a_fitting_model_trains_without_a_warning_of_ours() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*`num_neighbors`.*")
        make_trainer(1).fit(classifier(), GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8))
    assert prefetch_threads() == []


def test_nothing_is_built_before_it_is_needed() -> None:
    datamodule = GraphDataModule(make_data())
    assert datamodule._task._topology is None
    assert isinstance(datamodule.topology, Topology)
    assert datamodule.topology is datamodule.topology
    assert isinstance(datamodule.train_dataloader(), PrefetchLoader)
    assert np.array_equal(datamodule.nodes("train"), np.arange(35))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_features_train_like_dense_ones(layout: torch.layout) -> None:
    losses: list[list[float]] = []
    for sparse in (False, True):
        data = make_data()
        data.x = data.x.relu().to_sparse(layout=layout) if sparse else data.x.relu()
        module = Recorder()
        make_trainer(2).fit(module, GraphDataModule(data, num_neighbors=[3, 2], batch_size=8))
        losses.append(module.losses)
    assert losses[0] == losses[1]


def accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(-1) == y).double().mean())


@pytest.mark.parametrize("mode", [{"eval_mode": "layerwise"}, {"eval_num_neighbors": [-1, -1]}])
def test_exact_evaluation_equals_the_full_graph(mode: dict[str, Any]) -> None:
    """For one net; all five are compared in `test_layerwise.py`."""
    data, model = make_data(), classifier()
    datamodule = GraphDataModule(data, num_neighbors=[3, 2], batch_size=4, **mode)
    make_trainer(2).fit(model, datamodule)
    logits = model.eval().net(data.x, data.edge_index).detach()
    (metrics,) = make_trainer().test(model, datamodule, verbose=False)
    assert metrics["test/acc"] == pytest.approx(accuracy(logits[48:], data.y[48:]), abs=1e-6)
    assert torch.allclose(torch.cat(make_trainer().predict(model, datamodule)), logits, atol=1e-5)


def test_a_shared_graph_makes_the_same_batches() -> None:
    graph = load_dataset("digits-knn")
    datamodule = GraphDataModule(graph, num_neighbors=[5, 3], batch_size=256, seed=1)
    datamodule.setup("fit")
    expected = [(batch.x, batch.edge_index, batch.n_id) for batch in datamodule.train_dataloader()]
    datamodule.share_graph()
    x, indices = datamodule.data.x, datamodule.topology.indices
    assert datamodule.data is not graph
    assert find_shared(x.data_ptr(), x.untyped_storage().nbytes()) is not None
    assert find_shared(indices.ctypes.data, indices.nbytes) is not None
    for batch, tensors in zip(datamodule.train_dataloader(), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((batch.x, batch.edge_index, batch.n_id), tensors, strict=True))
    datamodule.share_graph()  # again: nothing more to do
    assert datamodule.data.x is x

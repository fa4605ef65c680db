from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.analysis.fits import loader_stages as module
from lightning_gnnopt.analysis.fits.loader_stages import LoaderStages
from lightning_gnnopt.analysis.records import LoadRecord
from lightning_gnnopt.sampling import NeighborSampler, Topology


def make_loader(**options: Any) -> NodeLoader:
    torch.manual_seed(0)
    data = Data(x=torch.randn(50, 4), edge_index=torch.randint(50, (2, 300)), y=torch.zeros(50))
    sampler = NeighborSampler(Topology.from_data(data), [3, 3])
    return NodeLoader(data, sampler, batch_size=10, **options)


def test_sampling_and_slicing_of_a_pyg_loader_are_timed_where_they_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    loader = make_loader()
    sample, select = loader.node_sampler.sample_from_nodes, loader.filter_fn

    def slow_sample(*args: Any, **kwargs: Any) -> Any:
        now[0] += 2
        return sample(*args, **kwargs)

    def slow_filter(*args: Any, **kwargs: Any) -> Any:
        now[0] += 5
        return select(*args, **kwargs)

    loader.node_sampler.sample_from_nodes, loader.filter_fn = slow_sample, slow_filter
    stages = LoaderStages(loader)
    assert (stages.num_workers, stages.beside) == (0, False)
    loads = [stages.take(number, 1.0) for number, _ in enumerate(loader)]
    assert loads == [LoadRecord(number, 2.0, 5.0, 0.0, 1.0, False, 0.0) for number in range(5)]
    stages.restore()
    assert loader.node_sampler.sample_from_nodes is slow_sample
    assert loader.filter_fn is slow_filter


def test_what_a_shared_sampler_did_for_another_loader_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    loader = make_loader()
    sample = loader.node_sampler.sample_from_nodes

    def slow_sample(*args: Any, **kwargs: Any) -> Any:
        now[0] += 2
        return sample(*args, **kwargs)

    loader.node_sampler.sample_from_nodes = slow_sample
    stages = LoaderStages(loader)
    loader(torch.tensor([0, 1]))
    stages.begin()
    loader(torch.tensor([0, 1]))
    assert stages.take(0, 1.0).sample_s == 2.0


def test_a_loader_is_left_as_it_was() -> None:
    loader = make_loader()
    before = dict(vars(loader)), dict(vars(loader.node_sampler))
    stages = LoaderStages(loader)
    assert "filter_fn" in vars(loader)
    stages.restore()
    assert (dict(vars(loader)), dict(vars(loader.node_sampler))) == before


def test_worker_processes_are_out_of_sight() -> None:
    loader = make_loader(num_workers=2)
    stages = LoaderStages(loader)
    assert "filter_fn" not in vars(loader)
    load = stages.take(0, 0.5)
    assert (load.sample_s, load.slice_s, load.beside) == (None, None, True)


def test_other_loaders_say_nothing_but_how_long_was_waited() -> None:
    for loader, workers in ((DataLoader([1, 2]), 0), ([1, 2], None)):  # type: ignore[arg-type]
        stages = LoaderStages(loader)
        assert stages.num_workers == workers
        load = stages.take(3, 0.25)
        assert (load.sample_s, load.slice_s, load.transfer_s, load.wait_s, load.beside) == (None, None, 0, 0.25, False)
        stages.restore()

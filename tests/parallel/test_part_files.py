"""Parts as files: what is written is what is read, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.parallel import PartitionDataModule, load_part, partition_graph, read_info
from tests.parallel.ranks import graph

N = 40


def make_data() -> Data:
    generator = torch.Generator().manual_seed(0)
    data = Data(x=torch.randn(N, 3, generator=generator), edge_index=graph(N, 200), y=torch.arange(N) % 4)
    data.train_mask = torch.arange(N) < 10
    data.half = torch.randn(N, 2, generator=generator).bfloat16()
    data.edge_attr = torch.randn(200, 2, generator=generator)
    data.mean = torch.tensor([1.0, 2.0])
    data.title, data.scale = "a graph", 0.5
    return data


@pytest.mark.parametrize("method", ["metis", "fennel", "ldg", "random"])
def test_each_part_has_its_rows(tmp_path: Path, method: Any) -> None:
    data = make_data()
    info = partition_graph(data, 3, folder=tmp_path / "parts", method=method)
    assert info == read_info(tmp_path / "parts")
    assert (info.num_parts, info.num_nodes, info.num_edges) == (3, N, 200)
    seen, edges = [], []
    for rank in range(3):
        part, own = load_part(tmp_path / "parts", rank)
        nodes, edge_id = torch.from_numpy(part.inner), torch.from_numpy(part.edge_id)
        for name in ("x", "y", "train_mask", "half"):
            assert torch.equal(own[name], data[name][nodes]), name
            assert own[name].dtype == data[name].dtype
        assert torch.equal(own.edge_attr, data.edge_attr[edge_id])
        assert torch.equal(own.mean, data.mean)
        assert (own.title, own.scale) == ("a graph", 0.5)
        assert info.parts[rank]["inner"] == len(nodes)
        assert info.targets["train_mask"][rank] == int(data.train_mask[nodes].sum())
        seen += nodes.tolist()
        edges += edge_id.tolist()
    assert sorted(seen) == list(range(N))
    assert sorted(edges) == list(range(200))


def test_an_objective_of_its_own_exchanges_fewer_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = torch.arange(600) // 100
    edges = torch.randint(600, (2, 6000))
    edges = edges[:, (blocks[edges[0]] == blocks[edges[1]]) | (torch.rand(6000) < 0.05)]
    data = Data(edge_index=edges, num_nodes=600)

    def rows(**options: Any) -> int:
        folder = tmp_path / str(options)
        return sum(part["halo"] for part in partition_graph(data, 4, folder=folder, **options).parts)

    of_random = rows(method="random")
    assert rows(method="metis", objective="vol") < 0.5 * of_random
    assert rows(method="metis", objective="cut") < 0.5 * of_random


def test_a_partition_of_ones_own(tmp_path: Path) -> None:
    owner = torch.arange(N) % 2
    partition_graph(make_data(), 2, folder=tmp_path / "parts", owner=owner)
    assert load_part(tmp_path / "parts", 1)[0].inner.tolist() == list(range(1, N, 2))
    with pytest.raises(ValueError, match=r"`owner` must have shape \(40,\)"):
        partition_graph(make_data(), 2, folder=tmp_path / "other", owner=owner[:5])


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    partition_graph(make_data(), 2, folder=folder)
    before = (folder / "partition.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"`folder` must not exist yet"):
        partition_graph(make_data(), 3, folder=folder)
    assert (folder / "partition.json").read_bytes() == before
    data = make_data()
    data.odd = object()
    with pytest.raises(ValueError, match=r"`data.odd` must be a tensor or a plain value.*HINT: `del data.odd`"):
        partition_graph(data, 2, folder=tmp_path / "odd")
    data = make_data()
    data.x = data.x.to_sparse_csr()
    with pytest.raises(ValueError, match=r"`data.x` must be dense"):
        partition_graph(data, 2, folder=tmp_path / "sparse")
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with pytest.raises(FileNotFoundError, match=r"There is no cut graph in.*HINT: "):
        load_part(folder, 0)
    partition_graph(make_data(), 2, folder=folder)
    with pytest.raises(ValueError, match="was cut into 2 parts, but part 2 is asked for"):
        load_part(folder, 2)
    (folder / "part-0" / "data.x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.x\.npy' is missing"):
        load_part(folder, 0)
    np.save(folder / "part-1" / "inner.npy", np.arange(3))
    with pytest.raises(ValueError, match="has arrays of"):
        load_part(folder, 1)
    (folder / "part-1" / "inner.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        load_part(folder, 1)
    header = json.loads((folder / "partition.json").read_text())
    for changed, message in [
        ({**header, "version": 9}, "is not of version 1"),
        ({**header, "num_parts": 3}, "2 parts instead of 3"),
        ({name: header[name] for name in ("version", "id")}, "lacks an entry"),
        ([], "is not of version 1"),
    ]:
        (folder / "partition.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read_info(folder)
    (folder / "partition.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_info(folder)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    partition_graph(make_data(), 1, folder=folder)
    np.save(folder / "part-0" / "inner.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        load_part(folder, 0)


def test_a_datamodule_without_a_trainer_has_the_whole_graph(tmp_path: Path) -> None:
    data = make_data()
    datamodule = PartitionDataModule(data, folder=tmp_path)
    datamodule.prepare_data()
    datamodule.setup("fit")
    (batch,) = datamodule.train_dataloader()
    assert torch.equal(batch.x, data.x)
    assert torch.equal(batch.edge_index, data.edge_index)
    assert batch.plan.num_halo == 0
    assert (datamodule.num_features, datamodule.num_classes) == (3, 4)
    assert (batch.num_targets("train"), batch.num_targets("val")) == (10, N)
    found = PartitionDataModule(folder=tmp_path)
    found.setup("fit")
    assert found.num_features == 3
    other = PartitionDataModule(Data(edge_index=graph(9, 20), num_nodes=9), folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds a graph of 40 nodes and 200 edges, but `data` has 9 and 20"):
        other.setup("fit")
    with pytest.raises(FileNotFoundError, match="There is no cut graph"):
        PartitionDataModule(folder=tmp_path / "nowhere").setup("fit")

from __future__ import annotations

import io
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch_geometric.datasets

from lightning_gnnopt.datasets.download import files_only, from_address, from_pyg


def test_a_pyg_class_downloads_and_neither_processes_nor_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Any) -> None:
        for name in self.raw_file_names:
            (Path(self.raw_dir) / name).write_text("not a pickle")

    monkeypatch.setattr(torch_geometric.datasets.Planetoid, "download", download)
    from_pyg("Planetoid", name="Cora")(tmp_path)
    assert (tmp_path / "Cora" / "raw" / "ind.cora.allx").read_text() == "not a pickle"
    assert not (tmp_path / "Cora" / "processed" / "data.pt").exists()


def test_a_pyg_class_is_called_with_its_arguments_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Fake:
        def __init__(self, **arguments: Any) -> None:
            calls.append(arguments)

    monkeypatch.setattr(torch_geometric.datasets, "Flickr", Fake)
    from_pyg("Flickr", subfolder="flickr")(tmp_path)
    from_pyg("Flickr", name="a")(tmp_path)
    assert calls == [{"root": str(tmp_path / "flickr")}, {"root": str(tmp_path), "name": "a"}]


def test_the_derived_class_keeps_its_name() -> None:
    assert files_only(torch_geometric.datasets.Planetoid).__name__ == "Planetoid"


def test_files_at_an_address_are_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        if address.endswith("b") and asked.count(address) == 1:
            raise OSError("connection reset")
        return io.BytesIO(address.encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    download = from_address("https://toy.org/data", ("a", "b"), subfolder="toy")
    with pytest.raises(OSError, match="connection reset"):
        download(tmp_path)
    assert not (tmp_path / "toy" / "raw" / "b").exists()
    download(tmp_path)
    assert (tmp_path / "toy" / "raw" / "a").read_text() == "https://toy.org/data/a"
    assert (tmp_path / "toy" / "raw" / "b").read_text() == "https://toy.org/data/b"
    assert asked == [f"https://toy.org/data/{file}" for file in "abb"]

"""What comes from the network, and what lies where a download goes."""

from __future__ import annotations

import io
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.datasets
import torch_geometric.datasets.reddit

from lightning_gnnopt.datasets.download import files_only, from_address, from_pyg
from lightning_gnnopt.datasets.registry import DATASETS

from .evil import Evil


class Response(io.BytesIO):
    """What `urlopen` gives, as far as it is looked at."""

    def __init__(self, content: bytes, url: str, length: int | None) -> None:
        super().__init__(content)
        self.url, self.headers = url, Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


def answer(monkeypatch: pytest.MonkeyPatch, content: bytes, *, url: str, length: int | None) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: Response(content, url, length))


def test_a_download_that_is_cut_off_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = from_address("https://toy.org/data", ("a",), subfolder="toy")
    answer(monkeypatch, b"half", url="https://toy.org/data/a", length=8)
    with pytest.raises(ConnectionError, match=r"toy.org/data/a was cut off: 4 bytes of 8"):
        download(tmp_path)
    assert list((tmp_path / "toy" / "raw").iterdir()) == []
    answer(monkeypatch, b"complete", url="https://toy.org/data/a", length=8)
    download(tmp_path)
    assert [path.name for path in (tmp_path / "toy" / "raw").iterdir()] == ["a"]


def test_a_download_that_is_led_away_from_https_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, b"a", url="http://toy.org/data/a", length=None)
    with pytest.raises(ConnectionError, match=r"led to http://toy.org/data/a, which is not encrypted"):
        from_address("https://toy.org/data", ("a",), subfolder="toy")(tmp_path)
    assert list((tmp_path / "toy" / "raw").iterdir()) == []


def test_addresses_are_encrypted() -> None:
    with pytest.raises(ValueError, match=r"must begin with https://, but is 'http://toy.org'"):
        from_address("http://toy.org", ("a",), subfolder="toy")
    assert len(DATASETS) > 20  # all of them have been registered, so their addresses have been looked at


@pytest.mark.parametrize("name", ["pre_transform.pt", "pre_filter.pt", "data.pt"])
def test_what_pyg_has_processed_is_not_unpickled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "executed"
    processed = tmp_path / "Cora" / "processed"
    processed.mkdir(parents=True)
    torch.save(Evil(trace), processed / name)
    monkeypatch.setattr(torch_geometric.datasets.Planetoid, "download", lambda self: None)
    from_pyg("Planetoid", name="Cora")(tmp_path)
    assert not trace.exists()


def test_a_class_that_reads_by_itself_finds_nothing(tmp_path: Path) -> None:
    """As ogb's does: it calls `torch.load` on the processed file in its constructor."""
    trace = tmp_path / "executed"
    (tmp_path / "processed").mkdir()
    torch.save(Evil(trace), tmp_path / "processed" / "data.pt")

    class Reads(torch_geometric.data.InMemoryDataset):  # type: ignore[misc]
        raw_file_names: Any = ()
        processed_file_names: Any = ("data.pt",)

        def __init__(self, root: str) -> None:
            super().__init__(root)
            torch.load(self.processed_paths[0], weights_only=False)

    with pytest.raises(FileNotFoundError):
        files_only(Reads)(str(tmp_path))
    assert not trace.exists()
    Reads(str(tmp_path))  # without `files_only` it runs
    assert trace.exists()


@pytest.mark.parametrize("member", ["../../escaped", "../../../escaped", "{root}/escaped", "raw/../../../escaped"])
def test_an_archive_writes_within_its_folder(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only archive that a named graph comes in, Reddit's, which PyG unpacks."""
    root = tmp_path / "deep" / "data"
    outside = {*tmp_path.rglob("*")}

    def download_url(url: str, folder: str) -> str:
        path = Path(folder) / "reddit.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member.format(root=tmp_path), "escaped")
        return str(path)

    monkeypatch.setattr(torch_geometric.datasets.reddit, "download_url", download_url)
    from_pyg("Reddit", subfolder="reddit")(root)
    escaped = [path for path in tmp_path.rglob("escaped") if (root / "reddit" / "raw") not in path.parents]
    assert escaped == []
    assert {path for path in tmp_path.rglob("*") if root not in path.parents} - outside <= {root, root.parent}
    assert list((root / "reddit" / "raw").rglob("escaped")) != []

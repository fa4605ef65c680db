"""Files have the mode that the user's umask gives them, though they are written under another name first."""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_gnnopt.analysis.records import PeakRecord, Records
from lightning_gnnopt.datasets.download import from_address
from lightning_gnnopt.evaluation.files import rename_to_new, write_whole
from lightning_gnnopt.evaluation.messages import Verdict
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder
from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.studies.cells import Cell, save_cell


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def whole_file(folder: Path) -> None:
    write_whole(folder / "a.weights", lambda file: file.write(b"1"))


def promoted(folder: Path) -> None:
    whole_file(folder)
    rename_to_new(folder / "a.weights", folder / "b.ckpt")


def snapshots(folder: Path) -> None:
    kept = SnapshotFolder(folder)
    snapshot = kept.new(step=1, epoch=0, with_checkpoint=True)
    kept.write(snapshot.weights, {})
    verdict = Verdict(step=1, epoch=0, metrics={}, logged={}, shown={}, started_s=0.0, ended_s=1.0)
    kept.record(verdict)


def topology(folder: Path) -> None:
    Topology.from_csc([0, 1, 2], [1, 0]).save(folder / "graph")


def records(folder: Path) -> None:
    Records(peaks=[PeakRecord("full", 1, 1, 1)]).save(folder)


def cell(folder: Path) -> None:
    save_cell(folder, Cell("a/b", {}, {}))


def download(folder: Path) -> None:
    from_address("https://toy.org/data", ("a",), subfolder="toy")(folder)


WRITERS = [whole_file, promoted, snapshots, topology, records, cell, download]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_modes_are_the_umasks(
    write: Callable[[Path], None], umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"1"))
    folder = tmp_path / "run"
    write(folder)
    found = {path: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}
    assert any(path.is_file() for path in found)
    expected = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in found}
    assert found == expected


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_nothing_is_left_beside_what_was_to_be_written(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"1"))
    write(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []

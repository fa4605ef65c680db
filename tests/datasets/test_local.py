from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_gnnopt.datasets.local import PublishedFiles, data_root, obtain


def published(download: Callable[[Path], None] = lambda root: None, **fields: Any) -> PublishedFiles:
    defaults: dict[str, Any] = {
        "folders": ("Toy",),
        "anywhere": (("toy.a", "toy.b"), ("toy.zip",)),
        "source": "toy.org",
    }
    return PublishedFiles(**{**defaults, **fields}, download=download)


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def never(root: Path) -> None:
    raise AssertionError("no download is needed")


@pytest.mark.parametrize("folder", ["", "raw", "any", "any/raw", "Toy/raw", "Planetoid/Toy", "Planetoid/Toy/raw"])
def test_files_are_found_in_the_root_below_it_and_in_the_layouts_of_pyg(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "toy.a", tmp_path / folder / "toy.b")
    paths = obtain("toy", published(never), root=tmp_path, download=True)
    assert paths == (tmp_path / folder / "toy.a", tmp_path / folder / "toy.b")


@pytest.mark.parametrize("folder", [".hidden", "one/two/three", "one/two"])
def test_hidden_and_deep_folders_are_not_searched(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "toy.zip")
    with pytest.raises(FileNotFoundError, match="was not found"):
        obtain("toy", published(), root=tmp_path, download=False)


def test_the_other_alternative_will_do(tmp_path: Path) -> None:
    put(tmp_path / "toy.a", tmp_path / "sub" / "toy.zip")
    assert obtain("toy", published(never), root=tmp_path, download=True) == (tmp_path / "sub" / "toy.zip",)


@pytest.mark.parametrize(("folder", "found"), [("TOY", True), ("x/toy/raw", True), ("toys", False), ("raw", False)])
def test_common_file_names_count_only_in_a_folder_of_the_sets_name(tmp_path: Path, folder: str, found: bool) -> None:
    put(tmp_path / folder / "feats.npy")
    files = published(anywhere=(), in_named_folder=(("feats.npy",),), folders=("toy",))
    if found:
        assert obtain("toy", files, root=tmp_path, download=False) == (tmp_path / folder / "feats.npy",)
    else:
        with pytest.raises(FileNotFoundError, match="was not found"):
            obtain("toy", files, root=tmp_path, download=False)


def test_the_root_itself_may_bear_the_name(tmp_path: Path) -> None:
    put(tmp_path / "toy" / "raw" / "feats.npy")
    files = published(anywhere=(), in_named_folder=(("feats.npy",),))
    assert obtain("toy", files, root=tmp_path / "toy", download=False) == (tmp_path / "toy" / "raw" / "feats.npy",)


def test_what_a_download_brings_is_found(tmp_path: Path) -> None:
    files = published(lambda root: put(root / "Toy" / "raw" / "toy.zip"))
    assert obtain("toy", files, root=tmp_path / "new", download=True) == (tmp_path / "new" / "Toy" / "raw" / "toy.zip",)


@pytest.mark.parametrize("failure", [OSError("no route to host"), SystemExit(-1), EOFError("EOF when reading a line")])
def test_a_failed_download_is_one_error_that_names_both_ways(tmp_path: Path, failure: BaseException) -> None:
    def download(root: Path) -> None:
        raise failure

    with pytest.raises(FileNotFoundError) as caught:
        obtain("toy", published(download), root=tmp_path, download=True)
    assert str(caught.value) == (
        f"Dataset `toy` was not found below {tmp_path}, and the download failed ({type(failure).__name__}: {failure})."
        f" HINT: put toy.a, toy.b or toy.zip into {tmp_path / 'Toy'} (`root`, `data.root` or the environment variable"
        " GNNOPT_DATA names another folder), or connect to the network once to download it from toy.org."
    )
    assert caught.value.__cause__ is failure


def test_the_error_names_the_extra_to_install(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"once after `pip install lightning-gnnopt\[data\]` to download"):
        obtain("toy", published(extra="data"), root=tmp_path, download=True)


def test_an_interrupt_is_not_taken_for_a_failed_download(tmp_path: Path) -> None:
    def download(root: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("toy", published(download), root=tmp_path, download=True)


def test_a_download_that_brings_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"and the download did not bring it. HINT"):
        obtain("toy", published(), root=tmp_path, download=True)


def test_the_error_names_the_file_that_is_missing_where_others_are_there(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "toy.a")
    with pytest.raises(FileNotFoundError) as caught:
        obtain("toy", published(), root=tmp_path, download=False)
    assert str(caught.value).startswith(
        f"Dataset `toy` is incomplete: `toy.b` is missing in {tmp_path / 'sub'}, and `download` is False. HINT: put"
    )


def test_a_file_that_other_sets_have_as_well_makes_no_set_incomplete(tmp_path: Path) -> None:
    put(tmp_path / "toy.b")
    with pytest.raises(FileNotFoundError, match="was not found below"):
        obtain("toy", published(), root=tmp_path, download=False)


def test_the_root_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_root(None) == tmp_path / "cache" / "lightning_gnnopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(None) == tmp_path / ".cache" / "lightning_gnnopt"
    monkeypatch.setenv("GNNOPT_DATA", "~/graphs")
    assert data_root(None) == tmp_path / "graphs"
    assert data_root(tmp_path / "here") == tmp_path / "here"

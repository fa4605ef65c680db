"""Cells of a study: whole or not there, and only what the same config has written counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_gnnopt.studies.cells import Cell, is_complete, load_cells, save_cell

CONFIG = {"model": "gcn", "sizes": (1, 2), "limit": None}


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    save_cell(tmp_path, Cell("cora/gcn", CONFIG, {"epoch_s": 0.5, "of": {"a": (1, 2)}}))
    (cell,) = load_cells(tmp_path)
    assert cell.name == "cora/gcn"
    assert cell.config == {"model": "gcn", "sizes": [1, 2], "limit": None}
    assert cell.result == {"epoch_s": 0.5, "of": {"a": [1, 2]}}
    assert (cell.error, cell.complete) == ("", True)


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    path = save_cell(tmp_path, Cell("a", {}, {"loss": float("nan"), "all": [float("inf"), 1.0]}))
    assert "NaN" not in path.read_text()
    assert load_cells(tmp_path)[0].result == {"loss": None, "all": [None, 1.0]}


def test_only_the_same_config_is_complete(tmp_path: Path) -> None:
    assert not is_complete(tmp_path, "a", CONFIG)
    save_cell(tmp_path, Cell("a", CONFIG, {"x": 1}))
    assert is_complete(tmp_path, "a", CONFIG)
    assert not is_complete(tmp_path, "a", CONFIG | {"model": "gat"})
    assert not is_complete(tmp_path, "a", CONFIG | {"more": 1})
    assert not is_complete(tmp_path, "b", CONFIG)


def test_a_failure_is_complete_only_if_it_says_so(tmp_path: Path) -> None:
    save_cell(tmp_path, Cell("a", CONFIG, {}, "Out of memory"))
    save_cell(tmp_path, Cell("b", CONFIG, {}, "No such file", complete=False))
    assert is_complete(tmp_path, "a", CONFIG)
    assert not is_complete(tmp_path, "b", CONFIG)
    assert [cell.error for cell in load_cells(tmp_path)] == ["Out of memory", "No such file"]


_CELL = '{{"config": {}, "result": {{}}, "error": "", "complete": true}}'


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", _CELL.format(1), _CELL.format('"ab"'), _CELL.format('"\\ud800"')]
)
def test_a_broken_file_is_run_again_and_named_when_read(tmp_path: Path, text: str) -> None:
    path = save_cell(tmp_path, Cell("a", CONFIG, {}))
    path.write_text(text)
    assert not is_complete(tmp_path, "a", CONFIG)
    with pytest.raises(ValueError, match=r"a.cell\.json is no cell of a study"):
        load_cells(tmp_path)


def test_a_write_that_fails_leaves_the_old_cell_and_no_other_file(tmp_path: Path) -> None:
    path = save_cell(tmp_path, Cell("a", CONFIG, {"x": 1}))
    with pytest.raises(TypeError):
        save_cell(tmp_path, Cell("a", CONFIG, {"x": object()}))
    assert json.loads(path.read_text())["result"] == {"x": 1}
    assert [found.name for found in path.parent.iterdir()] == ["cell.json"]


@pytest.mark.parametrize("name", ["../a", "a/../../b", "", "/tmp/elsewhere"])
def test_a_cell_cannot_lie_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must lie within"):
        save_cell(tmp_path / "study", Cell(name, {}, {}))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no cell"):
        load_cells(tmp_path)

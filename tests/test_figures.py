from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gnnopt._figures import save_figure


def test_a_figure_that_is_in_a_file_is_let_go(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure, _ = pyplot.subplots()
    save_figure(figure, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert pyplot.get_fignums() == before


def test_so_is_one_that_cannot_be_written(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    (tmp_path / "file").touch()
    figure, _ = pyplot.subplots()
    with pytest.raises(OSError, match="file"):
        save_figure(figure, tmp_path / "file" / "a.png")
    assert pyplot.get_fignums() == before

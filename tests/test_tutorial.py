"""The tutorial runs as a script, prints what each step gained, and is a notebook as well."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "recipes" / "tutorial" / "tutorial.py"
README = (TUTORIAL.parent / "README.md").read_text()


def shape(text: str) -> str:
    """What is printed, with a mark for each number and without what depends on them."""
    return re.sub(r"\d[\d.,]*", "#", text)


def test_its_cells_are_text_or_code() -> None:
    marks = re.findall(r"^# %%.*$", TUTORIAL.read_text(), flags=re.M)
    assert set(marks) == {"# %%", "# %% [markdown]"}
    for cell in re.split(r"^# %%", TUTORIAL.read_text(), flags=re.M)[1:]:
        is_text, body = cell.startswith(" [markdown]"), cell.split("\n", 1)[1]
        assert all(not line.strip() or line.startswith("#") for line in body.splitlines()) == is_text
        ast.parse(body)


def test_jupytext_makes_a_notebook_of_it() -> None:
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(TUTORIAL).cells
    assert {cell.cell_type for cell in cells} == {"markdown", "code"}
    assert len(cells) == len(re.findall(r"^# %%", TUTORIAL.read_text(), flags=re.M))


@pytest.mark.slow
def test_it_runs_and_says_what_each_step_gained(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TUTORIAL)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^\d\. \w+", done.stdout, flags=re.M)
    assert printed == [
        "1. Whole",
        "2. Sampled",
        "3. Prefetching",
        "4. AsyncValidation",
        "5. MemoryControl",
        "6. GNNProfiler",
    ]
    (stated,) = re.findall(r"^```\n(1\. .*?)^```", README, flags=re.S | re.M)
    for number in range(1, 6):  # what the profiler says depends on the machine
        mine, pages = (re.search(rf"^{number}\. .*$", text, flags=re.M) for text in (done.stdout, stated))
        assert mine is not None
        assert pages is not None
        assert shape(mine[0]) == shape(pages[0])
    accuracies = [
        [float(found) for found in re.findall(r"val/acc (0\.\d+)$", text, flags=re.M)] for text in (done.stdout, stated)
    ]
    assert accuracies[0] == pytest.approx(
        accuracies[1], abs=0.02
    )  # processors differ in last digits, and so do weights
    found = re.search(r"largest step ([\d,]+) -> ([\d,]+) bytes, budget ([\d,]+)", done.stdout)
    assert found is not None
    before, after, budget = (int(number.replace(",", "")) for number in found.groups())
    assert after <= budget < before
    assert "-> 0.00 s for validation" in done.stdout
    assert (tmp_path / "tutorial_report" / "report.html").is_file()
    assert list((tmp_path / "tutorial_checkpoints").glob("*.ckpt"))

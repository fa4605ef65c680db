"""What the documentation says must be so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.datasets import dataset_names, describe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def number(value: int | None) -> str:
    return "any" if value is None else f"{value:,}"


def test_table_of_datasets_is_what_describe_says() -> None:
    page = (ROOT / "docs" / "guides" / "datasets.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", page, flags=re.MULTILINE)
    wanted = []
    for name in dataset_names():
        info = describe(name)
        counts = (info.num_nodes, info.num_edges, info.num_features, info.num_classes)
        wanted.append((name, *(number(count) for count in counts)))
    assert rows == wanted


def test_mentioned_verbs_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = {verb for page in PAGES for verb in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), flags=re.M)}
    assert {"demo", "test", "docs"} <= mentioned
    assert mentioned <= verbs


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(60, dtype=torch.bool)
    mask[:30] = True
    return Data(
        x=torch.randn(60, 8, generator=generator),
        y=torch.randint(3, (60,), generator=generator),
        edge_index=torch.randint(60, (2, 400), generator=generator),
        train_mask=mask,
        val_mask=~mask,
    )


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def quiet_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = L.Trainer

    def trainer(**given: object) -> L.Trainer:
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
        return plain(**{**given, **quiet, "max_epochs": 1, "default_root_dir": tmp_path})

    monkeypatch.setattr(L, "Trainer", trainer)


@pytest.mark.usefixtures("quiet_trainer")
def test_the_readmes_three_lines_run(data: Data) -> None:
    (block,) = python_blocks("README.md")
    scope: dict[str, Any] = {"data": data, "model": NodeClassifier("sage", in_channels=8, out_channels=3)}
    exec(block, scope)
    trainer: L.Trainer = scope["trainer"]
    assert (trainer.current_epoch, trainer.global_step) == (1, 1)


@pytest.mark.usefixtures("quiet_trainer")
def test_the_guide_to_validation_runs(data: Data) -> None:
    (block,) = python_blocks("docs/guides/async-validation.md")
    data = data.clone()
    data.test_mask = data.val_mask = ~data.train_mask
    scope: dict[str, Any] = {"data": data, "model": NodeClassifier("sage", in_channels=8, out_channels=3)}
    exec(block, scope)
    assert (
        scope["validation"].best_model_score == scope["validation"].best_k_models[scope["validation"].best_model_path]
    )
    assert "test/acc" in scope["trainer"].callback_metrics


@pytest.mark.usefixtures("quiet_trainer")
def test_the_guides_blocks_run_in_order(data: Data) -> None:
    scope: dict[str, object] = {"data": data}
    blocks = [block for block in python_blocks("docs/guides/own-graph.md") if not block.startswith("def ")]
    assert len(blocks) == 3
    for block in blocks:
        exec(block, scope)
    assert type(scope["net"]).__name__ == "GIN"


@pytest.mark.usefixtures("quiet_trainer")
def test_the_recipe_without_hydra_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_blocks("recipes/README.md")
    exec(block, {})
    assert "Test accuracy" in capsys.readouterr().out

"""Every shipped recipe: its command runs, and it reaches the figure that its folder states."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_gnnopt.train import train

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.parent.name for path in ROOT.glob("recipes/*/expected.yaml"))
_SMALL = ["data.options.scale=0.002"]
SMALLER = {"products-like": _SMALL, "everything": _SMALL}  # what CI adds so that a recipe stays quick


def expected(recipe: str) -> Any:
    return OmegaConf.load(ROOT / "recipes" / recipe / "expected.yaml")


def test_every_experiment_has_a_recipe_folder_and_the_other_way_round() -> None:
    assert sorted(path.stem for path in ROOT.glob("conf/experiment/*.yaml")) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_page_and_config_give_the_same_command(recipe: str) -> None:
    command = expected(recipe).command
    assert command in (ROOT / "recipes" / recipe / "README.md").read_text()
    assert command.split(" data.")[0] in (ROOT / "conf" / "experiment" / f"{recipe}.yaml").read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_page_states_the_figure(recipe: str) -> None:
    page = (ROOT / "recipes" / recipe / "README.md").read_text()
    assert f"at least {expected(recipe).at_least:.0%}" in page


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_command_runs(recipe: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    settings = expected(recipe)
    arguments = shlex.split(settings.command)[1:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if settings.needs_files:
        environment["GNNOPT_DATA"] = str(request.getfixturevalue("real_data_root"))
        arguments = [argument for argument in arguments if not argument.startswith("data.root")]
    arguments += ["trainer.fast_dev_run=true", "hydra.run.dir=out", *SMALLER.get(recipe, [])]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gnnopt.train", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Test accuracy" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if expected(name).judged_in_ci])
def test_recipe_reaches_its_figure(recipe: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    settings = expected(recipe)
    root = request.getfixturevalue("real_data_root") if settings.needs_files else "null"
    quiet = ["~callbacks.progress_bar", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu"]
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose(
            "train",
            [
                f"experiment={recipe}",
                f"data.root={root}",
                f"output_dir={tmp_path}",
                f"optimized_metric={settings.metric}",
                *quiet,
            ],
        )
    value = train(config)
    assert value is not None
    assert value >= settings.at_least

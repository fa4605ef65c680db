"""Every block of code in the README and the documentation is run, or says why it is not.

A block is exempt with a comment on the line above it, which whoever edits the page sees: ``<!-- not run: why -->``.
What is run by a test of its own stands in `ELSEWHERE`. All other Python blocks of a page run in order, as a reader
would run them; of a diff, what it results in. Commands are composed here, and run, made small, by the slow test.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from lightning_gnnopt import analyze, collect, partition, train
from lightning_gnnopt.datasets.registry import DATASETS
from tests.blocks import BLOCKS, CODE, NAMES, OUTPUT, ROOT, SURROUNDINGS, Block, read_blocks, surroundings

ELSEWHERE = {  # page, language: the tests that run its blocks
    ("README.md", "python"): "tests/test_docs.py::test_the_readmes_three_lines_run",
    ("docs/guides/async-validation.md", "python"): "tests/test_docs.py::test_the_guide_to_validation_runs",
    ("docs/guides/sweeps.md", "python"): "tests/sweeping/test_sweeps.py::test_the_guides_first_commands",
    ("docs/guides/sweeps.md", "bash"): "tests/sweeping/test_sweeps.py::test_the_guides_first_commands",
    ("recipes/README.md", "python"): "tests/test_docs.py::test_the_recipe_without_hydra_runs",
    ("recipes/tutorial/README.md", "bash"): "tests/test_tutorial.py::test_it_runs_and_says_what_each_step_gained",
}
COMPOSED = {  # commands that are composed, and run by another test: by a word of theirs
    "hydra/launcher=joblib": "tests/sweeping/test_sweeps.py::test_joblib",
    "my_app.py": "tests/test_cli.py::test_other_applications_can_choose_from_our_groups",
}
SMALLER = {  # what stands in the documentation, and what is run in its place
    "experiment=glob(*)": "experiment=digits",
    "data.options.scale=0.1": "data.options.scale=0.002",
    "seed=1,2,3": "seed=1",
}
TRAIN = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress_bar",
    "model.hidden_channels=8",
    "data.num_workers=0",
)
ANALYZE = (
    "trainer=cpu",
    "epochs=1",
    "model.hidden_channels=8",
    "sweeps.batch_sizes=[64]",
    "sweeps.batches=1",
    "sweeps.full_batch=false",
)
MAINS: dict[str, Callable[[], object]] = {
    "gnnopt-train": train.main,
    "gnnopt-analyze": analyze.main,
    "gnnopt-collect": collect.main,
    "gnnopt-partition": partition.main,
}


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and not block.reason]


def here(*languages: str) -> list[Block]:
    return [block for block in of(*languages) if (block.page, block.language) not in ELSEWHERE]


def commands(blocks: list[Block]) -> list[str]:
    lines = [line for block in blocks for line in block.text.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))))


def is_run_here(command: str) -> bool:
    """Whether it is one of the package's commands; `make` is for `.ci/run`."""
    program, *arguments = shlex.split(command)
    return program in MAINS and not any(word in COMPOSED for word in arguments)


def test_blocks_are_found() -> None:
    page = "# A\n```python\n1\n```\ntext\n## B\n\n<!-- not run: no GPU -->\n```bash\n# C\n```\n"
    page += "\n```diff\n a\n-b\n+c\n```\n"
    python, bash, diff = read_blocks(page, "p.md")
    assert (python.text, python.heading, python.reason) == ("1\n", "A", "")
    assert (bash.text, bash.heading, bash.reason, bash.number) == ("# C\n", "B", "no GPU", 0)
    assert (diff.heading, diff.before, diff.after) == ("B", "a\nb\n", "a\nc\n")
    assert len([block for block in BLOCKS if block.language in CODE]) > 50


def test_each_block_is_of_a_language_that_is_run_or_is_output() -> None:
    assert [(block.page, block.language) for block in BLOCKS if block.language not in (*CODE, *OUTPUT)] == []


def test_no_fence_is_overlooked() -> None:
    """A block that is indented or has no end would be run by nobody."""
    for page in NAMES:
        fences = re.findall(r"^\s*(?:```|~~~)", (ROOT / page).read_text(), flags=re.M)
        assert len(fences) == 2 * len([block for block in BLOCKS if block.page == page]), page


def test_exemptions_belong_to_a_block_and_give_a_reason() -> None:
    for page in NAMES:
        comments = re.findall(r"<!-- not run", (ROOT / page).read_text())
        exempt = [block for block in BLOCKS if block.page == page and block.reason]
        assert len(comments) == len(exempt), page
        assert all(len(block.reason) > 10 for block in exempt)


@pytest.mark.parametrize("test", sorted({*ELSEWHERE.values(), *COMPOSED.values()}))
def test_what_is_run_elsewhere_has_its_test(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "block", of("python", "diff"), ids=lambda block: f"{block.page}-{block.language}{block.number}"
)
def test_it_is_python_and_imports_what_there_is(block: Block) -> None:
    """Of a diff, what stood there before too, which often needs what is not installed to run."""
    for text in {block.before if block.language == "diff" else block.after, block.after}:
        for statement in ast.walk(ast.parse(text)):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(ast.unparse(statement), {})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs of one epoch without a word, in a folder of their own; a dataset that is registered is forgotten."""
    plain, known = L.Trainer, dict(DATASETS)

    def trainer(**given: Any) -> L.Trainer:
        fixed = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1}
        return plain(**{**given, **fixed, "default_root_dir": tmp_path})

    monkeypatch.setattr(L, "Trainer", trainer)
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(DATASETS) - set(known):
        del DATASETS[name]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("page", list(dict.fromkeys(block.page for block in here("python"))))
def test_python_blocks_run_in_order(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = [block for block in here("python") if block.page == page]
    if any("~/graphs" in block.text for block in blocks):
        (tmp_path / "graphs").symlink_to(request.getfixturevalue("real_data_root"))
        monkeypatch.setenv("HOME", str(tmp_path))
    shared: dict[str, Any] = {}
    for block in blocks:
        # A name that an earlier block has made is what the next one means.
        scope = shared | surroundings(block) if is_alone(block) else surroundings(block) | shared
        exec(compile(block.text, f"{page}, Python block {block.number}", "exec"), scope)
        if not is_alone(block):
            shared = scope
    if "training_step" in shared:
        fits_with(shared["training_step"])


def is_alone(block: Block) -> bool:
    return (block.page, block.heading) in SURROUNDINGS


def fits_with(training_step: Callable[..., Any]) -> None:
    """A `training_step` of the documentation trains a module of one's own."""
    scope = surroundings(Block("", 0, "", "python", "", ""))
    module = type("Module", (type(scope["model"]),), {"training_step": training_step})
    training_step.__globals__["F"] = scope["F"]
    trainer = L.Trainer(limit_val_batches=0)
    trainer.fit(module("sage", in_channels=8, out_channels=3), scope["datamodule"])
    assert trainer.callback_metrics["train/loss"] > 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("block", here("diff"), ids=lambda block: block.heading)
def test_what_a_diff_results_in_runs(block: Block) -> None:
    assert block.before != block.after
    scope = surroundings(block)
    exec(compile(block.after, f"{block.page}, {block.heading}", "exec"), scope)
    assert scope["trainer"].global_step > 0
    names = {
        name for name in ("torch_geometric.loader", "LightningNodeData", "LightningLinkData") if name in block.after
    }
    assert not names


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.page)
def test_yaml_names_what_there_is(block: Block) -> None:
    assert OmegaConf.create(block.text)
    targets = re.findall(r"_target_: (\S+)", block.text)
    assert targets
    assert all(callable(get_object(target)) for target in targets)


@pytest.mark.parametrize("command", commands(of("bash")))
def test_commands_are_known_and_compose(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        (verb,) = arguments  # which `.ci/run` runs
        assert re.search(rf"^step \w+ make {verb}$", (ROOT / ".ci" / "run").read_text(), flags=re.M)
        return
    if program == "python" and arguments[0] == "recipes/tutorial/tutorial.py":
        assert (ROOT / arguments[0]).is_file()
        return
    if program == "gnnopt-collect" or arguments[0] in COMPOSED:
        return  # `gnnopt-collect` reads folders, not configs, and an application has its own
    config = {"gnnopt-train": "train", "gnnopt-analyze": "analyze", "gnnopt-partition": "partition"}[program]
    words = analyze.rewrite([SMALLER.get(argument, argument) for argument in arguments])
    given = [word for word in words if word not in ("-m", "--help") and not word.startswith(("hydra", "--cfg", "job"))]
    for overrides in spread(given):
        with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
            assert compose(config, overrides).task_name


def spread(overrides: list[str]) -> list[list[str]]:
    """Each value of a sweep once, beside the first of the others."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    values = [
        list(one.sweep_string_iterator()) if one.is_sweep_override() and one.is_choice_sweep() else None
        for one in parsed
    ]
    choices = [
        [text] if found is None else [f"{one.get_key_element()}={value}" for value in found]
        for text, one, found in zip(overrides, parsed, values, strict=True)
        if not (one.is_sweep_override() and found is None)  # an interval, which a sweeper draws from
    ]
    longest = max((len(choice) for choice in choices), default=1)
    return [[choice[min(place, len(choice) - 1)] for choice in choices] for place in range(longest)]


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands(here("bash")) if is_run_here(command)])
def test_commands_run(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program, *arguments = shlex.split(command)
    arguments = [SMALLER.get(argument, argument) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    if any("amazon-photo" in argument or "PATH" in argument for argument in arguments):
        root = str(request.getfixturevalue("real_data_root"))
        monkeypatch.setenv("GNNOPT_DATA", root)
        arguments = [argument.replace("PATH", root) for argument in arguments]
    smaller = {"gnnopt-train": TRAIN, "gnnopt-analyze": ANALYZE}.get(program, ())
    more = () if {"--help", "--cfg"} & set(arguments) else smaller
    fixed = {argument.split("=")[0] for argument in more}
    kept = [argument for argument in arguments if argument.split("=")[0] not in fixed]
    monkeypatch.setattr(sys, "argv", [program, *kept, *more])
    assert exit_status(MAINS[program]) == 0


def exit_status(main: Callable[[], object]) -> Any:
    """Run a command line; 0 if it just ends."""
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0

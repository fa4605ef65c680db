"""The package is built as `docs/architecture.md` says; the page itself is what is read."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_gnnopt"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAX_LINES = 400
LAZY = ("hydra", "lightgbm", "matplotlib", "omegaconf", "pandas", "pyarrow", "sklearn")


def modules() -> list[Path]:
    """The package's files; `conf` is a link to a folder of configs."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "conf"]


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """All imports of a file, those within functions and for type checkers included: line, and the dotted name."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def block_after(text: str) -> str:
    """The fenced block that follows a text on the page."""
    _, found, rest = PAGE.partition(text)
    assert found, f"the page does not say {text!r}"
    return rest.split("```", 2)[1].strip("\n")


def levels() -> dict[str, int]:
    """The page's order of rooms: 0 is at the bottom."""
    lines = block_after("Imports go downwards only:").splitlines()
    found = [(room.strip(), level) for level, line in enumerate(reversed(lines)) for room in line.split(",")]
    assert len(dict(found)) == len(found), "a room stands twice"
    return dict(found)


def wrong_imports(files: list[Path], order: dict[str, int]) -> list[str]:
    wrong = []
    for path in files:
        room = room_of(path)
        for line, name in imports(path):
            _, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if not name.startswith("lightning_gnnopt") or target == room or room == "__init__":
                continue
            # The root alone has the version; its other names would be imports from above.
            is_root = target in ("", "__version__")
            if not is_root and not order.get(target, 99) < order[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


def test_imports_go_downwards_only() -> None:
    assert wrong_imports(modules(), levels()) == []


def test_an_import_upwards_would_be_found() -> None:
    order = levels()
    upside_down = {room: -level for room, level in order.items()}
    wrong = wrong_imports(modules(), upside_down)
    assert any("loading" in line and "imports lightning_gnnopt.sampling" in line for line in wrong)


def test_the_page_orders_each_room_and_no_other() -> None:
    assert set(levels()) == {room_of(path) for path in modules()} - {"__init__"}


# The tree of rooms


def rooms_on_page() -> dict[str, str]:
    """What the page's tree says of each room: the text from its line on, up to the next one's."""
    block = block_after("## Rooms")
    part = re.split(r"^(?=\w)", block, flags=re.MULTILINE)
    (own,) = (text for text in part if text.startswith("lightning_gnnopt/"))
    found: dict[str, str] = {}
    for text in re.split(r"^  (?=\S)", own, flags=re.MULTILINE)[1:]:
        head = re.match(r"(?:[\w/]+(?:\.py)?,? )+", text)
        assert head is not None, text
        for name in re.findall(r"(\w+)(?:/|\.py)", head[0]):
            found[name] = text
    return found


def test_each_module_has_its_room_on_the_page() -> None:
    page = rooms_on_page()
    missing = sorted({room_of(path) for path in modules()} - set(page))
    folders = {path.parent.relative_to(PACKAGE) for path in modules()}
    missing += sorted(
        str(folder)
        for folder in folders
        if len(folder.parts) > 1 and f"{folder.name}/" not in page.get(folder.parts[0], "")
    )
    assert missing == [], "these are not in the tree of docs/architecture.md"


def test_each_file_on_the_page_is_there() -> None:
    wrong = []
    for room, text in rooms_on_page().items():
        folder = PACKAGE / room
        files = (
            [path.name for path in folder.rglob("*.py")] if folder.is_dir() else [p.name for p in PACKAGE.glob("*.py")]
        )
        for name in re.findall(r"[\w*]+\.py\b", text):
            if not fnmatch.filter(files, name):
                wrong.append(f"{room}: {name}")
    assert wrong == []


def test_each_folder_on_the_page_is_there() -> None:
    named = re.findall(r"^(\w+)/", block_after("## Rooms"), flags=re.MULTILINE)
    assert {"lightning_gnnopt", "conf", "tests"} <= set(named)
    assert [name for name in named if not (ROOT / name).is_dir()] == []


# What rooms may know


def test_sampling_knows_nothing_of_lightning() -> None:
    found = [
        f"{path.name}:{line} {name}"
        for path in (PACKAGE / "sampling").rglob("*.py")
        for line, name in imports(path)
        if name.partition(".")[0] in ("lightning", "pytorch_lightning")
    ]
    assert found == []


def is_compiled(node: ast.AST) -> bool:
    """Whether numba compiles a function: `@njit`, `@njit(...)`, `@numba.njit`, `@vectorize`, ..."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    names = {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in decorators}
    return bool(names & {"njit", "jit", "vectorize", "guvectorize", "intrinsic"})


def foreign_names(path: Path) -> set[str]:
    """The names that a file has from torch, PyG and Lightning."""
    found = set()
    for node in ast.walk(tree_of(path)):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            origin = str(node.module) if isinstance(node, ast.ImportFrom) else alias.name
            if origin.partition(".")[0] in ("torch", "torch_geometric", "lightning"):
                found.add((alias.asname or alias.name).partition(".")[0])
    return found


def test_kernels_know_nothing_of_torch_and_pyg() -> None:
    kernels, wrong = 0, []
    for path in modules():
        foreign = foreign_names(path)
        if foreign and re.search(r"(^|_)kernels$", path.stem):
            wrong.append(f"{path.relative_to(ROOT)} imports {sorted(foreign)}")
        for function in filter(is_compiled, ast.walk(tree_of(path))):
            kernels += 1
            used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} & foreign
            if used:
                wrong.append(f"{path.relative_to(ROOT)}: {function.name} uses {sorted(used)}")  # type: ignore[attr-defined]
    assert wrong == []
    assert kernels > 50


def test_the_package_imports_neither_its_tests_nor_its_benchmarks() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in modules()
        for line, name in imports(path)
        if name.partition(".")[0] in ("benchmarks", "tests", "recipes", "hydra_plugins")
    ]
    assert found == []


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(found.stdout.split("\n")[-2].split())


def test_the_package_alone_loads_no_library_that_only_some_need() -> None:
    # torchmetrics and PyG load matplotlib and pandas themselves, where they are installed.
    before = loaded_by("import lightning, torch_geometric, torchmetrics")
    assert "lightning" in before
    assert (loaded_by("import lightning_gnnopt") - before) & set(LAZY) == set()


# Files


@pytest.mark.parametrize("folder", ["lightning_gnnopt", "benchmarks", "tests"])
def test_no_file_is_too_long(folder: str) -> None:
    long = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_LINES:
            long[path.relative_to(ROOT).as_posix()] = count
    assert long == {}, f"over {MAX_LINES} lines: cut along a seam"

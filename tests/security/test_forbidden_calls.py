"""No call of the package reads a file in a way that lets the file run code, but for those that are listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: File, function or class, and call: how often, and why that is no hole.
ALLOWED: dict[tuple[str, str, str], tuple[int, str]] = {
    ("datasets/_unpickle.py", "_Unpickler", "pickle.Unpickler"): (1, "`find_class` knows stand-ins for arrays only"),
    ("datasets/facebook.py", "load_facebook", "scipy.io.loadmat"): (
        1,
        "a format without code; its indices are checked",
    ),
    ("evaluation/child.py", "_next", "pickle.loads"): (1, "bytes of a pipe, from a process that this one has started"),
    ("evaluation/worker.py", "main", "pickle.loads"): (
        2,
        "bytes of a pipe, from the process that has started this one",
    ),
    ("evaluation/packing.py", "unpack", "pickle.loads"): (1, "the same: what the process's parent sends it"),
    ("evaluation/packing.py", "_Unpickler", "pickle.Unpickler"): (1, "the same"),
    # Written by this run, into its own folder; `take_up` refuses such files where a run is resumed.
    ("evaluation/weights.py", "read_weights", "torch.load"): (1, "states of the user's own classes"),
    ("loading/sharing.py", "_accept", "pickle.loads"): (
        1,
        "comes from a process of the same group, over its own channel",
    ),
    ("study.py", "study", "importlib.import_module"): (1, "a kind of study, one of those in `KINDS`"),
    ("studies/collecting.py", "collect", "importlib.import_module"): (1, "the same"),
}

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "importlib.import_module", "runpy.run_path", "runpy.run_module",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle",
    "torch.hub.load", "torch.jit.load", "torch_geometric.io.fs.torch_load", "torch_geometric.data.download_url",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.unsafe_load_all",
    "scipy.sparse.load_npz", "scipy.io.loadmat", "lightgbm.Booster",
    "shutil.unpack_archive", "tarfile.open", "tempfile.mktemp", "urllib.request.urlretrieve",
}  # fmt: skip
#: Methods, of whatever object.
FORBIDDEN_METHODS = {"extractall", "extract", "load_from_checkpoint", "model_from_string"}
#: These are allowed with an argument only.
NEEDED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.save": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
BARRED = {"shell": True, "allow_pickle": True, "weights_only": False}


def names_of(tree: ast.Module) -> dict[str, str]:
    """What the names that a file imports stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """A dotted name, by what was imported; ``?.attribute`` for an attribute of anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return f"{owner}.{node.attr}"
    return "?"


def findings(source: str) -> Iterator[tuple[str, str]]:
    """Each forbidden use: the innermost function or class, and what is used. A mere mention is a use."""
    tree = ast.parse(source)
    names = names_of(tree)

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = node.name
        if isinstance(node, ast.Name | ast.Attribute):
            name = full_name(node, names)
            is_builtin = isinstance(node, ast.Name) and name == node.id and name in FORBIDDEN
            if is_builtin or ("." in name and name in FORBIDDEN):
                yield where, name
            elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS:
                yield where, node.attr
        if isinstance(node, ast.Call):
            name = full_name(node.func, names)
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            if name.rpartition(".")[2] == "dump_checkpoint":  # there the word means what is saved
                given.pop("weights_only", None)
            needed, value = NEEDED.get(name, ("", None))
            if (needed and given.get(needed) is not value) or any(given.get(k) is v for k, v in BARRED.items()):
                yield where, name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    yield from visit(tree, "")


def files() -> list[Path]:
    folders = [path for path in sorted((ROOT / "lightning_gnnopt").rglob("*.py")) if "conf" not in path.parts]
    return [*folders, *sorted((ROOT / "hydra_plugins").rglob("*.py"))]


def test_the_package_has_no_other_than_those_listed() -> None:
    counted: dict[tuple[str, str, str], int] = {}
    for path in files():
        room = path.relative_to(ROOT).as_posix().removeprefix("lightning_gnnopt/")
        for where, name in findings(path.read_text(encoding="utf-8")):
            counted[room, where, name] = counted.get((room, where, name), 0) + 1
    assert counted == {place: count for place, (count, _) in ALLOWED.items()}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("import pickle as p\np.loads(f)", "pickle.loads"),
        ("from pickle import loads as read\nread(f)", "pickle.loads"),
        ("import pickle\nclass A(pickle.Unpickler): pass", "pickle.Unpickler"),
        ("import pickle\nread = pickle.loads", "pickle.loads"),
        ("def f(p):\n    import torch\n    return torch.load(p)", "torch.load"),
        ("import torch\ntorch.load(p, weights_only=False)", "torch.load"),
        ("import torch\ntorch.load(p, weights_only=some)", "torch.load"),
        ("import numpy as np\nnp.load(p)", "numpy.load"),
        ("import numpy as np\nnp.load(p, allow_pickle=True)", "numpy.load"),
        ("import scipy.sparse as sp\nsp.load_npz(p)", "scipy.sparse.load_npz"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "subprocess.run"),
        ("eval('1')", "eval"),
        ("trainer.fit(model, weights_only=False)", "trainer.fit"),
        ("import yaml\nyaml.load(f)", "yaml.load"),
        ("archive.extractall('.')", "extractall"),
        ("Module.load_from_checkpoint(p)", "load_from_checkpoint"),
    ],
)
def test_each_way_would_be_found(source: str, name: str) -> None:
    assert [found for _, found in findings(source)] == [name]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, weights_only=True)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "model.eval()",
        "import torch\ntorch.compile(model)",
        "import pickle\npickle.dumps(1)",
        "import subprocess\nsubprocess.run(['ls'])",
        "import re\nre.compile('a')",
    ],
)
def test_what_is_harmless_is_not(source: str) -> None:
    assert list(findings(source)) == []

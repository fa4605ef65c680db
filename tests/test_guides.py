"""The guides name what the library prints, and all that a report holds."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_geometric.data.lightning import LightningLinkData, LightningNodeData
from torch_geometric.sampler import NegativeSampling
from torch_geometric.sampler import NeighborSampler as PyGNeighborSampler

from lightning_gnnopt import AsyncValidation, GraphDataModule, LinkSplit, LinkTask
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.analysis.conclusions import rules_layers, rules_loading, rules_memory, rules_time
from lightning_gnnopt.analysis.conclusions.advising import RULES
from lightning_gnnopt.analysis.recording.labels import PARTS, PHASES
from lightning_gnnopt.analysis.reporting.plots import KINDS
from lightning_gnnopt.models import MODELS
from tests.blocks import BLOCKS, ROOT, graph

GUIDES = ROOT / "docs" / "guides"
FAQ = [block.text.strip() for block in BLOCKS if block.page == "docs/guides/faq.md" and block.language == "text"]
REPORT = (GUIDES / "reading-the-report.md").read_text()
MIGRATING = (GUIDES / "migrating.md").read_text()
WHOLE, PIECE = 15, 10  # characters of a template that must be fixed: fewer would fit too much


def templates() -> Iterator[str]:
    """What the library may print, as patterns: its strings, with anything in the places of their values."""
    for path in sorted((ROOT / "lightning_gnnopt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*?" for part in node.values
                ]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value)


def fixed(pattern: str) -> int:
    """How many characters of a template stand in each of its messages."""
    return len(re.sub(r"\\(.)", r"\1", pattern.replace(".*?", "")))


PATTERNS = [
    (fixed(pattern), re.compile(pattern, flags=re.S))
    for pattern in dict.fromkeys(templates())
    if fixed(pattern) >= PIECE
]


def is_printed(message: str, least: int = WHOLE) -> bool:
    """Whether a template gives the message, or several give it, sentence by sentence."""
    if any(size >= least and pattern.fullmatch(message) for size, pattern in PATTERNS):
        return True
    ends = [found.end() for found in re.finditer(r"[.,](?= )", message)]
    return any(is_printed(message[end:], PIECE) and is_printed(message[:end], PIECE) for end in reversed(ends))


def test_a_message_that_is_not_the_librarys_is_found_out() -> None:
    message = "`num_neighbors` samples 3 hops, but the model has 2 layers: what lies beyond is sampled and never used."
    assert is_printed(f"{message} HINT: shorten it.")
    assert not is_printed(f"{message} HINT: shorten them.")


@pytest.mark.parametrize("message", FAQ, ids=lambda message: message[:40])
def test_the_faqs_messages_are_what_the_library_prints(message: str) -> None:
    assert is_printed(message)


def test_the_faq_has_the_likely_ones() -> None:
    assert len(FAQ) >= 25
    assert len(FAQ) == len(set(FAQ))


def test_messages_of_the_faq_are_met() -> None:
    assert unknown_name("model", "gatt", MODELS) in FAQ
    data = graph()
    data.train_mask = torch.ones(60, 10, dtype=torch.bool)
    with pytest.raises(ValueError, match="of several splits choose one") as raised:
        GraphDataModule(data)
    assert str(raised.value) in FAQ
    data = graph()
    data.y = torch.rand(60)
    with pytest.raises(ValueError, match="no regression yet") as raised:
        GraphDataModule(data)
    assert str(raised.value) in FAQ


# Reading the report


def row(name: str) -> str:
    (found,) = re.findall(rf"^\| `{name}` \|.*$", REPORT, flags=re.M)
    return str(found)


def test_each_rule_of_advice_is_explained() -> None:
    section = REPORT.split("\n## The advice\n")[1].split("\n## ")[0]
    explained = re.findall(r"^\| `(\w+)` \|", section, flags=re.M)
    assert sorted(explained) == sorted(rule.__name__ for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("waits_for_batches", f"{rules_loading.WAIT_SHARE:.0%}"),
        ("transfer", f"{rules_loading.TRANSFER_SHARE:.0%}"),
        ("validation_blocks", f"{rules_time.VALIDATION_SHARE:.0%}"),
        ("between_epochs", f"{rules_time.BETWEEN_SHARE:.0%}"),
        ("callbacks_slow", f"{rules_time.CALLBACKS_SHARE:.0%}"),
        ("optimizer_slow", f"{rules_time.OPTIMIZER_SHARE:.0%}"),
        ("overhead_other", f"{rules_time.OTHER_SHARE:.0%}"),
        ("memory_varies", f"{rules_memory.VARIES} times"),
        ("memory_expands", f"{rules_memory.EXPANSION:.0f} times"),
        ("edge_dominates", f"{rules_layers.EDGE_SHARE:.0%}"),
        ("vertex_dominates", f"{1 - rules_layers.VERTEX_SHARE:.0%}"),
        ("fused_helps", f"{rules_layers.MOVING_SHARE:.0%}"),
        ("fused_helps", f"{rules_layers.MESSAGE_SHARE:.0%}"),
        ("too_few_steps", f"{rules_time.FEW_STEPS} steps"),
        ("profiler_overhead", f"{rules_time.OVERHEAD_SHARE:.0%}"),
    ],
)
def test_rules_speak_up_where_the_page_says(rule: str, threshold: str) -> None:
    assert threshold.replace("%", " %") in row(rule).split("|")[2]


def test_each_figure_phase_and_part_is_explained() -> None:
    for name in (*KINDS, *PHASES, *PARTS):
        assert name == "validation" or f"`{name}`" in REPORT, name


def test_each_table_is_explained() -> None:
    source = (ROOT / "lightning_gnnopt" / "analysis" / "reporting" / "tables.py").read_text()
    titles = re.findall(r'(?:title = f?|_pairs\("\w+", f?)"([A-Z][a-z]+(?: [a-z]+)*)', source)
    assert len(titles) >= 10
    for title in titles:
        words = title.split(" of ")[0]
        assert words in REPORT or words == "Model", title  # whose heading is the section's


# Migrating


def arguments(function: object) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "kwargs"}  # type: ignore[arg-type]


@pytest.mark.parametrize("table", ["LightningNodeData", "LightningLinkData and LinkNeighborLoader"])
def test_the_tables_of_arguments_name_all_of_pygs(table: str) -> None:
    section = MIGRATING.split(f"\n## {table}\n")[1].split("\n## ")[0]
    pygs = LightningNodeData if table == "LightningNodeData" else LightningLinkData
    # The table of links begins where that of nodes ends.
    shared = (
        arguments(LightningNodeData.__init__) & arguments(LightningLinkData.__init__)
        if pygs is LightningLinkData
        else set()
    )
    wanted = arguments(pygs.__init__) - shared
    kinds = r"input_(?:val|test|pred)_(?:edges|labels|time)|input_test_time|input_pred_time"
    for name in wanted:
        assert re.search(f"`{name}[`=]", section) or re.fullmatch(kinds, name), name
    if pygs is LightningNodeData:
        for name in arguments(PyGNeighborSampler.__init__) - {"share_memory", "data"}:
            assert re.search(f"`{name}[`=]", section), name
    else:
        for name in arguments(NegativeSampling.__init__) - {"mode"}:
            assert name in section, name


def test_our_arguments_that_the_tables_name_exist() -> None:
    ours = set.union(*(arguments(kind.__init__) for kind in (GraphDataModule, LinkTask, LinkSplit, AsyncValidation)))
    named = re.findall(r"^\| [^|]+ \| `(\w+)`(?:, `(\w+)`)*(?: \||, )", MIGRATING, flags=re.M)
    found = {name for names in named for name in names if name and name.islower()}
    assert len(found) > 10
    assert found - ours == {"predict_mask"}  # of the graph


def test_paths_of_pages_that_are_linked_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or Path(page.parent / target).exists(), f"{page}: {target}"


def test_a_target_that_is_no_class_is_sliced_under_another_name() -> None:
    data = graph()
    data.target, data.y = torch.rand(60), torch.zeros(60, dtype=torch.int64)
    datamodule = GraphDataModule(data, num_neighbors=[4, 4], batch_size=10, num_workers=0)
    batch = next(iter(datamodule.train_dataloader()))
    assert torch.equal(batch.target, data.target[batch.n_id])

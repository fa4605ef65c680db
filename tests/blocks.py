"""The fenced blocks of the documentation, and what they find when they are run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import SAGEConv, to_hetero

from lightning_gnnopt import GraphDataModule, NodeClassifier

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "recipes" / "README.md",
    ROOT / "recipes" / "tutorial" / "README.md",
)
CODE = ("python", "diff", "bash", "yaml")
OUTPUT = ("", "text")
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", flags=re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page, from the repository's root.
        number: Its number among the page's blocks of its language.
        heading: The heading that it stands under; ``""`` before the first.
        language: What stands behind the backticks.
        text: What it holds.
        reason: Why it is not run; ``""`` if it is to be.
    """

    page: str
    number: int
    heading: str
    language: str
    text: str
    reason: str

    @property
    def after(self) -> str:
        """What a diff results in; of other blocks their text."""
        return self.text if self.language != "diff" else _side(self.text, left_out="-")

    @property
    def before(self) -> str:
        """What a diff changes."""
        return _side(self.text, left_out="+")


def _side(text: str, *, left_out: str) -> str:
    return "\n".join(line[1:] for line in text.splitlines() if not line.startswith(left_out)) + "\n"


def read_blocks(text: str, page: str) -> list[Block]:
    """Find the blocks of a page."""
    counts: dict[str, int] = {}
    blocks = []
    for found in _BLOCK.finditer(text):
        language = found["language"]
        counts[language] = counts.get(language, -1) + 1
        plain = _BLOCK.sub("", text[: found.start()])
        headings = re.findall(r"^#+ (.*)$", plain, flags=re.M)
        heading = headings[-1] if headings else ""
        blocks.append(Block(page, counts[language], heading, language, found["text"], found["reason"] or ""))
    return blocks


NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCKS = [block for name in NAMES for block in read_blocks((ROOT / name).read_text(), name)]


def graph() -> Data:
    """A small graph that has whatever the pages' graphs have."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(60) < 30
    return Data(
        x=torch.randn(60, 8, generator=generator),
        y=torch.arange(60) % 3,
        edge_index=torch.randint(60, (2, 400), generator=generator),
        edge_weight=torch.rand(400, generator=generator),
        edge_year=torch.randint(2000, 2020, (400,), generator=generator),
        year=torch.randint(2000, 2020, (60,), generator=generator),
        train_mask=mask,
        val_mask=~mask,
        test_mask=~mask,
    )


def papers() -> HeteroData:
    """A small graph of authors and papers."""
    generator, data = torch.Generator().manual_seed(0), HeteroData()
    for name in ("author", "paper"):
        data[name].x = torch.randn(40, 8, generator=generator)
    data["paper"].y = torch.arange(40) % 3
    data["paper"].train_mask = torch.arange(40) < 20
    data["author", "writes", "paper"].edge_index = torch.randint(40, (2, 150), generator=generator)
    data["paper", "written_by", "author"].edge_index = data["author", "writes", "paper"].edge_index.flip(0)
    return data


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv((-1, -1), 8), SAGEConv((-1, -1), 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


class OfPapers(L.LightningModule):
    """Classifies papers, as PyG does it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = to_hetero(_Net(), papers().metadata())
        with torch.no_grad():
            self.net(papers().x_dict, papers().edge_index_dict)

    def training_step(self, batch: HeteroData, batch_idx: int) -> Tensor:
        """Return the loss of the seeds."""
        size = batch["paper"].batch_size
        return F.cross_entropy(self.net(batch.x_dict, batch.edge_index_dict)["paper"][:size], batch["paper"].y[:size])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return torch.optim.Adam(self.parameters())


class OfLinks(L.LightningModule):
    """Tells links from pairs of nodes, as PyG does it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _Net()
        with torch.no_grad():
            self.net(graph().x, graph().edge_index)

    def _loss(self, batch: Data) -> Tensor:
        out = self.net(batch.x, batch.edge_index)
        sources, destinations = batch.edge_label_index
        return F.binary_cross_entropy_with_logits((out[sources] * out[destinations]).sum(-1), batch.edge_label.float())

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Return the loss of the links."""
        return self._loss(batch)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Log the loss of the links."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch.edge_label))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return torch.optim.Adam(self.parameters())


def _plain() -> dict[str, Any]:
    data = graph()
    datamodule = GraphDataModule(data, num_neighbors=[4, 4], batch_size=2, num_workers=0)  # 15 steps
    return {"data": data, "model": NodeClassifier("sage", in_channels=8, out_channels=3), "datamodule": datamodule}


def _loop() -> dict[str, Any]:
    scope = _plain()
    scope |= {"loader": scope["datamodule"].train_dataloader(), "model": scope["model"].net}
    seeds = {"loss_of": lambda out, y: F.cross_entropy(out, y)}
    return scope | seeds | {"optimizer": torch.optim.Adam(scope["model"].parameters())}


Make = Callable[[], dict[str, Any]]
SURROUNDINGS: dict[tuple[str, str], Make] = {
    ("docs/guides/bottlenecks.md", "Without Lightning"): _loop,
    ("docs/guides/links-and-types.md", "Heterogeneous graphs"): lambda: {"data": papers()},
    ("docs/guides/links-and-types.md", "Links"): lambda: {"data": graph()},
    ("docs/guides/migrating.md", "LightningLinkData and LinkNeighborLoader"): lambda: {
        "data": graph(),
        "model": OfLinks(),
    },
    ("docs/guides/migrating.md", "Several types: NeighborLoader and HGTLoader"): lambda: {
        "data": papers(),
        "model": OfPapers(),
    },
}
"""What the blocks under a heading find, where it is not what they find elsewhere."""


def surroundings(block: Block) -> dict[str, Any]:
    """Make the names that a block finds."""
    return {"L": L, "F": F, "torch": torch, "Data": Data} | SURROUNDINGS.get((block.page, block.heading), _plain)()

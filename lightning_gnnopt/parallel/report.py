"""What a cut graph is like: sizes, halos, balance, and what a model will exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from lightning_gnnopt._frames import data_frame
from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.parallel.part_files import PartitionInfo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PartitionReport:
    """A cut graph as a table; `rich.print` shows it.

    Attributes:
        info: The cut graph.
        bytes_by_policy: Bytes that each rank sends in a training step of a model, by policy; empty without a model.
    """

    info: PartitionInfo
    bytes_by_policy: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def node_balance(self) -> float:
        """The largest part's nodes over their mean; 1 is best."""
        return _balance([part["inner"] for part in self.info.parts])

    @property
    def edge_balance(self) -> float:
        """The largest part's edges over their mean; 1 is best."""
        return _balance([part["edges"] for part in self.info.parts])

    @property
    def halo_share(self) -> float:
        """Rows of all halos over nodes: how many times a node's row travels in a layer."""
        return float(sum(part["halo"] for part in self.info.parts) / max(1, self.info.num_nodes))

    def rows(self) -> list[dict[str, int]]:
        """The parts, one a row."""
        return [
            {
                "part": rank,
                "nodes": part["inner"],
                "edges": part["edges"],
                "halo": part["halo"],
                "sent_rows": sum(part["send_counts"]),
                **{name.removesuffix("_mask"): counts[rank] for name, counts in self.info.targets.items()},
            }
            for rank, part in enumerate(self.info.parts)
        ]

    def to_frame(self) -> pd.DataFrame:
        """Hand out the parts as a `pandas.DataFrame`, one a row; bytes of a training step by policy.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        sent = [
            {f"{policy}_bytes": sent[rank] for policy, sent in self.bytes_by_policy.items()}
            for rank in range(self.info.num_parts)
        ]
        return data_frame([{**row, **more} for row, more in zip(self.rows(), sent, strict=True)])

    def __rich__(self) -> Group:
        made = ", ".join(f"{name} {value}" for name, value in self.info.made_by.items())
        shown: list[Any] = [
            f"{self.info.num_nodes:,} nodes and {self.info.num_edges:,} edges ({made})",
            _table(
                [[f"{value:,}" for value in row.values()] for row in self.rows()],
                [name.replace("_", " ") for name in self.rows()[0]],
            ),
            f"Largest part over the mean: {self.node_balance:.2f} in nodes, {self.edge_balance:.2f} in edges."
            f" Rows that travel in a layer: {self.halo_share:.2f} a node.",
        ]
        if self.bytes_by_policy:
            sizes = [
                [name, format_bytes(max(sent)), format_bytes(sum(sent))] for name, sent in self.bytes_by_policy.items()
            ]
            shown += ["A training step of the model sends", _table(sizes, ["policy", "most of a part", "all together"])]
        return Group(*shown)


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Table:
    table = Table()
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _balance(sizes: Sequence[int]) -> float:
    return max(sizes) * len(sizes) / max(1, sum(sizes))

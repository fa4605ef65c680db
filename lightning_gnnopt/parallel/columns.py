"""Rows turned into columns of all nodes before messages are passed, and back (NeutronTP, PVLDB 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric.nn import MessagePassing
from typing_extensions import override

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.current import CurrentPart
from lightning_gnnopt.parallel.sequential import MERGED, both

COLUMNWISE = (
    pyg.APPNP, pyg.GCN2Conv, pyg.GCNConv, pyg.GINConv, pyg.GatedGraphConv, pyg.GraphConv, pyg.LGConv, pyg.SAGEConv,
    pyg.SGConv, pyg.SSGConv, pyg.SimpleConv, pyg.TAGConv,
)  # fmt: skip
"""Convolutions that treat each column of their sources alike, but for what they do before and after messages."""


@dataclass(frozen=True)
class _Whole:
    """The graph's edges, with nodes numbered by owner, and what they were gathered from.

    Attributes:
        own: Edges of the part.
        own_weight: Their weights, or None.
        edge_index: All edges, shape ``(2, E)``.
        weight: Their weights, or None.
    """

    own: Tensor
    own_weight: Tensor | None
    edge_index: Tensor
    weight: Tensor | None

    def is_of(self, own: Tensor, weight: Tensor | None) -> bool:
        """Whether it was gathered from these."""
        if not torch.equal(self.own, own) or (weight is None) != (self.own_weight is None):
            return False
        return weight is None or self.own_weight is None or torch.equal(self.own_weight, weight)


def takes_columns(conv: MessagePassing, inputs: Mapping[str, Any]) -> bool:
    """Whether a call of ``propagate`` can be computed column by column."""
    x, weight = inputs.get("x"), inputs.get("edge_weight")
    source, _ = both(x)
    is_plain = isinstance(source, Tensor) and source.dim() == 2 and source.is_floating_point()
    is_constant = weight is None or (isinstance(weight, Tensor) and weight.dim() == 1 and not weight.requires_grad)
    others = [value for name, value in inputs.items() if name not in ("x", "edge_weight") and value is not None]
    return isinstance(conv, COLUMNWISE) and conv.aggr in MERGED and is_plain and is_constant and not others


def column_propagate(part: CurrentPart, conv: MessagePassing, edge_index: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Compute what ``propagate`` does: some columns of all nodes on each rank.

    Each rank has all edges then, gathered once; rows travel twice, to columns and back, whatever the halo is.

    Args:
        part: The rank's part.
        conv: The convolution, one that :func:`takes_columns`.
        edge_index: Of the part.
        inputs: Other arguments of ``propagate``.

    Returns:
        Shape ``(n, F)``.
    """
    rows, _ = both(inputs["x"])
    weight = inputs.get("edge_weight")
    sizes = _sizes(part, part.plan.num_inner, "nodes")
    whole = _whole(part, conv, edge_index, weight)
    columns = _ToColumns.apply(rows, part.channel, sizes)  # type: ignore[no-untyped-call]
    found = dict(inputs, x=(columns, None))
    if whole.weight is not None:
        found["edge_weight"] = whole.weight
    with part.in_columns():
        out = partial(type(conv).propagate, conv)(whole.edge_index, size=(sum(sizes), sum(sizes)), **found)
    turned: Tensor = _ToRows.apply(out, part.channel, sizes, rows.size(1))  # type: ignore[no-untyped-call]
    return turned


class _ToColumns(torch.autograd.Function):
    """Some columns of all nodes, ``(N, F_r)``, from all columns of the rank's own, ``(n, F)``."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, channel: Channel, sizes: list[int]) -> Tensor:
        ctx.channel, ctx.sizes, ctx.width = channel, sizes, rows.size(1)
        return _to_columns(rows, channel, sizes, "forward")

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _to_rows(grad, ctx.channel, ctx.sizes, ctx.width, "backward"), None, None


class _ToRows(torch.autograd.Function):
    """The way back."""

    @staticmethod
    @override
    def forward(ctx: Any, columns: Tensor, channel: Channel, sizes: list[int], width: int) -> Tensor:
        ctx.channel, ctx.sizes = channel, sizes
        return _to_rows(columns, channel, sizes, width, "forward")

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _to_columns(grad, ctx.channel, ctx.sizes, "backward"), None, None, None


def _widths(width: int, size: int) -> list[int]:
    """How many columns each rank has.

    Examples:
        >>> _widths(8, 3)
        [3, 3, 2]
    """
    return [width // size + (rank < width % size) for rank in range(size)]


def _to_columns(rows: Tensor, channel: Channel, sizes: list[int], kind: str) -> Tensor:
    widths = _widths(rows.size(1), channel.size)
    mine = widths[channel.rank]
    sent = torch.cat([block.reshape(-1) for block in torch.split(rows, widths, dim=1)])
    counts = [rows.size(0) * width for width in widths]
    received = channel.start(sent, counts, [size * mine for size in sizes], kind=kind)()
    return received.view(sum(sizes), mine)


def _to_rows(columns: Tensor, channel: Channel, sizes: list[int], width: int, kind: str) -> Tensor:
    widths, own = _widths(width, channel.size), sizes[channel.rank]
    mine = widths[channel.rank]
    counts = [own * each for each in widths]
    received = channel.start(columns.reshape(-1), [size * mine for size in sizes], counts, kind=kind)()
    blocks = torch.split(received, counts)
    return torch.cat([block.view(own, each) for block, each in zip(blocks, widths, strict=True)], dim=1)


def _whole(part: CurrentPart, conv: MessagePassing, edge_index: Tensor, weight: Tensor | None) -> _Whole:
    """All edges, gathered anew where the part's, on whichever rank, are not those of the last call."""
    key = "columns", id(conv)
    known: _Whole | None = part.kept.get(key)
    is_known = known is not None and known.is_of(edge_index, weight)
    if not int(part.channel.sum(torch.tensor([not is_known], dtype=torch.int64, device=edge_index.device))):
        assert known is not None
        return known
    numbered = _numbered(part, edge_index)
    sizes = _sizes(part, edge_index.size(1), None)
    whole = _Whole(
        edge_index.clone(),
        None if weight is None else weight.clone(),
        _gathered(part.channel, numbered.T, sizes).T.contiguous(),
        None if weight is None else _gathered(part.channel, weight, sizes),
    )
    part.kept[key] = whole
    return whole


def _numbered(part: CurrentPart, edge_index: Tensor) -> Tensor:
    """The part's edges, with the nodes of rank 0 first, then those of rank 1, and so on."""
    sizes = _sizes(part, part.plan.num_inner, "nodes")
    first = sum(sizes[: part.channel.rank])
    own = torch.arange(first, first + part.plan.num_inner, device=edge_index.device)
    ids = torch.cat([own, part.whole_halo_of(own)])
    return ids[edge_index]


def _gathered(channel: Channel, rows: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all ranks, on each."""
    repeated = rows.repeat(channel.size, *(1,) * (rows.dim() - 1))
    return channel.start(repeated, [rows.size(0)] * channel.size, sizes, kind="edges")()


def _sizes(part: CurrentPart, own: int, keep_as: str | None) -> list[int]:
    """A number of each rank; remembered under a name, if it is always the same."""
    if keep_as is not None and ("sizes", keep_as) in part.kept:
        kept: list[int] = part.kept["sizes", keep_as]
        return kept
    numbers = torch.zeros(part.channel.size, dtype=torch.int64, device=part.plan.send_index.device)
    numbers[part.channel.rank] = own
    sizes: list[int] = part.channel.sum(numbers).tolist()
    if keep_as is not None:
        part.kept["sizes", keep_as] = sizes
    return sizes

"""Which strategy of a first layer sends the fewest bytes, counted from blocks before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.parallel.block import Block
from lightning_gnnopt.parallel.first_layer import STRATEGIES

_ID_BYTES = 8


def predicted_bytes(
    blocks: Sequence[Block],
    owner: Tensor,
    *,
    strategy: str,
    num_features: int,
    hidden: int,
    itemsize: int = 4,
    training: bool = True,
) -> list[int]:
    """Count what each rank sends for one call of :meth:`FirstLayer.aggregate`, ids and counts of the blocks included.

    With ``P`` ranks, rank ``r`` sends, of edges ``e``, sums ``u`` and rows ``f`` that are not for itself:

    - for the edges it gives away (not ``"gdp"``): ``16 (P - 1) + (16 + w) sum_q e[r, q]``, where an edge's weight
      has ``w`` bytes, or none;
    - for rows of features (``"gdp"`` and ``"dnp"``): ``8 (P - 1) + 8 sum_q f[r, q] + F itemsize sum_q f[q, r]``;
    - for sums of hidden size (not ``"gdp"``): ``H itemsize sum_q u[q, r]``, and ``H itemsize sum_q u[r, q]`` in the
      backward pass.

    Args:
        blocks: That of each rank.
        owner: Long, shape ``(N,)``: the rank that has each node's row.
        strategy: ``"gdp"``, ``"nfp"``, ``"snp"`` or ``"dnp"``.
        num_features: Columns of the features, ``F``.
        hidden: Columns of the weight, ``H``.
        itemsize: Bytes of a number.
        training: Whether there is a backward pass.

    Returns:
        Bytes of each rank.

    Raises:
        ValueError: If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(unknown_name("strategy", strategy, STRATEGIES))
    size = len(blocks)
    others = ~torch.eye(size, dtype=torch.bool)
    sources = [block.sources[block.edge_index[0]] for block in blocks]
    targets = [block.edge_index[1] for block in blocks]
    owners_of_targets = [owner[block.targets[target]] for block, target in zip(blocks, targets, strict=True)]
    total = torch.zeros(size, dtype=torch.int64)
    if strategy != "gdp":
        if strategy == "nfp":
            edges = torch.tensor([[len(target)] * size for target in targets])
            sums = torch.tensor([[len(torch.unique(target))] * size for target in targets])
        else:
            at = [owner[source] for source in sources] if strategy == "snp" else owners_of_targets
            edges = torch.stack([torch.bincount(each, minlength=size) for each in at])
            sums = torch.stack([_distinct(each, target, size) for each, target in zip(at, targets, strict=True)])
        weight_bytes = torch.tensor([0 if b.edge_weight is None else b.edge_weight.element_size() for b in blocks])
        total += 2 * _ID_BYTES * (size - 1) + (2 * _ID_BYTES + weight_bytes) * (edges * others).sum(1)
        total += hidden * itemsize * (sums * others).sum(0)
        total += hidden * itemsize * (sums * others).sum(1) if training else 0
    if strategy in ("gdp", "dnp"):
        if strategy == "gdp":
            needed = sources
        else:
            everyones, computed_by = torch.cat(sources), torch.cat(owners_of_targets)
            needed = [everyones[computed_by == rank] for rank in range(size)]
        rows = torch.stack([_distinct(owner[each], each, size) for each in needed])
        total += _ID_BYTES * (size - 1) + _ID_BYTES * (rows * others).sum(1)
        total += num_features * itemsize * (rows * others).sum(0)
    found: list[int] = total.tolist()
    return found


def cheapest(
    blocks: Sequence[Block],
    owner: Tensor,
    *,
    num_features: int,
    hidden: int,
    itemsize: int = 4,
    training: bool = True,
    among: Sequence[str] = STRATEGIES,
) -> str:
    """Choose the strategy with which the rank that sends most sends least (APT, PPoPP 2025, by bytes instead of time).

    As features by columns (``"nfp"``) and by rows (all others) are different layouts, `among` says which are there. By
    bytes alone ``"snp"`` is never more than ``"nfp"``, on any rank: an edge goes to one rank instead of all, and no
    more sums come back. What speaks for ``"nfp"`` is not counted: all ranks have the same work, whoever owns the
    sources.

    Args:
        blocks: That of each rank, of a dry run.
        owner: Long, shape ``(N,)``: the rank that has each node's row.
        num_features: Columns of the features, ``F``.
        hidden: Columns of the weight, ``H``.
        itemsize: Bytes of a number.
        training: Whether there is a backward pass.
        among: The strategies there are; of equal ones the first.

    Returns:
        One of `among`.

    Raises:
        ValueError: If there is none, or one is unknown.

    Examples:
        >>> block = Block(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([[0, 1], [0, 0]]))
        >>> cheapest([block, block], torch.tensor([0, 1]), num_features=600, hidden=16, among=("gdp", "nfp"))
        'nfp'
    """
    if not among:
        raise ValueError(f"`among` must name a strategy, but is empty. HINT: {', '.join(STRATEGIES)} are there.")
    most = {
        strategy: max(
            predicted_bytes(
                blocks,
                owner,
                strategy=strategy,
                num_features=num_features,
                hidden=hidden,
                itemsize=itemsize,
                training=training,
            )
        )
        for strategy in among
    }
    return min(most, key=most.__getitem__)


def _distinct(at: Tensor, nodes: Tensor, size: int) -> Tensor:
    """How many different nodes there are at each rank."""
    return torch.bincount(torch.unique(torch.stack([at, nodes]), dim=1)[0], minlength=size)

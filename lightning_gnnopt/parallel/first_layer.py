"""Four ways to compute a first layer whose input features are divided among ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.parallel.block import Block
from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.halo import HaloPlan, fetch_halo, plain_wire

STRATEGIES = ("gdp", "nfp", "snp", "dnp")


@dataclass(frozen=True)
class _Work:
    """Edges that a rank computes for others and itself, and what goes back to whom.

    Attributes:
        source: Ids of the sources, shape ``(e,)``.
        target: Places in the sums, shape ``(e,)``.
        edge_weight: Shape ``(e,)``, or None.
        num_sums: For each rank, how many sums are for it.
        num_back: How many sums come back from each rank.
        places: Where these belong among the targets of the rank's own block, shape ``(sum(num_back),)``.
    """

    source: Tensor
    target: Tensor
    edge_weight: Tensor | None
    num_sums: tuple[int, ...]
    num_back: tuple[int, ...]
    places: Tensor


class FirstLayer:
    """Compute ``A X W`` for each rank's block ``A``, where no rank has all of the features ``X`` (P3, OSDI 2021).

    What comes out is the same with each strategy (APT, PPoPP 2025); what travels is not:

    - ``"gdp"``: the features of the block's sources come from their owners.
    - ``"nfp"``: each rank has some columns of all nodes' features. The block goes to all ranks; each multiplies its
      columns by the same rows of the weight, and the sums of hidden size come back to be added up. This is P3.
    - ``"snp"``: each edge goes to the owner of its source, and sums of hidden size come back.
    - ``"dnp"``: each edge goes to the owner of its target, which fetches what it does not have; sums come back.

    Each rank takes the loss of its own block. The gradients of the weight are then summed over ranks, as those of all
    other weights: with all but ``"gdp"`` a rank's gradient is of what it has computed for others.

    This is for what is linear before the weight: sums, means and GCN's norm, as weights of edges (SAGE, GCN, GIN). It
    is not for attention, whose weights depend on both ends. Features and weights of edges get no gradients.

    Args:
        channel: Connects the ranks, which all call the same methods in the same order.
        owner: Long, shape ``(N,)``: the rank that has each node's row; the same on all ranks.
        rows: Shape ``(n, F)``: features of the rank's own nodes, in the order of their ids. Not for ``"nfp"``.
        columns: Shape ``(N, F_r)``: the rank's columns (`columns_of`) of all nodes' features, for ``"nfp"``.

    Raises:
        ValueError: If features do not fit `owner`, or need a gradient.

    Examples:
        >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
        >>> x, weight, owner = torch.randn(4, 6), torch.randn(6, 2), torch.tensor([0, 1, 0, 1])
        >>> block = Block(torch.tensor([0, 1, 3]), torch.tensor([0]), torch.tensor([[1, 2], [0, 0]]))
        >>> def work(channel):
        ...     layer = FirstLayer(channel, owner, rows=x[owner == channel.rank])
        ...     return torch.allclose(layer.aggregate(block, weight, strategy="snp"), (x[1] + x[3]) @ weight, atol=1e-6)
        >>> run_ranks(2, work)
        [True, True]
    """

    def __init__(
        self, channel: Channel, owner: Tensor, *, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> None:
        own = int((owner == channel.rank).sum())
        for name, features, size in (("rows", rows, own), ("columns", columns, len(owner))):
            if features is not None and len(features) != size:
                raise ValueError(
                    f"`{name}` must have a row for each of {size} nodes, but has {len(features)}."
                    " HINT: `rows` are of the rank's own nodes, `columns` of all nodes."
                )
            if features is not None and features.requires_grad:
                raise ValueError(
                    f"`{name}` must not need a gradient, of which there is none. HINT: `.detach()`, or train embeddings"
                    " with `GraphParallelStrategy`."
                )
        self.channel, self.owner, self.rows, self.columns = channel, owner, rows, columns
        by_owner = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=channel.size)
        self._row = torch.empty_like(owner)  # of a node, among those of its owner
        self._row[by_owner] = (
            torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[by_owner]]
        )

    @staticmethod
    def columns_of(rank: int, num_features: int, num_ranks: int) -> slice:
        """Which columns of the features a rank has with ``"nfp"``.

        Args:
            rank: The rank.
            num_features: All columns, ``F``.
            num_ranks: Number of ranks.
        """
        return slice(num_features * rank // num_ranks, num_features * (rank + 1) // num_ranks)

    def aggregate(self, block: Block, weight: Tensor, *, strategy: str = "gdp") -> Tensor:
        """Compute ``A X W`` of the rank's own block.

        Args:
            block: What the rank has sampled; it may have no edge or no target. Either all ranks' blocks have
                weights of edges or none has.
            weight: Shape ``(F, H)``, the same on all ranks.
            strategy: ``"gdp"``, ``"nfp"``, ``"snp"`` or ``"dnp"``, the same on all ranks.

        Returns:
            Shape ``(t, H)``.

        Raises:
            ValueError: If the strategy is unknown, lacks its features, or a shape is wrong.
        """
        features = self._features(strategy, weight)
        if block.edge_weight is not None and block.edge_weight.requires_grad:
            raise ValueError("`edge_weight` must not need a gradient, of which there is none. HINT: `.detach()`.")
        if strategy == "gdp":
            source, target = block.edge_index
            rows, places = self._fetched(features, block.sources[source])
            return _sums(rows, places, target, block.edge_weight, len(block.targets)) @ weight
        work = self._sent(block, strategy)
        if strategy == "dnp":
            rows, places = self._fetched(features, work.source)
        else:
            rows, places = features, work.source if strategy == "nfp" else self._row[work.source]
        if strategy == "nfp":
            weight = weight[self.columns_of(self.channel.rank, len(weight), self.channel.size)]
        partial = _sums(rows, places, work.target, work.edge_weight, sum(work.num_sums)) @ weight
        everything = torch.arange(len(partial), device=partial.device)
        plan = HaloPlan(len(partial), len(work.places), everything, work.num_sums, work.num_back)
        received = fetch_halo(partial, plan, plain_wire(self.channel))
        return received.new_zeros(len(block.targets), weight.size(1)).index_add(0, work.places, received)

    def _features(self, strategy: str, weight: Tensor) -> Tensor:
        if strategy not in STRATEGIES:
            raise ValueError(unknown_name("strategy", strategy, STRATEGIES))
        name, features = ("columns", self.columns) if strategy == "nfp" else ("rows", self.rows)
        if features is None:
            raise ValueError(f"The strategy {strategy!r} needs `{name}`. HINT: `FirstLayer(..., {name}=...)`.")
        columns = self.columns_of(self.channel.rank, len(weight), self.channel.size)
        expected = columns.stop - columns.start if strategy == "nfp" else len(weight)
        if features.size(1) != expected or features.dtype != weight.dtype:
            raise ValueError(
                f"`{name}` must have {expected} columns of {weight.dtype} for a weight of shape {tuple(weight.shape)},"
                f" but has {features.size(1)} of {features.dtype}. HINT: `columns_of` says which are a rank's."
            )
        return features

    def _fetched(self, rows: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of nodes, from their owners, each once; and where each node's is."""
        channel = self.channel
        wanted, places = torch.unique(nodes, return_inverse=True)
        order = torch.argsort(self.owner[wanted], stable=True)
        counts = torch.bincount(self.owner[wanted], minlength=channel.size)
        ones = [1] * channel.size
        asked = channel.start(counts, ones, ones, kind="structure")().tolist()
        asked_for = channel.start(wanted[order], counts.tolist(), asked, kind="structure")()
        got = channel.start(rows[self._row[asked_for]], asked, counts.tolist(), kind="features")()
        return got, torch.argsort(order)[places]

    def _sent(self, block: Block, strategy: str) -> _Work:
        """Send each edge of the block to the rank that computes it; targets are numbered anew for each."""
        channel = self.channel
        source, target = block.sources[block.edge_index[0]], block.edge_index[1]
        if strategy == "nfp":
            edges = [torch.arange(len(source), device=source.device)] * channel.size
        else:
            at = self.owner[source if strategy == "snp" else block.targets[target]]
            edges = [(at == rank).nonzero().view(-1) for rank in range(channel.size)]
        summed = [torch.unique(target[each], return_inverse=True) for each in edges]
        counts = torch.tensor([[len(each), len(places)] for each, (places, _) in zip(edges, summed, strict=True)])
        ones = [1] * channel.size
        num_edges, num_sums = channel.start(counts.to(source.device), ones, ones, kind="structure")().T.tolist()
        sent = torch.cat(edges)
        both = torch.stack([source[sent], torch.cat([numbers for _, numbers in summed])], dim=1)
        received = channel.start(both, counts[:, 0].tolist(), num_edges, kind="structure")()
        weights = None
        if block.edge_weight is not None:
            weights = channel.start(block.edge_weight[sent], counts[:, 0].tolist(), num_edges, kind="structure")()
        device = source.device
        first = torch.tensor([sum(num_sums[:rank]) for rank in range(channel.size)], device=device)
        first = first.repeat_interleave(torch.tensor(num_edges, device=device))
        num_back = tuple(counts[:, 1].tolist())
        places = torch.cat([places for places, _ in summed])
        return _Work(received[:, 0], received[:, 1] + first, weights, tuple(num_sums), num_back, places)


def _sums(rows: Tensor, source: Tensor, target: Tensor, edge_weight: Tensor | None, num_sums: int) -> Tensor:
    messages = rows[source]
    if edge_weight is not None:
        messages = messages * edge_weight.to(messages.dtype).unsqueeze(1)
    return rows.new_zeros(num_sums, rows.size(1)).index_add_(0, target, messages)

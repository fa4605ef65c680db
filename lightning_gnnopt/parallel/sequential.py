"""Messages from one part after the other: only some of the halo is there at a time (SAR, MLSys 2022)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.halo import HaloPlan, Wire, fetch_halo, start_halo
from lightning_gnnopt.parallel.linear import is_linear
from lightning_gnnopt.parallel.softmax import Softmax
from lightning_gnnopt.parallel.whole_graph import uses_softmax

MERGED = ("add", "sum", "mean", "max", "min")


@dataclass(frozen=True)
class _Round:
    """The edges whose sources one rank owns.

    Attributes:
        edges: Places of the edges.
        edge_index: The edges, with sources numbered within the rows that the rank sends, or within one's own.
        counts: In-edges of each target among them, shape ``(n,)``.
        plan: What is exchanged in this round; None in the first one, that of a rank's own nodes.
    """

    edges: Tensor
    edge_index: Tensor
    counts: Tensor
    plan: HaloPlan | None


def refuse_unmerged(conv: MessagePassing) -> None:
    """Refuse a convolution whose aggregate cannot be put together from those of some of its edges.

    Raises:
        ValueError: If it is one.
    """
    if conv.aggr not in MERGED:
        raise ValueError(
            f"{type(conv).__name__} aggregates with {conv.aggr!r}, which `SAR` cannot put together from parts: only"
            f' {", ".join(MERGED)}. HINT: `policy="exact"` fetches all rows at once.'
        )
    if type(conv).update is not MessagePassing.update:
        raise ValueError(
            f"{type(conv).__name__} has an `update` of its own, which would be applied to each part's share."
            ' HINT: `policy="exact"` fetches all rows at once.'
        )


def sequential_propagate(
    part: CurrentPart, conv: MessagePassing, edge_index: Tensor, inputs: Mapping[str, Any]
) -> Tensor:
    """Compute what ``propagate`` does on all edges, with the edges from one rank after the other.

    In the forward pass nothing of a round is kept but its sum; in the backward pass its rows are fetched and its
    messages computed again. All ranks go through the rounds in the same order, whether they have edges or not.

    Args:
        part: The rank's part.
        conv: The convolution.
        edge_index: Of the part.
        inputs: Other arguments of ``propagate``.

    Returns:
        Shape ``(n, ...)``.
    """
    refuse_unmerged(conv)
    rounds = _rounds(part, edge_index)
    sweep = partial(_Sweep, part, conv, partial(type(conv).propagate, conv), rounds, inputs, conv._user_args)
    softmax = _normaliser(sweep()) if uses_softmax(conv, "message") else None
    compute = sweep()

    def step(k: int) -> Tensor:
        return _normalised(part, softmax, lambda: compute(k))

    total: Tensor | None = None
    for k in range(len(rounds)):
        out = _again(step, k)
        counts = _along(rounds[k].counts, out, conv.node_dim)
        if conv.aggr == "mean":
            out = out * counts.to(out.dtype)
        elif conv.aggr in ("max", "min"):
            out = out.masked_fill(counts == 0, float("-inf" if conv.aggr == "max" else "inf"))
        total = out if total is None else _MERGE[conv.aggr](total, out)
    assert total is not None
    counts = _along(torch.stack([each.counts for each in rounds]).sum(0), total, conv.node_dim)
    if conv.aggr == "mean":
        return total / counts.clamp(min=1).to(total.dtype)
    return total.masked_fill(counts == 0, 0.0) if conv.aggr in ("max", "min") else total


def sequential_edge_updater(
    part: CurrentPart, conv: MessagePassing, edge_index: Tensor, inputs: Mapping[str, Any]
) -> Tensor:
    """Compute what ``edge_updater`` does on all edges, with the edges from one rank after the other.

    Args:
        part: The rank's part.
        conv: The convolution.
        edge_index: Of the part.
        inputs: Other arguments of ``edge_updater``.

    Returns:
        Shape ``(e, ...)``.
    """
    rounds = _rounds(part, edge_index)
    sweep = partial(_Sweep, part, conv, partial(type(conv).edge_updater, conv), rounds, inputs, conv._edge_user_args)
    softmax = _normaliser(sweep()) if uses_softmax(conv, "edge_update") else None
    compute = sweep()

    def step(k: int) -> Tensor:
        return _normalised(part, softmax, lambda: compute(k))

    outs = torch.cat([_again(step, k) for k in range(len(rounds))])
    return outs.index_select(0, torch.argsort(torch.cat([each.edges for each in rounds])))


class _Sweep:
    """Goes through the rounds once, and in the backward pass once more in the other direction.

    Rows of the next rounds are on their way while one is computed. Which exchange is started when is the same on all
    ranks: it depends on the order of rounds only.

    Args:
        part: The rank's part.
        conv: The convolution.
        whole: Its ``propagate`` or ``edge_updater``.
        rounds: The rounds.
        inputs: Arguments of `whole`.
        names: What `whole` reads of sources and targets, as PyG names it.
    """

    def __init__(
        self,
        part: CurrentPart,
        conv: MessagePassing,
        whole: Callable[..., Tensor],
        rounds: list[_Round],
        inputs: Mapping[str, Any],
        names: Any,
    ) -> None:
        self.part, self.rounds = part, rounds
        self._conv, self._whole, self._names = conv, whole, names
        self._inputs = dict(sorted(inputs.items()))  # the same order on all ranks
        self._num_edges = sum(len(each.edges) for each in rounds)
        self._coming: dict[tuple[int, str], tuple[Wire, Callable[[], Tensor]]] = {}
        self._computed: set[int] = set()

    def __call__(self, k: int) -> Tensor:
        """Compute a round; on from the last one in the forward pass, back from it when it was computed before."""
        direction = -1 if k in self._computed else 1
        self._computed.add(k)
        each, found = self.rounds[k], dict(self._inputs)
        num_sources = None
        sources = {name: source for name in found if (source := self._source(name)) is not None}
        for ahead in range(1 + self.part.prefetch):
            for name, source in sources.items():
                self._start(k + ahead * direction, name, source)
        for name, value in self._inputs.items():
            _, target = both(value)
            if name in sources:
                rows = self._rows(k, name, sources[name])
                num_sources = rows.size(self._conv.node_dim)
                found[name] = (rows, target)
            elif f"{name}_i" in self._names and isinstance(target, Tensor):
                found[name] = (None, target)
            elif isinstance(value, Tensor) and value.dim() and value.size(0) == self._num_edges:
                found[name] = value[each.edges]
        with computing_on(self.part):  # the backward pass may run in a thread of its own
            return self._whole(each.edge_index, size=(num_sources, self.part.plan.num_inner), **found)

    def _source(self, name: str) -> Tensor | None:
        source, _ = both(self._inputs[name])
        return source if f"{name}_j" in self._names and isinstance(source, Tensor) else None

    def _plan(self, k: int) -> HaloPlan | None:
        plan = self.rounds[k].plan
        return plan if plan is None or is_linear(self._conv) else plan.unscaled()

    def _start(self, k: int, name: str, source: Tensor) -> None:
        if not 0 <= k < len(self.rounds) or (k, name) in self._coming or (plan := self._plan(k)) is None:
            return
        wire = self.part.next_wire()
        self._coming[k, name] = wire, start_halo(source.movedim(self._conv.node_dim, 0), plan, wire)
        self.part.live_rows += plan.num_halo
        self.part.most_live_rows = max(self.part.most_live_rows, self.part.live_rows)

    def _rows(self, k: int, name: str, source: Tensor) -> Tensor:
        if (plan := self._plan(k)) is None:
            return source
        node_dim = self._conv.node_dim
        halo = fetch_halo(source.movedim(node_dim, 0), plan, *self._coming.pop((k, name)))
        weakref.finalize(halo, _let_go, weakref.ref(self.part), plan.num_halo).atexit = False
        return halo if node_dim % source.dim() == 0 else halo.movedim(0, node_dim)


def _normaliser(sweep: _Sweep) -> Softmax:
    """Go through the rounds once for the logarithm of the sum that a softmax divides by."""
    part = sweep.part

    def step(k: int) -> Tensor:
        collecting = Softmax()
        with part.softmax(collecting):
            out = sweep(k)
        if collecting.was_called:
            return collecting.log_sum
        # Some layers return early where there is no edge. The rank that is sent rows needs this one's backward pass.
        nothing = (out.sum() * 0).expand(part.plan.num_inner, *out.shape[1:])
        return nothing.masked_fill(torch.ones_like(nothing, dtype=torch.bool), float("-inf"))

    total = _again(step, 0)
    for k in range(1, len(sweep.rounds)):
        total = torch.logaddexp(total, _again(step, k))
    return Softmax(total)


def _normalised(part: CurrentPart, softmax: Softmax | None, compute: Callable[[], Tensor]) -> Tensor:
    """Compute a round with a softmax over the edges of all rounds, which it depends on even if it has no edge."""
    if softmax is None:
        return compute()
    softmax.was_called = False
    with part.softmax(softmax):
        out = compute()
    if softmax.was_called:
        return out
    return out + softmax.log_sum.masked_fill(softmax.log_sum.isinf(), 0.0).sum() * 0


def _again(step: Callable[[int], Tensor], k: int) -> Tensor:
    """Compute a round, and once more in the backward pass; all of it, so that all ranks exchange the same."""
    if not torch.is_grad_enabled():
        return step(k)
    out: Tensor = checkpoint(step, k, use_reentrant=False, early_stop=False)
    return out


def both(value: Any) -> tuple[Any, Any]:
    """Sources and targets of an argument, which are the same tensor unless there are two."""
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)


def _along(counts: Tensor, like: Tensor, node_dim: int) -> Tensor:
    shape = [1] * like.dim()
    shape[node_dim] = len(counts)
    return counts.view(shape)


def _let_go(part: weakref.ref[CurrentPart], rows: int) -> None:
    if (found := part()) is not None:
        found.live_rows -= rows


def _rounds(part: CurrentPart, edge_index: Tensor) -> list[_Round]:
    """Sort a part's edges by the owner of their source; found once for all layers of a pass."""
    key = "rounds", id(edge_index)
    if key in part.kept_in_pass:
        rounds: list[_Round] = part.kept_in_pass[key][1]
        return rounds
    plan, channel = part.plan, part.channel
    num_inner, size = plan.num_inner, channel.size
    starts = [num_inner + sum(plan.recv_counts[:rank]) for rank in range(size)]
    rounds = []
    for k in range(size):
        sender, receiver = (channel.rank - k) % size, (channel.rank + k) % size
        first = 0 if k == 0 else starts[sender]
        last = num_inner if k == 0 else first + plan.recv_counts[sender]
        edges = ((edge_index[0] >= first) & (edge_index[0] < last)).nonzero().view(-1)
        moved = edge_index[:, edges]
        moved = torch.stack([moved[0] - first, moved[1]])
        counts = torch.bincount(moved[1], minlength=num_inner)
        between = None if k == 0 else _between(part.drawn, sender, receiver, first - num_inner, last - first)
        rounds.append(_Round(edges, moved, counts, between))
    part.kept_in_pass[key] = edge_index, rounds  # with the edges, so that their id is not used again
    return rounds


def _between(plan: HaloPlan, sender: int, receiver: int, first: int, num_rows: int) -> HaloPlan:
    """What of a plan goes to one rank and comes from another."""

    def only(counts: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], slice]:
        begin = sum(counts[:rank])
        return tuple(count if i == rank else 0 for i, count in enumerate(counts)), slice(begin, begin + counts[rank])

    send_counts, sent = only(plan.send_counts, receiver)
    recv_counts, received = only(plan.recv_counts, sender)
    return replace(
        plan,
        num_halo=num_rows,
        send_index=plan.send_index[sent],
        send_counts=send_counts,
        recv_counts=recv_counts,
        recv_index=None if plan.recv_index is None else plan.recv_index[received] - first,
        recv_scale=None if plan.recv_scale is None else plan.recv_scale[received],
    )


_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sum": torch.add,
    "mean": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}

"""Message passing on several processes that all have all nodes, and each some of the edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter
from typing_extensions import override

from lightning_gnnopt.parallel.channel import Channel, GroupChannel
from lightning_gnnopt.parallel.chunked import convolutions_of, num_targets_of
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.edge_reduce import RankSoftmax, enter, leave_extreme, leave_own, leave_sum
from lightning_gnnopt.parallel.halo import HaloPlan
from lightning_gnnopt.parallel.installed import global_norm_of
from lightning_gnnopt.parallel.same_on_all import refuse_different
from lightning_gnnopt.parallel.whole_graph import put_stand_ins, softmax, take_stand_ins, uses_softmax

AGGREGATIONS: dict[type[nn.Module], str] = {
    pyg.SumAggregation: "sum",
    pyg.MeanAggregation: "mean",
    pyg.MaxAggregation: "max",
    pyg.MinAggregation: "min",
}


class EdgeSplit(L.Callback):
    """Compute a convolution's messages for some of its edges on each process (DistGNN, SC 2021; PyG issue 10347).

    A convolution holds a message for each edge, often several times; that is most of what a full graph takes. Here all
    processes have the same model, all nodes and the whole `edge_index`, and call the model in the same way. Within a
    convolution each computes the messages of its own ``1 / P`` of the edges; sums, means, maxima, minima and the
    softmax of attention are taken over all processes. So each has the outputs, and after its backward pass the
    gradients, of one process with all edges, up to the order of sums: they must not be summed any more (a mean changes
    nothing). Equally large messages share the gradient of a maximum as on one process without `torch_scatter`.

    What is computed for nodes is computed, and held, by all processes; :class:`GraphParallelStrategy` divides nodes.
    Dropout of nodes needs the same random numbers on all processes: seed them alike (`L.seed_everything`). Within
    messages each process draws its own.

    A `message` must treat each edge by itself; a softmax over in-edges must be PyG's, imported by its name. Attention
    weights that a layer returns are those of the process's own edges.

    Give it to a Trainer with ``strategy="ddp"`` and ``use_distributed_sampler=False``; or use it around any model:
    ``with EdgeSplit(channel).on(model)``, the backward pass within the block or behind it.

    Args:
        channel: Connects the processes. None: made of a process group of its own when a Trainer starts.
        shares: What share of the edges each process gets, ``P`` numbers; they need not add up to one. None: the same.

    Raises:
        ValueError: If shares make no sense; in a run, if a convolution cannot be divided.

    Examples:
        >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
        >>> from torch_geometric.nn import SAGEConv
        >>> conv, x, edge_index = SAGEConv(8, 4), torch.randn(3, 8), torch.tensor([[0, 1, 2], [1, 2, 1]])
        >>> expected = conv(x, edge_index)
        >>> def work(channel):
        ...     model = SAGEConv(8, 4)
        ...     model.load_state_dict(conv.state_dict())
        ...     with EdgeSplit(channel).on(model):
        ...         return torch.allclose(model(x, edge_index), expected, atol=1e-6)
        >>> run_ranks(2, work)
        [True, True]
    """

    def __init__(self, channel: Channel | None = None, *, shares: Sequence[float] | None = None) -> None:
        if shares is not None and (not all(0 <= share < math.inf for share in shares) or sum(shares) <= 0):
            raise ValueError(
                f"`shares` must be numbers from 0 that are not all 0, but got {list(shares)}."
                " HINT: leave it out for the same share on each process."
            )
        self.channel, self.shares = channel, None if shares is None else tuple(shares)
        self._given = channel
        self._convs: list[MessagePassing] = []
        self._stand_ins: list[str] = []
        self._handles: list[Any] = []
        self._checked: set[int] = set()
        self._is_inside = False

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[EdgeSplit]:
        """Divide the edges of a module's convolutions within a block.

        Args:
            module: Has convolutions of PyG, or is one.
        """
        self.install(module)
        try:
            yield self
        finally:
            self.remove()

    def install(self, module: nn.Module) -> None:
        """Divide the edges of a module's convolutions from now on.

        Args:
            module: Has convolutions of PyG, or is one.

        Raises:
            ValueError: If it has none, or one that cannot be divided, or `shares` are not one for each process.
        """
        if self.channel is None:
            raise ValueError(
                "`EdgeSplit` needs a `channel` outside of a Trainer."
                " HINT: `EdgeSplit(GroupChannel())`, of `lightning_gnnopt.parallel.channel`."
            )
        if self.shares is not None and len(self.shares) != self.channel.size:
            raise ValueError(
                f"`shares` must be a number for each of the {self.channel.size} processes, but there are"
                f" {len(self.shares)}. HINT: leave it out for the same share on each process."
            )
        convs = convolutions_of(module, "edges", type(self).__name__)
        for conv in convs:
            _refuse(conv)
        for conv in convs:
            conv.propagate = partial(_propagate, conv, self)
            if conv._edge_user_args:
                conv.edge_updater = partial(_edge_updater, conv, self)
            self._convs.append(conv)
            self._stand_ins += put_stand_ins(conv)
            for name, child in conv.named_modules():
                if global_norm_of(child) is not None:
                    hook = partial(self._refuse_norm, name=f"{type(conv).__name__}'s `{name}`")
                    self._handles.append(child.register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Leave the convolutions as they were."""
        for conv in self._convs:
            for name in ("propagate", "edge_updater"):
                vars(conv).pop(name, None)
        take_stand_ins(self._stand_ins)
        for handle in self._handles:
            handle.remove()
        for entries in (self._convs, self._stand_ins, self._handles, self._checked):
            entries.clear()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._given is None:
            if not dist.is_initialized():
                raise ValueError(
                    "`EdgeSplit` needs several processes, but this Trainer has one."
                    ' HINT: `Trainer(strategy="ddp", devices=2, use_distributed_sampler=False)`.'
                )
            self.channel = GroupChannel(dist.new_group())  # not DDP's, which sends gradients meanwhile
        self.install(pl_module)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.remove()
        self.channel = self._given

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.remove()

    def edges_of(self, rank: int, num_edges: int) -> slice:
        """Which edges a process computes: ``num_edges`` of them in all, next to each other.

        Args:
            rank: The process.
            num_edges: Number of edges, ``E``.
        """
        assert self.channel is not None
        shares = self.shares or (1,) * self.channel.size
        first, last = (round(num_edges * (sum(shares[:end]) / sum(shares))) for end in (rank, rank + 1))
        return slice(first, last)

    def compute(
        self, conv: MessagePassing, method: str, whole: Callable[..., Tensor], edge_index: Any, size: Any,
        inputs: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """Compute what ``propagate`` or ``edge_updater`` does, on this process's edges.

        Args:
            conv: The convolution.
            method: What it computes of each edge: ``"message"`` or ``"edge_update"``.
            whole: Its own ``propagate`` or ``edge_updater``.
            edge_index: All edges, shape ``(2, E)``.
            size: Numbers of sources and targets, or None.
            inputs: Other arguments.

        Returns:
            The aggregates of all targets, the same on all processes; or a row for each of this process's edges.
        """
        channel = self.channel
        assert channel is not None
        self._check(conv, channel, edge_index)
        num_edges, edges = edge_index.size(1), self.edges_of(channel.rank, edge_index.size(1))
        names = conv._user_args if method == "message" else conv._edge_user_args
        tensors = _to_be_entered(_leaves(inputs))
        own = [tensor for tensor in tensors if _is_own(tensor)]
        shared = [tensor for tensor in tensors if not _is_own(tensor)]
        shared += _to_be_entered([parameter for *_, parameter in _places(conv)])
        token, entered = enter(channel, shared, own)
        found = {id(tensor): inside for tensor, inside in zip(shared + own, entered, strict=True)}

        def inside(name: str, value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return tuple(inside(name, each) for each in value)
            if not isinstance(value, Tensor):
                return value
            is_of_nodes = f"{name}_i" in names or f"{name}_j" in names
            is_whole = not _is_own(value) and not is_of_nodes and value.dim() > 0 and value.size(0) == num_edges
            value = found.get(id(value), value)
            return value[edges] if is_whole else value

        mine = {name: inside(name, value) for name, value in inputs.items()}
        with ExitStack() as stack:
            stack.enter_context(_replaced(conv, found))
            stack.enter_context(self._drawing_own(conv, channel, edge_index.device))
            over_ranks = None
            if calls_softmax(conv, method):
                num_targets = num_targets_of(conv, size, dict(inputs), names)
                part = CurrentPart(HaloPlan(num_targets, 0, edge_index.new_empty(0), (), ()), channel, num_targets)
                over_ranks = RankSoftmax(channel, token)
                stack.enter_context(computing_on(part))
                stack.enter_context(part.softmax(over_ranks))
            target = edge_index[1 if conv.flow == "source_to_target" else 0]
            if method == "message":
                conv.aggregate = partial(_aggregate, conv, channel, token, target)
                stack.callback(vars(conv).pop, "aggregate")
            out = whole(edge_index[:, edges], size=size, **mine)
            if over_ranks is not None and not over_ranks.was_called:
                out = _called_after_all(conv, over_ranks, out, target[edges], num_targets)
        if method == "edge_update":
            out = leave_own(out, token)
            out._gnnopt_is_own = True  # type: ignore[attr-defined]
        return out

    def _check(self, conv: MessagePassing, channel: Channel, edge_index: Any) -> None:
        if type(edge_index) is not Tensor or edge_index.layout != torch.strided or edge_index.is_floating_point():
            raise ValueError(
                f"{type(conv).__name__} must get `edge_index` as a tensor of shape (2, E) to have its edges divided,"
                f" but got {type(edge_index).__name__}. HINT: leave out `ToSparseTensor` and the like."
            )
        if id(conv) not in self._checked:
            if any(isinstance(parameter, nn.UninitializedParameter) for *_, parameter in _places(conv)):
                raise ValueError(
                    f"{type(conv).__name__} has weights whose shape is not known yet, which cannot be the same on all"
                    " processes. HINT: call the model once before, or give `in_channels`."
                )
            refuse_different(channel, type(conv).__name__, edge_index, conv.parameters())
            self._checked.add(id(conv))

    @contextmanager
    def _drawing_own(self, conv: MessagePassing, channel: Channel, device: torch.device) -> Iterator[None]:
        """Let each process draw its own random numbers, after which all go on with the same ones."""
        self._is_inside = True
        try:
            if not conv.training:
                yield
                return
            seed = int(torch.randint(2**31, ()))
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed + channel.rank)
                yield
        finally:
            self._is_inside = False

    def _refuse_norm(self, module: nn.Module, args: Any, *, name: str) -> None:
        if self._is_inside:
            raise ValueError(
                f"{name} is a {type(module).__name__} over messages, of which each process has only some."
                " HINT: normalise nodes instead, or take `nn.LayerNorm`."
            )


def calls_softmax(conv: MessagePassing, method: str) -> bool:
    """Whether a method of a convolution calls PyG's ``softmax``, for which ours stands in."""
    function = getattr(type(conv), method)
    return uses_softmax(conv, method) and function.__globals__.get("softmax") is softmax


def _refuse(conv: MessagePassing) -> None:
    name = type(conv).__name__
    if type(conv).aggregate is not MessagePassing.aggregate:
        raise ValueError(
            f"{name} has an `aggregate` of its own, which would see only some of the edges."
            " HINT: `ChunkedPropagate` keeps a target's edges together."
        )
    if type(conv.aggr_module) not in AGGREGATIONS:
        raise ValueError(
            f"{name} aggregates with {conv.aggr!r}, which cannot be put together from parts of a target's edges: only"
            f" {', '.join(AGGREGATIONS.values())}. HINT: `ChunkedPropagate` keeps a target's edges together."
        )
    if type(conv).update is not MessagePassing.update:
        raise ValueError(
            f"{name} has an `update` of its own, whose gradients would be summed over processes though all compute the"
            " same. HINT: do in `forward` what `update` does."
        )


def _propagate(conv: MessagePassing, split: EdgeSplit, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
    return split.compute(conv, "message", partial(type(conv).propagate, conv), edge_index, size, kwargs)


def _edge_updater(conv: MessagePassing, split: EdgeSplit, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
    return split.compute(conv, "edge_update", partial(type(conv).edge_updater, conv), edge_index, size, kwargs)


def _aggregate(
    conv: MessagePassing, channel: Channel, token: Tensor, target: Tensor, inputs: Tensor, index: Tensor,
    ptr: Any = None, dim_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Aggregate the messages of a process's own edges, and those of all others."""
    how, dim = AGGREGATIONS[type(conv.aggr_module)], conv.node_dim
    assert dim_size is not None
    if how in ("max", "min"):
        sign = 1 if how == "max" else -1
        return leave_extreme(inputs, index, dim_size, dim, token, channel, sign=sign)
    total = leave_sum(scatter(inputs, index, dim=dim, dim_size=dim_size, reduce="sum"), token, channel)
    if how == "sum":
        return total
    counts = torch.bincount(target, minlength=dim_size).clamp(min=1)
    return (total.movedim(dim, -1) / counts.to(total.dtype)).movedim(-1, dim)


def _called_after_all(
    conv: MessagePassing, over_ranks: RankSoftmax, out: Tensor, target: Tensor, num_targets: int
) -> Tensor:
    """Take part in the softmax of the others: some layers return early where there is no edge."""
    if len(target):
        raise ValueError(
            f"{type(conv).__name__} names `softmax` but has not called it on this process's edges, as others may have."
            " HINT: call it in every case."
        )
    return over_ranks(out, target, num_targets)


def _is_own(tensor: Tensor) -> bool:
    return getattr(tensor, "_gnnopt_is_own", False)


def _leaves(inputs: Mapping[str, Any]) -> list[Any]:
    return [each for value in inputs.values() for each in (value if isinstance(value, (tuple, list)) else (value,))]


def _to_be_entered(values: Sequence[Any]) -> list[Tensor]:
    """Those of which gradients are wanted, once each."""
    if not torch.is_grad_enabled():
        return []
    return list({id(value): value for value in values if isinstance(value, Tensor) and value.requires_grad}.values())


def _places(conv: nn.Module) -> list[tuple[dict[str, Any], str, nn.Parameter]]:
    return [
        (module._parameters, name, parameter)
        for module in conv.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


@contextmanager
def _replaced(conv: nn.Module, found: Mapping[int, Tensor]) -> Iterator[None]:
    """Let a convolution use what was entered instead of its parameters, within a block."""
    places = [(where, name, parameter) for where, name, parameter in _places(conv) if id(parameter) in found]
    try:
        for where, name, parameter in places:
            where[name] = found[id(parameter)]
        yield
    finally:
        for where, name, parameter in places:
            where[name] = parameter

"""Message passing a part of the targets at a time, so that a full graph trains in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing
from typing_extensions import override

from lightning_gnnopt._names import unknown_name

KEEPS = ("nothing", "on-host", "all")


class ChunkedPropagate(L.Callback):
    """Compute a convolution's messages for some of its targets at a time (NeuGraph, ATC 2019; HongTu, SIGMOD 2024).

    A convolution holds a message for each edge, often several times; that is most of what a full graph takes. Here the
    targets are divided into chunks of about equally many edges, each with all of its in-edges: softmax, maximum and
    whatever else is computed over a target's in-edges is what it was, and so are the gradients, up to the order of
    sums. What a chunk has kept for the backward pass is dropped and computed again then, or moved to the host.

    Give it to a Trainer, which need not have a GPU; or use it around any model: ``with ChunkedPropagate(8).on(model)``.

    Args:
        num_chunks: How many chunks, ``K``: messages take ``1 / K`` of the memory, about.
        keep: ``"nothing"``: messages are computed again in the backward pass; ``"on-host"``: they wait in the host's
            memory; ``"all"``: they stay, and only the forward pass's own tensors are fewer, for evaluation.
        min_edges: Convolutions over fewer edges are left as they are.

    Raises:
        ValueError: If an argument is out of range; in a run, if a convolution cannot be divided.

    Examples:
        >>> from torch_geometric.nn import GATConv
        >>> conv, x, edge_index = GATConv(8, 4), torch.randn(3, 8), torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> expected = conv(x, edge_index)
        >>> with ChunkedPropagate(2, min_edges=0).on(conv):
        ...     torch.allclose(conv(x, edge_index), expected)
        True
    """

    def __init__(self, num_chunks: int = 8, *, keep: str = "nothing", min_edges: int = 10_000) -> None:
        if num_chunks < 1:
            raise ValueError(f"`num_chunks` must be at least 1, but got {num_chunks}. HINT: 8 is the default.")
        if keep not in KEEPS:
            raise ValueError(unknown_name("`keep`", keep, KEEPS))
        self.num_chunks, self.keep, self.min_edges = num_chunks, keep, min_edges
        self._convs: list[MessagePassing] = []

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[ChunkedPropagate]:
        """Divide a module's convolutions within a block.

        Args:
            module: Has convolutions of PyG, or is one.
        """
        self.install(module)
        try:
            yield self
        finally:
            self.remove()

    def install(self, module: nn.Module) -> None:
        """Divide a module's convolutions from now on.

        Args:
            module: Has convolutions of PyG, or is one.

        Raises:
            ValueError: If it has none.
        """
        for conv in convolutions_of(module, "messages", type(self).__name__):
            conv.propagate = partial(_propagate, conv, self)
            if conv._edge_user_args:
                conv.edge_updater = partial(_edge_updater, conv, self)
            self._convs.append(conv)

    def remove(self) -> None:
        """Leave the convolutions as they were."""
        for conv in self._convs:
            for name in ("propagate", "edge_updater"):
                vars(conv).pop(name, None)
        self._convs.clear()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.install(pl_module)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.remove()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.remove()

    def run(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Compute a chunk, keeping for the backward pass what is to be kept."""
        if self.keep == "nothing" and torch.is_grad_enabled():
            out: Tensor = checkpoint(function, *args, use_reentrant=False, **kwargs)
            return out
        keeps = torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
        with keeps if self.keep == "on-host" else nullcontext():
            return function(*args, **kwargs)


@dataclass(frozen=True)
class _Chunk:
    """Some of the targets, with all of their in-edges.

    Attributes:
        first: The first target.
        last: One behind the last.
        edges: Places of the edges: a slice where they are next to each other.
        edge_index: The edges, the first target being 0.
    """

    first: int
    last: int
    edges: Any
    edge_index: Tensor


def chunks_of(edge_index: Tensor, num_targets: int, num_chunks: int) -> list[_Chunk]:
    """Divide targets into chunks of about equally many edges.

    Args:
        edge_index: Long, shape ``(2, E)``, in any order.
        num_targets: Number of targets.
        num_chunks: How many at most; none is without edges unless there is but one.
    """
    target = edge_index[1]
    counts = torch.bincount(target, minlength=num_targets).cumsum(0)
    wanted = torch.arange(1, num_chunks, device=target.device) * edge_index.size(1) / num_chunks
    ends = [*(torch.searchsorted(counts, wanted) + 1).clamp(max=num_targets).tolist(), num_targets]
    is_sorted = bool((target[1:] >= target[:-1]).all())
    order = None if is_sorted else torch.argsort(target, stable=True)
    chunks, first, first_edge = [], 0, 0
    for last in sorted(set(ends)):
        last_edge = int(counts[last - 1]) if last else 0
        edges = slice(first_edge, last_edge) if order is None else order[first_edge:last_edge]
        moved = edge_index[:, edges]
        moved = torch.stack([moved[0], moved[1] - first])
        chunks.append(_Chunk(first, last, edges, moved))
        first, first_edge = last, last_edge
    return chunks


def _divides(chunked: ChunkedPropagate, edge_index: Any) -> bool:
    is_plain = isinstance(edge_index, Tensor) and edge_index.layout == torch.strided and edge_index.dim() == 2
    return is_plain and chunked.num_chunks > 1 and edge_index.size(1) >= max(1, chunked.min_edges)


def _propagate(conv: MessagePassing, chunked: ChunkedPropagate, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
    whole = partial(type(conv).propagate, conv)
    if not _divides(chunked, edge_index):
        return whole(edge_index, *args, **kwargs)
    size, inputs = _bound(args, kwargs)
    num_targets = num_targets_of(conv, size, inputs, conv._user_args)
    num_sources = size[0] if size is not None else None
    outs = [
        chunked.run(
            whole, chunk.edge_index, size=(num_sources, chunk.last - chunk.first),
            **_inputs_of(conv, chunk, inputs, conv._user_args, edge_index.size(1), num_targets),
        )
        for chunk in _chunks(conv, chunked, edge_index, num_targets)
    ]  # fmt: skip
    return torch.cat(outs, dim=conv.node_dim)


def _edge_updater(conv: MessagePassing, chunked: ChunkedPropagate, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
    whole = partial(type(conv).edge_updater, conv)
    if not _divides(chunked, edge_index):
        return whole(edge_index, *args, **kwargs)
    size, inputs = _bound(args, kwargs)
    num_targets = num_targets_of(conv, size, inputs, conv._edge_user_args)
    chunks = _chunks(conv, chunked, edge_index, num_targets)
    outs = [
        chunked.run(
            whole,
            chunk.edge_index,
            size=(None, chunk.last - chunk.first),
            **_inputs_of(conv, chunk, inputs, conv._edge_user_args, edge_index.size(1), num_targets),
        )
        for chunk in chunks
    ]
    out = torch.cat(outs)
    if isinstance(chunks[0].edges, slice):
        return out
    places = torch.cat([chunk.edges for chunk in chunks])
    return out.index_select(0, torch.argsort(places))


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    size = args[0] if args else kwargs.get("size")
    return size, {name: value for name, value in kwargs.items() if name != "size"}


def convolutions_of(module: nn.Module, what: str, divider: str) -> list[MessagePassing]:
    """A module's convolutions.

    Args:
        module: Has convolutions of PyG, or is one.
        what: What of them is to be divided.
        divider: The name of what does it.

    Raises:
        ValueError: If it has none.
    """
    convs = [conv for conv in module.modules() if isinstance(conv, MessagePassing)]
    if not convs:
        raise ValueError(
            f"{type(module).__name__} has no convolution of PyG (`MessagePassing`) whose {what} could be divided."
            f" HINT: leave `{divider}` out."
        )
    return convs


def num_targets_of(conv: MessagePassing, size: Any, inputs: dict[str, Any], names: Any) -> int:
    """Find out how many targets a call of ``propagate`` or ``edge_updater`` has.

    Args:
        conv: The convolution.
        size: The call's `size`.
        inputs: Its other arguments.
        names: What it reads of sources and targets, as PyG names it.

    Raises:
        ValueError: If nothing says it, or edges do not go from source to target.
    """
    if conv.flow != "source_to_target":
        raise ValueError(
            f'{type(conv).__name__} must have `flow="source_to_target"` to be divided by targets, but has'
            f" {conv.flow!r}. HINT: turn the edges around instead."
        )
    if size is not None and size[1] is not None:
        return int(size[1])
    for name in sorted({name[:-2] for name in names if name.endswith(("_i", "_j"))}):
        value = inputs.get(name)
        value = value[1] if isinstance(value, (tuple, list)) and value[1] is not None else value
        value = value[0] if isinstance(value, (tuple, list)) else value
        if isinstance(value, Tensor):
            return int(value.size(conv.node_dim))
    raise ValueError(
        f"{type(conv).__name__} says nothing of how many targets it has. HINT: exclude it from `ChunkedPropagate`,"
        " whose `install` takes any module."
    )


def _inputs_of(
    conv: MessagePassing, chunk: _Chunk, inputs: dict[str, Any], names: Any, num_edges: int, num_targets: int
) -> dict[str, Any]:
    """What a chunk gets: all sources, its targets, its edges."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if f"{name}_i" in names or f"{name}_j" in names:
            source, target = value if isinstance(value, (tuple, list)) else (value, value)
            if isinstance(target, Tensor):
                target = target.narrow(conv.node_dim, chunk.first, chunk.last - chunk.first)
            found[name] = (source, target)
        elif isinstance(value, Tensor) and value.dim() and value.size(0) == num_edges:
            found[name] = value[chunk.edges]
        elif isinstance(value, Tensor) and value.dim() and value.size(0) == num_targets:
            found[name] = value[chunk.first : chunk.last]
        else:
            found[name] = value
    return found


def _chunks(conv: MessagePassing, chunked: ChunkedPropagate, edge_index: Tensor, num_targets: int) -> list[_Chunk]:
    """The chunks of a graph, which are the same for all layers and steps."""
    key = (edge_index.data_ptr(), edge_index._version, tuple(edge_index.shape), num_targets, chunked.num_chunks)
    found = getattr(edge_index, "_gnnopt_chunks", None)
    if found is None or found[0] != key:
        found = key, chunks_of(edge_index, num_targets, chunked.num_chunks)
        edge_index._gnnopt_chunks = found  # type: ignore[attr-defined]
    chunks: list[_Chunk] = found[1]
    return chunks

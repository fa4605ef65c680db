"""Layers of an unmodified model, made to compute on a part of a graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.parallel.columns import column_propagate, takes_columns
from lightning_gnnopt.parallel.current import CurrentPart, current_part
from lightning_gnnopt.parallel.global_norms import GLOBAL_NORMS
from lightning_gnnopt.parallel.linear import is_linear
from lightning_gnnopt.parallel.sequential import both, sequential_edge_updater, sequential_propagate
from lightning_gnnopt.parallel.whole_graph import put_stand_ins, take_stand_ins


class Installed:
    """What is put into a model so that its layers exchange what they need; :meth:`remove` takes it out.

    Convolutions: before messages are computed, whatever these read of sources (PyG's names that end in ``_j``) is
    extended by the rows of the halo. Norms over all nodes are computed over all ranks. ``gcn_norm`` is that of the
    whole graph. All of this is dead in a thread that does not compute on a part (`computing_on`).

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._handles: list[Any] = []
        self._norms: list[nn.Module] = []
        self._convs: list[MessagePassing] = []
        self._stand_ins: list[str] = []
        self._cached: list[nn.Module] = []
        for child in module.modules():
            if isinstance(child, MessagePassing):
                self._add_convolution(child)
            elif (norm := global_norm_of(child)) is not None:
                child.forward = partial(_norm_forward, child, norm)
                self._norms.append(child)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for norm in self._norms:
            del norm.forward
        for conv in self._convs:
            for name in ("propagate", "edge_updater"):
                vars(conv).pop(name, None)
        take_stand_ins(self._stand_ins)
        for conv in self._cached:
            _forget_cache(conv)
        for entries in (self._handles, self._norms, self._convs, self._stand_ins, self._cached):
            entries.clear()

    def _add_convolution(self, conv: MessagePassing) -> None:
        self._handles += [
            conv.register_propagate_forward_pre_hook(partial(_extend, names=_sources(conv._user_args))),
            conv.register_forward_hook(_forget, always_call=True),
        ]
        if not is_linear(conv):
            self._handles.append(conv.register_forward_pre_hook(_leave_out, with_kwargs=True))
        conv.propagate = partial(_propagate, conv)
        if conv._edge_user_args:  # PyG calls the hooks of `edge_updater` when it has read the rows: too late
            conv.edge_updater = partial(_edge_updater, conv, _sources(conv._edge_user_args))
        self._convs.append(conv)
        self._stand_ins += put_stand_ins(conv)
        if getattr(conv, "cached", False):
            _forget_cache(conv)
            self._cached.append(conv)


def global_norm_of(module: nn.Module) -> Callable[..., Tensor] | None:
    """The function of `GLOBAL_NORMS` for a module; of a subclass with a ``forward`` of its own there is none."""
    for cls in type(module).__mro__:
        if cls in GLOBAL_NORMS:
            return GLOBAL_NORMS[cls]
        if "forward" in vars(cls):
            return None
    return None


def _sources(arguments: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name[:-2] for name in arguments if name.endswith("_j")))


def _norm_forward(module: nn.Module, norm: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
    part = current_part()
    return type(module).forward(module, *args, **kwargs) if part is None else norm(module, part, *args, **kwargs)


def _forget(conv: nn.Module, args: Any, output: Any) -> None:
    if (part := current_part()) is not None:
        part.forget()


def _forget_cache(conv: nn.Module) -> None:
    for name in ("_cached_edge_index", "_cached_adj_t", "_cached_x", "_cached_h"):
        if hasattr(conv, name):
            setattr(conv, name, None)


def _extend(conv: MessagePassing, inputs: tuple[Any, Any, Mapping[str, Any]], *, names: tuple[str, ...]) -> Any:
    part = current_part()
    if part is None or part.is_sequential or part.has_all_nodes:
        return None
    edge_index, _, kwargs = inputs
    _check(conv, edge_index)
    kwargs = dict(kwargs)
    for name in names:
        source, target = both(kwargs.get(name))
        if isinstance(source, Tensor):
            kwargs[name] = (_extended(source, part, conv.node_dim, scaled=is_linear(conv)), target)
    num_inner = part.plan.num_inner
    return edge_index, (num_inner + part.plan.num_halo, num_inner), kwargs


def _leave_out(conv: MessagePassing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give a convolution only those edges whose source was fetched, and what belongs to them."""
    part = current_part()
    if part is None or not part.is_sampled:
        return None
    names = list(inspect.signature(type(conv).forward).parameters)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    edge_index = given.get("edge_index")
    _check(conv, edge_index)
    assert isinstance(edge_index, Tensor)
    is_there = part.fetched_edges(edge_index)

    def kept(name: str, value: Any) -> Any:
        if name == "edge_index":
            return value[:, is_there]
        is_of_edges = name.startswith("edge_") and isinstance(value, Tensor) and value.size(0) == len(is_there)
        return value[is_there] if is_of_edges else value

    positional = tuple(kept(name, value) for name, value in zip(names, args, strict=False))
    return positional, {name: kept(name, value) for name, value in kwargs.items()}


def _propagate(conv: MessagePassing, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
    part = current_part()
    if part is not None and part.is_sequential:
        _check(conv, edge_index)
        return sequential_propagate(part, conv, edge_index, kwargs)
    if part is not None and part.is_by_columns and takes_columns(conv, kwargs):
        _check(conv, edge_index)
        return column_propagate(part, conv, edge_index, kwargs)
    return type(conv).propagate(conv, edge_index, size=size, **kwargs)


def _edge_updater(
    conv: MessagePassing, names: tuple[str, ...], edge_index: Any, size: Any = None, **kwargs: Any
) -> Any:
    part = current_part()
    if part is not None and part.is_sequential:
        _check(conv, edge_index)
        return sequential_edge_updater(part, conv, edge_index, kwargs)
    inputs = edge_index, size, kwargs
    edge_index, size, kwargs = _extend(conv, inputs, names=names) or inputs
    return type(conv).edge_updater(conv, edge_index, size=size, **kwargs)


def _extended(rows: Tensor, part: CurrentPart, node_dim: int, *, scaled: bool) -> Tensor:
    if node_dim % rows.dim() == 0:
        return torch.cat([rows, part.halo_of(rows, scaled=scaled)])
    halo = part.halo_of(rows.movedim(node_dim, 0), scaled=scaled)
    return torch.cat([rows, halo.movedim(0, node_dim)], dim=node_dim)


def _check(conv: MessagePassing, edge_index: Any) -> None:
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided or edge_index.is_floating_point():
        raise ValueError(
            f"{type(conv).__name__} must get `edge_index` as a tensor of shape (2, E) on a part of a graph, but got"
            f" {type(edge_index).__name__}. HINT: leave out `ToSparseTensor` and the like."
        )
    if conv.flow != "source_to_target":
        raise ValueError(
            f'{type(conv).__name__} must have `flow="source_to_target"` on a part of a graph, but has {conv.flow!r}.'
            " HINT: a part has the in-edges of its nodes; turn the edges around instead."
        )

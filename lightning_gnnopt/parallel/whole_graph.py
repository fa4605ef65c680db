"""PyG's functions that look at all edges of a graph, for a graph that is on several ranks."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import torch
import torch_geometric.utils as pyg
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv import gcn_conv
from torch_geometric.utils import add_remaining_self_loops, scatter

from lightning_gnnopt.parallel.current import CurrentPart, current_part

PYG_GCN_NORM = gcn_conv.gcn_norm


def gcn_norm(
    edge_index: Any,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: torch.dtype | None = None,
) -> Any:
    """Stand in for PyG's ``gcn_norm``: the same on the whole graph where a thread computes on a part.

    A node's weighted in-degree is known where the node is, as all of its in-edges are there; of the halo it is
    fetched. Without weights, it is fetched once.

    Args:
        edge_index: Of the part: sources may be in the halo.
        edge_weight: Shape ``(e,)``.
        num_nodes: Ignored on a part.
        improved: Whether self loops weigh 2.
        add_self_loops: Whether to add them.
        flow: Must be ``"source_to_target"`` on a part.
        dtype: Of the weights, where there are none.
    """
    part = current_part()
    if part is None:
        return PYG_GCN_NORM(edge_index, edge_weight, num_nodes, improved, add_self_loops, flow, dtype)
    if flow != "source_to_target":
        raise ValueError(f'`flow` must be "source_to_target" on a part of a graph, but got {flow!r}.')
    key = ("gcn_norm", id(edge_index), improved, add_self_loops, dtype)
    if edge_weight is None and key in part.kept:
        return part.kept[key][1]
    norm = _norm(part, edge_index, edge_weight, improved, add_self_loops, dtype)
    if edge_weight is None:
        part.kept[key] = (edge_index, norm)  # with the edges, so that their id is not used again
    return norm


def _norm(
    part: CurrentPart,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    improved: bool,
    add_self_loops: bool,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    num_inner = part.plan.num_inner
    if add_self_loops:
        fill_value = 2.0 if improved else 1.0
        edge_index, edge_weight = add_remaining_self_loops(edge_index, edge_weight, fill_value, num_inner)
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.size(1), dtype=dtype, device=edge_index.device)
    source, target = edge_index
    degree = scatter(edge_weight, target, dim=0, dim_size=num_inner, reduce="sum")
    factor = degree.pow(-0.5)
    factor = factor.masked_fill(factor == float("inf"), 0)
    everywhere = torch.cat([factor, part.whole_halo_of(factor)])
    return edge_index, everywhere[source] * edge_weight * factor[target]


def softmax(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_nodes: int | None = None, dim: int = 0
) -> Tensor:
    """Stand in for PyG's ``softmax`` over a target's in-edges, of which only some are here.

    Args:
        src: Shape ``(e, ...)``.
        index: The target of each.
        ptr: Ignored where a part's edges come one rank after the other.
        num_nodes: Number of targets.
        dim: Must be 0 there.
    """
    part = current_part()
    if part is None or part.current_softmax is None:
        whole: Tensor = pyg.softmax(src, index, ptr, num_nodes, dim)
        return whole
    if index is None or dim != 0:
        raise ValueError(f"A softmax over in-edges needs their targets and `dim=0` with `SAR`, but got `dim={dim}`.")
    return part.current_softmax(src, index, part.plan.num_inner)


def uses_softmax(conv: MessagePassing, method: str) -> bool:
    """Whether a method of a convolution calls ``softmax``."""
    code = getattr(getattr(type(conv), method, None), "__code__", None)
    return code is not None and "softmax" in code.co_names


_STAND_INS = MappingProxyType({"gcn_norm": (PYG_GCN_NORM, gcn_norm), "softmax": (pyg.softmax, softmax)})
_USERS: Counter[str] = Counter()  # modules of PyG's, or a user's, and how many models need the stand-ins in each
_LOCK = threading.Lock()


def put_stand_ins(conv: MessagePassing) -> list[str]:
    """Replace the functions that a convolution calls, where it finds them.

    Args:
        conv: The convolution.

    Returns:
        The modules that have changed, or had before, for :func:`take_stand_ins`.
    """
    found = []
    with _LOCK:
        for name in dict.fromkeys(cls.__module__ for cls in type(conv).__mro__):
            namespace = sys.modules.get(name)
            for function, (pygs, ours) in _STAND_INS.items():
                if getattr(namespace, function, None) in (pygs, ours):
                    setattr(namespace, function, ours)
                    found.append(name)
        _USERS.update(found)
    return found


def take_stand_ins(names: Iterable[str]) -> None:
    """Take them out, where no other model needs them.

    Args:
        names: What :func:`put_stand_ins` has returned.
    """
    with _LOCK:
        _USERS.subtract(names)
        for name in [name for name, users in _USERS.items() if users <= 0]:
            del _USERS[name]
            for function, (pygs, ours) in _STAND_INS.items():
                if getattr(sys.modules.get(name), function, None) is ours:
                    setattr(sys.modules[name], function, pygs)

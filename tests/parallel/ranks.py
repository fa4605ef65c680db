"""A model on parts of a graph, in threads, and the same on the whole graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gnnopt.parallel.channel import Traffic
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.halo import HaloPlan
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.parts import GraphPart, cut_graph
from lightning_gnnopt.parallel.policies import Policies
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks


@dataclass
class Result:
    """What a model gave, on the whole graph or on all parts, put together.

    Attributes:
        out: Outputs of all nodes.
        grad_x: Gradients of all nodes' features.
        grads: Gradients of the parameters, summed over ranks.
        buffers: Of each rank.
        traffic: Of each rank.
    """

    out: Tensor
    grad_x: Tensor
    grads: dict[str, Tensor]
    buffers: list[dict[str, Tensor]] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)


def plan_of(part: GraphPart) -> HaloPlan:
    send_index = torch.from_numpy(part.send_index)
    return HaloPlan(part.num_inner, part.num_halo, send_index, part.send_counts, part.recv_counts)


def parts_of(edge_index: Tensor, owner: Sequence[int] | np.ndarray, num_parts: int) -> list[GraphPart]:
    return list(cut_graph(edge_index.numpy(), np.asarray(owner), num_parts))


def graph(num_nodes: int = 60, num_edges: int = 400, seed: int = 0) -> Tensor:
    """A directed graph with self loops and parallel edges."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_nodes, (2, num_edges), generator=generator)


def on_whole(net: nn.Module, x: Tensor, edge_index: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Result:
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    out = net(x, edge_index)
    loss(out, torch.arange(len(x))).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return Result(out.detach(), x.grad, grads, [dict(net.named_buffers())])  # type: ignore[arg-type]


def on_parts(
    net: nn.Module,
    x: Tensor,
    parts: list[GraphPart],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    policy: Any = "exact",
    step: int = 0,
    training: bool = True,
) -> Result:
    """Run a copy of the model on each part; `loss` gets a part's outputs and its nodes, and is summed over parts."""

    def work(channel: ThreadChannel) -> tuple[Any, ...]:
        part, model = parts[channel.rank], copy.deepcopy(net)
        nodes = torch.from_numpy(part.inner)
        rows = x[nodes].clone().requires_grad_()
        installed = Installed(model)
        current = CurrentPart(plan_of(part), channel, part.num_nodes, policies=Policies.of(policy))
        current.start(step, training=training)
        try:
            with computing_on(current):
                out = model(rows, torch.from_numpy(part.edge_index))
                loss(out, nodes).backward()
        finally:
            installed.remove()  # functions of PyG's modules stand in for others until then
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return nodes, out.detach(), rows.grad, grads, dict(model.named_buffers()), channel.traffic

    results = run_ranks(len(parts), work, timeout_s=30.0)
    out = results[0][1].new_empty(len(x), *results[0][1].shape[1:])
    grad_x = torch.empty_like(x)
    for nodes, rows, grad, *_ in results:
        out[nodes], grad_x[nodes] = rows, grad
    names = {name for result in results for name in result[3]}
    grads = {name: torch.stack([r[3][name] for r in results if name in r[3]]).sum(0) for name in names}
    return Result(out, grad_x, grads, [r[4] for r in results], [r[5] for r in results])

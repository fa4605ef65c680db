"""Ranks as forked processes over gloo; tests run ``python -m tests.parallel.process_ranks`` in a process of its own."""

from __future__ import annotations

import copy
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch_geometric.nn as pyg
from torch import Tensor, nn

from lightning_gnnopt.parallel import BNS, Quantized, Stale
from lightning_gnnopt.parallel.channel import Channel, GroupChannel
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.policies import Policies
from tests.parallel.part_ranks import over_gloo
from tests.parallel.ranks import graph, on_whole, parts_of, plan_of
from tests.parallel.test_exact import CONVS, F, N, Net, owners, weighted

Given = tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor]]

STEPS, RATE = 3, 0.01
CASES: dict[str, tuple[str, Any, str]] = {
    "exact-sage": ("sage", "exact", "random"),
    "exact-gcn": ("gcn", "exact", "random"),
    "exact-gat": ("gat", "exact", "random"),
    "exact-max": ("sage-max", "exact", "random"),
    "exact-one-has-all": ("gat", "exact", "one-has-all"),
    "sar-gat": ("gat", "sar", "random"),
    "sar-max": ("sage-max", "sar", "blocks"),
    "bns": ("sage", BNS(0.5), "random"),
    "quantized": ("gat", Quantized(8), "random"),
    "stale": ("sage", Stale(), "random"),
}
"""Convolution, policy, and who owns which node."""


@dataclass
class Steps:
    """What some steps of descent gave a rank, or one process with the whole graph.

    Attributes:
        nodes: The rank's.
        outs: Outputs of the rank's nodes, of each step.
        grads_x: Gradients of their features, of each step.
        grads: Of all parameters, summed over ranks, of each step.
        by_kind: Bytes sent, by what for.
        exchanges: How many.
    """

    nodes: Tensor
    outs: list[Tensor]
    grads_x: list[Tensor]
    grads: list[dict[str, Tensor]]
    by_kind: dict[str, int]
    exchanges: int


def given(case: str) -> Given:
    """A model with a norm over all nodes, features, and a loss that a third of the nodes has no part in."""
    torch.manual_seed(0)
    net = Net(CONVS[CASES[case][0]], pyg.BatchNorm(8)).double()
    x, weights = torch.randn(N, F, dtype=torch.float64), torch.randn(N, 8, dtype=torch.float64)
    weights[: N // 3] = 0.0
    return net, x, weighted(weights)


def descend(net: nn.Module, grads: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.sub_(grads[name], alpha=RATE)


def steps_on_part(channel: Channel, case: str, net_x_loss: Given) -> Steps:
    _, policy, kind = CASES[case]
    part = parts_of(graph(N), owners(kind, channel.size), channel.size)[channel.rank]
    net, x, loss = copy.deepcopy(net_x_loss[0]), *net_x_loss[1:]
    nodes, sent = torch.from_numpy(part.inner), copy.deepcopy(channel.traffic)
    installed = Installed(net)
    current = CurrentPart(plan_of(part), channel, part.num_nodes, policies=Policies.of(policy))
    steps = Steps(nodes, [], [], [], {}, 0)
    for step in range(STEPS):
        net.zero_grad()
        rows = x[nodes].clone().requires_grad_()
        current.start(step, training=True)
        with computing_on(current):
            out = net(rows, torch.from_numpy(part.edge_index))
            loss(out, nodes).backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        own = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}
        grads = {name: channel.sum(grad) for name, grad in own.items()}
        steps.outs.append(out.detach())
        steps.grads_x.append(rows.grad)
        steps.grads.append(grads)
        descend(net, grads)
    installed.remove()
    after = channel.traffic
    steps.by_kind = {kind: count - sent.by_kind.get(kind, 0) for kind, count in after.by_kind.items()}
    steps.exchanges = after.exchanges - sent.exchanges
    return steps


def steps_on_whole(case: str) -> Steps:
    net, x, loss = given(case)
    steps = Steps(torch.arange(N), [], [], [], {}, 0)
    for _ in range(STEPS):
        result = on_whole(net, x, graph(N), loss)
        steps.outs.append(result.out)
        steps.grads_x.append(result.grad_x)
        steps.grads.append(result.grads)
        descend(net, result.grads)
    return steps


def drawn_ids(channel: Channel) -> list[tuple[Tensor, Tensor]]:
    """Ids that came from the others in steps of a sampled halo, and those that this rank has drawn for itself."""
    part = parts_of(graph(N), owners("random", channel.size), channel.size)[channel.rank]
    current = CurrentPart(plan_of(part), channel, part.num_nodes, policies=Policies.of(BNS(0.5)))
    found = []
    for step in range(STEPS):
        current.start(step, training=True)
        assert current.drawn.recv_index is not None
        came = current.halo_of(torch.from_numpy(part.inner).double().unsqueeze(1) + 1, scaled=False).squeeze(1)
        expected = torch.zeros_like(came)
        expected[current.drawn.recv_index] = torch.from_numpy(part.halo).double()[current.drawn.recv_index] + 1
        found.append((came, expected))
    return found


def counts_of(size: int) -> Tensor:
    """Rows from each rank to each other one: uneven, none from the last one, none to itself for some."""
    sender, receiver = torch.arange(size).unsqueeze(1), torch.arange(size)
    return (3 * sender + 5 * receiver) % 7 * (sender != size - 1) * (sender + receiver != 0)


def messages(channel: Channel) -> list[tuple[Tensor, Tensor]]:
    """What came in exchanges of several kinds that are under way at once, and what should have."""
    counts, rank = counts_of(channel.size), channel.rank
    waits = []
    for shape, dtype in [((), torch.float32), ((3, 2), torch.float64), ((1,), torch.int64), ((0,), torch.float32)]:
        for used in (counts, counts.T, torch.zeros_like(counts)):

            def rows(sender: int, receiver: int, used: Tensor = used, shape: Any = shape, dtype: Any = dtype) -> Tensor:
                each = 1000 * sender + 100 * receiver + torch.arange(int(used[sender, receiver]))
                return each.to(dtype).view(-1, *(1,) * len(shape)).expand(-1, *shape)

            sent = torch.cat([rows(rank, other) for other in range(channel.size)])
            wait = channel.start(sent, used[rank].tolist(), used[:, rank].tolist())
            waits.append((wait, torch.cat([rows(other, rank) for other in range(channel.size)])))
    return [(wait(), expected) for wait, expected in reversed(waits)]


def pairwise(channel: GroupChannel) -> GroupChannel:
    """Another channel of the same group, for backends without ``all_to_all``."""
    other = GroupChannel(timeout=channel.timeout)
    other._has_all_to_all = False
    return other


def everything(channel: GroupChannel) -> dict[str, Any]:
    found: dict[str, Any] = {case: steps_on_part(channel, case, given(case)) for case in CASES}
    found["messages"], found["drawn"] = messages(channel), drawn_ids(channel)
    found["over-parts"] = over_gloo(channel)
    assert channel._has_all_to_all
    channel = pairwise(channel)
    found["pairwise"] = {case: steps_on_part(channel, case, given(case)) for case in ("exact-gat", "sar-max", "stale")}
    found["pairwise-messages"] = messages(channel)
    assert channel._has_all_to_all is False
    return found


def fork(size: int, work: Callable[[GroupChannel], Any], folder: Path, *, timeout: float = 30.0) -> list[int]:
    """Fork ranks, each of which writes what `work` returns, or its error, to ``folder/<rank>.pt``; their ids."""
    folder.mkdir()
    ids = []
    for rank in range(size):
        if (child := os.fork()) != 0:
            ids.append(child)
            continue
        status = 1
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=size,
                timeout=timedelta(seconds=120),
            )  # fmt: skip
            torch.save(work(GroupChannel(timeout=timeout)), folder / f"{rank}.pt")
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return ids


def reap(ids: Sequence[int], *, timeout: float = 100.0) -> list[int]:
    """Wait for processes; kill those that are left.

    Returns:
        How each has ended, see ``os.waitstatus_to_exitcode``.

    Raises:
        TimeoutError: If some were left.
    """
    ended: dict[int, int] = {}
    until = time.monotonic() + timeout
    while len(ended) < len(ids) and time.monotonic() < until:
        for child in set(ids) - ended.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    left = [place for place, child in enumerate(ids) if child not in ended]
    for place in left:
        os.kill(ids[place], signal.SIGKILL)
        os.waitpid(ids[place], 0)
    if left:
        raise TimeoutError(f"Of {len(ids)} processes, {left} had not ended after {timeout} s.")
    return [ended[child] for child in ids]


def main() -> None:
    """A folder, and numbers of ranks: what each of so many ranks gave is in ``folder/<ranks>/<rank>.pt``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ended = [reap(fork(size, everything, Path(sys.argv[1]) / str(size))) for size in map(int, sys.argv[2:])]
    sys.exit(any(map(any, ended)))


if __name__ == "__main__":
    from tests.parallel import process_ranks  # whose classes can be loaded elsewhere

    process_ranks.main()

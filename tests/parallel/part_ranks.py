"""Sampling and features over the parts of a graph, and the same from the whole graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel, GroupChannel
from lightning_gnnopt.parallel.launch_order import LaunchOrder
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.ordered_channel import OrderedChannel
from lightning_gnnopt.parallel.part_features import PartFeatures
from lightning_gnnopt.parallel.part_sampler import PartNeighborSampler, PartSubgraph
from lightning_gnnopt.parallel.parts import GraphPart, cut_graph
from lightning_gnnopt.parallel.thread_channel import run_ranks
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph

Ids = NDArray[np.int64]
N, E, FANOUTS = 300, 4_000, [6, 4]


@dataclass(frozen=True)
class Asked:
    """What a rank asks for.

    Attributes:
        seeds: Global ids.
        key: Of its batch.
    """

    seeds: Ids
    key: SampleKey


def hub_graph(num_nodes: int = N, num_edges: int = E, seed: int = 0) -> Tensor:
    """A directed graph: half of its edges lead to three hubs, and a tenth of the nodes has none at all."""
    generator = torch.Generator().manual_seed(seed)
    connected = num_nodes - num_nodes // 10
    edge_index = torch.randint(connected, (2, num_edges), generator=generator)
    edge_index[1, : num_edges // 2] %= 3
    return edge_index[:, torch.randperm(num_edges, generator=generator)]


def owners(kind: str, num_parts: int, num_nodes: int = N) -> Ids:
    """Who owns which node."""
    if kind == "random":
        return np.random.default_rng(num_parts).integers(0, num_parts, num_nodes)
    if kind == "contiguous":
        return np.arange(num_nodes) * num_parts // num_nodes
    assert kind == "one-is-empty"
    return np.where(np.arange(num_nodes) % 3 == 0, num_parts - 1, 0)  # of three and more parts


def cut(edge_index: Tensor, owner: Ids, num_parts: int) -> list[GraphPart]:
    return list(cut_graph(edge_index.numpy(), owner, num_parts))


def batches_on_parts(
    parts: list[GraphPart],
    asked: Sequence[Sequence[Asked]],
    num_neighbors: Sequence[int],
    *,
    edge_weight: NDArray[Any] | None = None,
    **options: Any,
) -> list[list[PartSubgraph]]:
    """Sample in threads: of each rank the batches it has asked for, one after the other."""

    def work(channel: Channel) -> list[PartSubgraph]:
        part = parts[channel.rank]
        weight = None if edge_weight is None else edge_weight[part.edge_id]
        nodes = NodeMap.collect(part, channel)
        sampler = PartNeighborSampler(part, nodes, channel, num_neighbors, edge_weight=weight, **options)
        return [sampler.sample(one.seeds, one.key) for one in asked[channel.rank]]

    return run_ranks(len(parts), work, timeout_s=30.0)


def assert_same_batch(batch: PartSubgraph, asked: Asked, whole: NeighborSampler) -> None:
    """Compare with the batch that one process draws from the whole graph: the same bits, of the same types."""
    if len(asked.seeds) == 0:  # which one process refuses
        assert (batch.num_nodes, batch.num_edges) == (0, 0)
        assert batch.num_sampled_nodes == [0] * (1 + len(whole.num_neighbors))
        assert batch.num_sampled_edges == [0] * len(whole.num_neighbors)
        return
    expected: Subgraph = whole.sample(asked.seeds, asked.key)
    for name in ("n_id", "row", "col", "positions", "batch"):
        got, wanted = getattr(batch, name), getattr(expected, name)
        if wanted is None:
            assert got is None, name
            continue
        assert got.dtype == wanted.dtype, name
        assert got.tolist() == wanted.tolist(), name
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == (
        expected.num_sampled_nodes,
        expected.num_sampled_edges,
    )
    assert batch.batch_size == len(asked.seeds)
    if batch.edge_id is not None:
        assert whole.topology.edge_ids is not None
        assert batch.edge_id.dtype == whole.topology.edge_ids.dtype
        assert batch.edge_id.tolist() == whole.topology.edge_ids[expected.positions].tolist()


def asked_by(rank: int, num_batches: int) -> list[Asked]:
    """Any seeds, of any number, with repeats; none in each third batch of the odd ranks."""
    random = np.random.default_rng(rank)
    found = []
    for i in range(num_batches):
        size = 0 if rank % 2 and i % 3 == 0 else int(random.integers(1, 30))
        found.append(Asked(random.integers(0, N, size), SampleKey(seed=7, epoch=rank, batch=i)))
    return found


def attribute() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(1))


def run_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run functions in threads, and raise the first error."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised below, in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def pipeline(
    part: GraphPart,
    sampling: Channel,
    loading: Channel,
    asked: Sequence[Asked],
    *,
    delay: Callable[[], None] = lambda: None,
) -> list[tuple[PartSubgraph, Tensor]]:
    """Sample in one thread and gather in another, two batches behind at most."""
    ready: list[PartSubgraph] = []
    rows: list[Tensor] = []
    ended = False
    changed = threading.Condition()
    nodes, x = NodeMap.collect(part, sampling), attribute()
    sampler = PartNeighborSampler(part, nodes, sampling, FANOUTS)
    features = PartFeatures(x[torch.from_numpy(part.inner)], nodes, loading, cached=np.arange(0, N, 7))

    def ending(work: Callable[[], None]) -> None:
        nonlocal ended
        try:
            work()
        except BaseException:
            with changed:
                ended = True  # the other thread shall not wait for this one
                changed.notify_all()
            raise

    def sample() -> None:
        for one in asked:
            delay()
            batch = sampler.sample(one.seeds, one.key)
            with changed:
                changed.wait_for(lambda: ended or len(ready) - len(rows) < 2)
                if ended:
                    return
                ready.append(batch)
                changed.notify_all()

    def gather() -> None:
        for i in range(len(asked)):
            with changed:
                changed.wait_for(lambda i=i: ended or len(ready) > i)  # type: ignore[misc]
                if ended:
                    return
            delay()
            gathered = features.gather(ready[i].n_id)
            with changed:
                rows.append(gathered)
                changed.notify_all()

    run_threads([lambda: ending(sample), lambda: ending(gather)])
    return list(zip(ready, rows, strict=True))


def over_gloo(channel: GroupChannel) -> list[tuple[PartSubgraph, Tensor]]:
    """Batches and their rows from two threads, each with a group of its own, in the order of a third group."""
    sampling, loading, control = (GroupChannel(dist.new_group(backend="gloo")) for _ in range(3))
    part = cut(hub_graph(), owners("random", channel.size), channel.size)[channel.rank]
    with LaunchOrder(control, ["sampler", "loader"], timeout_s=60.0, heartbeat_s=0.2) as order:
        return pipeline(
            part,
            OrderedChannel(sampling, order, "sampler"),
            OrderedChannel(loading, order, "loader"),
            asked_by(channel.rank, 9),
        )

"""Node-wise neighbour sampling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.base import NodeSampler, Subgraph
from lightning_gnnopt.sampling.kernels import mark_seeds, sample_hop
from lightning_gnnopt.sampling.rng import SampleKey, mix64
from lightning_gnnopt.sampling.topology import Topology

_LAST_STAMP = 2**31 - 1


class NeighborSampler(NodeSampler):
    """Sample up to `num_neighbors[k]` in-neighbours of every node in hop ``k``, uniformly without replacement.

    The method is GraphSAGE's (Hamilton, Ying & Leskovec, "Inductive representation learning on large graphs", NeurIPS
    2017). Nodes are numbered as PyG's `NeighborLoader` numbers them: the seeds in the given order, then the nodes of
    each hop as they are found. A node is expanded once. A node that stands twice among the seeds is expanded at both
    places, each with its own draw; as a neighbour it is the first of them.

    Args:
        topology: The graph.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all in-neighbours.

    Raises:
        ValueError: If `num_neighbors` is empty, or a fan-out is 0 or below -1.

    Examples:
        >>> import torch
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> batch = NeighborSampler(star, num_neighbors=[2]).sample(np.array([0]), SampleKey(seed=0))
        >>> batch.num_sampled_nodes, batch.num_sampled_edges, batch.col
        ([1, 2], [2], array([0, 0], dtype=int32))
    """

    def __init__(self, topology: Topology, num_neighbors: Sequence[int]) -> None:
        self.topology = topology
        self.num_neighbors = check_fanouts(num_neighbors)
        self.num_hops = len(self.num_neighbors)
        self._idle: list[_Workspace] = []
        self._lock = threading.Lock()

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey) -> Subgraph:
        self.check_seeds(seeds)
        graph = self.topology
        workspace = self._borrow()
        try:
            stamp = workspace.next_stamp()
            stamps, locals_ = workspace.stamps, workspace.locals
            frontier = seeds.astype(graph.indices.dtype)
            mark_seeds(frontier, stamps, locals_, stamp)
            word = key.fold()
            nodes, rows, cols, positions = [frontier], [], [], []
            first_local, num_nodes = 0, len(frontier)
            for hop, fanout in enumerate(self.num_neighbors):
                hop_key = np.uint64(mix64(word ^ np.uint64(hop)))  # numba hands back a plain int
                new, row, col, position = sample_hop(
                    graph.indptr,
                    graph.indices,
                    frontier,
                    first_local,
                    num_nodes,
                    fanout,
                    hop_key,
                    stamps,
                    locals_,
                    stamp,
                )
                nodes.append(new)
                rows.append(row)
                cols.append(col)
                positions.append(position)
                frontier, first_local, num_nodes = new, num_nodes, num_nodes + len(new)
        finally:
            self._give_back(workspace)
        return Subgraph(
            n_id=np.concatenate(nodes),
            row=np.concatenate(rows),
            col=np.concatenate(cols),
            positions=np.concatenate(positions),
            num_sampled_nodes=[len(part) for part in nodes],
            num_sampled_edges=[len(part) for part in rows],
        )

    def _borrow(self) -> _Workspace:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Workspace(self.topology.num_nodes)

    def _give_back(self, workspace: _Workspace) -> None:
        with self._lock:
            self._idle.append(workspace)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_idle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._idle = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, num_neighbors={self.num_neighbors})"


def check_fanouts(num_neighbors: Sequence[int], *, name: str = "num_neighbors") -> list[int]:
    """Refuse fan-outs that cannot be sampled.

    Args:
        num_neighbors: One fan-out per hop.
        name: What the user calls them.

    Returns:
        The fan-outs as a list of plain integers.

    Raises:
        ValueError: If there is none, or one is neither positive nor -1.
    """
    if isinstance(num_neighbors, int):
        raise ValueError(
            f"`{name}` must be a list with one fan-out per hop, but got {num_neighbors}."
            f" HINT: [{num_neighbors}, {num_neighbors}] samples two hops."
        )
    fanouts = list(num_neighbors)
    if not fanouts:
        raise ValueError(
            f"`{name}` must hold one fan-out per hop, but it is empty."
            " HINT: [15, 10] samples 15 neighbours of each seed and 10 of each of those."
        )
    for fanout in fanouts:
        if isinstance(fanout, bool) or not isinstance(fanout, int | np.integer) or fanout == 0 or fanout < -1:
            raise ValueError(
                f"`{name}` must hold integers that are positive or -1 (all neighbours), but got {fanout!r}"
                f" in {fanouts}. HINT: to use fewer hops, shorten the list."
            )
    return [int(fanout) for fanout in fanouts]


class _Workspace:
    """One thread's relabelling table: 8 bytes per node of the graph, reused for every batch and never cleared."""

    def __init__(self, num_nodes: int) -> None:
        self.stamps = np.zeros(num_nodes, np.int32)
        self.locals = np.empty(num_nodes, np.int32)
        self._stamp = 0

    def next_stamp(self) -> int:
        if self._stamp == _LAST_STAMP:
            self.stamps.fill(0)
            self._stamp = 0
        self._stamp += 1
        return self._stamp

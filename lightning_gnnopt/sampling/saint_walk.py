"""GraphSAINT's random-walk sampler."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch_geometric.sampler import NodeSamplerInput, SamplerOutput
from typing_extensions import override

from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.rng import SampleKey, mix64, uniform_below
from lightning_gnnopt.sampling.saint import SaintSampler, inclusion_norms
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class SaintWalkSampler(SaintSampler):
    """Walk from each seed along in-edges, and take the subgraph between all nodes that were visited.

    GraphSAINT's random-walk sampler (Zeng et al., ICLR 2020). A step goes to the source of an in-edge, each equally
    likely; a walk ends where there is none. The seeds stand first, each once; then the nodes as the first step of all
    walks finds them, the second, and so on.

    The norms are estimated once, from walks made beforehand. The paper counts in how many of some sampled subgraphs a
    node and an edge are; here it is counted in how many single walks a node, and both ends of an edge, are, and the
    chances of a batch of `B` walks follow for any `B`. A node or a pair that was never seen counts as half a walk, so
    both norms are finite. The seeds of a batch are taken as a random subset of `roots`, the walks from them as
    independent: a batch that starts from a sixth of all roots may find norms some percent off, a smaller one less. As
    chances are counted, norms have an error too: about ``1 / sqrt(coverage)`` of a node's, more of an edge's.

    Args:
        topology: The graph. A uint32 per edge and one per node are kept besides.
        walk_length: Number of steps of a walk.
        roots: Global ids of the nodes that seeds are drawn from, shape ``(T,)``: the training nodes. None means all.
        coverage: How often each node is visited beforehand, on average, if walks only met new nodes; 0 does without
            norms.
        seed: Seed of these walks.

    Raises:
        ValueError: If `walk_length` is below 1, `coverage` negative, or `roots` not a set of nodes.

    Examples:
        >>> import torch
        >>> cycle = Topology.from_edge_index(torch.tensor([[3, 0, 1, 2], [0, 1, 2, 3]]), num_nodes=4)
        >>> batch = SaintWalkSampler(cycle, walk_length=1).sample(np.array([2]), SampleKey(seed=0))
        >>> batch.n_id, batch.node_norm, batch.edge_norm  # half of all walks visit a node, a quarter an edge
        (array([2, 1], dtype=int32), array([2., 2.], dtype=float32), array([2.], dtype=float32))
    """

    def __init__(
        self,
        topology: Topology,
        walk_length: int,
        *,
        roots: NDArray[np.integer] | None = None,
        coverage: float = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(topology)
        if walk_length < 1:
            raise ValueError(f"`walk_length` must be at least 1, but got {walk_length}. HINT: 2 to 4 are usual.")
        if not coverage >= 0:
            raise ValueError(f"`coverage` must not be negative, but got {coverage}. HINT: 0 does without norms.")
        self.walk_length = walk_length
        pool = np.arange(topology.num_nodes) if roots is None else _check_roots(roots, topology.num_nodes)
        self._num_roots = len(pool)
        self._is_root = np.zeros(topology.num_nodes, np.bool_)
        self._is_root[pool] = True
        self._num_walks = 0
        if coverage > 0:
            # Each root as often as any other: the chance of a root is then exact.
            rounds = max(1, round(coverage * topology.num_nodes / (walk_length + 1) / len(pool)))
            self._num_walks = rounds * len(pool)
            self._node_visits = np.zeros(topology.num_nodes, np.uint32)
            self._edge_visits = np.zeros(topology.num_edges, np.uint32)
            _count_visits(
                topology.indptr,
                topology.indices,
                _order_by_source(topology.indptr, topology.indices),
                pool,
                rounds,
                walk_length,
                SampleKey(seed).fold(),
                self._node_visits,
                self._edge_visits,
            )

    @override
    def _draw_nodes(self, seeds: NDArray[np.integer], key: np.uint64) -> NDArray[np.integer]:
        graph = self.topology
        visited = np.empty((self.walk_length + 1, len(seeds)), graph.indices.dtype)
        _walk(graph.indptr, graph.indices, seeds, key, visited)
        return visited.reshape(-1)

    @override
    def _norms(self, num_draws: int, batch: Subgraph) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        if not self._num_walks:
            return None, None
        return inclusion_norms(
            batch.row,
            batch.col,
            np.maximum(self._node_visits[batch.n_id], 0.5) / self._num_walks,
            np.maximum(self._edge_visits[batch.positions], 0.5) / self._num_walks,
            num_draws,
            self._is_root[batch.n_id],
            self._num_roots,
        )

    @override
    def sample_from_nodes(self, index: NodeSamplerInput) -> SamplerOutput:
        """Serve PyG's ``NodeLoader(data, node_sampler=...)``.

        The seeds stand first and are PyG's ``batch_size`` and ``input_id``, as of any node sampler, as long as none
        stands twice. GraphSAINT's loss runs over all training nodes: use ``batch.train_mask``.
        """
        return NodeSampler.sample_from_nodes(self, index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, walk_length={self.walk_length})"


def _check_roots(roots: NDArray[np.integer], num_nodes: int) -> NDArray[np.int64]:
    roots = np.asarray(roots)
    if roots.ndim != 1 or roots.dtype.kind not in "iu" or not len(roots):
        raise ValueError(
            f"`roots` must be at least one node id, of shape (T,), but got {roots.dtype} of shape {roots.shape}."
            " HINT: `mask.nonzero()` makes ids of a mask."
        )
    pool = np.unique(roots).astype(np.int64)
    if len(pool) < len(roots) or pool[0] < 0 or pool[-1] >= num_nodes:
        raise ValueError(
            f"`roots` must be different node ids from 0 to {num_nodes - 1:,}, but found {len(roots):,} ids,"
            f" {len(pool):,} different ones, from {pool[0]:,} to {pool[-1]:,}. HINT: they are the training nodes."
        )
    return pool


@njit(nogil=True, cache=True)
def _walk(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    roots: NDArray[np.integer],
    key: np.uint64,
    visited: NDArray[np.integer],
) -> None:
    """Write the walk from ``roots[i]`` into column `i`; one that has ended stays where it is."""
    for i in range(len(roots)):
        state = mix64(key ^ np.uint64(i))
        v = np.int64(roots[i])
        visited[0, i] = v
        for step in range(1, len(visited)):
            degree = indptr[v + 1] - indptr[v]
            if degree > 0:
                draw, state = uniform_below(state, np.uint64(degree))
                v = np.int64(indices[indptr[v] + np.int64(draw)])
            visited[step, i] = v


@njit(nogil=True, cache=True)
def _order_by_source(indptr: NDArray[np.int64], indices: NDArray[np.integer]) -> NDArray[np.int64]:
    """List each node's in-edges by source; nothing, if they stand so already."""
    for v in range(len(indptr) - 1):
        for p in range(indptr[v] + 1, indptr[v + 1]):
            if indices[p] < indices[p - 1]:
                order = np.empty(len(indices), np.int64)
                for w in range(len(indptr) - 1):
                    begin, end = indptr[w], indptr[w + 1]
                    order[begin:end] = begin + np.argsort(indices[begin:end])
                return order
    return np.empty(0, np.int64)


@njit(nogil=True, cache=True)
def _count_edges(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    order: NDArray[np.int64],
    u: np.int64,
    v: np.int64,
    counts: NDArray[np.uint32],
) -> None:
    """Add 1 to every edge from `u` to `v`."""
    low, high = indptr[v], indptr[v + 1]
    while low < high:
        middle = (low + high) // 2
        if indices[order[middle] if len(order) > 0 else middle] >= u:
            high = middle
        else:
            low = middle + 1
    while low < indptr[v + 1]:
        p = order[low] if len(order) > 0 else low
        if indices[p] != u:
            return
        counts[p] += np.uint32(1)
        low += 1


@njit(nogil=True, cache=True)
def _count_visits(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    order: NDArray[np.int64],
    roots: NDArray[np.int64],
    rounds: int,
    walk_length: int,
    key: np.uint64,
    node_visits: NDArray[np.uint32],
    edge_visits: NDArray[np.uint32],
) -> None:
    """Count how many of ``rounds * len(roots)`` walks visit each node, and both ends of each edge."""
    visited = np.empty((walk_length + 1, len(roots)), np.int64)
    for i in range(rounds):
        _walk(indptr, indices, roots, mix64(key ^ np.uint64(i)), visited)
        for j in range(len(roots)):
            for a in range(walk_length + 1):
                v = visited[a, j]
                again = False
                for b in range(a):
                    again = again or visited[b, j] == v
                if again:
                    continue
                node_visits[v] += np.uint32(1)
                for b in range(a):
                    u = visited[b, j]
                    again = False
                    for c in range(b):
                        again = again or visited[c, j] == u
                    if not again:
                        _count_edges(indptr, indices, order, u, v, edge_visits)
                        _count_edges(indptr, indices, order, v, u, edge_visits)

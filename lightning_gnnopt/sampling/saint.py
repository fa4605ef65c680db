"""GraphSAINT: subgraphs of nodes drawn from the whole graph, with weights that undo their unequal chances."""

from __future__ import annotations

from abc import abstractmethod
from math import inf, log1p
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch_geometric.sampler import NodeSamplerInput, SamplerOutput
from typing_extensions import override

from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.induced import induced_edges
from lightning_gnnopt.sampling.node_table import TablePool
from lightning_gnnopt.sampling.rng import SampleKey, mix64
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_11 = np.uint64(11)


class SaintSampler(NodeSampler):
    """What the samplers of GraphSAINT (Zeng, Zhou, Srivastava, Kannan & Prasanna, ICLR 2020) share.

    A batch is the subgraph that is induced on the drawn nodes, in the order in which they are first drawn, each once.
    All of them are seeds: ``batch_size`` is their number, and the loss runs over all that are training nodes.

    With ``P`` for the chance that nodes are in the batch together, ``node_norm`` of a node is ``1 / P(v)``, so that
    ``sum(node_norm * f(v))`` over the batch estimates the sum of ``f`` over all nodes that can be drawn; and
    ``edge_norm`` of an edge from `u` to `v` is ``P(v) / P(u, v)``, the inverse chance that the edge is there if its
    destination is.

    Attributes:
        draws_own_seeds: True: a batch's seeds are not the ones that were asked for.
    """

    draws_own_seeds: ClassVar[bool] = True
    num_hops: int | None = None

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._tables = TablePool(topology.num_nodes)

    @abstractmethod
    def _draw_nodes(self, seeds: NDArray[np.integer], key: np.uint64) -> NDArray[np.integer]:
        """Draw nodes; one may be drawn several times."""

    @abstractmethod
    def _norms(self, num_draws: int, batch: Subgraph) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Return the batch's `edge_norm` and `node_norm`."""

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        self.refuse_time(time)
        seeds = self.check_seeds(seeds)
        drawn = self._draw_nodes(seeds, key.fold())
        with self._tables.borrow() as table:
            table.start(drawn[:0])
            n_id, _ = table.number(drawn)
            row, col, positions = induced_edges(self.topology, table, n_id)
        batch = Subgraph(n_id, row, col, positions, None, None, len(n_id))
        edge_norm, node_norm = self._norms(len(seeds), batch)
        return Subgraph(n_id, row, col, positions, None, None, len(n_id), edge_norm=edge_norm, node_norm=node_norm)

    def sample_from_nodes(self, index: NodeSamplerInput) -> SamplerOutput:
        """Serve PyG's ``NodeLoader(data, node_sampler=...)``.

        All nodes of the batch are its seeds there too: its ``batch_size`` is their number, and its ``input_id``, which
        PyG wants to have as many entries, holds their global ids. PyG has no place for the norms.
        """
        output = super().sample_from_nodes(index)
        output.metadata = (output.node, None)
        return output


def inclusion_norms(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    visit: NDArray[np.float64],
    visit_both: NDArray[np.float64],
    num_draws: int,
    is_root: NDArray[np.bool_],
    num_roots: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn the chances of one draw into the weights of a batch of `num_draws` draws.

    A draw visits one or more nodes. Draws are independent; or each starts at a root, and the roots of a batch are
    drawn without replacement, as a loader's shuffled seeds are. The chance that all draws miss a set of nodes is then
    that of no root in the set, times that of all walks missing it, which are taken as independent.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        visit: Chance that one draw visits a node, shape ``(N,)``.
        visit_both: Chance that one draw visits both ends of an edge, shape ``(E,)``; empty where none ever does.
        num_draws: Number of draws.
        is_root: Whether each node can be a root, shape ``(N,)``; empty for independent draws.
        num_roots: Number of nodes that can be roots, each equally likely; 0 for independent draws.

    Returns:
        `edge_norm` of shape ``(E,)`` and `node_norm` of shape ``(N,)``, float32.
    """
    edge_norm, node_norm = np.empty(len(row), np.float32), np.empty(len(visit), np.float32)
    _fill_norms(row, col, visit, visit_both, num_draws, is_root, num_roots, edge_norm, node_norm)
    return edge_norm, node_norm


@njit(nogil=True, cache=True)
def _log_miss(visit: float, roots: int, num_roots: int, num_draws: int) -> float:
    """Logarithm of the chance that no draw visits a set of nodes, `roots` of which can be roots."""
    if roots == 0:
        return num_draws * log1p(-visit) if visit < 1 else -inf
    log_miss = 0.0
    for i in range(roots):  # no root is in the set: hypergeometric
        if num_draws >= num_roots - i:
            return -inf
        log_miss += log1p(-num_draws / (num_roots - i))
    rooted = roots / num_roots
    visit = (visit - rooted) / (1 - rooted)
    return log_miss + num_draws * log1p(-max(visit, 0.0)) if visit < 1 else -inf


@njit(nogil=True, cache=True)
def _fill_norms(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    visit: NDArray[np.float64],
    visit_both: NDArray[np.float64],
    num_draws: int,
    is_root: NDArray[np.bool_],
    num_roots: int,
    edge_norm: NDArray[np.float32],
    node_norm: NDArray[np.float32],
) -> None:
    num_nodes = len(visit)
    roots = np.zeros(num_nodes, np.int64)
    log_miss = np.empty(num_nodes)
    chance = np.empty(num_nodes)
    for v in range(num_nodes):
        roots[v] = 1 if len(is_root) > 0 and is_root[v] else 0
        log_miss[v] = _log_miss(visit[v], roots[v], num_roots, num_draws)
        chance[v] = -np.expm1(log_miss[v])
        node_norm[v] = 1 / chance[v]
    for e in range(len(row)):
        u, v = row[e], col[e]
        if u == v or chance[u] == 1:
            edge_norm[e] = 1
            continue
        if chance[v] == 1:
            edge_norm[e] = 1 / chance[u]
            continue
        visit_any = visit[u] + visit[v] - (visit_both[e] if len(visit_both) > 0 else 0.0)
        miss_both = _log_miss(visit_any, roots[u] + roots[v], num_roots, num_draws)
        # P(u, v) = 1 - miss(u) - miss(v) + miss(u, v), without taking nearly equal numbers from each other.
        miss_each = log_miss[u] + log_miss[v]
        together = chance[u] * chance[v] + np.exp(miss_each) * np.expm1(miss_both - miss_each)
        edge_norm[e] = chance[v] / together


@njit(nogil=True, cache=True)
def uniform(key: np.uint64, i: int) -> float:
    """Draw number `i` of a stream, uniform on [0, 1): a multiple of ``2**-53``."""
    return np.float64(mix64(key + _GOLDEN * np.uint64(i)) >> _11) * 2.0**-53


@njit(nogil=True, cache=True)
def first_above(ascending: NDArray[np.number], value: float) -> int:
    """Find the first place whose entry is above `value`; the number of entries if there is none."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] > value:
            high = middle
        else:
            low = middle + 1
    return low

"""GraphSAINT's samplers by the chance of all that a batch can visit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from torch import Tensor

from lightning_gnnopt.sampling import Subgraph, Topology

Sets = dict[frozenset[int], float]  # what can be visited -> its chance


def node_draws(edge_index: Tensor, num_nodes: int) -> Sets:
    """The paper's node sampler: squared norms of the columns of D^-1 (A + I)."""
    adjacency = np.zeros((num_nodes, num_nodes))
    for u, v in edge_index.t().tolist():
        adjacency[v, u] += u != v
    adjacency += np.eye(num_nodes)
    weights = ((adjacency / adjacency.sum(1, keepdims=True)) ** 2).sum(0)
    return {frozenset([v]): w for v, w in enumerate((weights / weights.sum()).tolist())}


def edge_draws(edge_index: Tensor, num_nodes: int) -> Sets:
    """The paper's edge sampler: 1 / deg(u) + 1 / deg(v)."""
    pairs = edge_index.t().tolist()
    degree = Counter(v for u, v in pairs if u != v)
    weights = [1 / max(degree[u], 1) + 1 / max(degree[v], 1) for u, v in pairs]
    sets: Sets = {}
    for pair, weight in zip(pairs, weights, strict=True):
        sets[frozenset(pair)] = sets.get(frozenset(pair), 0) + weight / sum(weights)
    return sets


def walks_from(edge_index: Tensor, root: int, length: int) -> Sets:
    """All walks along in-edges from `root`, by what they visit."""
    walks = {(root,): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for walk, chance in walks.items():
            sources = edge_index[0, edge_index[1] == walk[-1]].tolist() or [walk[-1]]
            for u in sources:
                longer[(*walk, u)] = longer.get((*walk, u), 0) + chance / len(sources)
        walks = longer
    sets: Sets = {}
    for walk, chance in walks.items():
        sets[frozenset(walk)] = sets.get(frozenset(walk), 0) + chance
    return sets


def union(first: Sets, second: Sets) -> Sets:
    sets: Sets = {}
    for a, p in first.items():
        for b, q in second.items():
            sets[a | b] = sets.get(a | b, 0) + p * q
    return sets


def all_of(parts: Iterable[Sets]) -> Sets:
    sets: Sets = {frozenset(): 1.0}
    for part in parts:
        sets = union(sets, part)
    return sets


def chance(sets: Sets, *nodes: int) -> float:
    return sum(p for visited, p in sets.items() if visited.issuperset(nodes))


def check_norms(batch: Subgraph, sets: Sets, rel: float = 1e-5) -> None:
    assert batch.node_norm.dtype == batch.edge_norm.dtype == np.float32
    n_id = batch.n_id.tolist()
    assert batch.node_norm.tolist() == pytest.approx([1 / chance(sets, v) for v in n_id], rel=rel)
    expected = [
        chance(sets, n_id[v]) / chance(sets, n_id[u], n_id[v])
        for u, v in zip(batch.row.tolist(), batch.col.tolist(), strict=True)
    ]
    assert batch.edge_norm.tolist() == pytest.approx(expected, rel=rel)


def check_induced(batch: Subgraph, edge_index: Tensor, graph: Topology) -> None:
    n_id = batch.n_id.tolist()
    assert len(set(n_id)) == len(n_id) == batch.batch_size
    assert batch.num_sampled_nodes is batch.num_sampled_edges is None
    expected = [
        (n_id.index(u), n_id.index(v), number)
        for number, (u, v) in enumerate(edge_index.t().tolist())
        if u in n_id and v in n_id
    ]
    ids = graph.edge_ids[batch.positions].tolist()
    assert sorted(zip(batch.row.tolist(), batch.col.tolist(), ids, strict=True)) == sorted(expected)

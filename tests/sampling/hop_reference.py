"""Hop-wise sampling in plain Python around any draw: lists and a dict, written from the papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from torch import Tensor

from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology

from .reference import fold, in_edges, mix64, multigraphs

InEdge = tuple[int, int]  # source, edge number
Drawn = list[tuple[int, int, float]]  # source, edge number, edge_norm
Draw = Callable[[list[list[InEdge]], int, int], list[Drawn]]  # in-edges of each node of the hop, size, key


@dataclass
class Batch:
    n_id: list[int]
    edges: list[tuple[int, int]] = field(default_factory=list)
    edge_ids: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    num_nodes: list[int] = field(default_factory=list)
    num_edges: list[int] = field(default_factory=list)


def grow(
    edge_index: Tensor, num_nodes: int, seeds: Sequence[int], sizes: Sequence[int], keys: Sequence[int], draw: Draw
) -> Batch:
    """Sample with `draw`, whose random numbers are keyed by one of `keys` per hop."""
    incoming = in_edges(edge_index, num_nodes)
    local: dict[int, int] = {}
    for place, node in enumerate(seeds):
        local.setdefault(node, place)
    batch = Batch(n_id=list(seeds), num_nodes=[len(seeds)])
    frontier, first = list(seeds), 0
    for size, key in zip(sizes, keys, strict=True):
        before, new = len(batch.edges), []
        for place, drawn in enumerate(draw([incoming[target] for target in frontier], size, key)):
            for source, number, norm in drawn:
                if source not in local:
                    local[source] = len(batch.n_id) + len(new)
                    new.append(source)
                batch.edges.append((local[source], first + place))
                batch.edge_ids.append(number)
                batch.norms.append(norm)
        frontier, first = new, len(batch.n_id)
        batch.n_id += new
        batch.num_nodes.append(len(new))
        batch.num_edges.append(len(batch.edges) - before)
    return batch


def hop_keys(key: SampleKey, num_hops: int) -> list[int]:
    return [mix64(fold(key) ^ hop) for hop in range(num_hops)]


@dataclass
class Case:
    edge_index: Tensor
    num_nodes: int
    seeds: list[int]
    sizes: list[int]
    key: SampleKey

    @property
    def topology(self) -> Topology:
        return Topology.from_edge_index(self.edge_index, self.num_nodes, edge_ids=True)

    def grow(self, draw: Draw, keys: Sequence[int] | None = None) -> Batch:
        keys = hop_keys(self.key, len(self.sizes)) if keys is None else keys
        return grow(self.edge_index, self.num_nodes, self.seeds, self.sizes, keys, draw)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Multigraphs, seeds that may stand twice, one to three hops, some of which take everything."""
    edge_index, num_nodes = draw(multigraphs())
    seeds = draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    sizes = draw(st.lists(st.sampled_from([-1, 1, 2, 3, 5]), min_size=1, max_size=3))
    key = SampleKey(*draw(st.tuples(*[st.integers(0, 99)] * 4)))
    return Case(edge_index, num_nodes, seeds, sizes, key)


def assert_equals_reference(batch: Subgraph, graph: Topology, expected: Batch) -> None:
    """Compare all but the norms, which only some batches have."""
    assert graph.edge_ids is not None
    assert batch.n_id.tolist() == expected.n_id
    assert list(zip(batch.row.tolist(), batch.col.tolist(), strict=True)) == expected.edges
    assert graph.edge_ids[batch.positions].tolist() == expected.edge_ids
    assert batch.num_sampled_nodes == expected.num_nodes
    assert batch.num_sampled_edges == expected.num_edges


def z_scores(total: Sequence[float], squares: Sequence[float], count: int, expected: Sequence[float]) -> list[float]:
    """Standard errors between each mean of `count` draws, given by its sum and sum of squares, and what is expected."""
    scores = []
    for s, q, e in zip(total, squares, expected, strict=True):
        mean, variance = s / count, max(q / count - (s / count) ** 2, 0.0)
        scores.append(0.0 if abs(mean - e) < 1e-6 * max(abs(e), 1.0) else (mean - e) / (variance / count) ** 0.5)
    return scores

"""Random numbers and sampling in plain Python: slow, and written from the papers rather than from the package.

And the random graphs that are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.stats import chi2
from torch import Tensor
from torch_geometric.data import HeteroData

from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.sampling.hetero_topology import EdgeType

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15

# A fair generator fails a test at this level once in ten thousand seeds; the seeds below are fixed.
SIGNIFICANCE = 1e-4


def mix64(word: int) -> int:
    """SplitMix64: one step of its counter, then its output function."""
    word = (word + GOLDEN) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def uniform_below(state: int, bound: int) -> tuple[int, int]:
    """Lemire's algorithm 5 over 32-bit words: the upper halves of a SplitMix64 stream."""
    while True:
        state = (state + GOLDEN) % WORD
        product = (mix64(state) >> 32) * bound
        if product % 2**32 >= 2**32 % bound:
            return product >> 32, state


def fold(key: Sequence[int]) -> int:
    word = 0
    for part in key:
        word = mix64(word ^ (part % WORD))
    return word


def bounded(half: int, bound: int, spare: int) -> int:
    """Lemire's algorithm 5 on 32 given bits; where these are rejected, on the stream that starts at `spare`."""
    product = half * bound
    if product % 2**32 >= 2**32 % bound:
        return product >> 32
    return uniform_below(spare, bound)[0]


def state_of(hop_key: int, place: int, fanout: int, *, replace: bool = False) -> int:
    """Where the words of the hop's node number `place` begin: one for each draw, or for two without replacement."""
    return (hop_key + place * (fanout if replace else -(-fanout // 2)) * GOLDEN) % WORD


def draw_positions(degree: int, fanout: int, state: int) -> list[int]:
    """Floyd's draw for few positions, two draws from each word; Knuth's algorithm S for many."""
    chosen: list[int] = []
    if fanout <= 32 or fanout**2 <= 2 * degree:
        for k, j in enumerate(range(degree - fanout, degree)):
            word = mix64((state + (k // 2 + 1) * GOLDEN) % WORD)
            draw = bounded(word % 2**32 if k % 2 else word >> 32, j + 1, word ^ k)
            chosen.append(j if draw in chosen else draw)
        return chosen
    state = mix64(state)
    for j in range(degree):
        draw, state = uniform_below(state, degree - j)
        if draw < fanout - len(chosen):
            chosen.append(j)
        if len(chosen) == fanout:
            break
    return chosen


@dataclass
class Sample:
    n_id: list[int]
    edges: list[tuple[int, int]] = field(default_factory=list)
    edge_ids: list[int] = field(default_factory=list)
    num_nodes: list[int] = field(default_factory=list)
    num_edges: list[int] = field(default_factory=list)


def in_edges(edge_index: Tensor, num_nodes: int) -> list[list[tuple[int, int]]]:
    """For each node the pairs (source, edge number) of its in-edges, in the order of `edge_index`."""
    edges: list[list[tuple[int, int]]] = [[] for _ in range(num_nodes)]
    for number, (source, target) in enumerate(edge_index.t().tolist()):
        edges[target].append((source, number))
    return edges


def sample(edge_index: Tensor, num_nodes: int, seeds: Sequence[int], fanouts: Sequence[int], word: int) -> Sample:
    """Sample node by node with lists and a dict; `word` is the folded key."""
    incoming = in_edges(edge_index, num_nodes)
    local: dict[int, int] = {}
    for place, node in enumerate(seeds):
        local.setdefault(node, place)
    batch = Sample(n_id=list(seeds), num_nodes=[len(seeds)])
    frontier, first = list(seeds), 0
    for hop, fanout in enumerate(fanouts):
        hop_key, before, new = mix64(word ^ hop), len(batch.edges), []
        for place, target in enumerate(frontier):
            candidates = incoming[target]
            if 0 <= fanout < len(candidates):
                chosen = draw_positions(len(candidates), fanout, state_of(hop_key, place, fanout))
                candidates = [candidates[position] for position in chosen]
            for source, number in candidates:
                if source not in local:
                    local[source] = len(batch.n_id) + len(new)
                    new.append(source)
                batch.edges.append((local[source], first + place))
                batch.edge_ids.append(number)
        frontier, first = new, len(batch.n_id)
        batch.n_id += new
        batch.num_nodes.append(len(new))
        batch.num_edges.append(len(batch.edges) - before)
    return batch


def random_graph(num_nodes: int, num_edges: int, *, seed: int = 0) -> Tensor:
    """Draw edges with replacement: multi-edges, self loops and isolated nodes occur."""
    return torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed))


def star(degree: int) -> Topology:
    """Node 0 with the in-neighbours 1, 2, ..., `degree`."""
    sources = torch.arange(1, degree + 1)
    return Topology.from_edge_index(torch.stack([sources, torch.zeros_like(sources)]), degree + 1)


@st.composite
def multigraphs(draw: st.DrawFn, max_nodes: int = 9, max_edges: int = 40) -> tuple[Tensor, int]:
    """Small graphs with self loops, multi-edges, isolated nodes, or no edge at all."""
    num_nodes = draw(st.integers(1, max_nodes))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=max_edges))
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t(), num_nodes


def uniform_p_value(counts: ArrayLike, population: int = 1, fanout: int = 0) -> float:
    """Pearson's test that all cells are equally likely.

    With `fanout` the counts say how often each of `population` positions was among the `fanout` drawn without
    replacement: a draw then varies less than a multinomial one, by ``(population - fanout) / (population - 1)``.
    """
    observed = np.asarray(counts, dtype=np.float64)
    expected = observed.sum() / len(observed)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    if fanout:
        statistic *= (population - 1) / (population - fanout)
    return float(chi2.sf(statistic, len(observed) - 1))


TYPES = ["a", "b", "c"]
RELATIONS: list[EdgeType] = [
    ("a", "to", "b"),
    ("b", "to", "a"),
    ("b", "likes", "a"),
    ("a", "knows", "a"),
    ("c", "is", "b"),
]


def random_data(*, seed: int = 0) -> HeteroData:
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    for name, count in {"a": 50, "b": 40, "c": 30}.items():
        data[name].x = torch.randn(count, 4, generator=generator)
    for name in RELATIONS:
        ends = [torch.randint(data[end].num_nodes, (150,), generator=generator) for end in (name[0], name[2])]
        data[name].edge_index = torch.stack(ends)
        data[name].edge_attr = torch.arange(150) * 10
    return data

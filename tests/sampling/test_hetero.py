from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import HeteroConv, SAGEConv
from torch_geometric.utils import trim_to_layer

from lightning_gnnopt.sampling import SampleKey
from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology

from . import reference
from .reference import RELATIONS, SIGNIFICANCE, TYPES, in_edges, random_data, uniform_p_value


def sample(
    edges: Mapping[EdgeType, Tensor],
    num_nodes: Mapping[str, int],
    seeds: Mapping[str, Sequence[int]],
    fanouts: Mapping[EdgeType, Sequence[int]],
    word: int,
    *,
    disjoint: bool,
) -> dict[str, Any]:
    """Hop by hop, edge type by edge type, node by node, with lists and dicts; nodes are (tree, id)."""
    incoming = {name: in_edges(index, num_nodes[name[2]]) for name, index in edges.items()}
    nodes: dict[str, list[tuple[int, int]]] = {name: [] for name in num_nodes}
    tree = 0
    for name, ids in seeds.items():
        for node in ids:
            nodes[name].append((tree if disjoint else 0, node))
            tree += 1
    local: dict[str, dict[tuple[int, int], int]] = {name: {} for name in num_nodes}
    for name, members in nodes.items():
        for place, member in enumerate(members):
            local[name].setdefault(member, place)
    counts = {name: [len(members)] for name, members in nodes.items()}
    first = dict.fromkeys(num_nodes, 0)
    found: dict[EdgeType, list[tuple[int, int, int]]] = {name: [] for name in edges}
    edge_counts: dict[EdgeType, list[int]] = {name: [] for name in edges}
    for hop in range(len(next(iter(fanouts.values())))):
        hop_key, ends = reference.mix64(word ^ hop), {name: len(members) for name, members in nodes.items()}
        for number, (name, lists) in enumerate(incoming.items()):
            key, fanout, before = reference.mix64(hop_key ^ number), fanouts[name][hop], len(found[name])
            for place, target in enumerate(range(first[name[2]], ends[name[2]])):
                tree, node = nodes[name[2]][target]
                candidates = lists[node]
                if 0 <= fanout < len(candidates):
                    chosen = reference.draw_positions(len(candidates), fanout, reference.state_of(key, place, fanout))
                    candidates = [candidates[position] for position in chosen]
                for source, edge in candidates:
                    if (tree, source) not in local[name[0]]:
                        local[name[0]][tree, source] = len(nodes[name[0]])
                        nodes[name[0]].append((tree, source))
                    found[name].append((local[name[0]][tree, source], target, edge))
            edge_counts[name].append(len(found[name]) - before)
        first = ends
        for name, members in nodes.items():
            counts[name].append(len(members) - ends[name])
    return {"nodes": nodes, "edges": found, "num_nodes": counts, "num_edges": edge_counts}


@st.composite
def hetero_multigraphs(draw: st.DrawFn) -> tuple[dict[EdgeType, Tensor], dict[str, int]]:
    num_nodes = {name: draw(st.integers(1, 6)) for name in TYPES}
    edges = {}
    for name in RELATIONS:
        pair = st.tuples(st.integers(0, num_nodes[name[0]] - 1), st.integers(0, num_nodes[name[2]] - 1))
        pairs = draw(st.lists(pair, max_size=20))
        edges[name] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).t()
    return edges, num_nodes


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_batches_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    edges, num_nodes = data.draw(hetero_multigraphs())
    names = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True))
    seeds = {n: data.draw(st.lists(st.integers(0, num_nodes[n] - 1), max_size=4)) for n in names}
    seeds[names[0]].append(0)
    num_hops = data.draw(st.integers(1, 3))
    per_hop = st.lists(st.sampled_from([-1, 0, 1, 2, 3]), min_size=num_hops, max_size=num_hops)
    fanouts = {name: data.draw(per_hop) for name in RELATIONS}
    disjoint, limit = data.draw(st.booleans()), data.draw(st.sampled_from([0, 2**30]))
    key = SampleKey(*data.draw(st.tuples(*[st.integers(0, 99)] * 4)))
    graph = HeteroTopology.from_edge_index_dict(edges, num_nodes, edge_ids=True)

    sampler = HeteroNeighborSampler(graph, fanouts, disjoint=disjoint, dense_limit_bytes=limit)
    batch = sampler.sample({name: np.array(ids, np.int64) for name, ids in seeds.items()}, key)

    expected = sample(edges, num_nodes, seeds, fanouts, reference.fold(key), disjoint=disjoint)
    assert {name: ids.tolist() for name, ids in batch.n_id.items()} == {
        name: [node for _, node in members] for name, members in expected["nodes"].items()
    }
    if disjoint:
        assert {name: trees.tolist() for name, trees in batch.batch.items()} == {
            name: [tree for tree, _ in members] for name, members in expected["nodes"].items()
        }
    else:
        assert batch.batch is None
    for name, found in expected["edges"].items():
        edge_ids = graph.relations[name].edge_ids[batch.positions[name]]
        triples = zip(batch.row[name].tolist(), batch.col[name].tolist(), edge_ids.tolist(), strict=True)
        assert list(triples) == found
    assert batch.num_sampled_nodes == expected["num_nodes"]
    assert batch.num_sampled_edges == expected["num_edges"]
    assert batch.num_nodes == sum(map(sum, expected["num_nodes"].values()))
    assert batch.num_edges == sum(map(sum, expected["num_edges"].values()))
    # every type has its entry, of the right type even if empty
    assert set(batch.n_id) == set(TYPES)
    assert set(batch.row) == set(batch.col) == set(batch.positions) == set(RELATIONS)
    assert {ids.dtype for ids in [*batch.n_id.values(), *batch.row.values(), *batch.col.values()]} == {
        np.dtype(np.int32)
    }


class Net(nn.Module):
    """Three layers of one SAGE convolution per edge type, trimmed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HeteroConv({name: SAGEConv((width, width), width) for name in RELATIONS}) for width in (4, 4, 4)
        )

    def forward(self, data: HeteroData, *, trim: bool) -> dict[str, Tensor]:
        x, edges = data.x_dict, data.edge_index_dict
        for number, layer in enumerate(self.layers):
            if trim:
                nodes, counts = data.num_sampled_nodes_dict, data.num_sampled_edges_dict
                x, edges, _ = trim_to_layer(number, nodes, counts, x, edges)
            # A type with no in-edges of its own (c) keeps its features.
            x = {**x, **{name: value.relu() for name, value in layer(x, edges).items()}}
        return x


@pytest.mark.parametrize("workers", [0, 2])
def test_pygs_node_loader_takes_the_sampler(workers: int) -> None:
    data, seeds = random_data(), torch.tensor([7, 0, 33, 21, 9])
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [3, 2])
    loader = NodeLoader(data, sampler, input_nodes=("a", seeds), batch_size=2, num_workers=workers)
    batches = list(loader)
    assert [batch["a"].batch_size for batch in batches] == [2, 2, 1]
    assert torch.cat([batch["a"].input_id for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch["a"].n_id[: batch["a"].batch_size] for batch in batches]).equal(seeds)
    for batch in batches:
        for name in TYPES:
            assert batch[name].x.equal(data[name].x[batch[name].n_id])
            assert batch[name].n_id.dtype == torch.int64
            assert sum(batch[name].num_sampled_nodes) == len(batch[name].n_id)
        for name in RELATIONS:
            edges = batch[name].edge_index
            ids = torch.stack([batch[name[0]].n_id[edges[0]], batch[name[2]].n_id[edges[1]]])
            assert ids.equal(data[name].edge_index[:, batch[name].e_id])
            assert batch[name].edge_attr.equal(10 * batch[name].e_id)
            assert sum(batch[name].num_sampled_edges) == edges.size(1)


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")  # c has no in-edges, on purpose
@pytest.mark.parametrize("disjoint", [False, True])
def test_a_trimmed_net_gives_the_seeds_the_whole_graphs_result(disjoint: bool) -> None:
    data, seeds = random_data(), torch.tensor([7, 0, 33])
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [-1, -1, -1], disjoint=disjoint)
    (batch,) = NodeLoader(data, sampler, input_nodes=("a", seeds), batch_size=3)
    torch.manual_seed(0)
    net = Net().eval()
    whole = net(data, trim=False)["a"][seeds]
    torch.testing.assert_close(net(batch, trim=False)["a"][:3], whole)
    torch.testing.assert_close(net(batch, trim=True)["a"][:3], whole)
    if disjoint:
        for name in RELATIONS:
            row, col = batch[name].edge_index
            assert batch[name[0]].batch[row].equal(batch[name[2]].batch[col])


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
@pytest.mark.parametrize(
    "fanouts", [[2, 2, 2], {name: [0, 3, -1] if name[2] == "b" else [2, 1, 2] for name in RELATIONS}]
)
def test_trimming_a_sampled_batch_changes_nothing(fanouts: Any) -> None:
    data = random_data()
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), fanouts)
    for kind in ("a", "b"):
        (batch,) = NodeLoader(data, sampler, input_nodes=(kind, torch.arange(9)), batch_size=9)
        torch.manual_seed(0)
        net = Net().eval()
        torch.testing.assert_close(net(batch, trim=True)[kind][:9], net(batch, trim=False)[kind][:9])


def test_without_edge_ids_there_are_no_edge_attributes() -> None:
    data = random_data()
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data, edge_ids=False), [2])
    (batch,) = NodeLoader(data, sampler, input_nodes=("a", torch.arange(3)), batch_size=3)
    assert "edge_attr" not in batch["b", "to", "a"]
    assert "e_id" not in batch["b", "to", "a"]


def test_relations_draw_fairly_and_apart() -> None:
    """Two relations with the same edges draw differently; each neighbour is as likely; significance 1e-4."""
    star = torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.long)])
    names: list[EdgeType] = [("a", "one", "b"), ("a", "two", "b")]
    graph = HeteroTopology.from_edge_index_dict(dict.fromkeys(names, star), {"a": 12, "b": 1})
    sampler = HeteroNeighborSampler(graph, [4])
    batches = [sampler.sample({"b": np.array([0])}, SampleKey(1, batch=i)) for i in range(2_000)]
    drawn = {name: [tuple(sorted(batch.positions[name].tolist())) for batch in batches] for name in names}
    for positions in drawn.values():
        assert uniform_p_value(np.bincount(np.ravel(positions), minlength=12), population=12, fanout=4) > SIGNIFICANCE
    both = set(zip(drawn[names[0]], drawn[names[1]], strict=True))
    assert len(both) > 1_900  # of 2,000 draws from 495 * 495 pairs of sets
    again = HeteroNeighborSampler(graph, [30], replace=True).sample({"b": np.array([0])}, SampleKey(0))
    assert again.num_sampled_edges == {name: [30] for name in names}


def flat(batch: HeteroSubgraph) -> list[list[int]]:
    return [ids.tolist() for part in (batch.n_id, batch.row, batch.col, batch.positions) for ids in part.values()]


def test_many_threads_and_other_processes_draw_the_same_bits() -> None:
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(random_data()), [3, 3])
    seeds = [{"a": np.arange(i, i + 8), "c": np.array([i % 30])} for i in range(40)]
    keys = [SampleKey(3, batch=i) for i in range(40)]
    alone = [flat(sampler.sample(*pair)) for pair in zip(seeds, keys, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        assert [flat(batch) for batch in pool.map(sampler.sample, seeds, keys)] == alone
    copy = pickle.loads(pickle.dumps(sampler))
    assert flat(copy.sample(seeds[5], keys[5])) == alone[5]
    assert flat(copy.sample(seeds[5], keys[6])) != alone[5]


@pytest.mark.parametrize("kind", [list, torch.tensor, np.uint8, np.int32])
def test_seeds_of_any_kind(kind: Any) -> None:
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(random_data()), [3, 3])
    expected = sampler.sample({"a": np.arange(9)}, SampleKey(7))
    assert flat(sampler.sample({"a": kind(range(9)), "b": kind([])}, SampleKey(7))) == flat(expected)


# real graphs


@pytest.mark.parametrize(
    ("folder", "relations", "counts"),
    [
        ("heco_acm", {"a": "pa.txt", "s": "ps.txt"}, {"p": 4_019, "a": 7_167, "s": 60}),
        ("heco_dblp", {"a": "pa.txt", "c": "pc.txt", "t": "pt.txt"}, {"p": 14_328, "a": 4_057, "c": 20, "t": 7_723}),
    ],
)
def test_papers_and_their_authors(
    real_data_root: Path, folder: str, relations: dict[str, str], counts: dict[str, int]
) -> None:
    root = real_data_root / folder
    if not root.is_dir():
        pytest.skip(f"no {folder} in the folder of real graphs")
    edges: dict[EdgeType, Tensor] = {}
    for other, file in relations.items():
        pairs = torch.from_numpy(np.loadtxt(root / file, dtype=np.int64)).t()
        edges["p", "to", other], edges[other, "to", "p"] = pairs, pairs.flip(0)
    graph = HeteroTopology.from_edge_index_dict(edges, counts, edge_ids=True)
    fanouts = {name: [5, -1] if name[0] == "p" else [-1, 3] for name in edges}
    seeds, key = np.arange(0, counts["p"], 97), SampleKey(1)
    batch = HeteroNeighborSampler(graph, fanouts).sample({"p": seeds}, key)

    expected = sample(edges, counts, {"p": seeds.tolist()}, fanouts, reference.fold(key), disjoint=False)
    assert {name: ids.tolist() for name, ids in batch.n_id.items()} == {
        name: [node for _, node in members] for name, members in expected["nodes"].items()
    }
    assert batch.num_sampled_edges == expected["num_edges"]
    for name, index in edges.items():
        ids = graph.relations[name].edge_ids[batch.positions[name]]
        found = [batch.n_id[name[0]][batch.row[name]], batch.n_id[name[2]][batch.col[name]]]
        assert index[:, ids].tolist() == [part.tolist() for part in found]
        assert ids.tolist() == [edge for _, _, edge in expected["edges"][name]]

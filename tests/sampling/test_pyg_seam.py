"""PyG's link-level loaders with our samplers, against PyG's own preparation of the same links."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput, SamplerOutput
from torch_geometric.sampler import neighbor_sampler as pygs

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, SeedsOnlySampler, Topology
from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology
from lightning_gnnopt.sampling.link import LinkSampler
from lightning_gnnopt.sampling.pyg_seam import sampler_output

from .reference import RELATIONS, random_data, random_graph

N, E = 50, 300
TO_B: EdgeType = ("a", "to", "b")
KNOWS: EdgeType = ("a", "knows", "a")


def make_data() -> Data:
    return Data(x=torch.randn(N, 3), edge_index=random_graph(N, E), edge_attr=torch.arange(E) * 10)


def make_sampler(data: Data, **options: Any) -> NeighborSampler:
    return NeighborSampler(Topology.from_edge_index(data.edge_index, N, edge_ids=True), [4, 3], **options)


def assert_slices(batch: Data, data: Data) -> None:
    """Node features, edges and edge attributes are those of the nodes and edges that the batch says it holds."""
    assert batch.x.equal(data.x[batch.n_id])
    assert batch.n_id[batch.edge_index].equal(data.edge_index[:, batch.e_id])
    assert batch.edge_attr.equal(10 * batch.e_id)
    assert (len(batch.n_id), len(batch.e_id)) == (sum(batch.num_sampled_nodes), sum(batch.num_sampled_edges))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("neg_sampling", [None, "binary", NegativeSampling("binary", 2.5)])
def test_pygs_link_loader_takes_the_sampler(neg_sampling: Any, disjoint: bool, workers: int) -> None:
    data = make_data()
    amount = 0 if neg_sampling is None else NegativeSampling.cast(neg_sampling).amount
    loader = LinkLoader(
        data, make_sampler(data, disjoint=disjoint), neg_sampling=neg_sampling, batch_size=100, num_workers=workers
    )
    batches = list(loader)
    assert len(batches) == 3
    for number, batch in enumerate(batches):
        assert_slices(batch, data)
        assert batch.input_id.tolist() == list(range(100 * number, 100 * number + 100))
        assert batch.n_id[batch.edge_label_index[:, :100]].equal(data.edge_index[:, batch.input_id])
        assert batch.edge_label_index.shape == (2, 100 + 100 * amount)
        if amount:
            assert batch.edge_label.equal(torch.cat([torch.ones(100), torch.zeros(int(100 * amount))]))
        else:
            assert "edge_label" not in batch
        if disjoint:
            row, col = batch.edge_label_index
            assert batch.batch[row].equal(batch.batch[col])
            assert batch.batch[row].equal(torch.arange(len(row)) % 100)
        else:
            # pyg#9589: an id that is an end of several links is one node, and a batch holds none twice
            assert len(batch.n_id.unique()) == len(batch.n_id)
    drawn = {tuple(batch.n_id[batch.edge_label_index[:, 100:]].ravel().tolist()) for batch in batches}
    assert len(drawn) == (3 if amount else 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("amount", [1, 3])
def test_triplets(amount: int, disjoint: bool, workers: int) -> None:
    data = make_data()
    loader = LinkLoader(
        data,
        make_sampler(data, disjoint=disjoint),
        neg_sampling=NegativeSampling("triplet", amount),
        batch_size=100,
        num_workers=workers,
    )
    for batch in loader:
        assert_slices(batch, data)
        assert batch.src_index.shape == batch.dst_pos_index.shape == (100,)
        assert batch.dst_neg_index.shape == ((100,) if amount == 1 else (100, amount))
        ends = torch.stack([batch.src_index, batch.dst_pos_index])
        assert batch.n_id[ends].equal(data.edge_index[:, batch.input_id])
        assert "edge_label_index" not in batch
        if disjoint:
            assert batch.batch[batch.src_index].equal(torch.arange(100))
            assert batch.batch[batch.dst_pos_index].equal(torch.arange(100))
            assert batch.batch[batch.dst_neg_index.reshape(100, -1)].equal(
                torch.arange(100)[:, None].expand(-1, amount)
            )


@pytest.mark.parametrize("label", [torch.arange(E) % 4, torch.rand(E), torch.arange(2 * E).reshape(E, 2)])
def test_labels_come_along(label: Tensor) -> None:
    """`LinkLoader` counts classes from 1 on where there are negatives."""
    data = make_data()
    for neg_sampling in (None, "binary"):
        loader = LinkLoader(data, make_sampler(data), edge_label=label, neg_sampling=neg_sampling, batch_size=100)
        for batch in loader:
            expected = label[batch.input_id]
            if neg_sampling is not None:
                expected = torch.cat([expected + 1 if label.min() == 0 else expected, torch.zeros_like(expected)])
            assert batch.edge_label.equal(expected)
            assert batch.edge_label.dtype == label.dtype


@pytest.mark.parametrize("neg_sampling", [None, NegativeSampling("binary", 1.5), NegativeSampling("triplet", 2)])
def test_temporal_links_see_the_past_only(neg_sampling: Any) -> None:
    data = make_data()
    data.time = torch.randint(0, 100, (N,), generator=torch.Generator().manual_seed(1))
    edge_time = data.time[data.edge_index].amax(dim=0) + torch.arange(E) % 3
    sampler = make_sampler(data, disjoint=True, node_time=data.time.numpy())
    loader = LinkLoader(data, sampler, edge_label_time=edge_time, neg_sampling=neg_sampling, batch_size=60)
    for batch in loader:
        time = edge_time[batch.input_id]
        assert (batch.time <= time[batch.batch]).all()
        if neg_sampling is None:
            assert batch.edge_label_time.equal(time)
        elif neg_sampling.is_binary():
            assert batch.edge_label_time.equal(time.repeat(3)[:150])
        else:
            assert batch.seed_time.equal(time)
    seeds = torch.arange(20)
    (batch,) = NodeLoader(data, sampler, input_nodes=seeds, input_time=data.time[:20], batch_size=20)
    assert batch.seed_time.equal(data.time[:20])
    assert (batch.time <= data.time[:20][batch.batch]).all()
    (later,) = NodeLoader(data, sampler, input_nodes=seeds, input_time=torch.full((20,), 99), batch_size=20)
    assert later.time.max() > data.time[:20].max()
    assert len(later.n_id) > len(batch.n_id) > 20


def replayed(sampler: Any, key: SampleKey) -> Any:
    """What PyG calls to sample: around nodes, with a fixed key; hands back PyG's type."""

    def sample(seed: Any, seed_time: Any) -> Any:
        if isinstance(seed, dict):
            subgraph = sampler.sample({name: ids.numpy() for name, ids in seed.items()}, key)
        else:
            subgraph = sampler.sample(seed.numpy(), key)
        return sampler_output(subgraph, sampler.topology, None)

    return sample


def assert_same_output(a: Any, b: Any) -> None:
    for name in ("node", "row", "col", "edge", "batch"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if isinstance(ours, Tensor):
            ours, theirs = {"": ours}, {"": theirs}
        assert (ours is None) == (theirs is None), name
        for kind in ours or {}:
            assert ours[kind].dtype == theirs[kind].dtype == torch.int64
            assert ours[kind].equal(theirs[kind]), (name, kind)
    assert a.num_sampled_nodes == b.num_sampled_nodes
    assert a.num_sampled_edges == b.num_sampled_edges
    assert len(a.metadata) == len(b.metadata)
    for ours, theirs in zip(a.metadata, b.metadata, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.equal(theirs))


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("edge_type", [None, TO_B, KNOWS])
@pytest.mark.parametrize(
    ("neg_sampling", "label"),
    [
        (None, None),
        (None, torch.arange(40)),
        (NegativeSampling("binary"), None),
        (NegativeSampling("binary", 2), torch.arange(1, 41)),
        (NegativeSampling("triplet"), None),
        (NegativeSampling("triplet", 3), None),
    ],
)
def test_the_output_is_pygs_own(
    neg_sampling: Any, label: Any, edge_type: Any, disjoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyG's `edge_sample` prepares the same links with our negatives and our sampler: every tensor is equal.

    Only which of a link's shared-node triplet negatives PyG calls first, second, ... differs in order: it fills rows,
    where disjoint trees, in PyG as here, go through all links before the next negative of each.
    """
    if edge_type is None:
        data: Any = make_data()
        sampler: Any = make_sampler(data, disjoint=disjoint)
        num_nodes: Any = N
        row, col = torch.randint(N, (2, 40), generator=torch.Generator().manual_seed(3))
    else:
        data = random_data()
        sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [3, 2], disjoint=disjoint)
        num_nodes = data.num_nodes_dict
        row, col = data[edge_type].edge_index[:, :40]
    index = EdgeSamplerInput(torch.arange(40), row, col, label, None, edge_type)

    monkeypatch.setattr("lightning_gnnopt.sampling.link.torch_key", lambda: SampleKey(5))
    ours = sampler.sample_from_edges(index, neg_sampling)

    ends = {"src": edge_type[0], "dst": edge_type[2]} if edge_type else {}
    nodes = {end: ours.node if edge_type is None else ours.node[kind] for end, kind in {**ends}.items()}
    nodes = nodes or {"src": ours.node, "dst": ours.node}
    if neg_sampling is not None and neg_sampling.is_binary():
        drawn = {end: nodes[end][ours.metadata[1][place, 40:]] for place, end in enumerate(("src", "dst"))}
    elif neg_sampling is not None:
        negative_PK = nodes["dst"][ours.metadata[3]].reshape(40, -1)
        drawn = {"dst": negative_PK.t().ravel() if disjoint else negative_PK.ravel()}
    monkeypatch.setattr(pygs, "neg_sample", lambda *args, endpoint, **options: drawn[endpoint])
    theirs = pygs.edge_sample(index, replayed(sampler, SampleKey(5)), num_nodes, disjoint, None, neg_sampling)
    assert_same_output(ours, theirs)


def test_weighted_negatives_of_a_loader() -> None:
    data, only_7 = make_data(), torch.eye(N)[7]
    sampler = make_sampler(data)
    for weight in (only_7, None, only_7):
        neg_sampling = NegativeSampling("binary", src_weight=weight)
        for batch in LinkLoader(data, sampler, neg_sampling=neg_sampling, batch_size=100):
            drawn = set(batch.n_id[batch.edge_label_index[0, 100:]].tolist())
            assert (drawn == {7}) == (weight is not None)
    weighted, plain = NegativeSampling("triplet", dst_weight=only_7), NegativeSampling("triplet")
    for _ in range(2):
        for batch in LinkLoader(data, sampler, neg_sampling=weighted, batch_size=100):
            assert set(batch.n_id[batch.dst_neg_index].tolist()) == {7}
        # another loader on the same sampler gets its own negatives
        for batch in LinkLoader(data, sampler, neg_sampling=plain, batch_size=100):
            assert len(set(batch.n_id[batch.dst_neg_index].tolist())) > 30


def test_a_loaders_batches_reuse_what_was_prepared() -> None:
    data = make_data()
    sampler, neg_sampling = make_sampler(data), NegativeSampling("binary", 1, dst_weight=torch.ones(N))
    index = EdgeSamplerInput(None, *data.edge_index[:, :9])
    sampler.sample_from_edges(index, neg_sampling)
    links = sampler._links
    sampler.sample_from_edges(index, neg_sampling)
    assert sampler._links is links
    for other in (copy.deepcopy(neg_sampling), NegativeSampling("binary", 2), NegativeSampling("triplet"), None):
        sampler.sample_from_edges(index, other)
        assert sampler._links is not links
        links = sampler._links


def test_torchs_generator_keys_the_batches() -> None:
    data = make_data()
    sampler, index = make_sampler(data), EdgeSamplerInput(None, *data.edge_index[:, :9])
    torch.manual_seed(1)
    first, second = (sampler.sample_from_edges(index, NegativeSampling("binary")) for _ in range(2))
    torch.manual_seed(1)
    again = sampler.sample_from_edges(index, NegativeSampling("binary"))
    assert_same_output(first, again)
    assert not (first.node[first.metadata[1]]).equal(second.node[second.metadata[1]])


def test_positives_are_kept_out_of_a_loaders_negatives() -> None:
    data = make_data()
    edges = {(u, v) for u, v in data.edge_index.t().tolist()}
    links = LinkSampler(make_sampler(data), negatives="triplet", amount=4, exclude_positives=True)
    for batch in LinkLoader(data, links, neg_sampling=NegativeSampling("triplet", 4), batch_size=100):
        sources = batch.n_id[batch.src_index][:, None].expand(-1, 4)
        pairs = zip(sources.ravel().tolist(), batch.n_id[batch.dst_neg_index].ravel().tolist(), strict=True)
        assert not set(pairs) & edges
    (batch,) = NodeLoader(data, links, input_nodes=torch.arange(5), batch_size=5)
    assert batch.n_id[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "neg_sampling",
    [None, "binary", NegativeSampling("triplet", 3), NegativeSampling("triplet", dst_weight=torch.ones(N))],
)
def test_a_loader_that_asks_for_something_else_is_refused(neg_sampling: Any) -> None:
    data = make_data()
    loader = LinkLoader(data, LinkSampler(make_sampler(data), negatives="triplet"), neg_sampling=neg_sampling)
    message = "but this `LinkSampler` draws edges with ('triplet', 1.0) and its own weights. HINT: give both the same"
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(loader))


def test_seeds_alone_serve_links_too() -> None:
    data = make_data()
    (batch,) = LinkLoader(data, SeedsOnlySampler(Topology.from_edge_index(data.edge_index, N)), batch_size=E)
    assert batch.n_id[batch.edge_label_index].equal(data.edge_index)
    assert batch.edge_index.shape == (2, 0)


def test_a_net_learns_which_links_there_are() -> None:
    """Links join nodes of one group only: after some epochs they are told from random pairs better than by guessing."""
    torch.manual_seed(0)
    group = torch.arange(N) % 2
    pairs = torch.randint(N, (2, 1_200))
    edge_index = pairs[:, group[pairs[0]] == group[pairs[1]]]
    data = Data(x=torch.randn(N, 8), edge_index=edge_index)
    sampler = NeighborSampler(Topology.from_edge_index(edge_index, N), [5, 5])
    net = GraphSAGE(8, 16, num_layers=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        for batch in LinkLoader(data, sampler, neg_sampling="binary", batch_size=64, shuffle=True):
            z = net(batch.x, batch.edge_index)
            score = (z[batch.edge_label_index[0]] * z[batch.edge_label_index[1]]).sum(dim=1)
            loss = functional.binary_cross_entropy_with_logits(score, batch.edge_label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    # Guessing costs log 2; half of the negatives are pairs like any link, which bounds what can be learned.
    assert np.mean(losses[-10:]) < 0.6 < np.mean(losses[:3])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("edge_type", [TO_B, KNOWS, ("a", "unseen", "c")])
@pytest.mark.parametrize("neg_sampling", [None, "binary", NegativeSampling("triplet", 3)])
def test_heterogeneous_links(neg_sampling: Any, edge_type: EdgeType, workers: int) -> None:
    """Also links of a type that the graph has no edges of."""
    data: HeteroData = random_data()
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [3, 2])
    generator = torch.Generator().manual_seed(7)
    links = torch.stack([torch.randint(data[end].num_nodes, (50,), generator=generator) for end in edge_type[::2]])
    loader = LinkLoader(
        data, sampler, (edge_type, links), neg_sampling=neg_sampling, batch_size=25, num_workers=workers
    )
    source_type, _, target_type = edge_type
    for number, batch in enumerate(loader):
        expected = links[:, 25 * number : 25 * number + 25]
        for name in RELATIONS:
            ids = [batch[end].n_id[part] for end, part in zip(name[::2], batch[name].edge_index, strict=True)]
            assert torch.stack(ids).equal(data[name].edge_index[:, batch[name].e_id])
        for name in ("a", "b", "c"):
            assert batch[name].x.equal(data[name].x[batch[name].n_id])
            assert len(batch[name].n_id.unique()) == len(batch[name].n_id)
        if isinstance(neg_sampling, NegativeSampling):
            assert batch[source_type].n_id[batch[source_type].src_index].equal(expected[0])
            assert batch[target_type].n_id[batch[target_type].dst_pos_index].equal(expected[1])
            assert batch[target_type].dst_neg_index.shape == (25, 3)
        else:
            row, col = batch[edge_type].edge_label_index
            assert len(row) == (25 if neg_sampling is None else 50)
            assert batch[source_type].n_id[row[:25]].equal(expected[0])
            assert batch[target_type].n_id[col[:25]].equal(expected[1])
    refused = EdgeSamplerInput(None, links[0], links[1], None, torch.arange(50), edge_type)
    with pytest.raises(ValueError, match=re.escape("`time` needs a sampler with disjoint trees")):
        sampler.sample_from_edges(refused)


def test_heterogeneous_links_need_their_type() -> None:
    data = random_data()
    sampler = HeteroNeighborSampler(HeteroTopology.from_data(data), [3, 2])
    for edge_type in (None, ("a", "x", "z")):
        message = f"`edge_type` must join two node types of the graph, ['a', 'b', 'c'], but got {edge_type}. HINT:"
        with pytest.raises(ValueError, match=re.escape(message)):
            LinkSampler(sampler, edge_type=edge_type)
    message = (
        "`exclude_positives` needs the graph's edges of the links' type, but ('a', 'x', 'c') is none of its edge types"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        LinkSampler(sampler, edge_type=("a", "x", "c"), negatives="binary", exclude_positives=True)
    links = LinkSampler(sampler, edge_type=TO_B, negatives="binary", amount=20, exclude_positives=True)
    batch = links.sample(np.arange(30), np.arange(30), SampleKey(0))
    row, col = batch.edge_label_index[:, 30:]
    pairs = set(zip(batch.subgraph.n_id["a"][row].tolist(), batch.subgraph.n_id["b"][col].tolist(), strict=True))
    assert not pairs & {(u, v) for u, v in data[TO_B].edge_index.t().tolist()}


def test_ids_of_any_type_become_long_tensors() -> None:
    data = make_data()
    out = make_sampler(data).sample_from_nodes(NodeSamplerInput(torch.arange(3), torch.arange(3)))
    assert isinstance(out, SamplerOutput)
    assert {part.dtype for part in (out.node, out.row, out.col, out.edge)} == {torch.int64}
    assert out.metadata[0].tolist() == [0, 1, 2]
    assert out.metadata[1] is None

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.probe_batches import probe_batches
from lightning_gnnopt.sampling import ClusterSampler
from tests.memory.runs import make_datamodule, make_graph


def graph() -> Data:
    data = make_graph()
    data.edge_attr = torch.arange(data.num_edges)
    data.place = torch.arange(data.num_nodes)
    return data


LOADERS: dict[str, Any] = {
    "two hops": {"num_neighbors": [6, 4]},
    "three hops": {"num_neighbors": [4, 3, 3]},
    "one hop": {"num_neighbors": [8]},
    "clusters": {
        "sampler": partial(ClusterSampler, num_parts=12, clusters_per_batch=3),
        "num_neighbors": None,
        "eval_num_neighbors": [6, 4],
    },
    "trees": {"sampler": "shadow", "num_neighbors": [4, 3]},
}


def base(name: str, num_inputs: int = 24) -> Data:
    datamodule = make_datamodule(graph(), edge_id=True, **LOADERS[name])
    datamodule.setup("fit")
    batch: Data = datamodule.train_dataloader().draw(num_inputs)[1]
    return batch


def hops_of(batch: Data) -> tuple[list[int], list[int]]:
    if batch.get("num_sampled_nodes") is None:
        return [batch.batch_size, batch.num_nodes - batch.batch_size], [batch.num_edges]
    return list(batch.num_sampled_nodes), list(batch.num_sampled_edges)


def rank_of(probes: list[Data], **counters: bool) -> tuple[int, int]:
    reader = FeatureReader(probes[0], **counters)
    matrix = np.stack([np.append(1.0, reader(probe)) for probe in probes])
    return int(np.linalg.matrix_rank(matrix / matrix.max(axis=0).clip(1))), matrix.shape[1]


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("name", LOADERS)
def test_no_count_follows_from_the_others(name: str, loops: bool) -> None:
    """Of 20 seeds, each gives as many independent rows as there are columns, also when one is held out."""
    batch = base(name)
    for seed in range(20):
        num = len(FeatureReader(batch, loops=loops).names) + 4
        probes = probe_batches(batch, num, seed=seed, loops=loops)
        for without in range(0, num, 3):
            rank, width = rank_of([probe for i, probe in enumerate(probes) if i != without], loops=loops)
            assert rank == width


def test_the_batch_itself_is_nearly_a_tree_or_there_would_be_no_need() -> None:
    datamodule = make_datamodule(graph(), num_neighbors=[2, 1])
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    drawn = [loader.draw(num)[1] for num in range(2, 12)]
    rank, width = rank_of(drawn, loops=False)
    assert rank <= width
    condition = np.linalg.cond(np.stack([np.append(1.0, FeatureReader(batch)(batch)) for batch in drawn]))
    thinned = probe_batches(base("two hops"), 10)
    better = np.linalg.cond(np.stack([np.append(1.0, FeatureReader(batch)(batch)) for batch in thinned]))
    assert better < condition


@pytest.mark.parametrize("name", LOADERS)
def test_nodes_and_edges_are_those_of_the_batch(name: str) -> None:
    whole = base(name)
    ids = dict(zip(whole.edge_attr.tolist(), whole.edge_index.t().tolist(), strict=True))
    is_tree = "batch" in whole
    for probe in probe_batches(whole, 6, loops=False):
        # Nodes and edges are found again by attributes that number them; trees have a node several times.
        assert torch.equal(probe.x, graph().x[probe.place])
        assert torch.equal(probe.y, graph().y[probe.place])
        assert torch.equal(probe.n_id, probe.place)
        assert probe.input_id.tolist() == [i for i in whole.input_id.tolist() if i in probe.input_id.tolist()]
        nodes, edges = hops_of(probe)
        of_nodes, of_edges = hops_of(whole)
        check_hop_by_hop(probe.n_id, nodes, whole.n_id, of_nodes)
        check_hop_by_hop(probe.edge_attr, edges, whole.edge_attr, of_edges)
        assert (sum(nodes), sum(edges)) == (probe.num_nodes, probe.num_edges)
        for e, u, v in zip(probe.edge_attr.tolist(), *probe.edge_index.tolist(), strict=True):
            # In trees an edge of the graph stands several times.
            ends = graph().edge_index[:, e].tolist() if is_tree else [int(whole.n_id[w]) for w in ids[e]]
            assert [int(probe.n_id[u]), int(probe.n_id[v])] == ends


def check_hop_by_hop(some: Tensor, sizes: list[int], of: Tensor, of_sizes: list[int]) -> None:
    """The ids of each hop are some of that hop's, in the same order."""
    assert len(sizes) == len(of_sizes)
    for part, whole in zip(some.split(sizes), of.split(of_sizes), strict=True):
        remaining = iter(whole.tolist())
        assert all(any(value == other for other in remaining) for value in part.tolist())


@pytest.mark.parametrize("name", LOADERS)
def test_an_edge_ends_where_it_did_or_is_a_loop_there(name: str) -> None:
    whole = base(name)
    for probe in probe_batches(whole, 6, seed=3):
        source, destination = graph().edge_index[:, probe.edge_attr]
        row, col = probe.n_id[probe.edge_index]
        assert torch.equal(col, destination)
        turned = row != source
        assert torch.equal(probe.edge_index[0][turned], probe.edge_index[1][turned])
        # Of each hop at least 3 (0.05 to 0.3 of it) were turned, unless it has fewer.
        for part, size in zip(turned.split(hops_of(probe)[1]), hops_of(probe)[1], strict=True):
            assert part.sum() <= max(3, 0.3 * size)
        assert (probe.edge_index[0] == probe.edge_index[1]).sum() >= min(3, probe.num_edges)


@pytest.mark.parametrize("most", [20, 40, None])
@pytest.mark.parametrize("name", LOADERS)
def test_there_are_no_more_of_a_hop_than_wanted_and_no_fewer_than_three(name: str, most: int | None) -> None:
    whole = base(name)
    for probe in probe_batches(whole, 8, most=most):
        for sizes, of_sizes in zip(hops_of(probe), hops_of(whole), strict=True):
            for size, of_size in zip(sizes, of_sizes, strict=True):
                assert size <= (of_size if most is None else min(of_size, most))
        for size, of_size in zip(hops_of(probe)[0], hops_of(whole)[0], strict=True):
            assert size >= min(3, of_size)


def test_probes_are_a_function_of_the_seed() -> None:
    whole = base("two hops")
    first, again, other = (probe_batches(whole, 3, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.edge_index, two.edge_index)
        assert torch.equal(one.n_id, two.n_id)
    assert [probe.num_edges for probe in first] != [probe.num_edges for probe in other]
    assert len({(probe.num_nodes, probe.num_edges) for probe in first}) == 3


def test_the_batch_stays_as_it_was() -> None:
    whole = base("two hops")
    before = whole.clone()
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    probe_batches(whole, 3)
    for name, value in before.to_dict().items():
        assert torch.equal(whole[name], value) if isinstance(value, Tensor) else whole[name] == value
    assert np.random.get_state()[1].tolist() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


def test_batches_of_links_keep_some_of_them() -> None:
    pairs = torch.stack([torch.arange(24), torch.arange(24).flip(0)])
    whole = base("two hops")
    del whole.input_id, whole.batch_size
    whole.edge_label_index, whole.edge_label = pairs, torch.arange(24)
    for probe in probe_batches(whole, 4):
        kept = probe.edge_label
        assert torch.equal(probe.n_id[probe.edge_label_index], whole.n_id[pairs[:, kept]])
        assert int(probe.edge_label_index.max()) < probe.num_sampled_nodes[0]


def test_a_batch_without_edges() -> None:
    whole = Data(x=torch.rand(9, 2), edge_index=torch.empty(2, 0, dtype=torch.long), batch_size=9)
    whole.num_sampled_nodes, whole.num_sampled_edges = [9, 0], [0]
    probes = probe_batches(whole, 5)
    assert all(probe.num_edges == 0 and 3 <= probe.num_nodes <= 9 for probe in probes)
    assert all(probe.num_sampled_nodes == [probe.num_nodes, 0] for probe in probes)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("name", LOADERS)
def test_large_probes_are_the_batch_several_times(name: str, loops: bool) -> None:
    whole = base(name)
    *small, some, more = probe_batches(whole, 6, loops=loops, large=2)
    assert len(small) == 4
    assert max(probe.num_edges for probe in small) <= whole.num_edges
    if "batch" in whole:  # a tree cannot have more seeds than one
        assert more.num_nodes <= whole.num_nodes
        return
    for probe, blocks in ((some, 3), (more, 5)):
        nodes, edges = hops_of(probe)
        # Odd multiples of 256, no two of them the same.
        assert [*nodes, *edges] == [256 * (blocks + 2 * place) for place in range(len(nodes) + len(edges))]
        assert (sum(nodes), sum(edges)) == (probe.num_nodes, probe.num_edges)
        assert probe.batch_size == len(probe.input_id) == nodes[0]
        assert torch.equal(probe.x, graph().x[probe.place])
        assert torch.equal(probe.n_id, probe.place)
        check_ids(probe.n_id, nodes, whole.n_id, hops_of(whole)[0])
        source, destination = graph().edge_index[:, probe.edge_attr]
        row, col = probe.n_id[probe.edge_index]
        assert torch.equal(col, destination)
        turned = row != source
        assert torch.equal(probe.edge_index[0][turned], probe.edge_index[1][turned])
        assert bool(turned.any()) == loops
        assert all(part.sum() <= 256 for part in turned.split(edges))


def check_ids(some: Tensor, sizes: list[int], of: Tensor, of_sizes: list[int]) -> None:
    """The ids of each hop are all of that hop's, about equally often."""
    for part, whole in zip(some.split(sizes), of.split(of_sizes), strict=True):
        found, times = part.unique(return_counts=True)
        expected, least = whole.unique(return_counts=True)
        assert torch.equal(found, expected)
        shares = times / (least * len(part) / len(whole))
        assert shares.max() < 2


@pytest.mark.parametrize("large", [-1, 3, 2])
def test_no_more_large_probes_than_there_are(large: int) -> None:
    with pytest.raises(ValueError, match=rf"`large` must be 0 to 2 and not above `num`, 1, but got {large}. HINT: "):
        probe_batches(base("two hops"), 1, large=large)

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import LinkLoader
from torch_geometric.sampler import NegativeSampling

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.link_source import LinkSource
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.placement import DevicePlacement
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.simulated import SimulatedDevice
from lightning_gnnopt.sampling import (
    HeteroNeighborSampler,
    HeteroTopology,
    LinkSampler,
    NeighborSampler,
    SampleKey,
    Topology,
)
from lightning_gnnopt.sampling.pyg_seam import torch_key

from .graphs import E, N, make_data
from .hetero_graphs import AT, CITES, WRITES, differences, flat, make_hetero, no_differences

P = 23
LIKES = ("author", "likes", "venue")  # no edges of the graph

NO_NEGATIVES: dict[str, Any] = {}
BINARY = {"negatives": "binary", "amount": 1.5}
TRIPLET = {"negatives": "triplet"}
TRIPLETS = {"negatives": "triplet", "amount": 3}
MODES = [NO_NEGATIVES, BINARY, TRIPLET, TRIPLETS]


def make_links(num_sources: int, num_targets: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.stack([torch.randint(count, (P,), generator=generator) for count in (num_sources, num_targets)])


def make_plain(*, disjoint: bool = False, node_time: Any = None, **options: Any) -> LinkSource:
    """Links of a homogeneous graph; its attributes have the names of the links' own."""
    data = make_data()
    data.edge_attr = torch.randn(E, 2, generator=torch.Generator().manual_seed(1))
    data.edge_label_index, data.edge_label, data.edge_label_time = make_links(N, N)[:, :5], torch.ones(5), torch.ones(5)
    topology = Topology.from_edge_index(data.edge_index, N, edge_ids=True)
    sampler = NeighborSampler(topology, [3, 2], disjoint=disjoint, node_time=node_time)
    builder = BatchBuilder(data, topology, edge_id=True)
    return make_source(data, sampler, builder, make_links(N, N), None, **options)


def make_typed(edge_type: Any = WRITES, *, disjoint: bool = False, **options: Any) -> LinkSource:
    """Links of a heterogeneous graph."""
    data = make_hetero()
    data[WRITES].edge_label_index, data[WRITES].edge_label = make_links(30, 40)[:, :5], torch.ones(5)
    topology = HeteroTopology.from_data(data)
    sampler = HeteroNeighborSampler(topology, [3, 2], disjoint=disjoint)
    builder = HeteroBatchBuilder(data, topology, edge_id=True)
    links = make_links(topology.num_nodes[edge_type[0]], topology.num_nodes[edge_type[2]])
    return make_source(data, sampler, builder, links, edge_type, **options)


def make_source(
    data: Any,
    sampler: Any,
    builder: Any,
    links: torch.Tensor,
    edge_type: Any,
    *,
    label: Any = None,
    time: Any = None,
    **options: Any,
) -> LinkSource:
    split = LinkSplit(links, edge_label=label, edge_label_time=time)
    source = LinkSource(LinkSampler(sampler, edge_type=edge_type, **options), builder, split)
    source.test_data, source.test_split = data, split  # type: ignore[attr-defined]
    return source


def write(source: LinkSource, ids: np.ndarray, key: SampleKey) -> Any:
    plan = source.plan(source.sample(ids, key), ids)
    tensors = [torch.empty(field.part.shape, dtype=field.part.dtype) for field in plan.fields]
    for field, tensor in zip(plan.fields, tensors, strict=True):
        field.part.write(tensor)
    batch = plan.assemble(tensors)
    num_edges = sum(store.edge_index.size(1) for store in batch.stores if "edge_index" in store)
    assert (plan.num_nodes, plan.num_edges) == (batch.num_nodes, num_edges)
    return batch


def both(source: LinkSource, ids: list[int]) -> tuple[Any, Any]:
    """Our batch, and that of PyG's loader by the same key."""
    sampler, split, data = source.sampler, source.test_split, source.test_data
    negatives = None if sampler.negatives is None else NegativeSampling(sampler.negatives, sampler.amount)
    links = split.edge_label_index
    loader = LinkLoader(
        data,
        sampler,
        links if sampler.edge_type is None else (sampler.edge_type, links),
        edge_label=split.edge_label,
        edge_label_time=split.edge_label_time,
        neg_sampling=negatives,
        input_id=torch.arange(P),
    )
    torch.manual_seed(3)
    expected = loader(torch.tensor(ids))
    torch.manual_seed(3)
    found = write(source, np.array(ids), torch_key())
    # PyG sets the number of nodes only where the graph had it; we always do.
    if isinstance(expected, Data):
        expected.num_nodes = len(expected.n_id)
    else:
        for node_type in data.node_types:
            expected[node_type].num_nodes = len(expected[node_type].n_id)
    return found, expected


LABELS = {
    "none": None,
    "links": torch.ones(P),
    "classes": torch.arange(P) % 3,
    "classes from 1": torch.arange(P) % 3 + 1,
    "several": torch.stack([torch.arange(P) % 2, torch.arange(P) % 3], 1).double(),
}


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("options", [NO_NEGATIVES, BINARY])
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("make", [make_plain, make_typed])
def test_batches_are_those_of_pygs_loader(make: Any, label: Any, options: dict[str, Any], disjoint: bool) -> None:
    found, expected = both(make(label=label, disjoint=disjoint, **options), [3, 0, 22, 7, 3])
    assert differences(found, expected) == []
    where = found if isinstance(found, Data) else found[WRITES]
    assert ("edge_label" in where) == (label is not None or bool(options))
    assert "edge_label_time" not in where
    assert not [name for _, name in flat(found) if name == "batch_size"]


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("options", [TRIPLET, TRIPLETS])
@pytest.mark.parametrize("edge_type", [None, WRITES, CITES, AT])
def test_triplets_are_those_of_pygs_loader(edge_type: Any, options: dict[str, Any], disjoint: bool) -> None:
    source = (
        make_plain(disjoint=disjoint, **options)
        if edge_type is None
        else make_typed(edge_type, disjoint=disjoint, **options)
    )
    found, expected = both(source, [3, 0, 22, 7, 3])
    # PyG leaves the whole graph's labels; a batch of triplets has none.
    where = expected if edge_type is None else expected[edge_type]
    if "edge_label" in where:
        del where["edge_label"]
    assert differences(found, expected) == []


@pytest.mark.parametrize("edge_type", [CITES, LIKES])
def test_links_of_one_node_type_or_without_edges_are_those_of_pygs_loader(edge_type: Any) -> None:
    found, expected = both(make_typed(edge_type, **BINARY), [3, 0, 22])
    assert differences(found, expected) == []
    assert found[edge_type].edge_label.tolist() == [1] * 3 + [0] * 5


@pytest.mark.parametrize("options", MODES)
def test_times_are_those_of_pygs_loader(options: dict[str, Any]) -> None:
    time = torch.arange(P) + 20
    source = make_plain(disjoint=True, node_time=np.arange(N) % 40, time=time, **options)
    ids = [3, 0, 22, 7, 3]
    found, expected = both(source, ids)
    expected = expected if options.get("negatives") != "triplet" else without(expected, "edge_label")
    assert differences(found, expected) == []
    given = found.seed_time if options.get("negatives") == "triplet" else found.edge_label_time
    assert given[:5].tolist() == [20 + place for place in ids]
    assert len(given) == (13 if options is BINARY else 5)
    # Nobody sees, and no negative is, what was not there at its link's time.
    reached = found.edge_index.unique()
    later = [node for node in reached.tolist() if int(found.n_id[node]) % 40 > 20 + ids[int(found.batch[node])]]
    ends = set(source.test_split.edge_label_index[:, ids].flatten().tolist())
    assert {int(found.n_id[node]) for node in later} <= ends


def without(batch: Data, name: str) -> Data:
    del batch[name]
    return batch


@pytest.mark.parametrize("make", [make_plain, make_typed])
def test_ends_are_the_splits_links_and_then_negatives(make: Any) -> None:
    ids = np.array([3, 0, 22, 7, 3])
    source = make(**BINARY)
    batch, links = write(source, ids, SampleKey(9)), source.test_split.edge_label_index
    if isinstance(batch, Data):
        where, source_ids, target_ids = batch, batch.n_id, batch.n_id
    else:
        where, source_ids, target_ids = batch[WRITES], batch["author"].n_id, batch["paper"].n_id
    assert where.input_id.tolist() == ids.tolist()
    row, col = where.edge_label_index
    ends = torch.stack([source_ids[row], target_ids[col]])
    assert torch.equal(ends[:, :5], links[:, ids])
    assert ends.shape == (2, 5 + math.ceil(1.5 * 5))
    assert where.edge_label.tolist() == [1.0] * 5 + [0.0] * 8
    assert where.edge_label_index.dtype == where.input_id.dtype == torch.int64


@pytest.mark.parametrize("make", [make_plain, make_typed])
@pytest.mark.parametrize("options", [TRIPLET, TRIPLETS])
def test_triplets_are_ends_of_the_splits_links(make: Any, options: dict[str, Any]) -> None:
    ids = np.array([3, 0, 22, 7, 3])
    source = make(**options)
    batch, links = write(source, ids, SampleKey(9)), source.test_split.edge_label_index
    first, second = (batch, batch) if isinstance(batch, Data) else (batch["author"], batch["paper"])
    assert torch.equal(first.n_id[first.src_index], links[0, ids])
    assert torch.equal(second.n_id[second.dst_pos_index], links[1, ids])
    assert second.dst_neg_index.shape == ((5,) if options is TRIPLET else (5, 3))
    assert int(second.dst_neg_index.max()) < second.num_nodes
    assert not [name for _, name in flat(batch) if name.startswith("edge_label")]


def make_loader(source: LinkSource, **options: Any) -> PrefetchLoader:
    return PrefetchLoader(source, SeedOrder(source.num_inputs, 5, shuffle=True, seed=2), **options)


@pytest.mark.parametrize("make", [make_plain, make_typed])
def test_a_pass_delivers_each_link_once(make: Any) -> None:
    source = make(**BINARY)
    batches = list(make_loader(source, num_workers=2))
    where = [batch if isinstance(batch, Data) else batch[WRITES] for batch in batches]
    assert source.num_inputs == P
    assert torch.cat([part.input_id for part in where]).tolist() == SampleKey(2, 0).permutation(P).tolist()
    assert [int(part.edge_label.sum()) for part in where] == [5, 5, 5, 5, 3]
    assert differences(batches[1], write(source, SampleKey(2, 0).permutation(P)[5:10], SampleKey(2, 0, 1))) == []


@pytest.mark.parametrize("make", [make_plain, make_typed])
@pytest.mark.parametrize("options", [{**BINARY, "label": torch.arange(P) % 3}, TRIPLETS])
def test_batches_are_the_same_bits_for_any_number_of_workers(make: Any, options: dict[str, Any]) -> None:
    inline, threaded = (make_loader(make(**options), num_workers=workers) for workers in (0, 2))
    first, second = (list(loader) for loader in (inline, inline))
    assert no_differences(list(threaded), first)
    assert no_differences(list(threaded), second)
    assert not no_differences(first, second)


@pytest.mark.parametrize("make", [make_plain, make_typed])
@pytest.mark.parametrize("options", [{**BINARY, "label": torch.arange(P) % 3}, TRIPLETS])
def test_evaluation_has_the_same_negatives_in_each_epoch(make: Any, options: dict[str, Any]) -> None:
    source = make(**options)
    loader = PrefetchLoader(source, SeedOrder(P, 5), redraw=False, num_workers=0)
    assert no_differences(list(loader), list(loader))
    redrawn = PrefetchLoader(source, SeedOrder(P, 5), num_workers=0)
    assert not no_differences(list(redrawn), list(redrawn))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make", [make_plain, make_typed])
@pytest.mark.parametrize("options", MODES)
def test_batches_on_a_device_are_those_on_the_host(make: Any, options: dict[str, Any], num_workers: int) -> None:
    expected = list(make_loader(make(disjoint=True, **options), num_workers=0))
    with SimulatedDevice() as device:
        loader = make_loader(make(disjoint=True, **options), num_workers=num_workers, placement=DevicePlacement(device))
        for batch, other in zip(loader, expected, strict=True):
            device.synchronize()
            assert differences(batch, other) == []
        assert len(device.copied_bytes) == 5  # one packed copy each
        del batch


def test_the_graphs_own_links_are_left_alone() -> None:
    source = make_typed(**TRIPLET)
    before = flat(source.test_data).keys()
    first, second = (write(source, np.arange(3), SampleKey(0)) for _ in range(2))
    assert flat(source.test_data).keys() == before
    assert "edge_label_index" in source.test_data[WRITES]
    first["author"].src_index.zero_()
    assert torch.equal(second["author"].n_id[second["author"].src_index], source.test_split.edge_label_index[0, :3])


def test_a_task_makes_sources() -> None:
    links = LinkSplit(make_links(30, 40))
    own = LinkSplit(links.edge_label_index, edge_label=(torch.arange(P) < 20).float(), has_negatives=True)
    task = LinkTask(train=links, val=own, predict=links, negatives="binary", amount=2, edge_type=WRITES)
    data = make_hetero()
    topology = HeteroTopology.from_data(data)
    sampler, builder = HeteroNeighborSampler(topology, [2]), HeteroBatchBuilder(data, topology)
    ids, labels = np.array([1, 22]), {}
    for stage in task.splits:
        batch = write(task.source(stage, sampler, builder), ids, SampleKey(0))
        labels[stage] = batch[WRITES].edge_label.tolist() if "edge_label" in batch[WRITES] else None
    assert labels == {"train": [1, 1, 0, 0, 0, 0], "val": [1, 0], "predict": None}


def test_what_does_not_belong_together_is_refused() -> None:
    plain, typed = make_plain(), make_typed()
    links = LinkSplit(make_links(8, 8))

    def refused(message: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=rf"^{re.escape(message)} HINT: .+\.$"):
            LinkSource(*arguments)

    must = "`builder` must build batches of what `sampler` samples"
    refused(f"{must}, a Topology, but is a HeteroBatchBuilder.", plain.sampler, typed.builder, links)
    refused(f"{must}, a HeteroTopology, but is a BatchBuilder.", typed.sampler, plain.builder, links)
    refused(
        "`edge_label_index` must hold sources from 0 to 29 (30 nodes), but found 30.",
        *(typed.sampler, typed.builder, LinkSplit(torch.tensor([[30], [1]]))),
    )
    own = LinkSplit(links.edge_label_index, edge_label=torch.arange(P) % 2, has_negatives=True)
    binary, triplet = make_plain(**BINARY), make_plain(**TRIPLET)
    refused(
        "`negatives` of `sampler` must be None for links that have 12 negatives already, but it is 'binary'.",
        *(binary.sampler, plain.builder, own),
    )
    labelled = LinkSplit(links.edge_label_index, edge_label=torch.ones(P))
    refused(
        "`edge_label` must be None for triplets, whose loss compares destinations, but labels were given.",
        *(triplet.sampler, plain.builder, labelled),
    )
    assert LinkSource(plain.sampler, plain.builder, own).num_inputs == P
    assert repr(binary).startswith("LinkSampler(NeighborSampler(")

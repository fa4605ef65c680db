from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import RandomLinkSplit

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.link_split import LinkSplit, find_edge_type, without_links
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, NeighborSampler, SampleKey, Topology

from .graphs import E, N, make_data
from .hetero_graphs import CITES, WRITES, WRITTEN, make_hetero

ENDS = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])


def make_split(*labels: float, **options: Any) -> LinkSplit:
    return LinkSplit(ENDS, edge_label=torch.tensor(labels) if labels else None, **options)


def split_randomly(data: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    return RandomLinkSplit(num_val=0.1, num_test=0.2, **options)(make_data() if data is None else data)


@pytest.fixture(autouse=True)
def _no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*HINT.*")
        yield


# ---------------------------------------------------------------------------------------------- LinkSplit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"edge_label_index": torch.zeros(4, 2, dtype=torch.long)},
            "`edge_label_index` must be an integer tensor of shape (2, P), but got torch.int64 of shape (4, 2).",
        ),
        (
            {"edge_label_index": torch.zeros(2, 4)},
            "`edge_label_index` must be an integer tensor of shape (2, P), but got torch.float32 of shape (2, 4).",
        ),
        (
            {"edge_label_index": torch.ones(2, 4, dtype=torch.bool)},
            "`edge_label_index` must be an integer tensor of shape (2, P), but got torch.bool of shape (2, 4).",
        ),
        (
            {"edge_label_index": [[1], [2]]},
            "`edge_label_index` must be an integer tensor of shape (2, P), but got list.",
        ),
        (
            {"edge_label_index": torch.zeros(2, 0, dtype=torch.long)},
            "`edge_label_index` must hold at least one link, but it is empty.",
        ),
        (
            {"edge_label": torch.zeros(3)},
            "`edge_label` must be a tensor with one entry for each of the 4 links, but got shape (3,).",
        ),
        (
            {"edge_label": torch.tensor(1.0)},
            "`edge_label` must be a tensor with one entry for each of the 4 links, but got shape ().",
        ),
        (
            {"edge_label": [1, 1, 1, 1]},
            "`edge_label` must be a tensor with one entry for each of the 4 links, but got list.",
        ),
        (
            {"edge_label_time": torch.zeros(4, 1)},
            "`edge_label_time` must be a tensor with one entry for each of the 4 links, but got shape (4, 1).",
        ),
        (
            {"has_negatives": True},
            "`edge_label` must be 0 for some links if `has_negatives` is set, but there are no labels.",
        ),
        (
            {"edge_label": torch.ones(4), "has_negatives": True},
            "`edge_label` must be 0 for some links if `has_negatives` is set, but no label is.",
        ),
    ],
)
def test_splits_that_are_none_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)} HINT: .+\.$"):
        LinkSplit(**{"edge_label_index": ENDS, **arguments})


def test_negatives_are_counted() -> None:
    assert (make_split().num_links, make_split().num_negatives) == (4, 0)
    assert make_split(1, 0, 2, 0, has_negatives=True).num_negatives == 2
    assert make_split(1, 0, 2, 0).num_negatives == 0
    several = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 0]])
    assert LinkSplit(ENDS, edge_label=several, has_negatives=True).num_negatives == 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1.0, 1.0, 0.0, 0.0], True),
        ([2, 1, 3, 0], True),
        ([1, 0, 1, 0], False),
        ([0, 1, 2, 1], False),
        ([1, 1, 1, 1], False),
        ([0, 0, 0, 0], False),
        (None, False),
    ],
)
def test_zeros_behind_all_others_are_negatives(labels: list[float] | None, expected: bool) -> None:
    data = Data(edge_label_index=ENDS, edge_label=None if labels is None else torch.tensor(labels), num_nodes=9)
    split = LinkSplit.from_data(data)
    assert split.has_negatives == expected
    assert split.edge_label is data.edge_label if labels else split.edge_label is None


def test_a_graph_without_links_is_refused() -> None:
    message = (
        "`data` must hold `edge_label_index`, a split's links, but holds edge_index, num_nodes. HINT:"
        " `torch_geometric.transforms.RandomLinkSplit` makes splits; leave out its `split_labels`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LinkSplit.from_data(Data(edge_index=ENDS, num_nodes=9))


def test_the_links_of_a_hetero_graph_are_found() -> None:
    data = make_hetero()
    with pytest.raises(ValueError, match=r"^`edge_type` must be a type with `edge_label_index`, one of \[\], but got"):
        LinkSplit.from_data(data)
    data[CITES].edge_label_index = ENDS
    data[CITES].edge_label_time = torch.arange(4)
    split = LinkSplit.from_data(data)
    assert (split.edge_label_index is ENDS, split.edge_label_time.tolist()) == (True, [0, 1, 2, 3])
    data[WRITES].edge_label_index = ENDS.flip(0)
    with pytest.raises(ValueError, match=r"but got None\. HINT: `RandomLinkSplit"):
        find_edge_type(data, None)
    assert find_edge_type(data, WRITES) == WRITES
    with pytest.raises(ValueError, match=r"but got \('paper', 'written', 'author'\)"):
        find_edge_type(data, WRITTEN)


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([[3], [8]], "sources from 0 to 2 (3 nodes), but found 3"),
        ([[0], [9]], "destinations from 0 to 8 (9 nodes), but found 9"),
        ([[-1], [0]], "sources from 0 to 2 (3 nodes), but found -1"),
    ],
)
def test_ends_outside_the_graph_are_refused(ends: list[list[int]], found: str) -> None:
    split = LinkSplit(torch.tensor(ends))
    with pytest.raises(ValueError, match=rf"^`val\.links` must hold {re.escape(found)}\. HINT: .+\.$"):
        split.check_ids(3, 9, name="val.links")
    LinkSplit(torch.tensor([[2], [8]])).check_ids(3, 9)


def test_a_graph_without_its_links_is_the_same_graph() -> None:
    data = make_hetero()
    keys = set(data[CITES].keys())
    data[CITES].edge_label_index, data[CITES].edge_label = data[CITES].edge_index, torch.ones(160)
    rest = without_links(data)
    assert set(rest[CITES].keys()) == keys
    assert "edge_label" in data[CITES]
    assert rest["paper"].x is data["paper"].x
    plain = make_data().update({"edge_label_index": ENDS, "edge_label": torch.ones(4), "edge_label_time": ENDS[0]})
    assert set(without_links(plain).keys()) == set(make_data().keys())


# ---------------------------------------------------------------------------------------------- LinkTask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "A `LinkTask` must have links for a stage, but got none."),
        ({"train": ENDS}, "`train` must be a `LinkSplit`, but got Tensor."),
        (
            {"val": make_split(), "negatives": "triple"},
            "Unknown negatives 'triple'. Did you mean 'triplet'? Known: binary, triplet.",
        ),
        (
            {"val": make_split(), "negatives": "triplet", "amount": 1.5},
            "`amount` must be positive, and a whole number for triplets, but got 1.5.",
        ),
        (
            {"val": make_split(), "negatives": "binary", "amount": 0},
            "`amount` must be positive, and a whole number for triplets, but got 0.",
        ),
        ({"val": make_split(), "edge_type": ("a", "b")}, "`edge_type` must be three names, but got ('a', 'b')."),
        ({"val": make_split(), "edge_type": "abc"}, "`edge_type` must be three names, but got 'abc'."),
        (
            {"val": make_split(1, 1, 1, 1), "negatives": "triplet"},
            "`val.edge_label` must be None for triplets, whose loss compares destinations, but labels were given.",
        ),
    ],
)
def test_tasks_that_are_none_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)} HINT: .+\.$"):
        LinkTask(**arguments)


def test_an_edge_type_may_be_a_list() -> None:
    assert LinkTask(train=make_split(), edge_type=list(WRITES)).edge_type == WRITES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train": make_split(1, 1, 0, 0, has_negatives=True), "negatives": "binary"},
            "`negatives='binary'` draws nothing in training: `train` has 2 negatives of its own, labelled 0, which stay"
            " the same in every epoch. HINT: `RandomLinkSplit(add_negative_train_samples=False)` leaves them to be"
            " drawn.",
        ),
        (
            {"train": make_split(), "amount": 2.0, "exclude_positives": True},
            "`amount`, `exclude_positives` do nothing with `negatives=None`, which draws no negatives."
            ' HINT: `negatives="binary"` draws pairs of nodes.',
        ),
        (
            {"train": make_split(), "dst_weight": [1.0]},
            "`dst_weight` does nothing with `negatives=None`, which draws no negatives."
            ' HINT: `negatives="binary"` draws pairs of nodes.',
        ),
        (
            {"train": make_split(), "src_weight": [1.0], "negatives": "triplet"},
            "`src_weight` does nothing with triplets, of which only destinations are drawn. HINT: leave it away.",
        ),
    ],
)
def test_what_does_nothing_is_warned_of(arguments: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        LinkTask(**arguments)


def test_negatives_are_drawn_where_there_are_none_and_not_to_predict() -> None:
    own = make_split(1, 1, 0, 0, has_negatives=True)
    task = LinkTask(train=make_split(), val=own, test=make_split(), predict=make_split(), negatives="binary", amount=2)
    assert list(task.splits) == ["train", "val", "test", "predict"]
    assert [task.draws_negatives(stage) for stage in task.splits] == [True, False, True, False]
    sampler = NeighborSampler(Topology.from_edge_index(make_data().edge_index, N), [2])
    made = {stage: task.sampler(stage, sampler) for stage in task.splits}
    assert {stage: links.negatives for stage, links in made.items()} == {
        **{"train": "binary", "val": None},
        **{"test": "binary", "predict": None},
    }
    assert made["train"].amount == 2
    assert not LinkTask(train=make_split()).draws_negatives("train")


def test_all_options_reach_the_sampler() -> None:
    topology = HeteroTopology.from_data(make_hetero())
    sampler = HeteroNeighborSampler(topology, [2])
    weights = {"src_weight": np.ones(30), "dst_weight": torch.ones(40)}
    task = LinkTask(
        train=make_split(), negatives="binary", amount=0.5, edge_type=WRITES, exclude_positives=True, **weights
    )
    links = task.sampler("train", sampler)
    assert (links.negatives, links.amount, links.edge_type, links.exclude_positives) == ("binary", 0.5, WRITES, True)
    assert (links.src_weight is weights["src_weight"], links.dst_weight is weights["dst_weight"]) == (True, True)


def test_links_are_checked_against_the_graph() -> None:
    topology = Topology.from_edge_index(make_data().edge_index, N)
    LinkTask(train=make_split()).check(topology)
    beyond = LinkSplit(torch.tensor([[1], [N]]))
    with pytest.raises(ValueError, match=r"^`test\.edge_label_index` must hold destinations from 0 to 59 \(60 nodes\)"):
        LinkTask(train=make_split(), test=beyond).check(topology)
    with pytest.raises(ValueError, match=r"^`edge_type` must be None in a homogeneous graph"):
        LinkTask(train=make_split(), edge_type=WRITES).check(topology)
    # A venue is a destination of "at" only: the same ids are right for one type and wrong for another.
    hetero = HeteroTopology.from_data(make_hetero())
    LinkTask(train=make_split(), edge_type=WRITES).check(hetero)
    with pytest.raises(ValueError, match=r"^`train\.edge_label_index` must hold destinations from 0 to 7 \(8 nodes\)"):
        LinkTask(train=make_split(), edge_type=("paper", "at", "venue")).check(hetero)


def labels_of(task: LinkTask, stage: str) -> list[float]:
    """The labels in a batch of all links of a stage, drawn negatives left out."""
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, N)
    source = task.source(stage, NeighborSampler(topology, [2]), BatchBuilder(data, topology))
    ids = np.arange(source.num_inputs)
    return source.sample(ids, SampleKey(0)).edge_label[: len(ids)].tolist()


def test_classes_have_the_same_numbers_in_all_splits() -> None:
    """PyG raises labels by one per loader, so a split without the class 0 would be numbered otherwise."""
    splits = {"train": make_split(0, 1, 2, 0), "val": make_split(1, 2, 2, 1)}
    task = LinkTask(**splits, negatives="binary")
    assert labels_of(task, "train") == [1, 2, 3, 1]
    assert labels_of(task, "val") == [2, 3, 3, 2]
    assert splits["train"].edge_label.tolist() == [0, 1, 2, 0]
    assert labels_of(LinkTask(**splits), "train") == [0, 1, 2, 0]
    # A split's own negatives are 0 already, and what is predicted is left alone.
    own = make_split(1, 2, 0, 0, has_negatives=True)
    task = LinkTask(**{**splits, "test": own, "predict": splits["train"]}, negatives="binary")
    assert labels_of(task, "test") == [1, 2, 0, 0]
    assert labels_of(task, "predict") == [0, 1, 2, 0]


# ------------------------------------------------------------------------------------------ from_splits


def test_negatives_that_a_random_split_added_are_taken_as_they_are() -> None:
    train, val, test = split_randomly()
    with pytest.warns(UserWarning, match=r"`train` has 210 negatives of its own"):
        task = LinkTask.from_splits(train, val, test, negatives="binary")
    for stage, data, count in (("train", train, 210), ("val", val, 30), ("test", test, 60)):
        split = task.splits[stage]
        assert (split.edge_label_index is data.edge_label_index, split.edge_label is data.edge_label) == (True, True)
        assert (split.num_links, split.num_negatives) == (2 * count, count)
        assert labels_of(task, stage) == [1.0] * count + [0.0] * count
        assert not task.draws_negatives(stage)
    assert [LinkTask.from_splits(train, val, test).draws_negatives(stage) for stage in task.splits] == [False] * 3


def test_training_draws_the_negatives_that_a_random_split_left_out() -> None:
    task = LinkTask.from_splits(*split_randomly(add_negative_train_samples=False), negatives="binary", amount=3.0)
    assert [task.draws_negatives(stage) for stage in ("train", "val", "test")] == [True, False, False]
    assert (task.train.num_links, task.val.num_links, task.test.num_links) == (210, 60, 120)
    assert (task.amount, task.predict) == (3.0, None)


def test_classes_of_a_random_split_agree() -> None:
    """It moves classes by one where it adds negatives, and only there."""
    data = make_data()
    data.edge_label = torch.arange(E) % 4
    parts = split_randomly(data, add_negative_train_samples=False)
    task = LinkTask.from_splits(*parts, negatives="binary")
    assert [task.draws_negatives(stage) for stage in ("train", "val", "test")] == [True, False, False]
    classes: dict[tuple[int, int], set[int]] = {}  # an edge may stand twice
    for number, pair in enumerate(map(tuple, data.edge_index.t().tolist())):
        classes.setdefault(pair, set()).add(number % 4)
    for stage in ("train", "val"):
        split = task.splits[stage]
        for pair, label in zip(split.edge_label_index.t().tolist(), labels_of(task, stage), strict=True):
            assert label == 0 or label - 1 in classes[tuple(pair)]
    assert sorted(set(labels_of(task, "train"))) == [1, 2, 3, 4]


@pytest.mark.parametrize("add", [False, True])
def test_triplets_leave_a_random_splits_negatives_out(add: bool) -> None:
    data = make_data()
    train, val, test = split_randomly(data, add_negative_train_samples=add)
    task = LinkTask.from_splits(train, val, test, negatives="triplet", amount=2)
    edges = set(map(tuple, data.edge_index.t().tolist()))
    for stage, count in (("train", 210), ("val", 30), ("test", 60)):
        split = task.splits[stage]
        assert (split.num_links, split.edge_label, task.draws_negatives(stage)) == (count, None, True)
        assert set(map(tuple, split.edge_label_index.t().tolist())) <= edges


def test_triplets_of_links_with_classes_are_refused() -> None:
    data = make_data()
    data.edge_label = torch.arange(E) % 4
    with pytest.raises(ValueError, match=r"^`train\.edge_label` must be None for triplets"):
        LinkTask.from_splits(split_randomly(data)[0], negatives="triplet")


@pytest.mark.parametrize("edge_type", [None, WRITES])
def test_hetero_splits_know_their_type(edge_type: Any) -> None:
    options = {"edge_types": [WRITES], "rev_edge_types": [WRITTEN], "add_negative_train_samples": False}
    parts: list[HeteroData] = split_randomly(without_attributes(make_hetero()), **options)
    task = LinkTask.from_splits(*parts, edge_type=edge_type, negatives="binary")
    assert (task.edge_type, list(task.splits)) == (WRITES, ["train", "val", "test"])
    assert (task.train.num_links, task.val.num_links, task.val.num_negatives) == (84, 24, 12)
    task.check(HeteroTopology.from_data(parts[0], edge_ids=False))
    with pytest.raises(ValueError, match=r"^`edge_type` must be a type with `edge_label_index`"):
        LinkTask.from_splits(*parts, edge_type=CITES)


def without_attributes(data: HeteroData) -> HeteroData:
    del data[WRITES].edge_attr  # its reverse has none, and fewer edges
    return data


def test_split_labels_are_refused() -> None:
    train, *_ = split_randomly(split_labels=True)
    with pytest.raises(ValueError, match=r"but holds edge_index, neg_edge_label, .+ leave out its `split_labels`\.$"):
        LinkTask.from_splits(train)

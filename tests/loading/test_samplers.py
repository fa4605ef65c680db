"""How a DataModule comes by its samplers: names, functions, weights, times, and what may evaluate."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.sampling import (
    SAMPLERS,
    ClusterSampler,
    LaborSampler,
    LadiesSampler,
    NeighborSampler,
    SaintNodeSampler,
    SaintWalkSampler,
    SeedsOnlySampler,
    ShadowSampler,
    Topology,
)

from .graphs import C, E, N, make_data, prefetch_threads, same_batches
from .modules import Recorder, make_trainer


@pytest.mark.parametrize("name", ["neighbor", "labor", "shadow"])
def test_a_named_sampler_takes_the_fan_outs(name: str) -> None:
    sampler = GraphDataModule(make_data(), sampler=name, num_neighbors=[4, 3]).sampler
    assert type(sampler) is SAMPLERS[name]
    assert sampler.num_neighbors == [4, 3]
    assert GraphDataModule(make_data(), sampler=name).sampler.num_neighbors == [15, 10]


@pytest.mark.parametrize("name", ["saint-node", "saint-edge"])
def test_a_sampler_without_arguments_needs_only_its_name(name: str) -> None:
    assert type(GraphDataModule(make_data(), sampler=name, eval_mode="layerwise").sampler) is SAMPLERS[name]


@pytest.mark.parametrize(
    ("name", "needs", "example"),
    [
        ("ladies", "layer_sizes", "LadiesSampler, layer_sizes=[512, 512]"),
        ("fastgcn", "layer_sizes", "FastGCNSampler, layer_sizes=[512, 512]"),
        ("cluster", "num_parts", "ClusterSampler, num_parts=1500"),
        ("saint-walk", "walk_length", "SaintWalkSampler, walk_length=2"),
    ],
)
def test_a_name_that_says_too_little_is_refused(name: str, needs: str, example: str) -> None:
    hint = f" HINT: pass `sampler=functools.partial({example})`, or run `gnnopt-train sampler={name}`."
    message = f"`sampler='{name}'` needs `{needs}`, which a name does not say.{hint}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(make_data(), sampler=name, eval_mode="layerwise")
    message = f"`num_neighbors` must be left out with `sampler='{name}'`, which has no fan-outs, but got [5].{hint}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(make_data(), sampler=name, num_neighbors=[5], eval_mode="layerwise")


def test_fan_outs_for_a_sampler_without_arguments_are_refused() -> None:
    message = (
        "`num_neighbors` must be left out with `sampler='saint-node'`, which has no fan-outs, but got [5]."
        " HINT: drop it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(make_data(), sampler="saint-node", num_neighbors=[5], eval_mode="layerwise")


def refusal(name: str) -> str:
    return (
        f"`eval_mode='sampled'` needs `eval_num_neighbors` with {name}, whose batches are subgraphs to train on, not"
        " neighbourhoods of the seeds. HINT: `eval_mode='layerwise'` evaluates exactly, `eval_num_neighbors=[15, 10]`"
        " on sampled neighbours."
    )


TRAINS_ONLY = {
    "cluster": partial(ClusterSampler, num_parts=4),
    "saint": SaintNodeSampler,
    "saint, by name": "saint-edge",
    "twice partial": partial(partial(SaintWalkSampler, walk_length=2), coverage=1),
}


@pytest.mark.parametrize("name", TRAINS_ONLY)
def test_evaluation_on_subgraphs_to_train_on_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(refusal('this `sampler`'))}$"):
        GraphDataModule(make_data(), sampler=TRAINS_ONLY[name])
    for evaluation in ({"eval_mode": "layerwise"}, {"eval_num_neighbors": [3, 2]}):
        datamodule = GraphDataModule(make_data(), sampler=TRAINS_ONLY[name], **evaluation)
        kind = SeedsOnlySampler if "eval_mode" in evaluation else NeighborSampler
        assert type(datamodule.eval_sampler) is kind


@pytest.mark.parametrize("start", [lambda d: make_trainer(1).fit(Recorder(), d), lambda d: d.val_dataloader()])
def test_a_function_that_hides_its_sampler_is_refused_when_it_is_built(start: Callable[[Any], Any]) -> None:
    datamodule = GraphDataModule(make_data(), sampler=lambda topology: ClusterSampler(topology, 4))
    with pytest.raises(ValueError, match=f"^{re.escape(refusal('ClusterSampler'))}$"):
        start(datamodule)


@pytest.mark.parametrize("name", ["labor", "shadow"])
def test_samplers_around_seeds_evaluate_as_they_train(name: str) -> None:
    datamodule = GraphDataModule(make_data(), sampler=name, num_neighbors=[3, 2])
    assert datamodule.eval_sampler is datamodule.sampler
    first, second = (list(datamodule.val_dataloader()) for _ in range(2))
    assert same_batches(first, second)


def test_walks_start_at_the_training_nodes() -> None:
    walks = partial(SaintWalkSampler, walk_length=2)
    sampler = GraphDataModule(make_data(), sampler=walks, eval_mode="layerwise").sampler
    assert np.flatnonzero(sampler._is_root).tolist() == list(range(35))
    own = partial(walks, roots=np.array([3, 4]))
    sampler = GraphDataModule(make_data(), sampler=own, eval_mode="layerwise").sampler
    assert np.flatnonzero(sampler._is_root).tolist() == [3, 4]


def test_too_few_layer_sizes_are_refused_by_their_name() -> None:
    class Deep(Recorder):
        num_layers = 3

    datamodule = GraphDataModule(make_data(), sampler=partial(LadiesSampler, layer_sizes=[8, 8]))
    message = (
        "`layer_sizes` must hold one fan-out for each of the model's 3 layers, but samples 2 hops ([8, 8])."
        " HINT: lengthen it, or lower the model's `num_layers`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(1).fit(Deep(), datamodule)


def test_samplers_without_hops_feed_any_depth() -> None:
    class Deep(Recorder):
        num_layers = 7

    module = Deep()
    make_trainer(1).fit(module, GraphDataModule(make_data(), sampler="shadow", num_neighbors=[3], batch_size=8))
    assert len(module.losses) == 5
    assert prefetch_threads() == []


# Weights


def weighted_data() -> Data:
    data = make_data()
    data.edge_weight = (torch.arange(E) % 3 != 0).float() * torch.rand(E, generator=torch.Generator().manual_seed(1))
    return data


@pytest.mark.parametrize("sampler", ["neighbor", partial(NeighborSampler, num_neighbors=[-1, -1])])
def test_edges_of_weight_zero_are_never_drawn(sampler: Any) -> None:
    data = weighted_data()
    fanouts = {"num_neighbors": [-1, -1]} if sampler == "neighbor" else {}
    datamodule = GraphDataModule(data, sampler=sampler, weight_attr="edge_weight", batch_size=8, **fanouts)
    drawn = {
        (int(batch.n_id[u]), int(batch.n_id[v]), float(w))
        for loader in (datamodule.predict_dataloader(), datamodule.train_dataloader())
        for batch in loader
        for u, v, w in zip(*batch.edge_index, batch.edge_weight, strict=True)
    }
    edges = {(int(u), int(v), float(w)) for u, v, w in zip(*data.edge_index, data.edge_weight, strict=True)}
    assert drawn == {edge for edge in edges if edge[2] > 0}


def test_weights_are_those_of_a_sampler_built_by_hand() -> None:
    data = weighted_data()
    datamodule = GraphDataModule(
        data, num_neighbors=[3, 2], weight_attr="edge_weight", eval_num_neighbors=[2, 2], batch_size=8
    )
    topology = Topology.from_edge_index(data.edge_index, N, edge_ids=True)
    for mine, fanouts in ((datamodule.sampler, [3, 2]), (datamodule.eval_sampler, [2, 2])):
        by_hand = NeighborSampler(topology, fanouts, edge_weight=data.edge_weight)
        other = GraphDataModule(
            data, batch_size=8, sampler=partial(NeighborSampler, num_neighbors=fanouts, edge_weight=data.edge_weight)
        )
        assert mine.num_neighbors == by_hand.num_neighbors
        loader, expected = datamodule.train_dataloader(), other.train_dataloader()
        loader.source.sampler = mine
        assert same_batches(list(loader), list(expected))


# Times


def timed_data(*, of_edges: bool = False) -> Data:
    data = make_data()
    generator = torch.Generator().manual_seed(2)
    data.year = torch.randint(2000, 2010, (N,), generator=generator)
    if of_edges:
        data.edge_year = torch.randint(2000, 2010, (E,), generator=generator)
    return data


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
@pytest.mark.parametrize("evaluation", [{}, {"eval_num_neighbors": [-1, 5]}])
def test_no_seed_sees_a_node_from_after_its_time(stage: str, evaluation: dict[str, Any]) -> None:
    data = timed_data()
    datamodule = GraphDataModule(data, num_neighbors=[-1, 4], time_attr="year", batch_size=8, **evaluation)
    sampled = 0
    for batch in getattr(datamodule, f"{stage}_dataloader")():
        assert batch.batch[: batch.batch_size].tolist() == list(range(batch.batch_size))
        assert (batch.year[batch.batch_size :] <= batch.year[batch.batch][batch.batch_size :]).all()
        sampled += batch.num_edges
    assert sampled > 20


@pytest.mark.parametrize("stage", ["train", "val"])
def test_no_seed_sees_an_edge_from_after_its_time(stage: str) -> None:
    data = timed_data(of_edges=True)
    datamodule = GraphDataModule(
        data, num_neighbors=[-1, -1], time_attr="edge_year", input_time_attr="year", batch_size=8
    )
    found = []
    for batch in getattr(datamodule, f"{stage}_dataloader")():
        latest = batch.year[batch.batch][batch.edge_index[1]]
        assert (batch.edge_year <= latest).all()
        found += batch.edge_year.tolist()
    assert len(found) > 20


def test_seeds_may_have_times_of_their_own() -> None:
    data = timed_data()
    data.asked = torch.full((N,), 1990)
    datamodule = GraphDataModule(data, num_neighbors=[-1], time_attr="year", input_time_attr="asked")
    assert [batch.num_edges for batch in datamodule.train_dataloader()] == [0]
    data.asked = torch.full((N,), 2050)
    datamodule = GraphDataModule(data, num_neighbors=[-1], time_attr="year", input_time_attr="asked")
    (batch,) = datamodule.train_dataloader()
    assert batch.num_edges == int((data.edge_index[1] < 35).sum())


def test_evaluation_keeps_the_strategy_of_a_function() -> None:
    make = partial(NeighborSampler, num_neighbors=[3], temporal_strategy="last")
    datamodule = GraphDataModule(timed_data(), sampler=make, time_attr="year", eval_num_neighbors=[2])
    assert datamodule.eval_sampler.num_neighbors == [2]
    assert datamodule.eval_sampler.draw.strategy == "last"
    assert datamodule.eval_sampler.disjoint


def times_by_keyword(topology: Topology, **options: Any) -> NeighborSampler:
    return NeighborSampler(topology, [2], **options)


def test_a_function_may_take_weights_and_times_by_keyword() -> None:
    datamodule = GraphDataModule(
        timed_data(), sampler=times_by_keyword, time_attr="year", eval_num_neighbors=[4], num_classes=C
    )
    assert datamodule.eval_sampler.num_neighbors == [4]
    assert datamodule.sampler.temporal
    assert datamodule.eval_sampler.temporal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weight_attr": "edge_wieght"},
            "Unknown weight_attr 'edge_wieght'. Did you mean 'edge_weight'? Known: edge_weight, edge_year."
            " HINT: it must be an attribute of the edges.",
        ),
        ({"weight_attr": "year"}, "Unknown weight_attr 'year'."),
        ({"time_attr": "years"}, "Unknown time_attr 'years'. Did you mean 'year'? Known: edge_weight, edge_year,"),
        ({"time_attr": "year", "input_time_attr": "edge_year"}, "Unknown input_time_attr 'edge_year'."),
        (
            {"weight_attr": "edge_weight", "time_attr": "year"},
            "`weight_attr` and `time_attr` cannot be combined, but got 'edge_weight' and 'year'."
            " HINT: draw by weight, or from the past.",
        ),
        (
            {"input_time_attr": "year"},
            "`input_time_attr` needs `time_attr`, but got 'year' alone."
            " HINT: name the times of the graph's nodes or edges as well.",
        ),
        (
            {"time_attr": "edge_year"},
            "`time_attr` names times of edges, 'edge_year', so `input_time_attr` must say when each seed is looked at,"
            " but it is None. HINT: name an attribute of nodes, such as the time of their label.",
        ),
        (
            {"weight_attr": "edge_weight", "sampler": "labor"},
            "`weight_attr` needs a sampler that takes `edge_weight`, but LaborSampler does not."
            " HINT: `sampler='neighbor'` does; a function of your own must take `edge_weight` as a keyword.",
        ),
        (
            {"time_attr": "year", "sampler": partial(ShadowSampler, num_neighbors=[3])},
            "`time_attr` needs a sampler that takes `node_time`, but ShadowSampler does not.",
        ),
        (
            {"weight_attr": "edge_weight", "sampler": lambda topology: LaborSampler(topology, [2])},
            "`weight_attr` needs a sampler that takes `edge_weight`, but <lambda> does not.",
        ),
        (
            {"time_attr": "year", "eval_mode": "layerwise"},
            "`eval_mode='layerwise'` takes all neighbours, those from after a seed's time too, but `time_attr` is"
            " 'year'. HINT: `eval_num_neighbors=[-1, -1]` evaluates on the whole past of each seed.",
        ),
    ],
)
def test_weights_and_times_that_cannot_be_used_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    data = timed_data(of_edges=True).update({"edge_weight": torch.ones(E)})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        GraphDataModule(data, **arguments)


# Clusters


def cluster_module(**kwargs: Any) -> GraphDataModule:
    parts = np.arange(N) // 10
    sampler = partial(ClusterSampler, parts=parts, clusters_per_batch=2)
    return GraphDataModule(make_data(), sampler=sampler, eval_mode="layerwise", seed=3, **kwargs)


def test_a_batch_is_the_clusters_of_its_seeds_and_every_training_node_of_theirs() -> None:
    data = make_data()
    loader = cluster_module(batch_size=1).train_dataloader()
    epochs = [list(loader) for _ in range(5)]
    for batches in epochs:
        assert len(loader) == len(batches) == 2  # nodes 0 .. 34 lie in four of the six clusters
        assert sorted(v for b in batches for v in b.n_id[: b.batch_size].tolist()) == list(range(35))
        for batch in batches:
            clusters = {v // 10 for v in batch.n_id.tolist()}
            assert len(clusters) == 2
            assert sorted(batch.n_id.tolist()) == [v for v in range(N) if v // 10 in clusters]
            inside = torch.isin(data.edge_index, batch.n_id).all(dim=0)
            assert sorted(zip(*batch.n_id[batch.edge_index].tolist(), strict=True)) == sorted(
                zip(*data.edge_index[:, inside].tolist(), strict=True)
            )
    orders = [[sorted({v // 10 for v in b.n_id.tolist()}) for b in batches] for batches in epochs]
    assert len({str(order) for order in orders}) > 2


def test_clusters_are_those_of_the_training_nodes_wherever_these_stand() -> None:
    data = make_data()
    data.train_mask = torch.zeros(N, dtype=torch.bool).index_fill_(0, torch.tensor([58, 7, 41, 45]), True)
    sampler = partial(ClusterSampler, parts=np.arange(N) // 10)
    loader = GraphDataModule(data, sampler=sampler, eval_mode="layerwise", shuffle=False).train_dataloader()
    assert [batch.n_id[: batch.batch_size].tolist() for batch in loader] == [[7], [41, 45], [58]]
    assert [batch.num_nodes for batch in loader] == [10, 10, 10]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_clusters(world_size: int) -> None:
    clusters, lengths = [], set()
    for rank in range(world_size):
        datamodule = cluster_module()
        datamodule.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=None, overfit_batches=0
        )
        loader = datamodule.train_dataloader()
        lengths.add(len(loader))
        clusters += [c for b in loader for c in sorted({v // 10 for v in b.n_id.tolist()})]
    assert set(clusters) == {0, 1, 2, 3}
    assert len(clusters) == -(-4 // world_size) * world_size
    assert len(lengths) == 1


def test_a_loader_of_clusters_goes_on_where_it_stood() -> None:
    def loader() -> Any:
        sampler = partial(ClusterSampler, parts=np.arange(N) // 4, clusters_per_batch=2)
        return GraphDataModule(make_data(), sampler=sampler, eval_mode="layerwise", seed=3).train_dataloader()

    whole = loader()
    expected = [*whole, *whole]
    first = loader()
    iterator = iter(first)
    taken = [next(iterator) for _ in range(2)]
    state = first.state_dict()
    iterator.close()
    rest = loader()
    rest.load_state_dict(state)
    assert (state["epoch"], state["batch"]) == (0, 2)
    assert len(expected) == 10
    assert same_batches([*taken, *rest, *rest], expected)


def test_an_incomplete_batch_of_clusters_can_be_dropped() -> None:
    sampler = partial(ClusterSampler, parts=np.arange(N) // 10, clusters_per_batch=3)
    sizes = [
        len(GraphDataModule(make_data(), sampler=sampler, eval_mode="layerwise", drop_last=d).train_dataloader())
        for d in (False, True)
    ]
    assert sizes == [2, 1]

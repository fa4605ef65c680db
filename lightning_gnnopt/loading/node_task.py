"""Nodes of a graph with one type of nodes and one type of edges."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.batches import EDGE_FORMATS, BatchBuilder, EdgeFormat
from lightning_gnnopt.loading.checks import (
    check_graph,
    check_labels,
    check_model,
    check_same_graph,
    count_classes,
    is_multilabel,
    split_nodes,
    to_cpu,
)
from lightning_gnnopt.loading.features import FeatureStore, feature_store
from lightning_gnnopt.loading.groups import GroupOrder
from lightning_gnnopt.loading.link_split import without_links
from lightning_gnnopt.loading.narrowing import narrow_dtype
from lightning_gnnopt.loading.samplers import SamplerMaker, graph_options, refuse_evaluation, trains_only
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.shared_data import SharedData
from lightning_gnnopt.loading.sources import NodeSource
from lightning_gnnopt.loading.task import GraphTask, Surroundings
from lightning_gnnopt.sampling import NodeSampler, SeedsOnlySampler, Topology

_LABELLED_STAGES = ("train", "val", "test")


class NodeTask(GraphTask):
    """The nodes that a graph's masks choose, and the samplers around them; arguments are `GraphDataModule`'s.

    Args:
        has_inputs: Whether the inputs are the graph's nodes; otherwise neither masks nor labels are looked at.
    """

    def __init__(
        self,
        data: Data,
        *,
        sampler: str | Callable[..., NodeSampler] | NodeSampler,
        num_neighbors: Sequence[int] | None,
        weight_attr: str | None,
        time_attr: str | None,
        input_time_attr: str | None,
        layerwise: bool,
        eval_num_neighbors: Sequence[int] | None,
        edge_id: bool,
        edge_format: EdgeFormat,
        features: Any,
        feature_dtype: str | None,
        num_classes: int | None,
        has_inputs: bool = True,
    ) -> None:
        check_graph(data, has_features=features is not None, labelled=has_inputs)
        if edge_format not in EDGE_FORMATS:
            raise ValueError(unknown_name("edge_format", edge_format, EDGE_FORMATS))
        times = {"time_attr": time_attr, "input_time_attr": input_time_attr}
        options = graph_options(data, weight_attr=weight_attr, **times, times_of_inputs=has_inputs)
        self._make = SamplerMaker(sampler, num_neighbors, options)
        if self._make.trains_only and not layerwise and eval_num_neighbors is None:
            raise refuse_evaluation("this `sampler`")
        super().__init__()
        self.data = data
        self._features = features
        self._feature_dtype = feature_dtype
        self._layerwise = layerwise
        self._eval_num_neighbors = eval_num_neighbors
        self._edge_id = edge_id
        self._edge_format = edge_format
        self._input_time = None if input_time_attr is None else to_cpu(data[input_time_attr]).numpy()
        self._num_classes = num_classes
        self._has_inputs = has_inputs
        if has_inputs:
            self._take_nodes(data)
        self._store: FeatureStore | None = None
        self._topology: Topology | None = None if self._make.built is None else self._make.built.topology
        if self._topology is not None:
            check_same_graph(self._topology.num_nodes, self._topology.num_edges, data)
        self._sampler: NodeSampler | None = None
        self._eval_sampler: NodeSampler | None = None
        self._builder: BatchBuilder | None = None
        self._is_shared = False
        self._is_sparse = features is None and data.x.layout != torch.strided
        self._check_features()

    @property
    @override
    def num_features(self) -> int:
        return int(self.store.shape[1])

    @property
    @override
    def num_classes(self) -> int:
        if self._num_classes is None:
            raise ValueError(
                "`num_classes` is not known, because `data` holds no labels `y`. HINT: pass `num_classes=...`."
            )
        return self._num_classes

    @property
    @override
    def multilabel(self) -> bool:
        return is_multilabel(self.data.y)

    @override
    def missing(self, stage: str) -> ValueError:
        return ValueError(
            f"`data` must hold `{stage}_mask` to {'train on' if stage == 'train' else 'run this stage'}, but it has"
            " none. HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
        )

    @property
    def store(self) -> FeatureStore:
        """The rows of ``x``."""
        if self._store is None:
            self._store = self._make_store()
            if self._converts:
                self._drop_x()
        return self._store

    @property
    @override
    def topology(self) -> Topology:
        if self._topology is None:
            self._topology = self._make_topology()
        return self._topology

    @override
    def sampler(self, stage: str) -> NodeSampler:
        return self.train_sampler if stage == "train" else self.eval_sampler

    @property
    def train_sampler(self) -> NodeSampler:
        """Draws the training batches."""
        if self._sampler is None:
            train = self._nodes.get("train")
            self._sampler = self._make.for_training(self.topology, None if train is None else train.numpy())
        return self._sampler

    @property
    def eval_sampler(self) -> NodeSampler:
        """Draws the batches of validation, test and prediction."""
        if self._eval_sampler is None:
            if self._layerwise:
                self._eval_sampler = SeedsOnlySampler(self.topology)
            elif self._eval_num_neighbors is not None:
                self._eval_sampler = self._make.for_evaluation(self.topology, self._eval_num_neighbors)
            elif trains_only(self.train_sampler):
                raise refuse_evaluation(type(self.train_sampler).__name__)
            else:
                self._eval_sampler = self.train_sampler
        return self._eval_sampler

    @property
    def builder(self) -> BatchBuilder:
        """Builds the batches; after :meth:`build`."""
        assert self._builder is not None
        return self._builder

    @override
    def build(self, surroundings: Surroundings) -> None:
        module = surroundings.module
        if not self._is_shared and surroundings.share is not None:
            if self._converts:
                self._store = surroundings.make(lambda: self.store)
                self._drop_x()
            # Also what is not sampled or sliced: each process would keep a copy of its own.
            self.data = surroundings.make(lambda: SharedData(self.data)).data
            if self._make.built is None:  # a built sampler has its own, which its maker may have shared
                self._topology = surroundings.make(lambda: self.topology)
            if not self._converts:
                self._store = self._make_store()
            self._sampler = self._eval_sampler = self._builder = None
            self._is_shared = True
        store = self.store if surroundings.cache is None else surroundings.cache(self, self.store)
        in_use = self._builder
        if in_use is None or in_use.in_degree != surroundings.in_degree or in_use.of_nodes["x"].store is not store:
            self._builder = BatchBuilder(
                without_links(self.data),
                self.topology,
                edge_id=self._edge_id,
                in_degree=surroundings.in_degree,
                stores={"x": store},
                edge_format=self._edge_format,
            )
        if module is not None:
            train = self.train_sampler
            samplers = {"layer_sizes" if hasattr(train, "layer_sizes") else "num_neighbors": train}
            if not self._layerwise and self.eval_sampler is not train:
                samplers["eval_num_neighbors"] = self.eval_sampler
            num_classes = self._num_classes if self._has_inputs else None
            check_model(module, samplers, num_classes=num_classes, layerwise=self._layerwise)

    @override
    def source(self, stage: str) -> NodeSource:
        nodes = self.nodes(stage)
        time = None if self._input_time is None else self._input_time[nodes]
        return NodeSource(self.sampler(stage), self._builder, nodes, input_time=time)

    @override
    def order(self, stage: str, batch_size: int, **arguments: Any) -> SeedOrder:
        sampler, nodes = self.sampler(stage), self.nodes(stage)
        groups = getattr(sampler, "seed_groups", None)
        if groups is None:
            return SeedOrder(len(nodes), batch_size, **arguments)
        return GroupOrder(groups[nodes], getattr(sampler, "groups_per_batch", 1), **arguments)

    def __getstate__(self) -> dict[str, Any]:
        # The builder may hold rows on a device, and what another process gets of the graph's tensors are copies: a
        # store of the same rows would be one more.
        store = self._store if self._converts else None
        return {**self.__dict__, "_builder": None, "_is_shared": False, "_store": store}

    def _make_topology(self) -> Topology:
        ids = self._edge_id or BatchBuilder.needs_edge_ids(without_links(self.data))
        return Topology.from_edge_index(self.data.edge_index, self.data.num_nodes, edge_ids=ids)

    @property
    def _converts(self) -> bool:
        """Whether the store holds something else than the graph does."""
        return self._features is not None or self._feature_dtype is not None or self._is_sparse

    def _drop_x(self) -> None:
        """Keep no features beside the store; the graph that was given is left as it is."""
        if self._store is not None and self._features is not None:
            self._features = self._store
        if "x" in self.data:
            num_nodes, self.data = self.data.num_nodes, copy.copy(self.data)
            del self.data.x
            self.data.num_nodes = num_nodes  # PyG reads it off `x`

    def _make_store(self) -> FeatureStore:
        with _in_users_words():
            source = self.data.x if self._features is None else self._features
            return feature_store(source, stored_as=self._feature_dtype)

    def _check_features(self) -> None:
        """Refuse what would be refused when the features are stored, as far as a look at them tells."""
        if self._features is None:
            with _in_users_words():
                narrow_dtype(self._feature_dtype, self.data.x.dtype)
            return
        self._store = store = self._make_store()
        if len(store.shape) != 2 or store.num_rows != self.data.num_nodes:
            raise ValueError(
                f"`features` must be of shape (N, F) for the graph's {self.data.num_nodes:,} nodes, but are of shape"
                f" {tuple(store.shape)}. HINT: one row of features per node, in the order of the nodes."
            )
        self._drop_x()

    def _take_nodes(self, data: Data) -> None:
        self._nodes = {stage: nodes for stage in _LABELLED_STAGES if (nodes := split_nodes(data, stage)) is not None}
        if self._nodes or data.y is not None:
            if self._num_classes is None and data.y is not None:
                self._num_classes = count_classes(data.y)
            check_labels(data.y, self._nodes.items(), self._num_classes or 0)
        predict = split_nodes(data, "predict")
        self._nodes["predict"] = torch.arange(data.num_nodes, device="cpu") if predict is None else predict


@contextmanager
def _in_users_words() -> Iterator[None]:
    """Let an error of a feature store name the DataModule's arguments."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error).replace("stored_as", "feature_dtype")
        raise type(error)(re.sub("`(source|path)`", "`features`", message)) from error

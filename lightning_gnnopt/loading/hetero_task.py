"""Nodes of one type in a heterogeneous graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch_geometric.data import HeteroData
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.checks import (
    check_finite,
    check_labels,
    check_model,
    check_same_graph,
    check_y,
    count_classes,
    is_multilabel,
    split_nodes,
)
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.hetero_source import HeteroNodeSource
from lightning_gnnopt.loading.link_split import without_links
from lightning_gnnopt.loading.shared_data import SharedData
from lightning_gnnopt.loading.task import STAGES, GraphTask, Surroundings
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology
from lightning_gnnopt.sampling.hetero_fanouts import check_hetero_fanouts
from lightning_gnnopt.sampling.hetero_topology import EdgeType

Fanouts = Sequence[int] | Mapping[EdgeType, Sequence[int]]


class HeteroTask(GraphTask):
    """The nodes that the masks of one node type choose; arguments are `GraphDataModule`'s.

    Args:
        needs_inputs: Whether the graph must say which nodes are inputs; links say so themselves.
    """

    def __init__(
        self,
        data: HeteroData,
        *,
        input_type: str | None,
        sampler: str | Callable[..., Any] | HeteroNeighborSampler,
        num_neighbors: Fanouts | None,
        eval_num_neighbors: Fanouts | None,
        edge_id: bool,
        num_classes: int | None,
        needs_inputs: bool = True,
    ) -> None:
        if not data.node_types or not data.edge_types:
            raise ValueError(
                f"`data` must hold nodes and edges of some types, but has node types {data.node_types} and edge types"
                f" {data.edge_types}. HINT: `data['a', 'to', 'b'].edge_index = ...` adds an edge type."
            )
        if isinstance(sampler, str) and sampler != "neighbor":
            raise ValueError(
                f"`sampler` must be 'neighbor' or a function for a `HeteroData`, but got {sampler!r}."
                " HINT: `data.to_homogeneous()` makes a graph that every sampler takes."
            )
        built = sampler if isinstance(sampler, HeteroNeighborSampler) else None
        if not isinstance(sampler, str) and num_neighbors is not None:
            what = "a `sampler` function" if built is None else "a sampler that is built already"
            raise ValueError(
                f"`num_neighbors` must be left out with {what}, but got {num_neighbors}."
                " HINT: give the fan-outs to the sampler itself."
            )
        if eval_num_neighbors is not None:
            check_hetero_fanouts(eval_num_neighbors, data.edge_types, name="eval_num_neighbors")
        for node_type in data.node_types:
            if isinstance(x := data[node_type].get("x"), torch.Tensor):
                check_finite(x, f"x of {node_type!r}")
        super().__init__()
        self.data = data
        self.input_type = self._find_inputs(input_type) if needs_inputs or input_type is not None else None
        self._make_sampler: Callable[..., HeteroNeighborSampler]
        if built is not None:
            check_same_graph(sum(built.topology.num_nodes.values()), built.topology.num_edges, data)
        elif callable(sampler):
            self._make_sampler = sampler
        else:
            fanouts = check_hetero_fanouts([15, 10] if num_neighbors is None else num_neighbors, data.edge_types)
            self._make_sampler = partial(HeteroNeighborSampler, num_neighbors=fanouts)
        self._eval_num_neighbors = eval_num_neighbors
        self._edge_id = edge_id
        self._num_classes = num_classes
        if self.input_type is not None:
            self._take_nodes(data[self.input_type])
        self._built = built
        self._topology: HeteroTopology | None = None if built is None else built.topology
        self._sampler: HeteroNeighborSampler | None = built
        self._eval_sampler: HeteroNeighborSampler | None = None
        self._builder: HeteroBatchBuilder | None = None
        self._is_shared = False

    @property
    @override
    def num_features(self) -> int:
        x = None if self.input_type is None else self.data[self.input_type].get("x")
        if x is None:
            raise ValueError(
                f"`num_features` is not known: {self._inputs} hold no `x`."
                " HINT: `datamodule.data.num_node_features` has the numbers of all types."
            )
        return int(x.size(1))

    @property
    @override
    def num_classes(self) -> int:
        if self._num_classes is None:
            raise ValueError(
                f"`num_classes` is not known, because {self._inputs} hold no classes in `y`."
                " HINT: pass `num_classes=...`."
            )
        return self._num_classes

    @property
    @override
    def multilabel(self) -> bool:
        return self.input_type is not None and is_multilabel(getattr(self.data[self.input_type], "y", None))

    @override
    def missing(self, stage: str) -> ValueError:
        return ValueError(
            f"`data[{self.input_type!r}]` must hold `{stage}_mask` to run this stage, but it has none."
            " HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
        )

    @property
    def topology(self) -> HeteroTopology:
        """The edges of each type by destination; built at first use, shared by all loaders."""
        if self._topology is None:
            self._topology = self._make_topology()
        return self._topology

    @override
    def sampler(self, stage: str) -> HeteroNeighborSampler:
        if self._sampler is None:
            self._sampler = self._make_sampler(self.topology)
        if stage == "train" or self._eval_num_neighbors is None:
            return self._sampler
        if self._eval_sampler is None:
            self._eval_sampler = HeteroNeighborSampler(self.topology, self._eval_num_neighbors)
        return self._eval_sampler

    @property
    def builder(self) -> HeteroBatchBuilder:
        """Builds the batches; after :meth:`build`."""
        assert self._builder is not None
        return self._builder

    @override
    def build(self, surroundings: Surroundings) -> None:
        shares = surroundings.share is not None and not self._is_shared
        if self._builder is None or shares:
            if shares:
                self.data = surroundings.make(lambda: SharedData(self.data)).data
                if self._built is None:  # a built sampler has its own, which its maker may have shared
                    self._topology = surroundings.make(lambda: self.topology)
                    self._sampler = self._eval_sampler = None
                self._is_shared = True
            self._builder = HeteroBatchBuilder(without_links(self.data), self.topology, edge_id=self._edge_id)
        if surroundings.module is not None:
            num_classes = None if self.input_type is None else self._num_classes
            samplers = {"num_neighbors": self.sampler("train")}
            if self._eval_num_neighbors is not None:
                samplers["eval_num_neighbors"] = self.sampler("val")
            check_model(surroundings.module, samplers, num_classes=num_classes, layerwise=False)

    @override
    def source(self, stage: str) -> HeteroNodeSource:
        assert self.input_type is not None
        return HeteroNodeSource(self.sampler(stage), self.builder, self.input_type, self.nodes(stage))

    def _make_topology(self) -> HeteroTopology:
        ids = self._edge_id or HeteroBatchBuilder.needs_edge_ids(without_links(self.data))
        return HeteroTopology.from_data(self.data, edge_ids=ids)

    def _find_inputs(self, input_type: str | None) -> str:
        if input_type is not None:
            if input_type not in self.data.node_types:
                raise ValueError(unknown_name("input_type", input_type, self.data.node_types))
            return input_type
        masked = [name for name in self.data.node_types if any(f"{stage}_mask" in self.data[name] for stage in STAGES)]
        if len(masked) != 1:
            raise ValueError(
                f"`input_type` must say which nodes are inputs, as {masked or 'none'} of the node types"
                f" {self.data.node_types} {'have' if len(masked) != 1 else 'has'} masks. HINT: name one of them."
            )
        return str(masked[0])

    @property
    def _inputs(self) -> str:
        """What is trained on, for error messages."""
        return "links (of no `input_type`)" if self.input_type is None else f"{self.input_type!r} nodes"

    def _take_nodes(self, storage: Any) -> None:
        y = storage.get("y")
        self._nodes = {s: nodes for s in STAGES[:3] if (nodes := split_nodes(storage, s)) is not None}
        if y is not None:
            check_y(y, storage.num_nodes)
            # Real numbers, one for each node, are for a module of the user's own to make something of.
            if is_multilabel(y) or not y.is_floating_point():
                if self._num_classes is None:
                    self._num_classes = count_classes(y)
                check_labels(y, self._nodes.items(), self._num_classes)
        predict = split_nodes(storage, "predict")
        self._nodes["predict"] = torch.arange(storage.num_nodes, device="cpu") if predict is None else predict

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_builder": None, "_is_shared": False}

"""From ids to a PyG batch: every attribute of the graph, cut to a subgraph's nodes and edges."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.attributes import Attribute, sort_attributes
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.fields import array_field, edge_index_field, ids_field
from lightning_gnnopt.loading.plan import BatchPlan, Field
from lightning_gnnopt.sampling import Subgraph, Topology
from lightning_gnnopt.sampling.kernels import gather

EdgeFormat = Literal["coo", "csc"]
EDGE_FORMATS = ("coo", "csc")
_FROM_SAMPLER = ("edge_norm", "node_norm", "batch")
_COLPTR = " colptr"  # no attribute has a name like this
OURS = ("n_id", "input_id", "e_id", "in_degree", "batch_size", "num_sampled_nodes", "num_sampled_edges")
"""What batches get from the loader, beyond the graph's own attributes."""


class BatchBuilder:
    """Builds batches that carry what PyG's `NeighborLoader` puts into its own.

    Each batch is a `Data` with ``edge_index``, ``n_id``, ``input_id``, ``batch_size``, ``num_sampled_nodes`` and
    ``num_sampled_edges``; every node-level attribute of the graph (``x``, ``y``, masks, ...) is cut to the batch's
    nodes, every edge-level attribute to its edges, and all others are passed on as they are. What else the sampler says
    comes along: ``edge_norm`` of each edge, ``node_norm`` of each node, and ``batch``, the number of the seed in whose
    tree a node stands. An attribute of the graph may have one of these names as long as the sampler does not use it.

    Args:
        data: The whole graph.
        topology: Its topology; must hold edge ids if the graph has edge attributes or `edge_id` is set.
        edge_id: Add ``e_id``, each edge's column in the graph's ``edge_index``.
        in_degree: Add ``in_degree``, each node's in-degree in the whole graph (self loops not counted).
        stores: Where the rows of some attributes of nodes are, by name, instead of in `data`.
        edge_format: ``"coo"``: ``edge_index`` is a tensor. ``"csc"``: it is a PyG `EdgeIndex`, sorted by destination
            where the sampler's edges are, with the compressed columns that fused layers look for.

    Raises:
        ValueError: If edge ids are missing, `edge_format` is unknown, an attribute of the graph has the name of one
            that batches get, or has not one row for each node or edge of the topology.
    """

    def __init__(
        self,
        data: Data,
        topology: Topology,
        *,
        edge_id: bool = False,
        in_degree: bool = False,
        stores: Mapping[str, FeatureStore] | None = None,
        edge_format: EdgeFormat = "coo",
    ) -> None:
        if edge_format not in EDGE_FORMATS:
            raise ValueError(unknown_name("edge_format", edge_format, EDGE_FORMATS))
        self.topology = topology
        self.edge_id = edge_id
        self.in_degree = in_degree
        self.edge_format = edge_format
        self.of_nodes, self._of_edges, others = sort_attributes(data, stores)
        self._template = copy.copy(data)  # which may be of a class of its own
        for name in [name for name in self._template.keys() if name not in others]:  # noqa: SIM118
            del self._template[name]
        for name in OURS:
            if name in data:
                raise ValueError(
                    f"`{name}` of a batch is the loader's to say, but the graph has an attribute of that name too."
                    f" HINT: rename `data.{name}`, or delete it."
                )
        if topology.edge_ids is None and (edge_id or self._of_edges):
            raise ValueError(
                "`topology` must hold edge ids to slice"
                f" {', '.join(self._of_edges) or '`e_id`'}, but it has none."
                " HINT: build it with `Topology.from_edge_index(..., edge_ids=True)`."
            )

        # Rows are gathered without a look at the ids: too few of them would be a read beyond the end.
        for name, attribute in self.of_nodes.items():
            if attribute.store.num_rows != topology.num_nodes:
                raise ValueError(
                    f"`{name}` must hold one row for each of the topology's {topology.num_nodes:,} nodes, but has"
                    f" {attribute.store.num_rows:,}. HINT: build the topology from the same graph."
                )
        for name, attribute in self._of_edges.items():
            if attribute.store.num_rows != topology.num_edges:
                raise ValueError(
                    f"`{name}` must hold one row for each of the topology's {topology.num_edges:,} edges, but has"
                    f" {attribute.store.num_rows:,}. HINT: build the topology from the same graph."
                )

    @staticmethod
    def needs_edge_ids(data: Data) -> bool:
        """Whether the graph has attributes of edges."""
        return any(name != "edge_index" and data.is_edge_attr(name) for name in data.keys())  # noqa: SIM118

    def plan(self, subgraph: Subgraph, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of one subgraph.

        Args:
            subgraph: What was sampled.
            input_id: The seeds' positions among the loader's input nodes, shape ``(B,)``.

        Returns:
            The batch, to be written.

        Raises:
            ValueError: If the sampler gives something by the name of an attribute of the graph.
        """
        fields: dict[str, Field] = {}
        cut: dict[str, Attribute] = {}
        for name, attribute in self.of_nodes.items():
            fields[name], cut[name] = attribute.field(subgraph.n_id), attribute
        counts = subgraph.num_sampled_nodes
        # Nodes of the last hop are nobody's destination.
        num_targets = subgraph.num_nodes if counts is None or len(counts) < 2 else sum(counts[:-1])
        compressed = self.edge_format == "csc"
        fields["edge_index"], columns = edge_index_field(subgraph.row, subgraph.col, num_targets)
        if compressed and (colptr := columns.starts) is not None:
            rest = np.full(subgraph.num_nodes - num_targets, subgraph.num_edges, np.int32)
            fields[_COLPTR] = ids_field(np.concatenate([colptr, rest]))
        if self.topology.edge_ids is not None and (self.edge_id or self._of_edges):
            e_id = gather(self.topology.edge_ids, subgraph.positions)
            for name, attribute in self._of_edges.items():
                fields[name], cut[name] = attribute.field(e_id), attribute
            if self.edge_id:
                fields["e_id"] = ids_field(e_id)
        if self.in_degree:
            fields["in_degree"] = array_field(self.topology.in_degrees[subgraph.n_id])
        for name, value in self._given(subgraph).items():
            fields[name] = ids_field(value) if value.dtype.kind == "i" else array_field(value)
        fields["n_id"], fields["input_id"] = ids_field(subgraph.n_id), ids_field(input_id)
        names = list(fields)

        def assemble(tensors: Sequence[Tensor]) -> Data:
            batch = copy.copy(self._template)
            named: dict[str, Any] = dict(zip(names, tensors, strict=True))
            if compressed:
                named["edge_index"] = _compressed(named["edge_index"], named.pop(_COLPTR, None), subgraph.num_nodes)
            for name, attribute in cut.items():
                named[name] = attribute.place(named[name])
            named["num_nodes"], named["batch_size"] = subgraph.num_nodes, subgraph.batch_size
            if subgraph.num_sampled_nodes is not None and subgraph.num_sampled_edges is not None:
                named["num_sampled_nodes"] = list(subgraph.num_sampled_nodes)
                named["num_sampled_edges"] = list(subgraph.num_sampled_edges)
            # At once: one by one, what PyG looks up for each takes as long as to draw a small batch.
            batch._store._mapping.update(named)
            return batch

        return BatchPlan(list(fields.values()), assemble, subgraph.num_nodes, subgraph.num_edges)

    def build(self, subgraph: Subgraph, input_id: NDArray[np.int64]) -> Data:
        """Write the batch of one subgraph into memory of its own; see :meth:`plan`."""
        batch: Data = self.plan(subgraph, input_id).write()
        return batch

    def _given(self, subgraph: Subgraph) -> dict[str, NDArray[Any]]:
        """What the sampler says beyond ids and counts."""
        given = {name: value for name in _FROM_SAMPLER if (value := getattr(subgraph, name)) is not None}
        for name in given:
            if name in self.of_nodes or name in self._of_edges or name in self._template:
                raise ValueError(
                    f"`{name}` of a batch is what the sampler says, but the graph has an attribute of that name too."
                    f" HINT: rename `data.{name}`, or delete it."
                )
        return given


def _compressed(edge_index: Tensor, colptr: Tensor | None, num_nodes: int) -> EdgeIndex:
    """Tell PyG's layers what is known of an edge index.

    Its ids are int64: of an expanded int32 index, the backward pass of torch's `scatter_add_` is wrong on the CPU
    (torch 2.13), and layers train on it without a word.
    """
    size = (num_nodes, num_nodes)
    if colptr is None:
        return EdgeIndex(edge_index, sparse_size=size)
    result = EdgeIndex(edge_index, sparse_size=size, sort_order="col")
    result._indptr = colptr  # what `fill_cache_` would compute
    return result

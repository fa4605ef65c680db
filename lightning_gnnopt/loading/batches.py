"""From ids to a PyG batch: slice every attribute of the graph to a subgraph's nodes and edges."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.sampling import Subgraph, Topology

_EDGE_ID = "e_id"
_IN_DEGREE = "in_degree"
_FROM_SAMPLER = ("edge_norm", "node_norm", "batch")


class _Attribute:
    """An attribute of all nodes, or of all edges; `dim` is the one that counts them."""

    def __init__(self, values: Tensor, dim: int) -> None:
        self._store = FeatureStore(values.movedim(dim, 0) if dim else values)
        self._dim = dim

    def cut(self, ids: Tensor) -> Tensor:
        rows = self._store.rows(ids)
        return rows.movedim(0, self._dim) if self._dim else rows


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
    """

    def __init__(self, data: Data, topology: Topology, *, edge_id: bool = False, in_degree: bool = False) -> None:
        self.topology = topology
        self.edge_id = edge_id
        self.in_degree = in_degree
        self._of_nodes: dict[str, _Attribute] = {}
        self._of_edges: dict[str, _Attribute] = {}
        self._template = Data()
        for name, value in data.to_dict().items():
            if name in ("edge_index", "num_nodes"):
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
                value = torch.from_numpy(value)  # as PyG does
            if isinstance(value, Tensor) and data.is_node_attr(name):
                self._of_nodes[name] = _Attribute(value, data.__cat_dim__(name, value))
            elif isinstance(value, Tensor) and data.is_edge_attr(name):
                self._of_edges[name] = _Attribute(value, data.__cat_dim__(name, value))
            else:
                self._template[name] = value
        if topology.edge_ids is None and (edge_id or self._of_edges):
            raise ValueError(
                "`topology` must hold edge ids to slice"
                f" {', '.join(self._of_edges) or '`e_id`'}, but it has none."
                " HINT: build it with `Topology.from_edge_index(..., edge_ids=True)`."
            )

    @staticmethod
    def needs_edge_ids(data: Data) -> bool:
        """Whether the graph has attributes of edges."""
        return any(name != "edge_index" and data.is_edge_attr(name) for name in data.keys())  # noqa: SIM118

    def build(self, subgraph: Subgraph, input_id: NDArray[np.int64]) -> Data:
        """Slice the graph's attributes to one subgraph.

        Args:
            subgraph: What was sampled.
            input_id: The seeds' positions among the loader's input nodes, shape ``(B,)``.

        Returns:
            The batch.

        Raises:
            ValueError: If the sampler gives something by the name of an attribute of the graph.
        """
        batch = copy.copy(self._template)
        given = {name: value for name in _FROM_SAMPLER if (value := getattr(subgraph, name)) is not None}
        for name in given:
            if name in self._of_nodes or name in self._of_edges or name in self._template:
                raise ValueError(
                    f"`{name}` of a batch is what the sampler says, but the graph has an attribute of that name too."
                    f" HINT: rename `data.{name}`, or delete it."
                )
        n_id = _long(subgraph.n_id)
        for name, attribute in self._of_nodes.items():
            batch[name] = attribute.cut(n_id)
        batch.edge_index = torch.stack([_long(subgraph.row), _long(subgraph.col)])
        if self.topology.edge_ids is not None and (self.edge_id or self._of_edges):
            e_id = _long(self.topology.edge_ids[subgraph.positions])
            for name, attribute in self._of_edges.items():
                batch[name] = attribute.cut(e_id)
            if self.edge_id:
                batch[_EDGE_ID] = e_id
        if self.in_degree:
            batch[_IN_DEGREE] = torch.from_numpy(self.topology.in_degrees[subgraph.n_id])
        for name, value in given.items():
            batch[name] = _long(value) if value.dtype.kind == "i" else torch.from_numpy(value)
        batch.num_nodes = subgraph.num_nodes
        batch.n_id = n_id
        batch.input_id = _long(input_id)
        batch.batch_size = subgraph.batch_size
        if subgraph.num_sampled_nodes is not None and subgraph.num_sampled_edges is not None:
            batch.num_sampled_nodes = list(subgraph.num_sampled_nodes)
            batch.num_sampled_edges = list(subgraph.num_sampled_edges)
        return batch


def _long(ids: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64, copy=False))

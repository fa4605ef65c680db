"""From ids to a PyG batch of several types: every attribute of the graph, cut to a subgraph's nodes and edges."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.attributes import Attribute, sort_attributes
from lightning_gnnopt.loading.batches import OURS
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.fields import edge_index_field, ids_field
from lightning_gnnopt.loading.plan import BatchPlan, Field
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology
from lightning_gnnopt.sampling.kernels import gather


class HeteroBatchBuilder:
    """Builds batches that carry what PyG's `NeighborLoader` puts into those of a `HeteroData`.

    Each batch is a `HeteroData`. A node type has ``n_id``, ``num_nodes``, ``num_sampled_nodes`` and its attributes, cut
    to the batch's nodes; an edge type has ``edge_index``, ``num_sampled_edges`` and its attributes, cut to the batch's
    edges. The type of the inputs has ``input_id``, and ``batch_size`` if they are nodes. If the sampler's trees are
    disjoint, ``batch`` says for each node in which it stands. What is neither a node's nor an edge's is passed on as it
    is. A type of which the sampler found nothing is there all the same, with empty tensors.

    Args:
        data: The whole graph.
        topology: Its topology; must hold edge ids for edge types with attributes, for all if `edge_id` is set.
        edge_id: Add ``e_id``, each edge's column in the graph's ``edge_index`` of its type.
        stores: Where the rows of some attributes of nodes are, by node type and name, instead of in `data`.

    Raises:
        TypeError: If `data` is no `HeteroData`.
        ValueError: If an attribute of the graph has the name of one that batches get, a type of the graph is not in the
            topology or is of another size there, edge ids are missing, or a store is of an unknown node type or has
            another number of rows than that has nodes.
    """

    def __init__(
        self,
        data: HeteroData,
        topology: HeteroTopology,
        *,
        edge_id: bool = False,
        stores: Mapping[tuple[str, str], FeatureStore] | None = None,
    ) -> None:
        if not isinstance(data, HeteroData):
            raise TypeError(
                f"`data` must be a `torch_geometric.data.HeteroData`, but got {type(data).__name__}."
                " HINT: batches of a homogeneous `Data` are built by a `BatchBuilder`."
            )
        for storage in (*data.node_stores, *data.edge_stores):
            for name in OURS:
                if name in storage:
                    raise ValueError(
                        f"`{name}` of a batch is the loader's to say, but {storage._key!r} of the graph has an"
                        f" attribute of that name too. HINT: rename `data[{storage._key!r}].{name}`, or delete it."
                    )
        self.topology = topology
        self.edge_id = edge_id
        self.of_nodes: dict[str, dict[str, Attribute]] = {}
        self._of_edges: dict[EdgeType, dict[str, Attribute]] = {}
        self._template = HeteroData()
        self._template._global_store.update(data._global_store.to_dict())
        by_type = _stores_by_type(stores or {}, topology.num_nodes)
        for node_type in data.node_types:
            _check_type(node_type, topology.num_nodes.get(node_type), data[node_type].num_nodes, "nodes")
            self.of_nodes[node_type], _, others = sort_attributes(data[node_type], by_type.pop(node_type, None))
            self._template[node_type].update(others)
        for node_type, given in by_type.items():  # of types without any attribute in the graph
            self.of_nodes[node_type] = {name: Attribute(store) for name, store in given.items()}
        for edge_type in data.edge_types:
            relation = topology.relations.get(edge_type)
            num_edges = None if relation is None else relation.num_edges
            _check_type(edge_type, num_edges, data[edge_type].num_edges, "edges")
            _, of_edges, others = sort_attributes(data[edge_type])
            # Rows are gathered without a look at the ids: too few of them would be a read beyond the end.
            assert all(attribute.store.num_rows == num_edges for attribute in of_edges.values()), list(of_edges)
            self._of_edges[edge_type] = of_edges
            self._template[edge_type].update(others)
        for edge_type, relation in topology.relations.items():
            of_edges = self._of_edges.setdefault(edge_type, {})
            if relation.edge_ids is None and (edge_id or of_edges):
                raise ValueError(
                    f"`topology` must hold edge ids to slice {', '.join(of_edges) or '`e_id`'} of {edge_type}, but it"
                    " has none. HINT: build it with `HeteroTopology.from_data(..., edge_ids=True)`."
                )

    @staticmethod
    def needs_edge_ids(data: HeteroData) -> bool:
        """Whether an edge type of the graph has attributes."""
        return any(name != "edge_index" and store.is_edge_attr(name) for store in data.edge_stores for name in store)

    def plan(self, subgraph: HeteroSubgraph, input_type: str | EdgeType, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of one subgraph.

        Args:
            subgraph: What was sampled.
            input_type: The type of the loader's inputs, of nodes or of edges.
            input_id: The inputs' positions among the loader's inputs, shape ``(B,)``.

        Returns:
            The batch, to be written.

        Raises:
            ValueError: If the sampler gives `batch`, and the graph has an attribute of that name.
        """
        fields: dict[tuple[str | EdgeType, str], Field] = {}
        cut: dict[tuple[str | EdgeType, str], Attribute] = {}
        for node_type, n_id in subgraph.n_id.items():
            for name, attribute in self.of_nodes.get(node_type, {}).items():
                fields[node_type, name], cut[node_type, name] = attribute.field(n_id), attribute
            fields[node_type, "n_id"] = ids_field(n_id)
            if subgraph.batch is not None:
                self._check_free(node_type, "batch")
                fields[node_type, "batch"] = ids_field(subgraph.batch[node_type])
        for edge_type, row in subgraph.row.items():
            counts = subgraph.num_sampled_nodes[edge_type[2]]
            num_targets = sum(counts[:-1])  # nodes of the last hop are nobody's destination
            fields[edge_type, "edge_index"], _ = edge_index_field(row, subgraph.col[edge_type], num_targets)
            edge_ids, of_edges = self.topology.relations[edge_type].edge_ids, self._of_edges[edge_type]
            if edge_ids is not None and (self.edge_id or of_edges):
                e_id = gather(edge_ids, subgraph.positions[edge_type])
                for name, attribute in of_edges.items():
                    fields[edge_type, name], cut[edge_type, name] = attribute.field(e_id), attribute
                if self.edge_id:
                    fields[edge_type, "e_id"] = ids_field(e_id)
        fields[input_type, "input_id"] = ids_field(input_id)
        keys = list(fields)

        def assemble(tensors: Sequence[Tensor]) -> HeteroData:
            batch = copy.copy(self._template)
            for key, tensor in zip(keys, tensors, strict=True):
                batch[key[0]][key[1]] = cut[key].place(tensor) if key in cut else tensor
            for node_type, counts in subgraph.num_sampled_nodes.items():
                batch[node_type].num_nodes, batch[node_type].num_sampled_nodes = sum(counts), list(counts)
            for edge_type, edge_counts in subgraph.num_sampled_edges.items():
                batch[edge_type].num_sampled_edges = list(edge_counts)
            if isinstance(input_type, str):
                batch[input_type].batch_size = subgraph.num_sampled_nodes[input_type][0]
            return batch

        return BatchPlan(list(fields.values()), assemble, subgraph.num_nodes, subgraph.num_edges)

    def build(self, subgraph: HeteroSubgraph, input_type: str | EdgeType, input_id: NDArray[np.int64]) -> HeteroData:
        """Write the batch of one subgraph into memory of its own; see :meth:`plan`."""
        batch: HeteroData = self.plan(subgraph, input_type, input_id).write()
        return batch

    def _check_free(self, node_type: str, name: str) -> None:
        if name in self.of_nodes.get(node_type, {}) or name in self._template[node_type]:
            raise ValueError(
                f"`{name}` of a batch is what the sampler says, but the graph has an attribute of that name of its"
                f" {node_type!r} nodes too. HINT: rename `data[{node_type!r}].{name}`, or delete it."
            )


def _stores_by_type(
    stores: Mapping[tuple[str, str], FeatureStore], num_nodes: Mapping[str, int]
) -> dict[str, dict[str, FeatureStore]]:
    """Sort stores by node type, and refuse those that do not fit: gathering trusts that there is a row of each node."""
    result: dict[str, dict[str, FeatureStore]] = {}
    for (node_type, name), store in stores.items():
        if node_type not in num_nodes:
            raise ValueError(
                f"{unknown_name('node type of `stores`', node_type, num_nodes)}"
                ' HINT: a key of `stores` is a node type and the name of an attribute, as in ("paper", "x").'
            )
        if store.shape[0] != num_nodes[node_type]:
            raise ValueError(
                f"`stores[{node_type!r}, {name!r}]` must have one row for each of the {num_nodes[node_type]:,} nodes,"
                f" but has {store.shape[0]:,}. HINT: rows stand in the order of the nodes' ids."
            )
        result.setdefault(node_type, {})[name] = store
    return result


def _check_type(kind: Any, expected: int | None, found: int | None, what: str) -> None:
    """Refuse a type of nodes or edges of which graph and topology say different things."""
    if expected is None or found != expected:
        here = "no such type" if expected is None else f"{expected:,}"
        raise ValueError(
            f"`topology` must be that of `data`, but for {kind!r} `data` has {found} {what} and `topology` {here}."
            " HINT: build it with `HeteroTopology.from_data(data)`."
        )

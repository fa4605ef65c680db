"""Node-wise neighbour sampling in heterogeneous graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
)
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.buffers import Buffer
from lightning_gnnopt.sampling.checks import check_integers
from lightning_gnnopt.sampling.draws import UniformDraw
from lightning_gnnopt.sampling.hetero_fanouts import check_hetero_fanouts
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import EdgeType, HeteroTopology
from lightning_gnnopt.sampling.kernels import gather
from lightning_gnnopt.sampling.link import LinkSampler, link_sampler_for
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, NodeTable, TablePool
from lightning_gnnopt.sampling.pyg_seam import sampler_output, torch_key
from lightning_gnnopt.sampling.rng import SampleKey, mix64

_INT32_MAX = 2**31 - 1


class HeteroNeighborSampler(BaseSampler):
    """Sample up to ``num_neighbors[edge_type][k]`` in-neighbours of every node by every edge type in hop ``k``.

    GraphSAGE's method (Hamilton, Ying & Leskovec, NeurIPS 2017) with a fan-out per relation, as PyG's `NeighborLoader`
    has it: hop by hop, within a hop one edge type after another in the topology's order. A node found in hop ``k``, by
    whichever relation, is expanded in hop ``k + 1`` by all relations that lead to its type, and only then. It runs in
    many threads at once; a batch depends on the seeds and the key alone.

    Args:
        topology: The graph.
        num_neighbors: Fan-out of each hop, the seeds' own first: one list for all edge types, or for each edge type its
            own, all of one length. -1 takes all in-neighbours, 0 none.
        replace: Whether an edge can be drawn several times.
        disjoint: Whether each seed has its own tree; a node reached from two seeds is then in the batch twice.
        dense_limit_bytes: A node type's numbering table above this size (4 bytes per node and thread) is hashed.

    Attributes:
        num_hops: Number of hops ``L``.
        node_time: Always None: nodes have no times.

    Raises:
        ValueError: If an edge type is unknown or has no fan-outs, a fan-out is below -1, the lists have different
            lengths, or there is no hop.

    Examples:
        >>> import torch
        >>> writes = ("author", "writes", "paper")
        >>> edges = {writes: torch.tensor([[0, 1, 2], [0, 0, 0]])}
        >>> graph = HeteroTopology.from_edge_index_dict(edges, {"author": 3, "paper": 1})
        >>> sampler = HeteroNeighborSampler(graph, num_neighbors=[2])
        >>> batch = sampler.sample({"paper": np.array([0])}, SampleKey(seed=0))
        >>> batch.num_sampled_nodes, batch.col[writes]
        ({'author': [0, 2], 'paper': [1, 0]}, array([0, 0], dtype=int32))
    """

    node_time: None = None
    # PyG's loaders ask one batch after another for the same kind of links.
    _links: LinkSampler | None = None

    def __init__(
        self,
        topology: HeteroTopology,
        num_neighbors: Sequence[int] | Mapping[EdgeType, Sequence[int]],
        *,
        replace: bool = False,
        disjoint: bool = False,
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        self.topology = topology
        self.num_neighbors = check_hetero_fanouts(num_neighbors, topology.edge_types)
        self.num_hops = len(next(iter(self.num_neighbors.values())))
        self.replace = replace
        self.disjoint = disjoint
        self._draws = {name: UniformDraw(graph, replace=replace) for name, graph in topology.relations.items()}
        # A disjoint batch numbers (tree, node) pairs: too many for a dense table.
        limit = 0 if disjoint else dense_limit_bytes
        self._tables = {name: TablePool(count, dense_limit_bytes=limit) for name, count in topology.num_nodes.items()}

    def sample(
        self,
        seeds: Mapping[str, NDArray[np.integer]],
        key: SampleKey,
        *,
        time: Mapping[str, NDArray[Any]] | None = None,
    ) -> HeteroSubgraph:
        """Draw one batch.

        Args:
            seeds: For each node type with seeds their global ids; a node may stand twice.
            key: What the random numbers are keyed by.
            time: Refused: this sampler knows no times.

        Returns:
            The batch's subgraph, each type's seeds in the given order first.

        Raises:
            ValueError: If there is no seed, a node type is unknown, an id is not a node of its type, or `time` is set.
        """
        if time is not None:
            raise ValueError(
                f"`time` must be None for {type(self).__name__}, but times were given."
                " HINT: temporal sampling is for homogeneous graphs; leave `input_time` and `edge_label_time` away."
            )
        seeds = self.check_seeds(seeds)
        graph, word = self.topology, key.fold()
        rows: dict[EdgeType, list[NDArray[np.int32]]] = {name: [] for name in graph.relations}
        cols: dict[EdgeType, list[NDArray[np.int32]]] = {name: [] for name in graph.relations}
        places: dict[EdgeType, list[NDArray[np.integer]]] = {name: [] for name in graph.relations}
        with ExitStack() as stack:
            parts = self._start(seeds, stack)
            for hop in range(self.num_hops):
                hop_key = np.uint64(mix64(word ^ np.uint64(hop)))  # numba hands back a plain int
                for number, (name, relation) in enumerate(graph.relations.items()):
                    source_part, target_part = parts[name[0]], parts[name[2]]
                    frontier, size = target_part.frontier, self.num_neighbors[name][hop]
                    relation_key = np.uint64(mix64(hop_key ^ np.uint64(number)))
                    drawn, targets = Buffer(relation.position_dtype, 0), Buffer(np.int32, 0)
                    self._draws[name].append(frontier, size, relation_key, drawn, targets, first=0, time=None)
                    positions, col = drawn.finish(), targets.finish()
                    sources = gather(relation.indices, positions)
                    rows[name].append(source_part.number(sources, target_part.trees[col] if self.disjoint else None))
                    cols[name].append(col + np.int32(target_part.first))
                    places[name].append(positions)
                for part in parts.values():
                    part.advance()
        return HeteroSubgraph(
            n_id={name: np.concatenate(part.nodes) for name, part in parts.items()},
            row={name: np.concatenate(pieces) for name, pieces in rows.items()},
            col={name: np.concatenate(pieces) for name, pieces in cols.items()},
            positions={name: np.concatenate(pieces) for name, pieces in places.items()},
            num_sampled_nodes={name: [len(ids) for ids in part.nodes] for name, part in parts.items()},
            num_sampled_edges={name: [len(piece) for piece in pieces] for name, pieces in rows.items()},
            batch={n: np.concatenate(part.tree_parts) for n, part in parts.items()} if self.disjoint else None,
        )

    @override
    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> HeteroSamplerOutput:
        """Serve PyG's ``NodeLoader(data, node_sampler=...)``; the key comes from torch's global generator.

        Raises:
            ValueError: If the loader does not say which node type the seeds are of.
        """
        if index.input_type is None:
            raise ValueError(
                "`input_nodes` must name the node type of the seeds, but no type was given."
                f' HINT: input_nodes=("{self.topology.node_types[0]}", ids).'
            )
        time = None if index.time is None else {index.input_type: index.time.numpy()}
        subgraph = self.sample({index.input_type: index.node.numpy()}, torch_key(), time=time)
        return sampler_output(subgraph, self.topology, (index.input_id, index.time))

    @override
    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> HeteroSamplerOutput:
        """Serve PyG's ``LinkLoader(data, link_sampler=...)`` through a `LinkSampler`."""
        self._links = links = link_sampler_for(self, index.input_type, neg_sampling, self._links)
        return links.sample_from_edges(index, neg_sampling)

    def check_seeds(self, seeds: Mapping[str, Any]) -> dict[str, NDArray[np.integer]]:
        """Take seeds as they come and refuse those that cannot be sampled.

        Args:
            seeds: For each node type with seeds an array, tensor or list of integers.

        Returns:
            The seeds as arrays.

        Raises:
            ValueError: If there is none, a node type is unknown, they are not flat arrays of integers, or one is not a
                node of its type.
        """
        arrays: dict[str, NDArray[np.integer]] = {}
        for name, ids in seeds.items():
            if name not in self.topology.num_nodes:
                raise ValueError(unknown_name("node type", name, self.topology.node_types))
            array, count = np.asarray(ids), self.topology.num_nodes[name]
            if array.size:
                check_integers(array, f"seeds[{name!r}]", "`mask.nonzero().ravel()` gives the ids that a mask marks.")
                if array.min() < 0 or array.max() >= count:
                    raise ValueError(
                        f"`seeds[{name!r}]` must be node ids from 0 to {count - 1:,}, but found"
                        f" {array.min() if array.min() < 0 else array.max():,}."
                        " HINT: seeds are ids among the nodes of their own type."
                    )
            arrays[name] = array.astype(np.int64)
        if not any(array.size for array in arrays.values()):
            raise ValueError("`seeds` must hold at least one node, but it is empty. HINT: check the split's mask.")
        return arrays

    def _start(self, seeds: Mapping[str, NDArray[np.integer]], stack: ExitStack) -> dict[str, _Part]:
        """Begin the part of each node type; seeds are numbered through the types in the order of `seeds`."""
        first_tree, offset = dict.fromkeys(self.topology.num_nodes, 0), 0
        for name, ids in seeds.items():
            first_tree[name] = offset
            offset += len(ids)
        return {
            name: _Part(
                stack.enter_context(pool.borrow()),
                pool.num_keys,
                seeds.get(name, _NOBODY),
                first_tree[name],
                self.disjoint,
            )
            for name, pool in self._tables.items()
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, num_neighbors={self.num_neighbors})"


_NOBODY = np.empty(0, np.int64)


class _Part:
    """The nodes of one type in a batch that grows.

    Attributes:
        frontier: Global ids of the nodes to expand in this hop; `first` is the local id of the first of them.
        trees: The tree of each of them; empty unless trees are disjoint.
        nodes: Global ids of all nodes, hop by hop; `tree_parts` their trees.
    """

    def __init__(
        self, table: NodeTable, num_nodes: int, seeds: NDArray[np.integer], first_tree: int, disjoint: bool
    ) -> None:
        self.table, self.num_nodes, self.disjoint = table, num_nodes, disjoint
        self.frontier: NDArray[np.integer] = seeds.astype(np.int32 if num_nodes <= _INT32_MAX else np.int64)
        self.trees = np.arange(first_tree, first_tree + (len(seeds) if disjoint else 0), dtype=np.int32)
        self.first = 0
        self.nodes, self.tree_parts = [self.frontier], [self.trees]
        self._found: list[NDArray[np.integer]] = []
        table.start(self._keys(self.frontier, self.trees))

    def number(self, sources: NDArray[np.integer], trees: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Give drawn nodes their local ids; those not known before are expanded in the next hop."""
        found, row = self.table.number(self._keys(sources, trees))
        self._found.append(found)
        return row

    def advance(self) -> None:
        """Go on to the next hop."""
        self.first += len(self.frontier)
        found = np.concatenate([*self._found, self.frontier[:0]])
        self._found = []
        if self.disjoint:
            self.trees = (found // self.num_nodes).astype(np.int32)
            found = found % self.num_nodes
        self.frontier = found.astype(self.frontier.dtype)
        self.nodes.append(self.frontier)
        self.tree_parts.append(self.trees)

    def _keys(self, nodes: NDArray[np.integer], trees: NDArray[np.int32] | None) -> NDArray[np.integer]:
        """What the numbering table tells apart: nodes, or in disjoint trees (tree, node) pairs."""
        if not self.disjoint:
            return nodes
        assert trees is not None
        return trees.astype(np.int64) * self.num_nodes + nodes

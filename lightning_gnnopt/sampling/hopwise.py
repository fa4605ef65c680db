"""Samplers that grow a batch hop by hop: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.at_once import grow_uniform
from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.buffers import Buffer
from lightning_gnnopt.sampling.draws import Draw, UniformDraw
from lightning_gnnopt.sampling.induced import induced_edges, tree_edges, with_reverses
from lightning_gnnopt.sampling.kernels import gather, split_tree_keys, tree_keys
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, TablePool
from lightning_gnnopt.sampling.rng import SampleKey, mix64_int
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

SubgraphType = Literal["directional", "bidirectional", "induced"]
_SUBGRAPH_TYPES = ("directional", "bidirectional", "induced")


class HopwiseSampler(NodeSampler):
    """Expands the seeds, then the nodes they led to, and so on; how a hop is drawn is a subclass's choice.

    Nodes are numbered as PyG's `NeighborLoader` numbers them: the seeds in the given order, then the nodes of each hop
    as they are found. A node is expanded once, and its in-edges serve every layer. A node that stands twice among the
    seeds is expanded at both places, each with its own draw; as a neighbour it is the first of them.

    Args:
        topology: The graph.
        sizes: How much each hop draws, the seeds' own first.
        disjoint: Whether each seed has its own tree; a node reached from two seeds is then in the batch twice.
        subgraph_type: ``"directional"``: the drawn edges. ``"bidirectional"``: these, and the reverse of each whose
            reverse was not drawn. ``"induced"``: all of the graph's edges between the batch's nodes (of one tree). The
            last two have no per-hop counts.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `subgraph_type` is unknown.
    """

    def __init__(
        self,
        topology: Topology,
        sizes: Sequence[int],
        *,
        disjoint: bool = False,
        subgraph_type: SubgraphType = "directional",
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        if subgraph_type not in _SUBGRAPH_TYPES:
            raise ValueError(unknown_name("subgraph_type", subgraph_type, _SUBGRAPH_TYPES))
        self.topology = topology
        self.sizes = list(sizes)
        self.num_hops = len(self.sizes) if subgraph_type == "directional" else None
        self.disjoint = disjoint
        self.subgraph_type = subgraph_type
        self._in_place = topology.indices.dtype == np.int32
        self._room = (0, 0)  # nodes and edges to make room for: somewhat more than any batch so far asked for
        # A disjoint batch numbers (tree, node) pairs: too many for a dense table.
        self._tables = TablePool(topology.num_nodes, dense_limit_bytes=0 if disjoint else dense_limit_bytes)

    temporal = False
    """Whether the draws go by time."""

    @property
    @abstractmethod
    def draw(self) -> Draw:
        """Draws a hop's in-edges."""

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        seeds = self.check_seeds(seeds)
        if not self.temporal:
            self.refuse_time(time)
        graph, word, draw = self.topology, key.fold(), self.draw
        if isinstance(draw, UniformDraw) and not self.disjoint and self.subgraph_type == "directional":
            with self._tables.borrow() as table:
                return grow_uniform(graph, table, seeds, self.sizes, word, replace=draw.replace)
        node_room, edge_room = self._room
        n_id = Buffer(graph.indices.dtype, node_room)
        row, col = Buffer(np.int32, edge_room), Buffer(np.int32, edge_room)
        positions = Buffer(graph.position_dtype, edge_room)
        norms: list[NDArray[np.float32]] = []
        num_nodes, num_edges = [len(seeds)], []
        n_id.extend(seeds)
        trees = np.arange(len(seeds), dtype=np.int32)
        batch = [trees]
        with self._tables.borrow() as table:
            table.start(self._keys(n_id[:], trees))
            first = 0  # the local id of the frontier's first node
            for hop, size in enumerate(self.sizes):
                time_of = None if time is None else time[trees]
                hop_key = self._hop_key(word, hop)
                colptr, norm = draw.append(n_id[first:], size, hop_key, positions, col, first=first, time=time_of)
                start, drawn = row.size, int(colptr[-1])
                if self.disjoint:
                    sources = gather(graph.indices, positions[start:])
                    keys = np.empty(drawn, np.int64)
                    tree_keys(colptr, trees, sources, graph.num_nodes, keys)
                    new, locals_ = table.number(keys)
                    row.extend(locals_)
                    trees = np.empty(len(new), np.int32)
                    batch.append(trees)
                    first = n_id.size
                    split_tree_keys(new, graph.num_nodes, trees, n_id.tail(len(new)))
                    n_id.push(len(new))
                else:
                    # 32-bit ids are replaced by the local ones where they stand.
                    out = row.tail(drawn)
                    sources = gather(graph.indices, positions[start:], out=out if self._in_place else None)
                    first = n_id.size
                    n_id.push(table.number_into(sources, n_id.tail(drawn + 1), out))
                    row.push(drawn)
                num_nodes.append(n_id.size - first)
                num_edges.append(drawn)
                if norm is not None:
                    norms.append(norm)
            asked = (n_id.asked, max(row.asked, positions.asked))
            self._room = (max(node_room, asked[0] * 9 // 8), max(edge_room, asked[1] * 9 // 8))
            trees = np.concatenate(batch)
            if self.subgraph_type == "induced":
                nodes = n_id.finish()
                if self.disjoint:
                    found = tree_edges(graph, nodes, trees, len(seeds))
                else:
                    found = induced_edges(graph, table, nodes)
                return Subgraph(nodes, *found, None, None, len(seeds), trees if self.disjoint else None)
        sampled = Subgraph(
            n_id.finish(),
            row.finish(),
            col.finish(),
            positions.finish(),
            num_nodes,
            num_edges,
            batch=trees if self.disjoint else None,
            edge_norm=np.concatenate(norms) if norms else None,
        )
        return with_reverses(sampled) if self.subgraph_type == "bidirectional" else sampled

    def _hop_key(self, word: np.uint64, hop: int) -> np.uint64:
        """The word that keys a hop's random numbers, given the batch's."""
        return np.uint64(mix64_int(int(word) ^ hop))

    def _keys(self, nodes: NDArray[np.integer], trees: NDArray[np.int32]) -> NDArray[np.integer]:
        """What the numbering table tells apart: nodes, or in disjoint trees (tree, node) pairs."""
        if not self.disjoint:
            return nodes
        return trees.astype(np.int64) * self.topology.num_nodes + nodes

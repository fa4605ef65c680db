"""Samplers that grow a batch hop by hop: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.draws import Draw
from lightning_gnnopt.sampling.induced import induced_edges, missing_reverses
from lightning_gnnopt.sampling.kernels import columns, gather
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, TablePool
from lightning_gnnopt.sampling.rng import SampleKey, mix64
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
        # A disjoint batch numbers (tree, node) pairs: too many for a dense table.
        self._tables = TablePool(topology.num_nodes, dense_limit_bytes=0 if disjoint else dense_limit_bytes)

    @property
    @abstractmethod
    def draw(self) -> Draw:
        """Draws a hop's in-edges."""

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        self.check_seeds(seeds)
        graph, word = self.topology, key.fold()
        frontier = seeds.astype(graph.indices.dtype)
        trees = np.arange(len(seeds), dtype=np.int32)
        nodes, tree_parts, drawn_parts, rows, cols = [frontier], [trees], [], [], []
        first = 0  # the local id of the frontier's first node
        with self._tables.borrow() as table:
            table.start(self._keys(frontier, trees))
            for hop, size in enumerate(self.sizes):
                hop_key = np.uint64(mix64(word ^ np.uint64(hop)))  # numba hands back a plain int
                drawn = self.draw(frontier, size, hop_key, time=None if time is None else time[trees])
                sources = gather(graph.indices, drawn.positions)
                col = columns(drawn.colptr, first)
                source_keys = self._keys(sources, trees[col - first]) if self.disjoint else sources
                first = table.size
                new, row = table.number(source_keys)
                if self.disjoint:
                    trees, frontier = (new // graph.num_nodes).astype(np.int32), (new % graph.num_nodes)
                    frontier = frontier.astype(graph.indices.dtype)
                else:
                    frontier = new
                nodes.append(frontier)
                tree_parts.append(trees)
                drawn_parts.append(drawn)
                rows.append(row)
                cols.append(col)
            n_id = np.concatenate(nodes)
            batch = np.concatenate(tree_parts) if self.disjoint else None
            if self.subgraph_type == "induced":
                row, col, positions = induced_edges(graph, table, n_id, batch)
                return Subgraph(n_id, row, col, positions, None, None, len(seeds), batch)
        row, col = np.concatenate(rows), np.concatenate(cols)
        positions = np.concatenate([drawn.positions for drawn in drawn_parts])
        if self.subgraph_type == "bidirectional":
            extra = missing_reverses(row, col, len(n_id))
            row, col = np.concatenate([row, col[extra]]), np.concatenate([col, row[extra]])
            positions = np.concatenate([positions, positions[extra]])
            return Subgraph(n_id, row, col, positions, None, None, len(seeds), batch)
        norms = [drawn.edge_norm for drawn in drawn_parts if drawn.edge_norm is not None]
        return Subgraph(
            n_id,
            row,
            col,
            positions,
            num_sampled_nodes=[len(part) for part in nodes],
            num_sampled_edges=[len(part) for part in rows],
            batch=batch,
            edge_norm=np.concatenate(norms) if norms else None,
        )

    def _keys(self, nodes: NDArray[np.integer], trees: NDArray[np.int32]) -> NDArray[np.integer]:
        """What the numbering table tells apart: nodes, or in disjoint trees (tree, node) pairs."""
        if not self.disjoint:
            return nodes
        return trees.astype(np.int64) * self.topology.num_nodes + nodes

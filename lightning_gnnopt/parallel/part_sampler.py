"""Neighbour sampling over the parts of a graph: each rank draws the in-edges of the nodes that it owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.parts import GraphPart
from lightning_gnnopt.parallel.shuffle import Shuffle, check_agreed
from lightning_gnnopt.sampling.checks import checked_seeds
from lightning_gnnopt.sampling.draws import Draw, UniformDraw
from lightning_gnnopt.sampling.kernels import columns, coo_to_csc, gather, split_tree_keys, tree_keys
from lightning_gnnopt.sampling.neighbor import check_fanouts
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, TablePool
from lightning_gnnopt.sampling.rng import SampleKey, mix64
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology
from lightning_gnnopt.sampling.weighted import WeightedDraw

KIND = "sampling"
"""What its exchanges are in the channel's traffic."""

_NUM_HEADER = 2  # how many nodes a rank expands, and the word that keys its hop
_INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class PartSubgraph(Subgraph):
    """A batch that was sampled over parts; `positions` are those of the whole graph's CSC order.

    Attributes:
        edge_id: Each edge's column in the whole graph's `edge_index`, shape ``(E,)``; None if it was not asked for.
    """

    edge_id: NDArray[np.integer] | None = None


class PartNeighborSampler:
    """What `NeighborSampler` draws from the whole graph, to the bit, though no rank holds it.

    The method is the collective sampling primitive of DSP (Cai, Zhou, Yan, Zheng, Song, Zheng, Cheng & Karypis, "DSP:
    Efficient GNN training with multiple GPUs", PPoPP 2023). In each hop the nodes to expand go to the ranks that own
    them, which draw some of their in-edges; what comes back are the drawn in-edges, and not whole neighbourhoods.

    `NeighborSampler` keys what it draws for a node by the batch, the hop and the node's place among those that are
    expanded. So a node travels with its place, and its owner draws as if it expanded the whole hop, in which the nodes
    of others have no in-edges. It costs a rank a look at each place of each rank's hop, and makes the batch independent
    of the number of parts and of who owns what.

    Seeds can be any nodes. A batch of each rank takes four exchanges a hop: how many nodes, which, how many in-edges,
    which. Everything is in host memory; over NCCL, give it a channel of a gloo group.

    Args:
        part: What this rank holds.
        nodes: Who owns which node.
        channel: Connects the ranks; used by one thread.
        num_neighbors: As of `NeighborSampler`, and the same on all ranks, as are the other options.
        replace: As of `NeighborSampler`.
        disjoint: As of `NeighborSampler`.
        edge_weight: Weight of each edge of the part, in its order, shape ``(e,)``. None draws uniformly.
        edge_ids: Whether batches have each edge's column in `edge_index` (to fetch edge attributes).
        dense_limit_bytes: As of `NeighborSampler`: a numbering table takes 4 bytes per node of the whole graph, or is
            hashed if these are more than so many.

    Raises:
        ValueError: If `num_neighbors` or `edge_weight` cannot be used, or `nodes` is of another part.
        RuntimeError: If the options of another rank are different.

    Examples:
        >>> from lightning_gnnopt.parallel.parts import cut_graph
        >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
        >>> edges = np.array([[1, 2, 3, 0], [0, 0, 0, 3]])
        >>> parts = list(cut_graph(edges, np.array([0, 0, 1, 1]), 2))
        >>> def work(channel):
        ...     part = parts[channel.rank]
        ...     sampler = PartNeighborSampler(part, NodeMap.collect(part, channel), channel, [2, 2])
        ...     return sampler.sample(np.array([0]) if channel.rank == 1 else np.array([]), SampleKey(seed=1)).n_id
        >>> run_ranks(2, work)
        [array([], dtype=int32), array([0, 1, 2], dtype=int32)]
    """

    def __init__(
        self,
        part: GraphPart,
        nodes: NodeMap,
        channel: Channel,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        disjoint: bool = False,
        edge_weight: NDArray[Any] | None = None,
        edge_ids: bool = False,
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        if (nodes.rank, nodes.num_parts) != (part.rank, part.num_parts) or len(nodes.inner) != part.num_inner:
            raise ValueError(
                f"`nodes` must be the map of part {part.rank} of {part.num_parts} and its {part.num_inner:,} nodes, but"
                f" is that of part {nodes.rank} of {nodes.num_parts} and {len(nodes.inner):,} nodes."
                " HINT: `NodeMap.collect(part, channel)`."
            )
        self.num_neighbors = check_fanouts(num_neighbors)
        self.replace, self.disjoint, self.edge_ids = replace, disjoint, edge_ids
        self._nodes, self._channel = nodes, channel
        self._id_type = _type_below(part.num_nodes)
        self._position_type = _type_below(part.num_edges)
        self._wire_type = _type_below(max(part.num_nodes, part.num_edges))
        self._graph = _with_a_row_to_spare(part, self._id_type)
        self._shift = nodes.first_in_edge - self._graph.indptr[: part.num_inner]  # from places here to those of all
        self._draw: Draw = UniformDraw(self._graph, replace=replace)
        options = (self.num_neighbors, replace, disjoint, edge_weight is not None, edge_ids)
        check_agreed(channel, options, what="fan-outs and options", kind=KIND)
        if edge_weight is not None:
            weight = _in_csc_order(edge_weight, part, self._graph)
            self._draw = WeightedDraw(self._graph, weight, replace=replace)
        # As in `HopwiseSampler`: a disjoint batch numbers (tree, node) pairs.
        self._tables = TablePool(part.num_nodes, dense_limit_bytes=0 if disjoint else dense_limit_bytes)

    def sample(self, seeds: NDArray[np.integer], key: SampleKey) -> PartSubgraph:
        """Draw a batch of each rank. All ranks must call it, be it without seeds.

        Args:
            seeds: Global ids of this rank's seeds, shape ``(B,)``: of any nodes; none, or a node twice.
            key: What the random numbers of this rank's batch are keyed by. Ranks may have different ones, and should,
                as where two expand the same nodes in the same places they would draw the same.

        Returns:
            The batch of this rank.

        Raises:
            ValueError: If a seed is not a node of the graph.
            RuntimeError: If that is so on another rank.
        """
        with Shuffle.or_give_up(self._channel, _NUM_HEADER, kind=KIND):
            frontier = self._checked(seeds)
        word, num_nodes = key.fold(), self._nodes.num_nodes
        trees = np.arange(len(frontier), dtype=np.int32)
        found, rows, cols, edges, batch = [frontier], [], [], [], [trees]
        with self._tables.borrow() as table:
            table.start(trees.astype(np.int64) * num_nodes + frontier if self.disjoint else frontier)
            first = 0  # the local id of the frontier's first node
            for hop, size in enumerate(self.num_neighbors):
                hop_key = np.uint64(mix64(word ^ np.uint64(hop)))  # as `HopwiseSampler` keys its hops
                colptr, drawn = self._expand(frontier, size, hop_key)
                sources = np.ascontiguousarray(drawn[:, 0], self._id_type)
                cols.append(columns(colptr, first))
                first += len(frontier)
                if self.disjoint:
                    keys = np.empty(len(sources), np.int64)
                    tree_keys(colptr, trees, sources, num_nodes, keys)
                    new, locals_ = table.number(keys)
                    trees, frontier = np.empty(len(new), np.int32), np.empty(len(new), self._id_type)
                    split_tree_keys(new, num_nodes, trees, frontier)
                    batch.append(trees)
                else:
                    frontier, locals_ = table.number(sources)
                found.append(frontier)
                rows.append(locals_)
                edges.append(drawn)
        return PartSubgraph(
            np.concatenate(found),
            np.concatenate(rows),
            np.concatenate(cols),
            np.concatenate([drawn[:, 1] for drawn in edges]).astype(self._position_type),
            [len(nodes) for nodes in found],
            [len(drawn) for drawn in edges],
            batch=np.concatenate(batch) if self.disjoint else None,
            edge_id=np.concatenate([drawn[:, 2] for drawn in edges]).astype(self._position_type)
            if self.edge_ids
            else None,
        )

    def _checked(self, seeds: NDArray[np.integer]) -> NDArray[np.integer]:
        ids = np.asarray(seeds)
        if ids.ndim == 1 and ids.size == 0:
            return np.empty(0, self._id_type)
        return checked_seeds(ids, self._nodes.num_nodes).astype(self._id_type)

    def _expand(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64
    ) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
        """Have a hop drawn.

        Returns:
            Where the in-edges of each node begin and end; and of each its source, its position in the whole graph's
            order and, if asked for, its id: shape ``(E', 2)`` or ``(E', 3)``.
        """
        header = [len(frontier), int(key.view(np.int64))]
        shuffle = Shuffle(self._channel, self._nodes.owner[frontier], header, kind=KIND)
        questions = np.stack([frontier, np.arange(len(frontier))], axis=1).astype(self._wire_type)
        asked = shuffle.ask(questions)
        return shuffle.answer_many(*self._answer(asked, shuffle, size))

    def _answer(
        self, asked: NDArray[np.integer], shuffle: Shuffle, size: int
    ) -> tuple[NDArray[np.int32], NDArray[np.integer]]:
        """Draw in-edges of own nodes: how many of each that was asked for, and what the askers want to know of them."""
        graph, nodes, places = self._graph, self._nodes.local(asked[:, 0]), asked[:, 1]
        counts = np.empty(len(asked), np.int32)
        positions = [np.empty(0, graph.position_dtype)]
        begin = 0
        for (num_places, key), num_asked in zip(shuffle.headers, shuffle.recv_counts, strict=True):
            if num_asked:
                span = slice(begin, begin + num_asked)
                frontier = np.full(num_places, graph.num_nodes - 1, self._id_type)  # the row to spare
                frontier[places[span]] = nodes[span]
                drawn = self._draw(frontier, size, key.view(np.uint64), time=None)
                counts[span] = np.diff(drawn.colptr)[places[span]]
                positions.append(drawn.positions)
                begin += num_asked
        chosen = np.concatenate(positions)
        told = np.empty((len(chosen), 2 + self.edge_ids), self._wire_type)
        told[:, 0] = gather(graph.indices, chosen)
        told[:, 1] = chosen + np.repeat(self._shift[nodes], counts)
        if graph.edge_ids is not None and self.edge_ids:
            told[:, 2] = graph.edge_ids[chosen]
        return counts, told

    def __repr__(self) -> str:
        nodes = self._nodes
        return f"{type(self).__name__}(part {nodes.rank} of {nodes.num_parts}, num_neighbors={self.num_neighbors})"


def _with_a_row_to_spare(part: GraphPart, id_type: type[np.signedinteger[Any]]) -> Topology:
    """Sort a part's edges by destination as `Topology` sorts the whole graph's; sources are global ids.

    Behind the part's own nodes stands one without in-edges.
    """
    num_edges = len(part.edge_id)
    names = np.concatenate([np.asarray(part.inner), np.asarray(part.halo)]).astype(id_type)
    indptr = np.zeros(part.num_inner + 2, np.int64)
    indices = np.empty(num_edges, id_type)
    order = np.empty(num_edges, _type_below(num_edges))
    source, target = np.asarray(part.edge_index)
    coo_to_csc(names[source], target, indptr, indices, order)
    return Topology(indptr, indices, np.asarray(part.edge_id)[order])


def _in_csc_order(edge_weight: NDArray[Any], part: GraphPart, graph: Topology) -> NDArray[Any]:
    weight = np.asarray(edge_weight)
    if weight.shape != part.edge_id.shape:
        raise ValueError(
            f"`edge_weight` must hold one number for each of the part's {len(part.edge_id):,} edges, but its shape is"
            f" {weight.shape}. HINT: `edge_weight[part.edge_id]` takes them from those of the whole graph."
        )
    assert graph.edge_ids is not None
    sorted_E: NDArray[Any] = weight[np.searchsorted(part.edge_id, graph.edge_ids)]  # a part's edges stand by their ids
    return sorted_E


def _type_below(bound: int) -> type[np.signedinteger[Any]]:
    """Type of the integers below `bound`, as `Topology` has them."""
    return np.int32 if bound <= _INT32_MAX else np.int64

"""Which rank owns a node, and where it stands there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.parts import GraphPart

_CHUNK_NODES = 2**20


@dataclass(frozen=True, eq=False)
class NodeMap:
    """Finds nodes of the whole graph on the ranks that own them.

    A rank keeps one small integer for each node of the graph (a byte up to 256 ranks, two up to 65,536) and two int64
    for each node of its own. The first can be an array that processes share, such as a mapped file.

    Attributes:
        rank: Whose map it is.
        num_parts: Number of ranks, ``P``.
        num_nodes: Nodes of the whole graph, ``N``.
        num_edges: Edges of the whole graph, ``E``.
        owner: The rank that owns each node, shape ``(N,)``.
        inner: Int64, shape ``(n,)``: global ids of the rank's own nodes, ascending.
        first_in_edge: Int64, shape ``(n,)``: where the in-edges of each of them begin in the CSC order of the whole
            graph's `Topology`.
    """

    rank: int
    num_parts: int
    num_nodes: int
    num_edges: int
    owner: NDArray[np.integer]
    inner: NDArray[np.int64]
    first_in_edge: NDArray[np.int64]

    @classmethod
    def collect(cls, part: GraphPart, channel: Channel, *, owner: NDArray[np.integer] | None = None) -> NodeMap:
        """Put together what the ranks know of their own nodes. All ranks must call it.

        It goes over the nodes a million at a time: what it takes beside the map does not grow with the graph.

        Args:
            part: What this rank holds.
            channel: Connects the ranks.
            owner: The rank that owns each node, shape ``(N,)``, where there is such an array already. It is compared
                with what the ranks own, and kept without a copy. None makes one.

        Returns:
            The map.

        Raises:
            ValueError: If there are not as many ranks as parts, a node belongs to none of the parts or to several, or
                `owner` says something else.

        Examples:
            >>> from lightning_gnnopt.parallel.parts import cut_graph
            >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
            >>> edges = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
            >>> parts = list(cut_graph(edges, np.array([0, 1, 0, 1]), 2))
            >>> maps = run_ranks(2, lambda channel: NodeMap.collect(parts[channel.rank], channel))
            >>> maps[0].owner, maps[1].inner, maps[1].first_in_edge
            (array([0, 1, 0, 1], dtype=uint8), array([1, 3]), array([1, 3]))
        """
        if (channel.rank, channel.size) != (part.rank, part.num_parts):
            raise ValueError(
                f"Rank {channel.rank} of {channel.size} must hold part {channel.rank} of {channel.size}, but got part"
                f" {part.rank} of {part.num_parts}. HINT: `load_part(folder, rank)`, of a graph cut for as many ranks."
            )
        num_nodes, num_inner = part.num_nodes, part.num_inner
        if owner is not None and owner.shape != (num_nodes,):
            raise ValueError(
                f"`owner` must hold a rank for each of the graph's {num_nodes:,} nodes, but its shape is"
                f" {owner.shape}. HINT: leave it out, and it is made from the parts."
            )
        inner = np.asarray(part.inner)
        owners: NDArray[np.integer]
        owners = np.empty(num_nodes, np.min_scalar_type(part.num_parts - 1)) if owner is None else np.asarray(owner)
        first_in_edge, before = np.empty(num_inner, np.int64), 0
        for begin in range(0, num_nodes, _CHUNK_NODES):
            end = min(begin + _CHUNK_NODES, num_nodes)
            low, high = np.searchsorted(inner, [begin, end])
            places = inner[low:high] - begin
            known = np.zeros((3, end - begin), np.int64)
            known[:, places] = np.stack(
                [part.in_degree[low:high], np.ones_like(places), np.full_like(places, part.rank)]
            )
            in_degree, times_owned, ranks = channel.sum(torch.from_numpy(known)).numpy()
            _check_owned_once(times_owned, begin)
            if owner is None:
                owners[begin:end] = ranks
            else:
                _check_owner(owners[begin:end], ranks, begin)
            ends = before + np.cumsum(in_degree)
            first_in_edge[low:high] = (ends - in_degree)[places]
            before = int(ends[-1])
        return cls(part.rank, part.num_parts, num_nodes, part.num_edges, owners, inner, first_in_edge)

    def local(self, nodes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the local ids of nodes that this rank owns: ``(k,)`` to ``(k,)``."""
        places: NDArray[np.int64] = np.searchsorted(self.inner, nodes)
        return places


def _check_owned_once(times_owned: NDArray[np.int64], begin: int) -> None:
    wrong = np.flatnonzero(times_owned != 1)
    if len(wrong):
        raise ValueError(
            f"Each node must belong to one part, but node {begin + wrong[0]:,} belongs to {times_owned[wrong[0]]}."
            " HINT: the parts are of different cuts; give all ranks the same folder."
        )


def _check_owner(owner: NDArray[np.integer], ranks: NDArray[np.int64], begin: int) -> None:
    wrong = np.flatnonzero(owner != ranks)
    if len(wrong):
        raise ValueError(
            f"`owner` says that node {begin + wrong[0]:,} belongs to rank {owner[wrong[0]]}, but rank"
            f" {ranks[wrong[0]]} has it. HINT: it is of another cut; leave it out, and it is made from the parts."
        )

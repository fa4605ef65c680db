"""Node-wise neighbour sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw, UniformDraw
from lightning_gnnopt.sampling.hopwise import HopwiseSampler, SubgraphType
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.temporal import TemporalDraw, TemporalStrategy, check_times
from lightning_gnnopt.sampling.topology import Topology
from lightning_gnnopt.sampling.weighted import WeightedDraw


class NeighborSampler(HopwiseSampler):
    """Sample up to `num_neighbors[k]` in-neighbours of every node in hop ``k``.

    The method is GraphSAGE's (Hamilton, Ying & Leskovec, "Inductive representation learning on large graphs", NeurIPS
    2017). Nodes are numbered as PyG's `NeighborLoader` numbers them: the seeds in the given order, then the nodes of
    each hop as they are found. A node is expanded once. A node that stands twice among the seeds is expanded at both
    places, each with its own draw; as a neighbour it is the first of them.

    In-edges are drawn uniformly; in proportion to their weights (`WeightedDraw`); or from those that are not from after
    the seed in whose tree the node stands (`TemporalDraw`), whichever hop it is.

    Args:
        topology: The graph.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all in-neighbours.
        replace: Whether an edge can be drawn several times. A node with an in-edge then always has as many as asked.
        disjoint: Whether each seed has its own tree; a node reached from two seeds is then in the batch twice.
        subgraph_type: ``"directional"``: the drawn edges. ``"bidirectional"``: these, and the reverse of each whose
            reverse was not drawn. ``"induced"``: all of the graph's edges between the batch's nodes (of one tree). The
            last two have no per-hop counts.
        edge_weight: Weight of each edge in the order of `edge_index`, array or tensor of shape ``(E,)``; an edge of
            weight 0 is never drawn. None draws uniformly.
        node_time: Time of each node, array or tensor of shape ``(N,)``: an edge counts if its source's time is at most
            the seed's. Needs `disjoint`.
        edge_time: Time of each edge in the order of `edge_index`, shape ``(E,)``, instead of `node_time`: an edge
            counts if its own time is at most the seed's. Needs `disjoint`.
        temporal_strategy: ``"uniform"`` draws from all edges that count, ``"last"`` takes the latest of them.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `num_neighbors` is empty, a fan-out is 0 or below -1, `subgraph_type` or `temporal_strategy` is
            unknown, weights or times cannot be used (see the draws), both are given, times are given without
            `disjoint`, values of edges without edge ids in the topology, or `edge_time` with induced subgraphs.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> batch = NeighborSampler(star, num_neighbors=[2]).sample(np.array([0]), SampleKey(seed=0))
        >>> batch.num_sampled_nodes, batch.num_sampled_edges, batch.col
        ([1, 2], [2], array([0, 0], dtype=int32))

        Only the past of each seed, the latest edges first of all:

        >>> times = torch.tensor([2025, 2030, 2010, 2020])
        >>> sampler = NeighborSampler(star, [1], disjoint=True, node_time=times, temporal_strategy="last")
        >>> sampler.sample(np.array([0, 0]), SampleKey(seed=0), time=np.array([2025, 2015])).n_id
        array([0, 0, 3, 2], dtype=int32)
    """

    def __init__(
        self,
        topology: Topology,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        disjoint: bool = False,
        subgraph_type: SubgraphType = "directional",
        edge_weight: NDArray[Any] | Tensor | None = None,
        node_time: NDArray[Any] | Tensor | None = None,
        edge_time: NDArray[Any] | Tensor | None = None,
        temporal_strategy: TemporalStrategy = "uniform",
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        self.num_neighbors = check_fanouts(num_neighbors)
        super().__init__(
            topology,
            self.num_neighbors,
            disjoint=disjoint,
            subgraph_type=subgraph_type,
            dense_limit_bytes=dense_limit_bytes,
        )
        self.replace = replace
        self.temporal = node_time is not None or edge_time is not None
        self._node_time = None if node_time is None else _to_numpy(node_time)
        self._draw: Draw
        if self.temporal:
            self._check_temporal(edge_weight is not None, edge_time is not None)
            self._draw = TemporalDraw(
                topology,
                self._node_time,
                None if edge_time is None else _in_csc_order(edge_time, topology, name="edge_time"),
                strategy=temporal_strategy,
                replace=replace,
            )
            return
        if temporal_strategy != "uniform":
            raise ValueError(
                f"`temporal_strategy` is {temporal_strategy!r}, but there are no times to go by."
                " HINT: give `node_time` or `edge_time`, or drop it."
            )
        if edge_weight is None:
            self._draw = UniformDraw(topology, replace=replace)
        else:
            weight_E = _in_csc_order(edge_weight, topology, name="edge_weight")
            self._draw = WeightedDraw(topology, weight_E, replace=replace)

    @property
    @override
    def draw(self) -> Draw:
        return self._draw

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        """Draw one batch.

        Args:
            seeds: Global ids, shape ``(B,)``; a node may stand twice.
            key: What the random numbers are keyed by.
            time: The time of each seed, shape ``(B,)``, of a temporal sampler; None takes the seeds' own `node_time`.

        Returns:
            The batch's subgraph, the seeds in the given order first.

        Raises:
            ValueError: If there is no seed, an id is not a node of the graph, the seeds of a temporal sampler have no
                time or not one each, or the sampler is not temporal and there are times.
        """
        if not self.temporal:
            return super().sample(seeds, key, time=time)
        seeds = self.check_seeds(seeds)
        if time is None:
            if self._node_time is None:
                raise ValueError(
                    "`time` must be given for the seeds of a sampler with `edge_time`, but got None."
                    " HINT: nodes have no time of their own there; `NodeLoader` takes it as `input_time`."
                )
            time = self._node_time[seeds]
        else:
            time = check_times(_to_numpy(time), len(seeds), name="time")
        return super().sample(seeds, key, time=time)

    def _check_temporal(self, weighted: bool, timed_edges: bool) -> None:
        if weighted:
            raise ValueError(
                "`edge_weight` cannot be combined with `node_time` or `edge_time`, but both were given."
                " HINT: draw by weight, or from the past uniformly or the latest first (`temporal_strategy`)."
            )
        if not self.disjoint:
            raise ValueError(
                "`disjoint` must be True for temporal sampling, but got False: a node that two seeds share would have"
                " to be drawn for two times. HINT: pass `disjoint=True`."
            )
        if timed_edges and self.subgraph_type == "induced":
            raise ValueError(
                "`subgraph_type` must not be 'induced' with `edge_time`: it brings in all edges between a tree's nodes,"
                " also those from after the seed. HINT: use 'directional' or 'bidirectional'."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, num_neighbors={self.num_neighbors})"


def _to_numpy(values: NDArray[Any] | Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array


def _in_csc_order(values: NDArray[Any] | Tensor, topology: Topology, *, name: str) -> NDArray[Any]:
    """Bring values of edges from the order of `edge_index` to that of the topology."""
    if topology.edge_ids is None:
        raise ValueError(
            f"`{name}` is in the order of `edge_index`, which the topology does not know."
            " HINT: build it with `Topology.from_edge_index(..., edge_ids=True)`."
        )
    values_E = _to_numpy(values)
    if values_E.shape != (topology.num_edges,):
        raise ValueError(
            f"`{name}` must hold one number for each of the graph's {topology.num_edges:,} edges, but its shape is"
            f" {values_E.shape}. HINT: a column of edge features is `edge_attr[:, k]`."
        )
    sorted_E: NDArray[Any] = values_E[topology.edge_ids]
    return sorted_E


def check_fanouts(num_neighbors: Sequence[int], *, name: str = "num_neighbors") -> list[int]:
    """Refuse fan-outs that cannot be sampled.

    Args:
        num_neighbors: One fan-out per hop.
        name: What the user calls them.

    Returns:
        The fan-outs as a list of plain integers.

    Raises:
        ValueError: If there is none, or one is neither positive nor -1.
    """
    if isinstance(num_neighbors, int):
        raise ValueError(
            f"`{name}` must be a list with one fan-out per hop, but got {num_neighbors}."
            f" HINT: [{num_neighbors}, {num_neighbors}] samples two hops."
        )
    fanouts = list(num_neighbors)
    if not fanouts:
        raise ValueError(
            f"`{name}` must hold one fan-out per hop, but it is empty."
            " HINT: [15, 10] samples 15 neighbours of each seed and 10 of each of those."
        )
    for fanout in fanouts:
        if isinstance(fanout, bool) or not isinstance(fanout, int | np.integer) or fanout == 0 or fanout < -1:
            raise ValueError(
                f"`{name}` must hold integers that are positive or -1 (all neighbours), but got {fanout!r}"
                f" in {fanouts}. HINT: to use fewer hops, shorten the list."
            )
    return [int(fanout) for fanout in fanouts]

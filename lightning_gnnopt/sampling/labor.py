"""Neighbour sampling in which the nodes of a hop choose alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw
from lightning_gnnopt.sampling.hopwise import HopwiseSampler
from lightning_gnnopt.sampling.labor_draws import UniformLaborDraw
from lightning_gnnopt.sampling.labor_importance import ImportanceLaborDraw
from lightning_gnnopt.sampling.neighbor import check_fanouts
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES
from lightning_gnnopt.sampling.topology import Topology


class LaborSampler(HopwiseSampler):
    """Sample about `num_neighbors[k]` in-neighbours of every node in hop ``k``, as few different ones as possible.

    The method is LABOR (Balin & Catalyurek, "Layer-neighbor sampling - defusing neighborhood explosion in GNNs",
    NeurIPS 2023). Each node ``t`` has one random number ``r_t`` per hop, and every node ``s`` of the hop that has it as
    an in-neighbour takes it if ``r_t < c_s * pi_t``. To a node alone this looks like any other draw; together the nodes
    of a hop agree on neighbours, and the batch has fewer nodes for as many edges.

    With ``importance_iterations=0`` (LABOR-0) all ``pi_t`` are 1 and ``c_s`` is the fan-out ``k`` over the in-degree: a
    node has `k` in-neighbours in the mean, sometimes none, and all of them if there are no more than `k`. The mean over
    the sampled in-neighbours is then the estimate, as after `NeighborSampler`, and a batch has no `edge_norm`.

    With iterations, ``pi`` favours nodes that many nodes of the hop can use, as far as the variance of each node's
    estimate stays that of `k` neighbours. Edges have unequal chances ``p = min(1, c_s * pi_t)``, a node has `k`
    in-neighbours or more in the mean, and the batch's `edge_norm` is ``1 / p``. A model must multiply messages by it;
    `GraphDataModule` brings it into the batch, PyG's `NodeLoader` has no place for it.

    A node is expanded once, and its in-edges serve every layer. A node that stands twice among the seeds takes the same
    in-edges at both places. Parallel edges are taken together or not at all. A node's in-edges are all looked at: time
    grows with the in-degrees, where `NeighborSampler`'s grows with the fan-outs.

    Args:
        topology: The graph.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all in-neighbours.
        importance_iterations: How often ``pi`` is improved: 0 is LABOR-0, 1 is LABOR-1, and so on; -1 goes on until
            the expected number of nodes falls by less than one in ten thousand (LABOR-*).
        layer_dependency: Whether a node has one random number per batch instead of one per hop. The hops then choose
            alike too, which saves further nodes.
        fixed_size: Whether a node with more than `k` in-neighbours takes exactly the `k` with the smallest random
            numbers (sequential Poisson sampling, appendix A.3 of the paper; Ohlsson, 1998). Only for
            ``importance_iterations=0``. Every set of `k` in-edges is equally likely, unless there are parallel edges,
            of which the `k` smallest may include some and not others.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `num_neighbors` is empty, a fan-out is 0 or below -1, `importance_iterations` is no integer from
            -1 on, or `fixed_size` is asked for together with iterations.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> edges = torch.tensor([[2, 3, 4, 5, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1, 1, 1]])
        >>> topology = Topology.from_edge_index(edges, num_nodes=6)
        >>> sampler = LaborSampler(topology, num_neighbors=[2], fixed_size=True)
        >>> batch = sampler.sample(np.array([0, 1]), SampleKey(seed=0))
        >>> batch.num_sampled_edges, batch.num_sampled_nodes  # two of the four each, and the same two
        ([4], [2, 2])
    """

    def __init__(
        self,
        topology: Topology,
        num_neighbors: Sequence[int],
        *,
        importance_iterations: int = 0,
        layer_dependency: bool = False,
        fixed_size: bool = False,
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        self.num_neighbors = check_fanouts(num_neighbors)
        _check_iterations(importance_iterations, fixed_size)
        super().__init__(topology, self.num_neighbors, dense_limit_bytes=dense_limit_bytes)
        self.importance_iterations = int(importance_iterations)
        self.layer_dependency = layer_dependency
        self.fixed_size = fixed_size
        self._draw: Draw = (
            UniformLaborDraw(topology, fixed_size=fixed_size)
            if importance_iterations == 0
            else ImportanceLaborDraw(topology, self.importance_iterations, dense_limit_bytes=dense_limit_bytes)
        )

    @property
    @override
    def draw(self) -> Draw:
        return self._draw

    @override
    def _hop_key(self, word: np.uint64, hop: int) -> np.uint64:
        return super()._hop_key(word, 0 if self.layer_dependency else hop)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.topology!r}, num_neighbors={self.num_neighbors},"
            f" importance_iterations={self.importance_iterations})"
        )


def _check_iterations(iterations: int, fixed_size: bool) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int | np.integer) or iterations < -1:
        raise ValueError(
            "`importance_iterations` must be an integer, 0 or more, or -1 (until convergence), but got"
            f" {iterations!r}. HINT: 0 is LABOR-0, 1 is LABOR-1."
        )
    if fixed_size and iterations != 0:
        raise ValueError(
            f"`fixed_size` needs equal chances, but `importance_iterations` is {iterations}."
            " HINT: leave `importance_iterations` at 0, or `fixed_size` out; with unequal chances the smallest random"
            " numbers would give a biased estimate."
        )

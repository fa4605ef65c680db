"""Cluster-GCN: batches of whole clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.at_once import join_clusters
from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.node_table import TablePool
from lightning_gnnopt.sampling.partition import PartitionMethod, partition_nodes
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class ClusterSampler(NodeSampler):
    """Sample the clusters that hold a seed, with all of the graph's edges between their nodes.

    Cluster-GCN (Chiang, Liu, Si, Li, Bengio & Hsieh, KDD 2019): the graph is divided once into clusters with few edges
    between them, and a batch joins several, the edges between these included (the paper's stochastic multiple
    partitions). The seeds stand first, in the given order; then the other nodes of their clusters, by cluster and id.
    A node that stands twice among the seeds has its in-edges at both places; as a source it is the first of them.

    A batch depends on its seeds alone. Seeds that are scattered over the graph need as many clusters: a loader should
    shuffle clusters, and fill a batch with the seeds of :attr:`groups_per_batch` of them.

    Edges to clusters outside the batch are dropped without a weight that makes up for them, as in the paper.

    Args:
        topology: The graph.
        num_parts: Number of clusters; needed unless `parts` is given.
        parts: The cluster of each node, integers from 0 on of shape ``(N,)``, to be used instead of a partition made
            here; a number may be unused.
        clusters_per_batch: How many clusters a loader should put into a batch.
        method: As of `partition_nodes`.
        seed: Seed of the partition.

    Attributes:
        seed_groups: Int32 array of shape ``(N,)``: the cluster of each node.
        groups_per_batch: `clusters_per_batch`.

    Raises:
        ValueError: If neither or both of `num_parts` and `parts` are given, or one of the arguments is out of range.

    Examples:
        >>> import torch
        >>> path = Topology.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), num_nodes=5)
        >>> sampler = ClusterSampler(path, parts=np.array([0, 0, 1, 1, 2]))
        >>> batch = sampler.sample(np.array([3, 4]), SampleKey(seed=0))
        >>> batch.n_id, batch.row, batch.col
        (array([3, 4, 2], dtype=int32), array([2, 0], dtype=int32), array([0, 1], dtype=int32))
    """

    num_hops: int | None = None

    def __init__(
        self,
        topology: Topology,
        num_parts: int | None = None,
        *,
        parts: NDArray[np.integer] | None = None,
        clusters_per_batch: int = 1,
        method: PartitionMethod = "auto",
        seed: int = 0,
    ) -> None:
        if (num_parts is None) == (parts is None):
            raise ValueError(
                f"`num_parts` or `parts` must be given, but got {'neither' if parts is None else 'both'}."
                " HINT: `num_parts` makes a partition; `parts` is one of your own."
            )
        if clusters_per_batch < 1:
            raise ValueError(
                f"`clusters_per_batch` must be at least 1, but got {clusters_per_batch}."
                " HINT: the paper joins some of many small clusters, such as 20 of 1,500."
            )
        self.topology = topology
        if parts is not None:
            self.seed_groups = _check_parts(parts, topology.num_nodes)
        else:
            assert num_parts is not None
            self.seed_groups = partition_nodes(topology, num_parts, method=method, seed=seed)
        self.groups_per_batch = clusters_per_batch
        self.num_parts = int(self.seed_groups.max()) + 1 if len(self.seed_groups) else 0
        # The nodes of cluster c are members[starts[c]:starts[c + 1]], ascending.
        members = np.argsort(self.seed_groups, kind="stable")
        self._members: NDArray[np.integer] = members.astype(topology.indices.dtype)
        self._starts = np.zeros(self.num_parts + 1, np.int64)
        np.cumsum(np.bincount(self.seed_groups, minlength=self.num_parts), out=self._starts[1:])
        self._tables = TablePool(topology.num_nodes)

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        self.refuse_time(time)
        seeds = self.check_seeds(seeds)
        clusters = np.unique(self.seed_groups[seeds])
        with self._tables.borrow() as table:
            return join_clusters(self.topology, table, seeds, self._members, self._starts, clusters)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.topology!r}, num_parts={self.num_parts:,},"
            f" clusters_per_batch={self.groups_per_batch})"
        )


def _check_parts(parts: NDArray[np.integer], num_nodes: int) -> NDArray[np.int32]:
    parts = np.asarray(parts)
    if parts.shape != (num_nodes,) or parts.dtype.kind not in "iu":
        raise ValueError(
            f"`parts` must be integers of shape ({num_nodes},), one cluster per node, but got"
            f" {parts.dtype} of shape {parts.shape}. HINT: `partition_nodes` returns such an array."
        )
    if num_nodes and (parts.min() < 0 or parts.max() >= 2**31 - 1):
        worst = parts.min() if parts.min() < 0 else parts.max()
        raise ValueError(
            f"`parts` must hold cluster numbers from 0 to 2**31 - 2, but found {worst}."
            " HINT: `np.unique(parts, return_inverse=True)[1]` numbers clusters from 0 on."
        )
    return parts.astype(np.int32)

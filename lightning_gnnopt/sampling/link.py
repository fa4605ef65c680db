"""Batches around links: their ends, and those of negative links, are the seeds of a node sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.edge_lookup import EdgeLookup
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import EdgeType
from lightning_gnnopt.sampling.link_ends import check_ends, num_ends, relation
from lightning_gnnopt.sampling.link_subgraph import LinkSubgraph
from lightning_gnnopt.sampling.negatives import NodePool, negative_pairs, negative_targets
from lightning_gnnopt.sampling.pyg_seam import long_tensor, sampler_output, torch_key
from lightning_gnnopt.sampling.rng import SampleKey, mix64
from lightning_gnnopt.sampling.subgraph import Subgraph

if TYPE_CHECKING:
    from lightning_gnnopt.sampling.base import NodeSampler
    from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler

_MODES = ("binary", "triplet")
# Keys the negatives apart from the hops, which are numbered from 0 ("negative" in ASCII).
_NEGATIVES = np.uint64(0x6E65676174697665)


class LinkSampler(BaseSampler):
    """Sample around links instead of nodes, with negatives drawn from counter-based random numbers.

    A node that is an end of several links is one seed, in ascending order of ids, unless the sampler's trees are
    disjoint: then every end of every link has its own tree. By default a negative may happen to be an edge, as in PyG.

    Args:
        sampler: Samples around the ends.
        negatives: ``"binary"``: ``ceil(amount * P)`` pairs of random nodes. ``"triplet"``: for each link `amount`
            random destinations. None: no negatives.
        amount: Negatives per link; for triplets a whole number.
        edge_type: In heterogeneous graphs the type of the links.
        src_weight: How likely each node is the source of a binary negative, shape ``(N,)``; all alike by default.
        dst_weight: How likely each node is the destination of a negative, shape ``(N,)``; all alike by default.
        exclude_positives: Draw a negative anew, up to 32 times in all, while an edge of the graph joins it, or for
            triplets while it is the link itself. Negatives are then uniform (or by weight) over the other pairs. What
            the last try gives is kept: a node joined to nearly all others may keep false negatives.

    Raises:
        ValueError: If `sampler` draws its own seeds, `negatives` is unknown, `amount` is not positive or not whole for
            triplets, `edge_type` does not fit the graph, or a weight is no distribution over the end's nodes.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import NeighborSampler, Topology
        >>> graph = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> links = LinkSampler(NeighborSampler(graph, [2]), negatives="binary", exclude_positives=True)
        >>> batch = links.sample(np.array([2, 3]), np.array([0, 0]), SampleKey(seed=0))
        >>> batch.subgraph.n_id[batch.edge_label_index[:, :2]].tolist(), batch.edge_label.tolist()
        ([[2, 3], [0, 0]], [1.0, 1.0, 0.0, 0.0])
    """

    def __init__(
        self,
        sampler: NodeSampler | HeteroNeighborSampler,
        *,
        negatives: Literal["binary", "triplet"] | None = None,
        amount: float = 1.0,
        edge_type: EdgeType | None = None,
        src_weight: NDArray[Any] | Tensor | Sequence[float] | None = None,
        dst_weight: NDArray[Any] | Tensor | Sequence[float] | None = None,
        exclude_positives: bool = False,
    ) -> None:
        if negatives is not None and negatives not in _MODES:
            raise ValueError(unknown_name("negatives", negatives, _MODES))
        if not amount > 0 or (negatives == "triplet" and amount != int(amount)):
            raise ValueError(
                f"`amount` must be positive, and a whole number for triplets, but got {amount}."
                " HINT: `negatives=None` draws no negatives."
            )
        if getattr(sampler, "draws_own_seeds", False):
            raise ValueError(
                f"`sampler` must start from the seeds it is given, but {type(sampler).__name__} draws its own: the ends"
                " of a link might not be in its batch. HINT: use a `NeighborSampler`."
            )
        self.sampler = sampler
        self.negatives = negatives
        self.amount = amount
        self.edge_type = edge_type
        self.src_weight, self.dst_weight = src_weight, dst_weight
        self.exclude_positives = exclude_positives
        num_sources, num_targets = num_ends(sampler.topology, edge_type)
        self._source_pool = NodePool(num_sources, weight=src_weight, node_time=sampler.node_time)
        self._target_pool = NodePool(num_targets, weight=dst_weight, node_time=sampler.node_time)
        self._lookup = EdgeLookup(relation(sampler.topology, edge_type)) if exclude_positives and negatives else None

    def sample(
        self,
        sources: NDArray[np.integer],
        targets: NDArray[np.integer],
        key: SampleKey,
        *,
        label: NDArray[Any] | None = None,
        time: NDArray[Any] | None = None,
    ) -> LinkSubgraph:
        """Draw the negatives of some links and the batch around all ends.

        Args:
            sources: Global ids of the links' sources, shape ``(P,)``.
            targets: Global ids of their destinations, shape ``(P,)``.
            key: What the random numbers are keyed by.
            label: The links' labels, shape ``(P, ...)``; 1.0 by default where there are binary negatives. Negatives get
                the label 0, so those of several classes should start at 1.
            time: The links' times, shape ``(P,)``, for temporal samplers. A negative has the time of the link it was
                drawn for, and only ends that exist by then.

        Returns:
            The batch.

        Raises:
            ValueError: If there is no link, shapes differ, an id is not a node, triplets have labels, `time` is given
                but the sampler's trees are not disjoint, or no node exists at a link's time.
        """
        sources, targets = check_ends(sources, targets, label=label, time=time)
        if label is not None and self.negatives == "triplet":
            raise ValueError(
                "`label` must be None for triplets, whose loss compares destinations, but labels were given."
                ' HINT: leave them away, or use negatives="binary".'
            )
        if time is not None and not self.sampler.disjoint:
            raise ValueError(
                "`time` needs a sampler with disjoint trees: a node that is an end of links of two times has two pasts."
                " HINT: build the sampler with `disjoint=True`."
            )
        num_links, given_time = len(sources), time
        word = np.uint64(mix64(np.uint64(key.fold()) ^ _NEGATIVES))  # numba hands back a plain int
        if self.negatives == "binary":
            more = math.ceil(num_links * self.amount)
            pools = self._source_pool, self._target_pool
            new_ends = negative_pairs(word, more, *pools, time=time, lookup=self._lookup)
            sources, targets = np.concatenate([sources, new_ends[0]]), np.concatenate([targets, new_ends[1]])
            label = np.ones(num_links, np.float32) if label is None else label
            label = np.concatenate([label, np.zeros((more, *label.shape[1:]), label.dtype)])
            time = None if time is None else np.resize(time, num_links + more)
        elif self.negatives == "triplet":
            arguments = (word, sources, targets, int(self.amount), self._target_pool)
            targets = np.concatenate([targets, negative_targets(*arguments, time=time, lookup=self._lookup)])
        subgraph, source_ids, target_ids = self._sample_ends(sources, targets, num_links, given_time, key)
        if self.negatives == "triplet":
            # Drawn link after link, then again; a row holds the negatives of one link.
            neg_index = target_ids[num_links:].reshape(-1, num_links).T
            return LinkSubgraph(
                subgraph,
                src_index=source_ids,
                dst_pos_index=target_ids[:num_links],
                dst_neg_index=np.ascontiguousarray(neg_index[:, 0] if self.amount == 1 else neg_index),
                time=time,
            )
        return LinkSubgraph(subgraph, np.stack([source_ids, target_ids]), label, time=time)

    @override
    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput | HeteroSamplerOutput:
        """Serve PyG's ``LinkLoader(data, link_sampler=...)``; the key comes from torch's global generator.

        Raises:
            ValueError: If the loader's edge type or `neg_sampling` is not what this sampler was made for.
        """
        if not self.serves(index.input_type, neg_sampling):
            asked = None if neg_sampling is None else (neg_sampling.mode.value, neg_sampling.amount)
            mine = None if self.negatives is None else (self.negatives, self.amount)
            raise ValueError(
                f"The loader asks for {index.input_type or 'edges'} with neg_sampling={asked}, but this `LinkSampler`"
                f" draws {self.edge_type or 'edges'} with {mine} and its own weights. HINT: give both the same edge"
                " type, mode and amount, and weights to the `LinkSampler` only, or pass its sampler to the loader."
            )
        label = None if index.label is None else index.label.numpy()
        time = None if index.time is None else index.time.numpy()
        links = self.sample(index.row.numpy(), index.col.numpy(), torch_key(), label=label, time=time)
        seed_time = None if links.time is None else torch.from_numpy(links.time)
        if self.negatives == "triplet":
            ids = (links.src_index, links.dst_pos_index, links.dst_neg_index)
            metadata: tuple[Any, ...] = (index.input_id, *(long_tensor(part) for part in ids if part is not None))
        else:
            assert links.edge_label_index is not None
            edge_label = None if links.edge_label is None else torch.from_numpy(links.edge_label)
            metadata = (index.input_id, long_tensor(links.edge_label_index), edge_label)
        return sampler_output(links.subgraph, self.sampler.topology, (*metadata, seed_time))

    @override
    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput | HeteroSamplerOutput:
        """Sample around nodes: what the sampler below does."""
        return self.sampler.sample_from_nodes(index, **kwargs)

    def serves(self, edge_type: EdgeType | None, neg_sampling: NegativeSampling | None) -> bool:
        """Whether a loader with this `edge_type` and `neg_sampling` gets what it asks for."""
        if edge_type != self.edge_type or (neg_sampling is None) != (self.negatives is None):
            return False
        return neg_sampling is None or (
            (neg_sampling.mode.value, neg_sampling.amount) == (self.negatives, self.amount)
            and (neg_sampling.src_weight is None or neg_sampling.src_weight is self.src_weight)
            and (neg_sampling.dst_weight is None or neg_sampling.dst_weight is self.dst_weight)
        )

    def _sample_ends(
        self,
        sources: NDArray[np.integer],
        targets: NDArray[np.integer],
        num_links: int,
        time: NDArray[Any] | None,
        key: SampleKey,
    ) -> tuple[Subgraph | HeteroSubgraph, NDArray[np.int64], NDArray[np.int64]]:
        """Sample around both ends; return the batch and the local ids of the sources and of the destinations."""
        seeds = [sources, targets]
        links = [np.arange(len(part), dtype=np.int32) % num_links for part in seeds]
        types = [] if self.edge_type is None else list(dict.fromkeys((self.edge_type[0], self.edge_type[2])))
        if len(types) < 2:  # both ends are nodes of one kind
            seeds, links = [np.concatenate(seeds)], [np.concatenate(links)]
        local = [np.arange(len(part)) for part in seeds]
        times = {} if time is None else {"time": [time[part] for part in links]}
        if not self.sampler.disjoint:
            unique = [np.unique(part, return_inverse=True) for part in seeds]
            seeds, local = [part for part, _ in unique], [inverse for _, inverse in unique]
        sample: Any = self.sampler.sample
        if types:
            by_type = {name: dict(zip(types, parts, strict=True)) for name, parts in times.items()}
            subgraph = sample(dict(zip(types, seeds, strict=True)), key, **by_type)
        else:
            subgraph = sample(seeds[0], key, **{name: parts[0] for name, parts in times.items()})
        if self.sampler.disjoint:
            subgraph = _number_by_link(subgraph, np.concatenate(links))
        ids = np.concatenate(local)
        return subgraph, ids[: len(sources)], ids[len(sources) :]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r}, negatives={self.negatives!r}, amount={self.amount})"


def link_sampler_for(
    sampler: NodeSampler | HeteroNeighborSampler,
    edge_type: EdgeType | None,
    neg_sampling: NegativeSampling | None,
    previous: LinkSampler | None,
) -> LinkSampler:
    """Turn what a PyG loader asks for into a `LinkSampler`.

    Args:
        sampler: Samples around the ends.
        edge_type: Type of the links in heterogeneous graphs.
        neg_sampling: Which negatives to draw.
        previous: What was returned last; returned again if it serves, since weights and times are sorted only once.

    Returns:
        The sampler.
    """
    if neg_sampling is None:
        if previous is not None and previous.serves(edge_type, None):
            return previous
        return LinkSampler(sampler, edge_type=edge_type)
    if (
        previous is not None
        and previous.serves(edge_type, neg_sampling)
        and previous.src_weight is neg_sampling.src_weight
        and previous.dst_weight is neg_sampling.dst_weight
    ):
        return previous
    return LinkSampler(
        sampler,
        negatives=neg_sampling.mode.value,
        amount=neg_sampling.amount,
        edge_type=edge_type,
        src_weight=neg_sampling.src_weight,
        dst_weight=neg_sampling.dst_weight,
    )


def _number_by_link(subgraph: Subgraph | HeteroSubgraph, links: NDArray[np.int32]) -> Subgraph | HeteroSubgraph:
    """Name trees by their link instead of their seed; `links` says for each seed which it is an end of."""
    assert subgraph.batch is not None
    if isinstance(subgraph, HeteroSubgraph):
        return replace(subgraph, batch={name: links[trees] for name, trees in subgraph.batch.items()})
    return replace(subgraph, batch=links[subgraph.batch])

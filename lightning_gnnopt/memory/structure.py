"""What of a batch is left when some of its edges go, or only some of its seeds are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.structure_kernels import (
    in_edges,
    renumber,
    touch,
    walk_hops,
    walk_steps,
)
from lightning_gnnopt.sampling import Subgraph

_MAX_IDS = 2**31 - 2


class InEdges(NamedTuple):
    """The edges of a batch, grouped by destination; those of one destination in the order they had.

    Attributes:
        indptr: Int32 of shape ``(N + 1,)``: ``indptr[v]:indptr[v + 1]`` are the in-edges of ``v``.
        sources: Int32 of shape ``(E,)``.
        edges: Int32 of shape ``(E,)``: places of the edges in the batch.
    """

    indptr: NDArray[np.int32]
    sources: NDArray[np.int32]
    edges: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BatchStructure:
    """The edges of a batch, and where its seeds and hops are.

    Messages flow from `row` to `col`; the seeds are nodes ``0 .. num_seeds - 1``.

    Attributes:
        row: Local sources, integers of shape ``(E,)``.
        col: Local destinations, integers of shape ``(E,)``.
        num_nodes: Number of nodes ``N``.
        num_seeds: Number of seeds ``B``.
        num_hops: Number of hops ``L``; None where a batch has none, such as a cluster: every layer runs on all nodes.

    Raises:
        ValueError: If shapes differ, or a number is out of its range.

    Examples:
        >>> path = BatchStructure(np.array([1, 2]), np.array([0, 1]), num_nodes=3, num_seeds=1, num_hops=2)
        >>> select(path, keep=np.array([True, False])).num_sampled_nodes
        [1, 1, 0]
    """

    row: NDArray[np.integer]
    col: NDArray[np.integer]
    num_nodes: int
    num_seeds: int
    num_hops: int | None
    _in_edges: InEdges | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("row", "col"):
            ids = getattr(self, name)
            if ids.shape != (self.num_edges,) or ids.dtype.kind not in "iu":
                raise ValueError(
                    f"`{name}` must be integers of shape (E,) with E = {self.num_edges}, but is {ids.dtype} of shape"
                    f" {ids.shape}. HINT: `row` and `col` are the two rows of a batch's `edge_index`."
                )
            if len(ids) and (ids.min() < 0 or ids.max() >= self.num_nodes):
                worst = ids.min() if ids.min() < 0 else ids.max()
                raise ValueError(
                    f"`{name}` must hold local ids from 0 to {self.num_nodes - 1}, but found {worst}."
                    " HINT: the ids of a batch's edges are places among the batch's own nodes."
                )
            object.__setattr__(self, name, np.ascontiguousarray(ids))
        if max(self.num_nodes, self.num_edges) > _MAX_IDS:
            raise ValueError(
                f"A batch must have no more than {_MAX_IDS:,} nodes or edges, but has {self.num_nodes:,} and"
                f" {self.num_edges:,}. HINT: sample smaller batches."
            )
        if not 0 <= self.num_seeds <= self.num_nodes:
            raise ValueError(
                f"`num_seeds` must be from 0 to the {self.num_nodes} nodes of the batch, but got {self.num_seeds}."
                " HINT: the seeds are the first nodes."
            )
        if self.num_hops is not None and self.num_hops < 1:
            raise ValueError(
                f"`num_hops` must be at least 1, but got {self.num_hops}. HINT: None for a batch without hops."
            )

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``."""
        return int(self.row.size)

    def in_edges(self) -> InEdges:
        """Group the edges by destination; done once."""
        if self._in_edges is None:
            indptr = np.zeros(self.num_nodes + 1, np.int32)
            sources, edges = np.empty(self.num_edges, np.int32), np.empty(self.num_edges, np.int32)
            in_edges(self.row, self.col, indptr, sources, edges)
            object.__setattr__(self, "_in_edges", InEdges(indptr, sources, edges))
        assert self._in_edges is not None
        return self._in_edges

    @classmethod
    def of_subgraph(cls, subgraph: Subgraph) -> BatchStructure:
        """Read a sampled subgraph."""
        per_hop = subgraph.num_sampled_edges
        num_hops = None if per_hop is None or subgraph.num_sampled_nodes is None else len(per_hop)
        return cls(subgraph.row, subgraph.col, subgraph.num_nodes, subgraph.batch_size, num_hops)

    @classmethod
    def of_batch(cls, batch: Any) -> BatchStructure:
        """Read a PyG ``Data`` on any device; its `edge_index` may be an `EdgeIndex`.

        Its seeds are as :func:`num_seeds_of` counts them.

        Raises:
            TypeError: If the batch has no `edge_index`, or several.
        """
        edge_index = None if hasattr(batch, "edge_types") else batch.get("edge_index")
        if edge_index is None:
            raise TypeError(
                f"A batch to be cut must be a PyG `Data` with `edge_index`, but is {type(batch).__name__} with"
                f" {', '.join(map(str, batch.keys()))}. HINT: several types of edges and `adj_t` are not supported."
            )
        row, col = edge_index.detach().cpu().numpy()
        num_hops = len(batch.num_sampled_edges) if _has_hops(batch) else None
        return cls(row, col, int(batch.num_nodes), num_seeds_of(batch), num_hops)


@dataclass(frozen=True, eq=False)
class Selection:
    """What is left of a batch, renumbered.

    Attributes:
        nodes: Old local ids in the new order, int64 of shape ``(N',)``: the seeds, then hop by hop.
        edges: Old places of the edges in the new order, int64 of shape ``(E',)``: hop by hop.
        row: New sources, shape ``(E',)``.
        col: New destinations, shape ``(E',)``.
        num_seeds: Number of seeds.
        num_sampled_nodes: ``[seeds, new in hop 1, ..., new in hop L]``; None where a batch has no hops.
        num_sampled_edges: ``[hop 1, ..., hop L]``; None where a batch has no hops.
        is_identity: Whether it is the whole batch as it was.
    """

    nodes: NDArray[np.integer]
    edges: NDArray[np.integer]
    row: NDArray[np.integer]
    col: NDArray[np.integer]
    num_seeds: int
    num_sampled_nodes: list[int] | None
    num_sampled_edges: list[int] | None
    is_identity: bool = False


def select(
    structure: BatchStructure,
    *,
    keep: NDArray[np.bool_] | None = None,
    seeds: NDArray[np.integer] | None = None,
    depth: int | None = None,
) -> Selection:
    """Say what is left of a batch if only some edges are kept, or only some seeds are wanted.

    **With hops**, the new hops are the distances from the chosen seeds over the kept edges: a node that is reached
    after ``d`` steps is in hop ``d``, and its kept in-edges are those of hop ``d + 1``. What is not reached in ``L``
    steps goes. In a sampled batch each node is expanded once, in the hop after its own, so new distances are never
    below old ones. An ``L``-layer net therefore computes for the chosen seeds exactly what it computes on the whole
    (kept) batch: a seed's output reads a node at distance ``d`` up to layer ``L - d``, the in-edges of nodes at
    ``d < L`` are all there, in the same order, and trimming the outer hops layer by layer, here as in the whole batch,
    takes away only what no chosen seed reads any more. The in-edges of a node at distance ``L`` go: it gives its
    features alone.

    **Without hops**, if no seeds are chosen, all seeds stay, and every other node with a kept edge. For chosen seeds,
    the nodes stay from which a seed is reached within `depth` steps, and the in-edges of those that are closer than
    `depth`: what a net of `depth` layers reads for these seeds. Other nodes may get other outputs than before. The
    order of nodes and edges stays.

    Convolutions that look at more than messages read further. One that counts the degrees of its *sources* in the
    batch, as PyG's ``GCNConv(normalize=True)``, needs a `depth` one higher without hops, and with hops computes other
    weights at the rim. Batch statistics are those of the rows that are left.

    Args:
        structure: The batch.
        keep: The edges to keep, bool of shape ``(E,)``; None for all.
        seeds: Places of the seeds to keep, in this order, integers of shape ``(B',)``; None for all.
        depth: Number of layers, for seeds of batches without hops; None takes all nodes that reach a seed. A batch with
            hops has its number of hops.

    Returns:
        What is left, in the same order for the same arguments.

    Raises:
        ValueError: If a shape or a number is wrong.
    """
    keep_all = checked_keep(structure, keep)
    chosen = np.arange(structure.num_seeds) if seeds is None else _checked_seeds(structure, seeds)
    if depth is not None and depth < 1:
        raise ValueError(f"`depth` must be at least 1, but got {depth}. HINT: the model's number of layers.")
    num_nodes, num_edges, room = structure.num_nodes, structure.num_edges, structure.num_edges + 1
    nodes, edges = np.empty(num_nodes + 1, np.int64), np.empty(room, np.int64)
    row, col = np.empty(room, structure.row.dtype), np.empty(room, structure.col.dtype)
    hops: tuple[list[int] | None, list[int] | None] = (None, None)
    if structure.num_hops is not None:
        nodes[: len(chosen)] = chosen
        place = np.full(num_nodes, -1, np.int32)
        place[chosen] = np.arange(len(chosen), dtype=np.int32)
        node_counts, edge_counts = np.zeros(structure.num_hops + 1, np.int64), np.zeros(structure.num_hops, np.int64)
        node_counts[0] = len(chosen)
        walk_hops(*structure.in_edges(), keep_all, place, nodes, edges, row, col, node_counts, edge_counts)
        hops = node_counts.tolist(), edge_counts.tolist()
        num_nodes, num_edges = int(node_counts.sum()), int(edge_counts.sum())
    else:
        inside, expanded = np.zeros(num_nodes, np.bool_), np.zeros(num_nodes, np.bool_)
        if seeds is None:
            inside[: structure.num_seeds] = expanded[:] = True
            touch(structure.row, structure.col, keep_all, inside)
        else:
            steps = num_nodes if depth is None else depth
            walk_steps(*structure.in_edges(), keep_all, chosen, steps, inside, expanded)
        num_nodes, num_edges = renumber(
            structure.row, structure.col, keep_all, inside, expanded, chosen, nodes, edges, row, col
        )
    is_whole = (num_nodes, num_edges, len(chosen)) == (structure.num_nodes, structure.num_edges, structure.num_seeds)
    return Selection(
        nodes=_trimmed(nodes, num_nodes),
        edges=_trimmed(edges, num_edges),
        row=_trimmed(row, num_edges),
        col=_trimmed(col, num_edges),
        num_seeds=len(chosen),
        num_sampled_nodes=hops[0],
        num_sampled_edges=hops[1],
        is_identity=is_whole and _is_range(nodes[:num_nodes]) and _is_range(edges[:num_edges]),
    )


def num_seeds_of(batch: Any) -> int:
    """Count the seeds of a PyG batch: `batch_size`; without it the nodes of hop 0, or without hops all nodes."""
    num_seeds = batch.get("batch_size")  # from its store: a `DataBatch` has a property of that name
    if num_seeds is None:
        num_seeds = batch.num_sampled_nodes[0] if _has_hops(batch) else batch.num_nodes
    return int(num_seeds)


def _has_hops(batch: Any) -> bool:
    return batch.get("num_sampled_nodes") is not None and batch.get("num_sampled_edges") is not None


def checked_keep(structure: BatchStructure, keep: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Give a mask over all edges, and refuse one that is none."""
    if keep is None:
        return np.ones(structure.num_edges, np.bool_)
    if keep.shape != (structure.num_edges,) or keep.dtype != np.bool_:
        raise ValueError(
            f"`keep` must be bool of shape ({structure.num_edges},), one for each edge, but is {keep.dtype} of shape"
            f" {keep.shape}. HINT: a mask, not the places of edges."
        )
    return np.ascontiguousarray(keep)


def _checked_seeds(structure: BatchStructure, seeds: NDArray[np.integer]) -> NDArray[np.int64]:
    places = np.asarray(seeds)
    hint = "HINT: seeds are named by their places in the batch; one that is there twice has two."
    if places.ndim != 1 or (places.dtype.kind not in "iu" and places.size):
        raise ValueError(f"`seeds` must be integers of shape (B',), but is {places.dtype} of {places.shape}. {hint}")
    places = places.astype(np.int64)
    if len(places) and (places.min() < 0 or places.max() >= structure.num_seeds):
        worst = places.min() if places.min() < 0 else places.max()
        raise ValueError(f"`seeds` must be from 0 to {structure.num_seeds - 1}, but found {worst}. {hint}")
    if len(places) > 1 and np.bincount(places).max() > 1:
        raise ValueError(f"`seeds` must name no place twice, but names {np.bincount(places).argmax()} twice. {hint}")
    return places


def _trimmed(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Take the first entries, and let go of the room for the others if it is much."""
    return array[:size] if 8 * size > 7 * len(array) else array[:size].copy()


def _is_range(values: NDArray[np.int64]) -> bool:
    return bool((values == np.arange(len(values))).all())

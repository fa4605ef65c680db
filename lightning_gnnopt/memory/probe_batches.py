"""Tiny batches of many shapes, made from one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.structure import BatchStructure, Selection

MOST = 600
"""Nodes, and edges, of a hop of a probe: small, but with work for every kernel."""
_KEEP_NODES, _KEEP_EDGES = (0.6, 1.0), (0.35, 1.0)
_LOOPS = (0.05, 0.3)
_LEAST = 3  # of each kind: none is no allocation, and one row is summed by other kernels than several
# oneDNN computes products in bfloat16 block by block: its workspaces take as much as they ever do where the rows are a
# multiple of 256 and more than 512. An odd one of each kind: two blocks of one size could be taken for each other.
_BLOCK = 256
_LARGE = (3, 5)


def probe_batches(
    batch: Any, num: int, *, seed: int = 0, loops: bool = True, most: int | None = MOST, large: int = 0
) -> list[Any]:
    """Thin a batch at random in `num` ways, so that no count follows from the others.

    Sampled batches are nearly trees: each edge brings a node, so what an edge costs and what a node costs cannot be
    told apart. Here nodes, edges and self loops of each hop are kept independently of each other, nodes without edges
    among them. Ids, features and the order of hops are those of the batch.

    Kernels whose workspaces depend on more than the counts, as those for bfloat16 on the CPU do, show the whole of it
    only where they have much to do. For these some probes can be larger than the batch: there it stands several times,
    each copy of an edge between any copies of its ends. Of disjoint trees no such probes are made.

    Args:
        batch: A PyG ``Data`` of some hundred nodes.
        num: How many to make.
        seed: Keys the random numbers.
        loops: Whether to turn some edges into self loops of their destinations.
        most: Nodes, and edges, of a hop that are kept at most; None for no limit.
        large: How many of them, the last ones, have some thousand nodes and edges of each hop; 2 at most.

    Returns:
        The thinned batches.

    Raises:
        ValueError: If more large ones are asked for than there are.
    """
    if not 0 <= large <= min(num, len(_LARGE)):
        raise ValueError(
            f"`large` must be 0 to {len(_LARGE)} and not above `num`, {num}, but got {large}. HINT: 2 where workspaces"
            " grow in steps."
        )
    structure = BatchStructure.of_batch(batch)
    levels = _levels(batch, structure)
    generator = np.random.default_rng(seed)
    sizes = () if batch.get("batch") is not None else _LARGE[:large]
    selections = [_thinned(structure, levels, generator, loops, most) for _ in range(num - len(sizes))]
    selections += [_repeated(structure, levels, generator, loops, blocks) for blocks in sizes]
    return [cut_batch(batch, selection) for selection in selections]


def _levels(batch: Any, structure: BatchStructure) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The hop of each node, from 0, and of each edge, from 1."""
    if structure.num_hops is None:
        nodes = (np.arange(structure.num_nodes) >= structure.num_seeds).astype(np.int64)
        return nodes, np.ones(len(structure.row), np.int64)
    nodes_per_hop = [int(count) for count in batch.num_sampled_nodes]
    edges_per_hop = [int(count) for count in batch.num_sampled_edges]
    return (
        np.repeat(np.arange(len(nodes_per_hop)), nodes_per_hop),
        np.repeat(np.arange(1, len(edges_per_hop) + 1), edges_per_hop),
    )


def _thinned(
    structure: BatchStructure,
    levels: tuple[NDArray[np.int64], NDArray[np.int64]],
    generator: np.random.Generator,
    loops: bool,
    most: int | None,
) -> Selection:
    node_level, edge_level = levels
    num_levels = 1 + (structure.num_hops or 1)
    row, col = np.array(structure.row, np.int64), np.array(structure.col, np.int64)
    keep_node = _drawn(node_level, num_levels, _KEEP_NODES, generator, most=most)
    keep_edge = _drawn(
        edge_level,
        num_levels,
        _KEEP_EDGES,
        generator,
        most=most,
        least=3 * _LEAST,
        among=keep_node[row] & keep_node[col],
    )
    if loops:
        turned = _drawn(edge_level, num_levels, _LOOPS, generator, most=most, among=keep_edge)
        row[turned] = col[turned]
    nodes, edges = np.flatnonzero(keep_node), np.flatnonzero(keep_edge)
    place = np.cumsum(keep_node) - 1
    return _selection(structure, levels, nodes, edges, place[row[edges]], place[col[edges]])


def _repeated(
    structure: BatchStructure,
    levels: tuple[NDArray[np.int64], NDArray[np.int64]],
    generator: np.random.Generator,
    loops: bool,
    blocks: int,
) -> Selection:
    """Take `blocks` of seeds, and two more of nodes and then of edges from hop to hop, each as often as needed."""
    node_level, edge_level = levels
    nodes = _resized(node_level, blocks, generator)
    copies = np.bincount(nodes, minlength=structure.num_nodes)
    there = (copies[structure.row] > 0) & (copies[structure.col] > 0)
    edges = _resized(np.where(there, edge_level, 0), blocks + 2 * (node_level.max() + 1), generator, first=1)
    by_node, first_copy = np.argsort(nodes, kind="stable"), np.cumsum(copies) - copies
    row, col = (
        by_node[first_copy[end] + generator.integers(copies[end])]
        for end in (structure.row[edges], structure.col[edges])
    )
    if loops:
        for number in np.unique(edge_level[edges]):
            turned = generator.choice(np.flatnonzero(edge_level[edges] == number), _BLOCK, replace=False)
            row[turned] = col[turned]
    return _selection(structure, levels, nodes, edges, row, col)


def _resized(
    level: NDArray[np.int64], blocks: int, generator: np.random.Generator, *, first: int = 0
) -> NDArray[np.int64]:
    """Places of each level from `first` on, in ascending order level by level."""
    of_levels = [
        np.sort(np.resize(generator.permutation(np.flatnonzero(level == number)), _BLOCK * (blocks + 2 * place)))
        for place, number in enumerate(np.unique(level[level >= first]))
    ]
    return np.concatenate([np.empty(0, np.int64), *of_levels])


def _selection(
    structure: BatchStructure,
    levels: tuple[NDArray[np.int64], NDArray[np.int64]],
    nodes: NDArray[np.int64],
    edges: NDArray[np.int64],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
) -> Selection:
    node_level, edge_level = levels[0][nodes], levels[1][edges]
    num_levels = 1 + (structure.num_hops or 1)
    has_hops = structure.num_hops is not None
    return Selection(
        nodes=nodes,
        edges=edges,
        row=row,
        col=col,
        num_seeds=int((nodes < structure.num_seeds).sum()),
        num_sampled_nodes=np.bincount(node_level, minlength=num_levels).tolist() if has_hops else None,
        num_sampled_edges=np.bincount(edge_level, minlength=num_levels)[1:].tolist() if has_hops else None,
    )


def _drawn(
    level: NDArray[np.int64],
    num_levels: int,
    share: tuple[float, float],
    generator: np.random.Generator,
    *,
    most: int | None,
    least: int = _LEAST,
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Draw a share of each level at random, itself drawn at random, but not too many and not too few."""
    drawn = np.zeros(len(level), np.bool_)
    for number in range(num_levels):
        places = np.flatnonzero(level == number if among is None else (level == number) & among)
        size = generator.uniform(*share) * (len(places) if most is None else min(len(places), most))
        number_drawn = min(len(places), max(int(size), least + int(generator.integers(least))))
        drawn[generator.choice(places, number_drawn, replace=False)] = True
    return drawn

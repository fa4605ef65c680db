"""Fan-outs per edge type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_gnnopt.sampling.hetero_topology import EdgeType


def check_hetero_fanouts(
    num_neighbors: Sequence[int] | Mapping[EdgeType, Sequence[int]], edge_types: Sequence[EdgeType]
) -> dict[EdgeType, list[int]]:
    """Refuse fan-outs that cannot be sampled.

    Args:
        num_neighbors: One fan-out per hop, for all edge types or for each.
        edge_types: The graph's edge types.

    Returns:
        For each edge type its fan-outs as plain integers.

    Raises:
        ValueError: As said of `HeteroNeighborSampler`.
    """
    lists = dict(num_neighbors) if isinstance(num_neighbors, Mapping) else dict.fromkeys(edge_types, num_neighbors)
    if not edge_types:
        raise ValueError("`topology` must have an edge type, but has none. HINT: add edges, or train on nodes alone.")
    for name in lists:
        if name not in edge_types:
            raise ValueError(
                f"`num_neighbors` must be for edge types of the graph, but {name} is none of them: {list(edge_types)}."
                " HINT: an edge type is (source type, relation, destination type)."
            )
    for name in edge_types:
        fanouts = lists.get(name)
        if fanouts is None:
            raise ValueError(
                f"`num_neighbors` must have fan-outs for every edge type, but has none for {name}."
                " HINT: a 0 in every hop leaves the edge type out."
            )
        if not isinstance(fanouts, Sequence | np.ndarray) or isinstance(fanouts, str) or len(fanouts) == 0:
            raise ValueError(
                f"`num_neighbors` must be a list with one fan-out per hop, but got {fanouts!r} for {name}."
                " HINT: [10, 5] samples two hops."
            )
        for fanout in fanouts:
            if isinstance(fanout, bool) or not isinstance(fanout, int | np.integer) or fanout < -1:
                raise ValueError(
                    f"`num_neighbors` must hold integers from -1 on (-1: all neighbours, 0: none), but got {fanout!r}"
                    f" in {list(fanouts)} for {name}. HINT: a fan-out is how many neighbours are drawn at most."
                )
    lengths = {name: len(lists[name]) for name in edge_types}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"`num_neighbors` must have one length for all edge types, but got {lengths}."
            " HINT: fill up with 0: the edge type is then not followed in that hop."
        )
    return {name: [int(fanout) for fanout in lists[name]] for name in edge_types}

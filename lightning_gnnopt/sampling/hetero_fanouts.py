"""Fan-outs per edge type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_gnnopt.sampling.hetero_topology import EdgeType


def check_hetero_fanouts(
    num_neighbors: Sequence[int] | Mapping[EdgeType, Sequence[int]],
    edge_types: Sequence[EdgeType],
    *,
    name: str = "num_neighbors",
) -> dict[EdgeType, list[int]]:
    """Refuse fan-outs that cannot be sampled.

    Args:
        num_neighbors: One fan-out per hop, for all edge types or for each.
        edge_types: The graph's edge types.
        name: What the user calls the fan-outs.

    Returns:
        For each edge type its fan-outs as plain integers.

    Raises:
        ValueError: As said of `HeteroNeighborSampler`.
    """
    lists = dict(num_neighbors) if isinstance(num_neighbors, Mapping) else dict.fromkeys(edge_types, num_neighbors)
    if not edge_types:
        raise ValueError("`topology` must have an edge type, but has none. HINT: add edges, or train on nodes alone.")
    for edge_type in lists:
        if edge_type not in edge_types:
            raise ValueError(
                f"`{name}` must be for edge types of the graph, but {edge_type} is none of them: {list(edge_types)}."
                " HINT: an edge type is (source type, relation, destination type)."
            )
    for edge_type in edge_types:
        fanouts = lists.get(edge_type)
        if fanouts is None:
            raise ValueError(
                f"`{name}` must have fan-outs for every edge type, but has none for {edge_type}."
                " HINT: a 0 in every hop leaves the edge type out."
            )
        if not isinstance(fanouts, Sequence | np.ndarray) or isinstance(fanouts, str) or len(fanouts) == 0:
            raise ValueError(
                f"`{name}` must be a list with one fan-out per hop, but got {fanouts!r} for {edge_type}."
                " HINT: [10, 5] samples two hops."
            )
        for fanout in fanouts:
            if isinstance(fanout, bool) or not isinstance(fanout, int | np.integer) or fanout < -1:
                raise ValueError(
                    f"`{name}` must hold integers from -1 on (-1: all neighbours, 0: none), but got {fanout!r}"
                    f" in {list(fanouts)} for {edge_type}. HINT: a fan-out is how many neighbours are drawn at most."
                )
    lengths = {edge_type: len(lists[edge_type]) for edge_type in edge_types}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"`{name}` must have one length for all edge types, but got {lengths}."
            " HINT: fill up with 0: the edge type is then not followed in that hop."
        )
    return {edge_type: [int(fanout) for fanout in lists[edge_type]] for edge_type in edge_types}

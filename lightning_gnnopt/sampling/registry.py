"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.cluster import ClusterSampler
from lightning_gnnopt.sampling.fastgcn import FastGCNSampler
from lightning_gnnopt.sampling.labor import LaborSampler
from lightning_gnnopt.sampling.ladies import LadiesSampler
from lightning_gnnopt.sampling.neighbor import NeighborSampler
from lightning_gnnopt.sampling.saint_edge import SaintEdgeSampler
from lightning_gnnopt.sampling.saint_node import SaintNodeSampler
from lightning_gnnopt.sampling.saint_walk import SaintWalkSampler
from lightning_gnnopt.sampling.shadow import ShadowSampler

SAMPLERS: dict[str, type[NodeSampler]] = {
    "neighbor": NeighborSampler,
    "labor": LaborSampler,
    "fastgcn": FastGCNSampler,
    "ladies": LadiesSampler,
    "cluster": ClusterSampler,
    "saint-node": SaintNodeSampler,
    "saint-edge": SaintEdgeSampler,
    "saint-walk": SaintWalkSampler,
    "shadow": ShadowSampler,
}


def resolve_sampler(name: str) -> Callable[..., NodeSampler]:
    """Find a sampler class by its name.

    Args:
        name: A key of :data:`SAMPLERS`.

    Returns:
        The class; its first argument is the topology.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> resolve_sampler("neighbour")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Unknown sampler 'neighbour'. Did you mean 'neighbor'? Known: cluster, fastgcn, labor, ...
    """
    if name not in SAMPLERS:
        raise ValueError(unknown_name("sampler", name, SAMPLERS))
    return SAMPLERS[name]

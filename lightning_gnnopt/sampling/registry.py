"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.neighbor import NeighborSampler

SAMPLERS: dict[str, type[NodeSampler]] = {"neighbor": NeighborSampler}


def resolve_sampler(name: str) -> Callable[..., NodeSampler]:
    """Find a sampler class by its name.

    Args:
        name: A key of :data:`SAMPLERS`.

    Returns:
        The class; its first argument is the topology.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> resolve_sampler("neighbour")
        Traceback (most recent call last):
        ValueError: Unknown sampler 'neighbour'. Did you mean 'neighbor'? Known: neighbor.
    """
    if name not in SAMPLERS:
        raise ValueError(unknown_name("sampler", name, SAMPLERS))
    return SAMPLERS[name]

"""Which nodes and edges a batch holds."""

from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.neighbor import NeighborSampler, check_fanouts
from lightning_gnnopt.sampling.registry import SAMPLERS, resolve_sampler
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.seeds_only import SeedsOnlySampler
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

__all__ = [
    "SAMPLERS",
    "NeighborSampler",
    "NodeSampler",
    "SampleKey",
    "SeedsOnlySampler",
    "Subgraph",
    "Topology",
    "check_fanouts",
    "resolve_sampler",
]

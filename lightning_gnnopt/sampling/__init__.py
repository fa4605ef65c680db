"""Which nodes and edges a batch holds."""

from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.cluster import ClusterSampler
from lightning_gnnopt.sampling.fastgcn import FastGCNSampler
from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import HeteroTopology
from lightning_gnnopt.sampling.labor import LaborSampler
from lightning_gnnopt.sampling.ladies import LadiesSampler
from lightning_gnnopt.sampling.link import LinkSampler
from lightning_gnnopt.sampling.link_subgraph import LinkSubgraph
from lightning_gnnopt.sampling.neighbor import NeighborSampler, check_fanouts
from lightning_gnnopt.sampling.partition import edge_cut, partition_nodes
from lightning_gnnopt.sampling.registry import SAMPLERS, resolve_sampler
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.saint_edge import SaintEdgeSampler
from lightning_gnnopt.sampling.saint_node import SaintNodeSampler
from lightning_gnnopt.sampling.saint_walk import SaintWalkSampler
from lightning_gnnopt.sampling.seeds_only import SeedsOnlySampler
from lightning_gnnopt.sampling.shadow import ShadowSampler
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

__all__ = [
    "SAMPLERS",
    "ClusterSampler",
    "FastGCNSampler",
    "HeteroNeighborSampler",
    "HeteroSubgraph",
    "HeteroTopology",
    "LaborSampler",
    "LadiesSampler",
    "LinkSampler",
    "LinkSubgraph",
    "NeighborSampler",
    "NodeSampler",
    "SaintEdgeSampler",
    "SaintNodeSampler",
    "SaintWalkSampler",
    "SampleKey",
    "SeedsOnlySampler",
    "ShadowSampler",
    "Subgraph",
    "Topology",
    "check_fanouts",
    "edge_cut",
    "partition_nodes",
    "resolve_sampler",
]

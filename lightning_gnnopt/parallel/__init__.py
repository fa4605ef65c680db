"""Full graphs: over several processes, or in chunks on one device."""

from lightning_gnnopt.parallel.balance import LearnedBalance
from lightning_gnnopt.parallel.block import Block
from lightning_gnnopt.parallel.chunked import ChunkedPropagate
from lightning_gnnopt.parallel.datamodule import PartitionDataModule
from lightning_gnnopt.parallel.edge_split import EdgeSplit
from lightning_gnnopt.parallel.first_layer import FirstLayer
from lightning_gnnopt.parallel.first_layer_plan import cheapest
from lightning_gnnopt.parallel.launch_order import LaunchOrder
from lightning_gnnopt.parallel.node_map import NodeMap
from lightning_gnnopt.parallel.ordered_channel import OrderedChannel
from lightning_gnnopt.parallel.part_data import PartData
from lightning_gnnopt.parallel.part_features import PartFeatures
from lightning_gnnopt.parallel.part_files import PartitionInfo, load_part, read_info
from lightning_gnnopt.parallel.part_sampler import PartNeighborSampler
from lightning_gnnopt.parallel.partition import partition_graph
from lightning_gnnopt.parallel.policies import BNS, SAR, Columns, Exact, Quantized, Stale
from lightning_gnnopt.parallel.prediction import Exchange, find_exchanges, predict_bytes
from lightning_gnnopt.parallel.rank_lost import RankLost
from lightning_gnnopt.parallel.report import PartitionReport
from lightning_gnnopt.parallel.strategy import GraphParallelStrategy

__all__ = [
    "BNS",
    "SAR",
    "Block",
    "ChunkedPropagate",
    "Columns",
    "EdgeSplit",
    "Exact",
    "Exchange",
    "FirstLayer",
    "GraphParallelStrategy",
    "LaunchOrder",
    "LearnedBalance",
    "NodeMap",
    "OrderedChannel",
    "PartData",
    "PartFeatures",
    "PartNeighborSampler",
    "PartitionDataModule",
    "PartitionInfo",
    "PartitionReport",
    "Quantized",
    "RankLost",
    "Stale",
    "cheapest",
    "find_exchanges",
    "load_part",
    "partition_graph",
    "predict_bytes",
    "read_info",
]

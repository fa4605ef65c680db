"""Sampled GNN training on PyG graphs under PyTorch Lightning: fast, uninterrupted and safe."""

from lightning_gnnopt.analysis import GNNProfiler, LoaderMonitor, RunSummary
from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.loading import GraphDataModule, LinkSplit, LinkTask, PrefetchLoader
from lightning_gnnopt.memory import MemoryControl
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.parallel import ChunkedPropagate, GraphParallelStrategy, PartitionDataModule

__version__ = "0.1.0.dev0"
__all__ = [
    "AsyncValidation",
    "ChunkedPropagate",
    "GNNProfiler",
    "GraphDataModule",
    "GraphParallelStrategy",
    "LinkSplit",
    "LinkTask",
    "LoaderMonitor",
    "MemoryControl",
    "NodeClassifier",
    "PartitionDataModule",
    "PrefetchLoader",
    "RunSummary",
    "__version__",
]

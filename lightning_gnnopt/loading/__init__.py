"""How a sampled batch reaches the device."""

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.cached_features import CachedFeatures
from lightning_gnnopt.loading.datamodule import GraphDataModule
from lightning_gnnopt.loading.features import FeatureStore, feature_store
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.placement import DevicePlacement, HostPlacement
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.simulated import SimulatedDevice
from lightning_gnnopt.loading.sources import BatchSource, NodeSource
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.transform import SubgraphTransform

__all__ = [
    "BatchBuilder",
    "BatchSource",
    "CachedFeatures",
    "DevicePlacement",
    "FeatureStore",
    "GraphDataModule",
    "HostPlacement",
    "LinkSplit",
    "LinkTask",
    "LoaderStats",
    "NodeSource",
    "PrefetchLoader",
    "SeedOrder",
    "SimulatedDevice",
    "SubgraphTransform",
    "feature_store",
]

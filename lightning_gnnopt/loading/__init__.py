"""How a sampled batch reaches the device."""

from lightning_gnnopt.loading.datamodule import GraphDataModule
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.transform import SubgraphTransform

__all__ = ["GraphDataModule", "LoaderStats", "PrefetchLoader", "SubgraphTransform"]

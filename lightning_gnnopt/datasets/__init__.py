"""Named graphs as PyG `Data`: published ones, read safely from their authors' files, and synthetic ones of any size."""

from lightning_gnnopt.datasets.info import DatasetInfo
from lightning_gnnopt.datasets.load import load_dataset
from lightning_gnnopt.datasets.registry import DATASETS, dataset_names, describe, register

__all__ = ["DATASETS", "DatasetInfo", "dataset_names", "describe", "load_dataset", "register"]

"""Where the batches of a fit come from: our loader or PyG's, and epochs of several passes over the nodes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
import torch_geometric.typing
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData, ClusterLoader, NeighborLoader
from typing_extensions import override

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.models.base import count_in_edges
from lightning_gnnopt.sampling import ClusterSampler, Topology, partition_nodes
from lightning_gnnopt.studies.pipeline.settings import Setting

OURS = "ours"
PEERS = ("pyg-lib", "torch-sparse")
"""What PyG's loaders can sample with, in the order in which it looks for them."""


class Passes:
    """An epoch that is several passes over a loader, and how long the loop waited for its batches.

    On a small graph one pass is over before it can be timed.

    Args:
        loader: What yields the batches of a pass.
        passes: How many are an epoch.

    Attributes:
        waits_s: Of each epoch so far, the seconds that the consumer waited for batches.
    """

    def __init__(self, loader: Any, passes: int) -> None:
        self._loader, self._passes = loader, passes
        self.waits_s: list[float] = []

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        return len(self._loader)

    @property
    def num_workers(self) -> int:
        """Threads or processes that prepare batches, as the loader has chosen them by now."""
        return int(self._loader.num_workers)

    def __len__(self) -> int:
        return self._passes * len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self.waits_s.append(0.0)
        mine = len(self.waits_s) - 1
        for _ in range(self._passes):
            began_s = time.perf_counter()
            batches = iter(self._loader)
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                finally:
                    self.waits_s[mine] += time.perf_counter() - began_s
                yield batch
                del batch  # not kept until the next one is there
                began_s = time.perf_counter()


class OurBatches(GraphDataModule):
    """Our loader, an epoch being several passes.

    Args:
        data: The graph.
        passes: Passes of an epoch, in training and in validation.
        **options: Arguments of `GraphDataModule`.
    """

    def __init__(self, data: Data, *, passes: int, **options: Any) -> None:
        super().__init__(data, **options)
        self._passes = passes

    @override
    def train_dataloader(self) -> Any:
        return Passes(super().train_dataloader(), self._passes)

    @override
    def val_dataloader(self) -> Any:
        return Passes(super().val_dataloader(), self._passes)


class PygBatches(L.LightningDataModule):
    """PyG's own loaders, an epoch being several passes.

    Args:
        data: The graph, its features dense; with ``in_degree`` if the model asks for it.
        batch_size: Seeds of a batch; of evaluation, too, if the sampler makes clusters.
        fanouts: Neighbours of each node, by hop; of evaluation, too.
        clusters: Clusters to train on instead of neighbours; None for neighbours.
        clusters_per_batch: How many are joined into a batch.
        passes: Passes of an epoch, in training and in validation.
        num_workers: Processes that prepare batches.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int,
        fanouts: Sequence[int],
        clusters: ClusterData | None = None,
        clusters_per_batch: int = 1,
        passes: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.data = data
        self._batch_size, self._fanouts = batch_size, list(fanouts)
        self._clusters, self._clusters_per_batch = clusters, clusters_per_batch
        self._passes = passes
        self._workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}

    @override
    def train_dataloader(self) -> Passes:
        loader = (
            self._neighbors(self.data.train_mask, shuffle=True)
            if self._clusters is None
            else ClusterLoader(self._clusters, batch_size=self._clusters_per_batch, shuffle=True, **self._workers)
        )
        return Passes(loader, self._passes)

    @override
    def val_dataloader(self) -> Passes:
        return Passes(self._neighbors(self.data.val_mask, shuffle=False), self._passes)

    def _neighbors(self, mask: Tensor, *, shuffle: bool) -> Any:
        return NeighborLoader(
            self.data,
            num_neighbors=self._fanouts,
            input_nodes=mask,
            batch_size=self._batch_size,
            shuffle=shuffle,
            **self._workers,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clusters": None, "trainer": None}  # another process only validates


def our_batches(
    data: Data,
    setting: Setting,
    *,
    fanout: int,
    clusters_per_batch: int,
    passes: int,
    num_workers: int | str,
    seed: int,
    parts: NDArray[Any] | None = None,
) -> OurBatches:
    """Make a DataModule with our loader.

    Args:
        data: The graph.
        setting: Sampler, batch size and depth.
        fanout: Neighbours of each node and hop; of evaluation, too, if the sampler makes clusters.
        clusters_per_batch: Clusters joined into a batch.
        passes: Passes of an epoch, in training and in validation.
        num_workers: As of `GraphDataModule`.
        seed: Keys shuffling and sampling.
        parts: Of clusters, the cluster of each node, as of :func:`partition`.
    """
    fanouts = [fanout] * setting.layers
    options: dict[str, Any] = {"num_neighbors": fanouts}
    if setting.sampler == "cluster":
        sampler = partial(ClusterSampler, parts=parts, clusters_per_batch=clusters_per_batch)
        options = {"sampler": sampler, "eval_num_neighbors": fanouts}
    return OurBatches(data, passes=passes, batch_size=setting.batch_size, num_workers=num_workers, seed=seed, **options)


def partition(data: Data, setting: Setting, clusters_per_batch: int, *, seed: int) -> NDArray[Any] | None:
    """Divide the graph into clusters, once for all fits of a setting; None if its sampler needs none."""
    if setting.sampler != "cluster":
        return None
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes)
    return partition_nodes(topology, num_parts(data, setting, clusters_per_batch), seed=seed)


def num_parts(data: Data, setting: Setting, clusters_per_batch: int) -> int:
    """Number of clusters with which a batch has about as many nodes to train on as the setting says.

    Examples:
        >>> from lightning_gnnopt.datasets import load_dataset
        >>> setting = Setting(sampler="cluster", batch_size=128, hidden=8, heads=None, layers=2, rounds=1)
        >>> data = load_dataset("digits-knn")
        >>> int(data.train_mask.sum()), num_parts(data, setting, clusters_per_batch=4)
        (898, 29)
    """
    return max(clusters_per_batch, math.ceil(int(data.train_mask.sum()) * clusters_per_batch / setting.batch_size))


def with_fewer_labels(data: Data, most: int | None, *, seed: int) -> Data:
    """Keep no more than so many training nodes, chosen at random, and as large a share of the validation nodes.

    The graph stays as it is; a pass over the nodes is shorter.

    Args:
        data: The graph.
        most: Training nodes to keep; None for all.
        seed: Keys the choice.
    """
    num_train = int(data.train_mask.sum())
    if most is None or num_train <= most:
        return data
    found = copy.copy(data)
    generator = torch.Generator().manual_seed(seed)
    for name in ("train_mask", "val_mask"):
        nodes = data[name].nonzero().flatten()
        kept = nodes[torch.randperm(len(nodes), generator=generator)[: round(len(nodes) * most / num_train)]]
        found[name] = torch.zeros_like(data[name])
        found[name][kept] = True
    return found


def pyg_samples_with() -> str | None:
    """Name what PyG's loaders sample with here; None if there is nothing."""
    typing: Any = torch_geometric.typing
    found: Sequence[bool] = (typing.WITH_PYG_LIB, typing.WITH_TORCH_SPARSE)
    return next((peer for peer, is_there in zip(PEERS, found, strict=True) if is_there), None)


def for_pyg(data: Data) -> Data:
    """Copy a graph's attributes: features dense, and ``in_degree`` added, which PyG's loaders do not know of."""
    found = copy.copy(data)
    found.in_degree = count_in_edges(data.edge_index, int(data.num_nodes or 0))
    if found.x.layout != torch.strided:
        found.x = found.x.to_dense()
    return found

"""The graph, the batches and the model that all parts of a job share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from scipy.sparse import csr_matrix
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.models import NodeClassifier
from lightning_gnnopt.sampling import ClusterSampler, Topology, partition_nodes

T = TypeVar("T")

SAMPLERS = ("neighbor", "cluster")
"""Samplers that the study knows."""


class Setup:
    """A graph, and what makes batches of it and a model for it.

    Features in larger numbers than wanted are replaced by their principal components, which tell nearly as much: what a
    step costs is then its messages, and it is short.

    Args:
        config: A composed config of ``conf/memory_study.yaml``.
        study: Its group `memory`, in plain types.
        options: Arguments of `load_dataset`.

    Attributes:
        data: The graph.
        seed: Of shuffling, sampling and partitioning.

    Raises:
        ValueError: If the graph's options are refused.
        FileNotFoundError: If its files are missing.
    """

    def __init__(self, config: DictConfig, study: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._config, self._study = config, study
        self.seed = int(config.seed)
        self.data: Data = load_dataset(config.data.name, root=config.data.root, **options)
        self.data.x = principal_components(self.data.x, int(study["max_features"]))
        self._known: dict[tuple[Any, ...], Any] = {}

    @property
    def graph(self) -> dict[str, int]:
        """Sizes of the graph."""
        return {
            "nodes": int(self.data.num_nodes or 0),
            "edges": int(self.data.num_edges),
            "features": int(self.data.num_features),
            "classes": self._num_classes,
            "train": int(self.data.train_mask.sum()),
        }

    @property
    def _num_classes(self) -> int:
        return self.data.y.size(1) if self.data.y.dim() == 2 else int(self.data.y.max()) + 1

    def datamodule(
        self,
        sampler: str = "neighbor",
        *,
        batch_size: int | None = None,
        num_neighbors: Sequence[int] | None = None,
        **options: Any,
    ) -> GraphDataModule:
        """Make batches around neighbours or of clusters, prepared when they are asked for.

        Args:
            sampler: One of `SAMPLERS`. Batches of clusters are evaluated through neighbours.
            batch_size: Seeds of a batch; by default the study's.
            num_neighbors: Fan-outs; by default the study's.
            **options: Further arguments of `GraphDataModule`.

        Raises:
            ValueError: If the sampler is unknown, or there are fewer training nodes than a batch has seeds.
        """
        if sampler not in SAMPLERS:
            raise ValueError(unknown_name("sampler of the study", sampler, SAMPLERS))
        batch_size = int(batch_size or self._study["batch_size"])
        fanouts = list(num_neighbors or self._study["num_neighbors"])
        if batch_size > self.graph["train"]:
            raise ValueError(
                f"`batch_size` must not be above the {self.graph['train']:,} nodes that the graph has to train on, but"
                f" is {batch_size:,}. HINT: a larger graph (`memory.options`), or a smaller `memory.batch_size`."
            )
        arguments: dict[str, Any] = {"num_workers": 0, "seed": self.seed, "batch_size": batch_size, "drop_last": True}
        if sampler == "cluster":
            arguments |= {"sampler": self._clusters, "eval_num_neighbors": fanouts, "eval_batch_size": batch_size}
        else:
            arguments["num_neighbors"] = fanouts
        return GraphDataModule(self.data, **{**arguments, **options})

    def module(self, *, seed: int | None = None, **options: Any) -> NodeClassifier:
        """Build the model; the seed, by default the study's, also keys the dropout that follows."""
        torch.manual_seed(self.seed if seed is None else seed)
        arguments = {
            "in_channels": self.graph["features"],
            "out_channels": self._num_classes,
            "hidden_channels": self._study["hidden"],
            "num_layers": len(self._study["num_neighbors"]),
            "multilabel": self.data.y.dim() == 2,
        }
        model: NodeClassifier = instantiate(self._config.model, _convert_="all", **{**arguments, **options})
        return model

    def once(self, key: tuple[Any, ...], measure: Callable[[], T]) -> T:
        """Measure what several parts of the job need, the first time that one asks for it."""
        if key not in self._known:
            self._known[key] = measure()
        found: T = self._known[key]
        return found

    def _clusters(self, topology: Topology) -> ClusterSampler:
        return ClusterSampler(topology, parts=self._parts, clusters_per_batch=int(self._study["clusters_per_batch"]))

    @cached_property
    def _parts(self) -> Any:
        topology = Topology.from_edge_index(self.data.edge_index, self.graph["nodes"])
        return partition_nodes(topology, int(self._study["clusters"]), seed=self.seed)


def principal_components(x: Tensor, number: int) -> Tensor:
    """Replace the columns of a matrix by its leading singular directions, if it has more of them.

    Args:
        x: Dense or CSR, of shape ``(N, F)``.
        number: The most columns.

    Returns:
        Dense, of shape ``(N, min(F, number))``; unit variance over all if it was changed.
    """
    if x.size(1) <= number:
        return x if x.layout == torch.strided else x.to_dense()
    from sklearn.decomposition import TruncatedSVD  # half a second to import

    matrix: Any = x.numpy() if x.layout == torch.strided else _scipy(x)
    reduced = torch.from_numpy(TruncatedSVD(number, random_state=0, n_iter=2).fit_transform(matrix)).float()
    return (reduced / reduced.std()).contiguous()


def _scipy(x: Tensor) -> csr_matrix:
    return csr_matrix(
        (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy()), shape=(x.size(0), x.size(1))
    )

"""GraphDataModule: a graph in, batches on the device out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch_geometric.data import Data, HeteroData
from typing_extensions import override

from lightning_gnnopt._units import parse_bytes
from lightning_gnnopt.loading.batches import EdgeFormat
from lightning_gnnopt.loading.cached_features import CachedFeatures
from lightning_gnnopt.loading.caching import CachePolicy
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.layerwise import LayerwiseModel, NodeOutputs, layerwise_outputs
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.node_task import NodeTask
from lightning_gnnopt.loading.pipeline import PipelineOptions
from lightning_gnnopt.loading.placement import Placement
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.random_state import default_seed, restore_random_state, save_random_state
from lightning_gnnopt.loading.residence import Residence
from lightning_gnnopt.loading.seeds import SeedOrder, warn_of_repeats
from lightning_gnnopt.loading.sharing import Share, shared_between, shared_by_one
from lightning_gnnopt.loading.streams import DeviceStreams
from lightning_gnnopt.loading.task import GraphTask, Surroundings
from lightning_gnnopt.loading.tasks import make_task
from lightning_gnnopt.loading.transform import SubgraphTransform
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, NodeSampler, Topology
from lightning_gnnopt.sampling.hetero_topology import EdgeType

_STAGES_OF = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class GraphDataModule(L.LightningDataModule):
    """Loads sampled batches of one graph, prepared in threads and on the device before the training step asks for them.

    Batches look like those of PyG's `NeighborLoader`: ``x, y, edge_index, n_id, input_id, batch_size,
    num_sampled_nodes, num_sampled_edges``, the seeds in the first ``batch_size`` rows, and every further attribute of
    the graph's nodes and edges. Splits are the graph's ``train_mask``, ``val_mask`` and ``test_mask``; a split without
    a mask has no loader. `predict` runs over ``predict_mask``, or else over all nodes.

    A batch depends on the seed, the epoch and its number only: it is the same bits for any number of workers and on
    every run. Under DDP each process draws its own share of the seeds, all make equally many steps, and the processes
    of a machine share one copy of the graph. It works without Lightning too: ``for batch in
    datamodule.train_dataloader()``.

    On a CUDA device, a batch is copied to it on a side stream while the step before computes. `PrefetchLoader` says how
    long a batch may be kept.

    Args:
        data: The graph: a `Data` with features ``x`` (dense or sparse) and ``edge_index``, or a `HeteroData`.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all neighbours. One number per layer of the
            model. ``[15, 10]`` if neither this nor a built `sampler` says otherwise. Of a `HeteroData`, for all edge
            types or a dict of them.
        batch_size: Seeds per batch and process; of GraphSAINT's samplers, draws or walks, of which there are never more
            in a batch than there are training nodes. In training with a sampler that groups its seeds, such as
            `ClusterSampler`, a batch is as many groups as the sampler says instead.
        num_workers: Threads that prepare batches; 0 prepares each batch when it is asked for; ``"auto"`` tries out
            which is faster (on a device, up to two threads).
        prefetch_factor: Batches prepared ahead, per worker.
        max_bytes_in_flight: Bytes of the batches prepared ahead, all together, as a number or with a unit; None does
            not count them.
        timeout_s: Seconds after which a worker that makes no progress is reported by name and ends the run; None waits
            for ever.
        sampler: Name of a sampler that takes `num_neighbors` or needs no argument, a function that builds one from a
            `Topology`, or a built one. A function with an argument `roots` that is None is given the training nodes.
        weight_attr: Name of an attribute of edges: in-edges are drawn in proportion to it. The sampler must take
            `edge_weight`. Layer-wise evaluation does not look at weights.
        time_attr: Name of an attribute of nodes or edges: a seed sees nothing from after its own time, in evaluation
            too. The sampler must take `node_time` or `edge_time`; `disjoint` is True then.
        input_time_attr: Name of an attribute of nodes, when each is looked at as a seed; by default the node's own
            `time_attr`. Needed if that is of edges.
        eval_mode: How validation, test and prediction see a node's neighbourhood. ``"sampled"``: through batches with
            `eval_num_neighbors`. ``"layerwise"``: exactly, one layer at a time over full neighbourhoods; the
            LightningModule asks :meth:`layerwise_outputs` for them, as `NodeClassifier` does.
        eval_num_neighbors: Fan-outs of sampled evaluation, node by node; by default the `sampler` evaluates as it
            trains. The same neighbours are drawn in every epoch. ``[-1, -1]`` makes it exact.
        eval_batch_size: Seeds per batch in evaluation; `batch_size` by default.
        layerwise_bytes: Host memory for one layer's outputs in layer-wise evaluation, as a number or with a unit; more
            than that lies in a temporary file. None allows a quarter of the memory that is free.
        shuffle: Whether training permutes its seeds in each epoch.
        drop_last: Whether training leaves out a last batch that is smaller than the others.
        seed: Keys the random numbers; by default the number given to `lightning.seed_everything`, or else 0.
        edge_id: Add ``e_id`` to each batch: its edges' columns in ``data.edge_index``.
        edge_format: ``"coo"``: ``edge_index`` is a tensor. ``"csc"``: a PyG `EdgeIndex` with compressed columns, for
            layers that make use of them.
        features: Where the features lie instead of in ``data.x``: the path of an ``.npy`` file of shape ``(N, F)``,
            which is mapped into memory and may be larger than it, or a `FeatureStore`.
        feature_dtype: Keep ``x`` as ``"float16"``, ``"bfloat16"`` or ``"int8"`` (with a scale for each column): less
            memory, fewer bytes to slice and to copy. Batches get its own type back.
        cache: Device memory for the rows of ``x`` that are asked for most often, as a number of bytes or with a unit;
            ``"auto"`` takes a quarter of what is free. They need not be sliced and copied; batches are the same bits.
        cache_policy: How these rows are chosen. ``"vip"``: by their chance to be in a batch (SALIENT++), for neighbour
            sampling, uniform or by weight; ``"presample"``: by drawing some epochs (GNNLab); ``"degree"``: by the
            number of their out-edges (PaGraph); ``"auto"``: ``"vip"`` where that can be, else ``"presample"``.
        device: Where batches go when no Trainer says so: the CPU by default. A `SimulatedDevice` is taken in any case.
        share_memory: Whether the processes of a machine share one copy of the graph under DDP.
        transforms: Look at each training subgraph before its features are copied, and may replace it.
        num_classes: Number of classes; counted from the labels by default.
        input_type: Of a `HeteroData`, the type of the nodes to train on; by default the one that has masks.
        links: Links to train on instead of nodes, and the negatives to draw; masks are not looked at then. All stages
            sample `data`, so pass the training graph of `RandomLinkSplit`.

    Raises:
        TypeError: If `data` is neither a `Data` nor a `HeteroData`.
        ValueError: If the graph, its labels or masks, or an argument is not what is said above, or sampled evaluation
            is asked of a sampler whose batches are subgraphs to train on (clusters, GraphSAINT).

    Examples:
        >>> from lightning_gnnopt.datasets import load_dataset
        >>> datamodule = GraphDataModule(load_dataset("digits-knn"), num_neighbors=[10, 5], batch_size=128)
        >>> datamodule.setup("fit")
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.batch_size, batch.num_sampled_nodes[0], len(batch.num_sampled_edges)
        (128, 128, 2)
    """

    def __init__(
        self,
        data: Data | HeteroData,
        *,
        num_neighbors: Sequence[int] | Mapping[EdgeType, Sequence[int]] | None = None,
        batch_size: int = 1024,
        num_workers: int | str = 2,
        prefetch_factor: int = 2,
        max_bytes_in_flight: int | str | None = "2GiB",
        timeout_s: float | None = 600.0,
        sampler: str | Callable[..., Any] | NodeSampler | HeteroNeighborSampler = "neighbor",
        weight_attr: str | None = None,
        time_attr: str | None = None,
        input_time_attr: str | None = None,
        eval_mode: Literal["sampled", "layerwise"] = "sampled",
        eval_num_neighbors: Sequence[int] | Mapping[EdgeType, Sequence[int]] | None = None,
        eval_batch_size: int | None = None,
        layerwise_bytes: int | str | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        edge_id: bool = False,
        edge_format: EdgeFormat = "coo",
        features: str | os.PathLike[str] | FeatureStore | None = None,
        feature_dtype: str | None = None,
        cache: int | str = 0,
        cache_policy: CachePolicy = "auto",
        device: torch.device | str | DeviceStreams | None = None,
        share_memory: bool = True,
        transforms: Sequence[SubgraphTransform] = (),
        num_classes: int | None = None,
        input_type: str | None = None,
        links: LinkTask | None = None,
    ) -> None:
        super().__init__()
        self._residence = Residence(device, cache=cache, cache_policy=cache_policy)
        self._task: GraphTask = make_task(
            data,
            links=links,
            input_type=input_type,
            eval_mode=eval_mode,
            cached=self._residence.cache != 0,
            sampler=sampler,
            num_neighbors=num_neighbors,
            eval_num_neighbors=eval_num_neighbors,
            edge_id=edge_id,
            num_classes=num_classes,
            weight_attr=weight_attr,
            time_attr=time_attr,
            input_time_attr=input_time_attr,
            edge_format=edge_format,
            features=features,
            feature_dtype=feature_dtype,
        )
        self._options = PipelineOptions(
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            max_bytes_in_flight=max_bytes_in_flight,
            timeout_s=timeout_s,
        )
        self.batch_size = batch_size
        self.eval_mode = eval_mode
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.layerwise_bytes = None if layerwise_bytes is None else parse_bytes(layerwise_bytes, name="layerwise_bytes")
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.share_memory = share_memory
        self.transforms = list(transforms)
        for size in (batch_size, self.eval_batch_size):
            SeedOrder(1, size)  # refuses a size below 1 here rather than when training starts
        self._is_built = False
        self._warm: set[str] = set()

    @property
    def data(self) -> Any:
        """The graph; under DDP, after `setup`, in memory that the processes of a machine share.

        Without ``x`` where the features are stored in another form than in the graph that was given: sparse, in fewer
        bits (`feature_dtype`) or elsewhere (`features`).
        """
        return self._task.data

    @property
    def num_workers(self) -> int:
        """Threads that prepare batches; of ``"auto"``, those that are tried: a loader knows what it has chosen."""
        return self._options.threads

    @property
    def prefetch_factor(self) -> int:
        """Batches prepared ahead, per worker."""
        return self._options.prefetch_factor

    @property
    def num_features(self) -> int:
        """Number of features per node."""
        return self._task.num_features

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels per node in a multi-label graph.

        Raises:
            ValueError: If the graph has no labels and no `num_classes` was given.
        """
        return self._task.num_classes

    @property
    def multilabel(self) -> bool:
        """Whether a node can have several labels (``y`` of shape ``(N, C)``)."""
        return self._task.multilabel

    @property
    def topology(self) -> Topology | HeteroTopology:
        """The graph by destination; built at first use, shared by all loaders."""
        return cast("Topology | HeteroTopology", self._task.topology)

    @property
    def sampler(self) -> NodeSampler | HeteroNeighborSampler:
        """Draws the training batches."""
        return cast("NodeSampler | HeteroNeighborSampler", self._task.sampler("train"))

    @property
    def eval_sampler(self) -> NodeSampler | HeteroNeighborSampler:
        """Draws the batches of validation, test and prediction."""
        return cast("NodeSampler | HeteroNeighborSampler", self._task.sampler("val"))

    @property
    def cached_features(self) -> CachedFeatures | None:
        """The rows of ``x`` on the device, with their hit rate; None without a cache."""
        return self._residence.cached

    @property
    def placement(self) -> Placement:
        """Where batches go; shared by all loaders, so that they reuse each other's buffers."""
        return self._residence.placement(self.trainer)

    def share_graph(self) -> None:
        """Put the graph into memory that other processes map, such as one that validates while this one trains.

        Its features and edges move there; :attr:`data` is another object from then on. So that there is one copy, do
        not keep the graph that was given.

        Raises:
            OSError: If this machine has no memory for that.
        """
        self._task.build(self._surroundings(share=shared_by_one))

    @override
    def setup(self, stage: str) -> None:
        self._task.build(self._surroundings(share=shared_between(self.trainer) if self.share_memory else None))
        self._is_built = True
        with nullcontext() if self.cached_features is None else self.cached_features.uncounted():
            for name in _STAGES_OF.get(stage, ()):
                if self._task.has(name) and name not in self._warm:
                    self._warm.add(name)
                    self._loader(name).warm_up()

    def _surroundings(self, *, share: Share | None) -> Surroundings:
        return Surroundings(
            module=None if self.trainer is None else self.trainer.lightning_module,
            share=share,
            cache=self._cache_rows if self._residence.cache else None,
        )

    @override
    def teardown(self, stage: str) -> None:
        self._residence.trim()

    @override
    def state_dict(self) -> dict[str, Any]:
        return save_random_state(self.trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore_random_state(self.trainer, state_dict)

    @override
    def train_dataloader(self) -> PrefetchLoader:
        if not self._task.has("train"):
            raise self._task.missing("train")
        loader = self._loader("train")
        if self.trainer is not None and loader.returns_seeds:
            loader.follow(self.trainer)
        return loader

    @override
    def val_dataloader(self) -> PrefetchLoader | list[Any]:
        return self._loader("val") if self._task.has("val") else []

    @override
    def test_dataloader(self) -> PrefetchLoader | list[Any]:
        return self._loader("test") if self._task.has("test") else []

    @override
    def predict_dataloader(self) -> PrefetchLoader | list[Any]:
        return self._loader("predict") if self._task.has("predict") else []

    def layerwise_outputs(self, model: LayerwiseModel, stage: str) -> NodeOutputs:
        """Compute a model's outputs for a split, exactly and one layer at a time.

        Args:
            model: The network, in evaluation mode; its layers are run where its parameters lie.
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The outputs of the split's nodes.

        Raises:
            ValueError: If the model has no `inference_per_layer`, or mixes its layers' outputs (jumping knowledge).
        """
        if not isinstance(self._task, NodeTask):
            raise ValueError(
                "Layer-wise outputs are those of nodes of a homogeneous graph. HINT: use `eval_mode='sampled'`."
            )
        if not self._task.has(stage):
            raise self._task.missing(stage)
        return layerwise_outputs(
            model,
            self._task.topology,
            self._task.store,
            self._task.nodes(stage),
            batch_size=self.eval_batch_size,
            options=self._options,
            placement=self.placement,
            max_bytes=self.layerwise_bytes,
        )

    def nodes(self, stage: str) -> NDArray[np.int64]:
        """Ids of a split's nodes, in the order of its loader; empty if the graph has no such split."""
        return self._task.nodes(stage)

    def _loader(self, stage: str) -> PrefetchLoader:
        if not self._is_built:
            self.setup(stage)
        order = self._order(stage)
        warn_of_repeats(order, stage)
        return PrefetchLoader(
            self._task.source(stage),
            order,
            **vars(self._options),
            transforms=self.transforms if stage == "train" else (),
            redraw=stage == "train" and not self._overfits,
            placement=self.placement,
        )

    def _order(self, stage: str) -> SeedOrder:
        train, trainer = stage == "train", self.trainer
        return self._task.order(
            stage,
            self.batch_size if train else self.eval_batch_size,
            shuffle=train and self.shuffle and not self._overfits,
            pad=train,
            drop_last=train and self.drop_last,
            seed=default_seed() if self.seed is None else self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    @property
    def _overfits(self) -> bool:
        """Whether Lightning overfits on the first batches: they must be the same in each epoch."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _cache_rows(self, task: GraphTask, store: FeatureStore) -> FeatureStore:
        if not task.has("train") or not isinstance(task, NodeTask):
            rank_zero_warn("`cache` does nothing without nodes to train on, by whose batches rows are chosen.")
            return store
        return self._residence.cache_rows(self.trainer, store, task.source("train"), self._order("train"))

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer stays: it holds threads' locks, and another process has one of its own.
        return {**self.__dict__, "trainer": None, "_is_built": False, "_warm": set()}

"""GraphDataModule: a graph in, prefetched batches out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.checks import (
    check_graph,
    check_labels,
    check_model,
    count_classes,
    is_multilabel,
    split_nodes,
)
from lightning_gnnopt.loading.groups import GroupOrder
from lightning_gnnopt.loading.layerwise import LayerwiseModel, NodeOutputs, layerwise_outputs
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.samplers import SamplerMaker, graph_options, refuse_evaluation, trains_only
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.transform import SubgraphTransform
from lightning_gnnopt.sampling import NodeSampler, SeedsOnlySampler, Topology, check_fanouts

_EVAL_MODES = ("sampled", "layerwise")
_LABELLED_STAGES = ("train", "val", "test")


class GraphDataModule(L.LightningDataModule):
    """Loads sampled batches of one graph, prepared in threads before the training step asks for them.

    Batches look like those of PyG's `NeighborLoader`: ``x, y, edge_index, n_id, input_id, batch_size,
    num_sampled_nodes, num_sampled_edges``, the seeds in the first ``batch_size`` rows, and every further attribute of
    the graph's nodes and edges. Splits are the graph's ``train_mask``, ``val_mask`` and ``test_mask``; a split without
    a mask has no loader. `predict` runs over ``predict_mask``, or else over all nodes.

    A batch depends on the seed, the epoch and its number only: it is the same bits for any number of workers and on
    every run. Under DDP each process draws its own share of the seeds.

    Args:
        data: The graph: homogeneous, with features ``x`` (dense or sparse) and ``edge_index``.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all neighbours. One number per layer of the
            model. ``[15, 10]`` if neither this nor a built `sampler` says otherwise.
        batch_size: Seeds per batch and process; of GraphSAINT's samplers, draws or walks, of which there are never more
            in a batch than there are training nodes. In training with a sampler that groups its seeds, such as
            `ClusterSampler`, a batch is as many groups as the sampler says instead.
        num_workers: Threads that prepare batches; 0 prepares each batch when it is asked for.
        prefetch_factor: Batches prepared ahead, per worker.
        sampler: Name of a sampler that takes `num_neighbors` or needs no argument, or a function that builds one from a
            `Topology`. If it has an argument `roots` that is None, it is given the training nodes.
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
        shuffle: Whether training permutes its seeds in each epoch.
        drop_last: Whether training leaves out a last batch that is smaller than the others.
        seed: Keys the random numbers; by default the number given to `lightning.seed_everything`, or else 0.
        edge_id: Add ``e_id`` to each batch: its edges' columns in ``data.edge_index``.
        transforms: Look at each training subgraph before its features are copied, and may replace it.
        num_classes: Number of classes; counted from the labels by default.

    Raises:
        TypeError: If `data` is not a homogeneous `Data`.
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
        data: Data,
        *,
        num_neighbors: Sequence[int] | None = None,
        batch_size: int = 1024,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        sampler: str | Callable[..., NodeSampler] = "neighbor",
        weight_attr: str | None = None,
        time_attr: str | None = None,
        input_time_attr: str | None = None,
        eval_mode: Literal["sampled", "layerwise"] = "sampled",
        eval_num_neighbors: Sequence[int] | None = None,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        edge_id: bool = False,
        transforms: Sequence[SubgraphTransform] = (),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_graph(data)
        if eval_mode not in _EVAL_MODES:
            raise ValueError(unknown_name("eval_mode", eval_mode, _EVAL_MODES))
        if eval_mode == "layerwise" and eval_num_neighbors is not None:
            raise ValueError(
                f"`eval_num_neighbors` must be left out with `eval_mode='layerwise'`, but got {eval_num_neighbors}."
                " HINT: layer-wise evaluation always takes all neighbours; `eval_mode='sampled'` uses fan-outs."
            )
        if eval_num_neighbors is not None:
            eval_num_neighbors = check_fanouts(eval_num_neighbors, name="eval_num_neighbors")
        if eval_mode == "layerwise" and time_attr is not None:
            raise ValueError(
                f"`eval_mode='layerwise'` takes all neighbours, those from after a seed's time too, but `time_attr` is"
                f" {time_attr!r}. HINT: `eval_num_neighbors=[-1, -1]` evaluates on the whole past of each seed."
            )
        options = graph_options(data, weight_attr=weight_attr, time_attr=time_attr, input_time_attr=input_time_attr)
        self._make = SamplerMaker(sampler, num_neighbors, options)
        if self._make.trains_only and eval_mode == "sampled" and eval_num_neighbors is None:
            raise refuse_evaluation("this `sampler`")
        self.data = data
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.eval_mode = eval_mode
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.edge_id = edge_id
        self.transforms = list(transforms)
        self._eval_num_neighbors = eval_num_neighbors
        self._input_time = None if input_time_attr is None else torch.as_tensor(data[input_time_attr]).cpu().numpy()
        self._nodes = {stage: nodes for stage in _LABELLED_STAGES if (nodes := split_nodes(data, stage)) is not None}
        if self._nodes or data.y is not None:
            self._num_classes = count_classes(data.y) if num_classes is None and data.y is not None else num_classes
            check_labels(data.y, self._nodes.items(), self._num_classes or 0)
        else:
            self._num_classes = num_classes
        predict = split_nodes(data, "predict")
        self._nodes["predict"] = torch.arange(data.num_nodes) if predict is None else predict
        for size in (batch_size, self.eval_batch_size):
            SeedOrder(1, size)  # refuses a size below 1 here rather than when training starts
        self._topology: Topology | None = None
        self._sampler: NodeSampler | None = None
        self._eval_sampler: NodeSampler | None = None
        self._builder: BatchBuilder | None = None

    @property
    def num_features(self) -> int:
        """Number of features per node."""
        return int(self.data.x.size(1))

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels per node in a multi-label graph.

        Raises:
            ValueError: If the graph has no labels and no `num_classes` was given.
        """
        if self._num_classes is None:
            raise ValueError(
                "`num_classes` is not known, because `data` holds no labels `y`. HINT: pass `num_classes=...`."
            )
        return self._num_classes

    @property
    def multilabel(self) -> bool:
        """Whether a node can have several labels (``y`` of shape ``(N, C)``)."""
        return is_multilabel(self.data.y)

    @property
    def topology(self) -> Topology:
        """The graph by destination; built at first use, shared by all loaders."""
        if self._topology is None:
            ids = self.edge_id or BatchBuilder.needs_edge_ids(self.data)
            self._topology = Topology.from_edge_index(self.data.edge_index, self.data.num_nodes, edge_ids=ids)
        return self._topology

    @property
    def sampler(self) -> NodeSampler:
        """Draws the training batches."""
        if self._sampler is None:
            train = self._nodes.get("train")
            self._sampler = self._make.for_training(self.topology, None if train is None else train.numpy())
        return self._sampler

    @property
    def eval_sampler(self) -> NodeSampler:
        """Draws the batches of validation, test and prediction."""
        if self._eval_sampler is None:
            if self.eval_mode == "layerwise":
                self._eval_sampler = SeedsOnlySampler(self.topology)
            elif self._eval_num_neighbors is not None:
                self._eval_sampler = self._make.for_evaluation(self.topology, self._eval_num_neighbors)
            elif trains_only(self.sampler):
                raise refuse_evaluation(type(self.sampler).__name__)
            else:
                self._eval_sampler = self.sampler
        return self._eval_sampler

    @override
    def setup(self, stage: str) -> None:
        module = None if self.trainer is None else self.trainer.lightning_module
        in_degree = bool(getattr(module, "needs_in_degree", False))
        if self._builder is None or self._builder.in_degree != in_degree:
            self._builder = BatchBuilder(self.data, self.topology, edge_id=self.edge_id, in_degree=in_degree)
        if module is not None:
            samplers = {"layer_sizes" if hasattr(self.sampler, "layer_sizes") else "num_neighbors": self.sampler}
            if self.eval_mode == "sampled" and self.eval_sampler is not self.sampler:
                samplers["eval_num_neighbors"] = self.eval_sampler
            check_model(module, samplers, num_classes=self._num_classes, layerwise=self.eval_mode == "layerwise")

    @override
    def train_dataloader(self) -> PrefetchLoader:
        if "train" not in self._nodes:
            raise ValueError(
                "`data` must hold `train_mask` to train on, but it has none."
                " HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
            )
        return self._loader("train")

    @override
    def val_dataloader(self) -> PrefetchLoader | list[Any]:
        return self._loader("val") if "val" in self._nodes else []

    @override
    def test_dataloader(self) -> PrefetchLoader | list[Any]:
        return self._loader("test") if "test" in self._nodes else []

    @override
    def predict_dataloader(self) -> PrefetchLoader:
        return self._loader("predict")

    def _loader(self, stage: str) -> PrefetchLoader:
        if self._builder is None:
            self.setup(stage)
        assert self._builder is not None
        train, trainer = stage == "train", self.trainer
        nodes = self._nodes[stage].numpy()
        # Lightning overfits on the first batches: they must be the same in each epoch
        overfit = bool(getattr(trainer, "overfit_batches", 0))
        sampler = self.sampler if train else self.eval_sampler
        arguments: dict[str, Any] = {
            "shuffle": train and self.shuffle and not overfit,
            "drop_last": train and self.drop_last,
            "seed": _default_seed() if self.seed is None else self.seed,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
        }
        groups = getattr(sampler, "seed_groups", None)
        if groups is None:
            order = SeedOrder(len(nodes), self.batch_size if train else self.eval_batch_size, **arguments)
        else:
            order = GroupOrder(groups[nodes], getattr(sampler, "groups_per_batch", 1), **arguments)
        return PrefetchLoader(
            sampler,
            self._builder,
            nodes,
            order,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            transforms=self.transforms if train else (),
            redraw=train and not overfit,
            input_time=None if self._input_time is None else self._input_time[nodes],
        )

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
        if not isinstance(model, LayerwiseModel) or getattr(model, "jk_mode", None) is not None:
            raise ValueError(
                "`eval_mode='layerwise'` needs a network with `num_layers` and `inference_per_layer` and without"
                f" jumping knowledge, but got {type(model).__name__}. HINT: use `eval_mode='sampled'` with"
                " `eval_num_neighbors=[-1, ...]`."
            )
        return layerwise_outputs(
            model,
            self.topology,
            self.data.x,
            self._nodes[stage].numpy(),
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            device=next(model.parameters()).device if isinstance(model, torch.nn.Module) else "cpu",
            in_degree=bool(getattr(model, "needs_in_degree", False)),
        )

    def nodes(self, stage: str) -> NDArray[np.int64]:
        """Global ids of a split's nodes, in the order of its loader; empty if the graph has no such split."""
        return self._nodes[stage].numpy() if stage in self._nodes else np.empty(0, np.int64)


def _default_seed() -> int:
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))

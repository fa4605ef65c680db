"""A LightningModule that classifies nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.models.base import check_hops
from lightning_gnnopt.models.optim import OPTIMIZERS, SCHEDULERS, make_factory, to_plain
from lightning_gnnopt.models.registry import build_model, model_options
from lightning_gnnopt.models.scoring import make_metrics, scored_rows

_HOP_COUNTS = ("num_sampled_nodes_per_hop", "num_sampled_edges_per_hop")


class NodeClassifier(LightningModule):
    """Train, validate, test and predict with any network on sampled batches or full graphs.

    A batch looks like ``NeighborLoader``'s: the first `batch_size` rows are the seeds. A batch without a
    `batch_size`, such as a whole graph from ``DataLoader([data])``, is scored on its `train_mask`, `val_mask` or
    `test_mask`. Per-hop counts, in-degrees and `edge_norm` reach the network if its ``forward`` has arguments for them.
    If the DataModule's `eval_mode` is ``"layerwise"``, evaluation reads the outputs that it computed layer by layer.

    Where a batch has `node_norm`, the loss in training is ``sum(node_norm * loss) / sum(node_norm)`` over the nodes
    that are scored: GraphSAINT's normalisation (Zeng et al., ICLR 2020) with the sum of the weights in the place of the
    number of nodes, which it estimates. Metrics count all nodes alike, and evaluation weighs nothing.

    Logged: ``train/loss`` (each step), ``train/loss_epoch``, ``train/acc``, and ``val/loss``, ``val/acc``,
    ``test/loss``, ``test/acc`` per epoch. ``acc`` is the share of right nodes, with `multilabel` that of right labels;
    then ``train/f1``, ``val/f1`` and ``test/f1`` are the micro-averaged F1 scores.

    Args:
        net: A name (``"gcn"``, ``"sage"``, ``"gat"``, ``"ggnn"``, ``"gaan"``) or a module with
            ``forward(x, edge_index)``. A module is not saved with the hyper-parameters: pass it again to
            ``load_from_checkpoint(path, net=...)``.
        in_channels: Number of features per node; for a module, its own `in_channels` unless given.
        out_channels: Number of classes or labels; for a module, its own `out_channels` unless given.
        hidden_channels: Width of the hidden layers, read if `net` is a name.
        num_layers: Depth, read if `net` is a name.
        dropout: Dropout probability, read if `net` is a name.
        multilabel: Whether a node has any number of the labels; `y` is then ``(N, out_channels)`` of zeros and ones.
        optimizer: ``{"name": ..., **arguments}`` with a class of ``torch.optim``, in any case, or a function of the
            parameters, which is not saved with the hyper-parameters. By default Adam with ``lr=0.01``.
        scheduler: ``{"name": ..., **arguments}`` with a class of ``torch.optim.lr_scheduler`` and optionally
            ``monitor``, ``interval`` and ``frequency``, or a function of the optimizer. ``ReduceLROnPlateau``
            monitors ``"val/loss"`` by default.
        **net_options: Further arguments of the network, if `net` is a name.

    Raises:
        ValueError: If a name or an option is unknown, a needed size is missing, or the network refuses a value.

    Examples:
        >>> model = NodeClassifier("gat", in_channels=8, out_channels=3, hidden_channels=64, heads=4)
        >>> model.num_layers, model.needs_in_degree
        (2, False)
    """

    supports_layerwise = True  # `GraphDataModule(eval_mode="layerwise")` asks for it

    def __init__(
        self,
        net: str | nn.Module = "sage",
        *,
        in_channels: int | None = None,
        out_channels: int | None = None,
        hidden_channels: int = 256,
        num_layers: int = 2,
        dropout: float = 0.5,
        multilabel: bool = False,
        optimizer: Mapping[str, Any] | Callable[..., Any] | None = None,
        scheduler: Mapping[str, Any] | Callable[..., Any] | None = None,
        **net_options: Any,
    ) -> None:
        super().__init__()
        # Rebound before `save_hyperparameters` reads them: a checkpoint holds plain types only.
        optimizer = to_plain({"name": "Adam", "lr": 0.01} if optimizer is None else optimizer)
        scheduler = to_plain(scheduler)
        net_options = to_plain(net_options)
        own = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
        self.save_hyperparameters(ignore=[k for k, v in own.items() if isinstance(v, nn.Module) or callable(v)])

        if isinstance(net, str):
            arguments = list(inspect.signature(NodeClassifier).parameters)[:-1]  # without **net_options
            for option in sorted(net_options.keys() - model_options(net)):
                known = {*arguments, *model_options(net)}
                raise ValueError(unknown_name(f"option of NodeClassifier with `net={net!r}`,", option, known))
            net = build_model(
                net,
                in_channels=in_channels,
                out_channels=out_channels,
                hidden_channels=hidden_channels,
                num_layers=num_layers,
                dropout=dropout,
                **net_options,
            )
        elif net_options:
            raise ValueError(
                f"`net` is a {type(net).__name__} already, but {sorted(net_options)} were given as its options."
                " HINT: pass them where the module is built."
            )
        self.net = net
        self.in_channels = in_channels or getattr(net, "in_channels", None)
        num_classes = out_channels or getattr(net, "out_channels", None)
        if not isinstance(num_classes, int):
            raise ValueError(
                f"`out_channels` is needed, as {type(net).__name__} has no such attribute, but was not given."
                " HINT: pass the number of classes, i.e. the width of the module's output."
            )
        self.out_channels = num_classes
        self.multilabel = multilabel
        accepted = inspect.signature(net.forward).parameters
        self._takes_hop_counts = all(name in accepted for name in _HOP_COUNTS)
        self._takes_in_degree = "in_degree" in accepted
        self._takes_edge_norm = "edge_norm" in accepted

        criterion = nn.BCEWithLogitsLoss if multilabel else nn.CrossEntropyLoss
        self.criterion = criterion()
        self._criterion_by_node = criterion(reduction="none")
        self.train_metrics, self.val_metrics, self.test_metrics = (
            MetricCollection(make_metrics(num_classes, multilabel), prefix=f"{stage}/", compute_groups=False)
            for stage in ("train", "val", "test")
        )
        self._schedule = {}
        if isinstance(scheduler, dict):
            self._schedule = {k: scheduler[k] for k in ("monitor", "interval", "frequency") if k in scheduler}
            scheduler = {k: v for k, v in scheduler.items() if k not in self._schedule}
        self._make_optimizer = make_factory("optimizer", optimizer, OPTIMIZERS)
        self._make_scheduler = None if scheduler is None else make_factory("scheduler", scheduler, SCHEDULERS)
        self._layerwise: Any = None
        self._warned: set[str] = set()

    @property
    def num_layers(self) -> int | None:
        """The network's number of layers, i.e. of hops it needs, or None if it does not say."""
        num_layers = getattr(self.net, "num_layers", None)
        return num_layers if isinstance(num_layers, int) else None

    @property
    def needs_in_degree(self) -> bool:
        """Whether a sampled batch must bring ``in_degree``, the in-degrees of its nodes in the full graph."""
        return bool(getattr(self.net, "needs_in_degree", False))

    @override
    def forward(self, batch: Any) -> Tensor:
        """Compute the logits of a batch's seeds, ``(batch_size, C)``, or of all nodes of a full graph, ``(N, C)``.

        Args:
            batch: A PyG ``Data`` with `x` and `edge_index`, and for a sampled one what ``NeighborLoader`` adds.

        Raises:
            ValueError: If `x` is sparse or has a number of features other than `in_channels`, or the batch has fewer
                hops than the network has layers.
        """
        x = self._features(batch)
        kwargs: dict[str, Any] = {}
        sampled = "batch_size" in batch
        if sampled and self._takes_hop_counts and "num_sampled_nodes" in batch and "num_sampled_edges" in batch:
            counts = (list(batch.num_sampled_nodes), list(batch.num_sampled_edges))
            if self.num_layers is not None:
                check_hops(self.num_layers, *counts, x, batch.edge_index)
            kwargs.update(zip(_HOP_COUNTS, counts, strict=True))
        if self._takes_in_degree and "in_degree" in batch:
            kwargs["in_degree"] = batch.in_degree
        elif self.needs_in_degree and sampled:
            self._warn_once(
                f"{type(self.net).__name__} normalises by degrees of the full graph, but the batch has no `in_degree`:"
                " degrees are counted in the batch, where sampled nodes lack in-edges, and the outputs are off."
                " HINT: load with `GraphDataModule`, or set `data.in_degree` before sampling."
            )
        if "edge_norm" in batch:
            if self._takes_edge_norm:
                kwargs["edge_norm"] = batch.edge_norm
            else:
                self._warn_once(
                    f"The batch's `edge_norm` is not used by {type(self.net).__name__}, whose `forward` has no such"
                    " argument: in-edges were drawn with unequal chances, and what it aggregates from them is biased."
                    " HINT: multiply messages by it, as this package's networks do, or use another sampler."
                )
        out: Tensor = self.net(x, batch.edge_index, **kwargs)
        return out[: int(batch["batch_size"])] if sampled else out

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, size = self._step(batch, "train", self.train_metrics)
        self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True, batch_size=size)
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, size = self._step(batch, "val", self.val_metrics)
        self.log("val/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        loss, size = self._step(batch, "test", self.test_metrics)
        self.log("test/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._logits(batch, slice(int(batch["batch_size"])) if "batch_size" in batch else slice(None))

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        schedule = dict(self._schedule)
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule.setdefault("monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **schedule}}

    @override
    def on_validation_epoch_start(self) -> None:
        self._start_layerwise("val")

    @override
    def on_test_epoch_start(self) -> None:
        self._start_layerwise("test")

    @override
    def on_predict_epoch_start(self) -> None:
        self._start_layerwise("predict")

    @override
    def on_validation_epoch_end(self) -> None:
        self._layerwise = None

    @override
    def on_test_epoch_end(self) -> None:
        self._layerwise = None

    @override
    def on_predict_epoch_end(self) -> None:
        self._layerwise = None

    def _start_layerwise(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and getattr(datamodule, "eval_mode", None) == "layerwise":
            self._layerwise = datamodule.layerwise_outputs(self.net, stage)

    def _step(self, batch: Any, stage: str, metrics: MetricCollection) -> tuple[Tensor, int]:
        rows = scored_rows(batch, stage)
        logits, y = self._logits(batch, rows, use_layerwise=stage != "train"), batch.y[rows]
        node_norm = batch.node_norm[rows] if stage == "train" and "node_norm" in batch else None
        if not len(logits):  # a part of a graph may have no node of a stage: its layers take part all the same
            loss = logits.sum() * 0.0
        elif self.multilabel:
            loss = self._loss(logits, y.to(logits.dtype), node_norm)
            metrics.update(logits > 0, y.long())
        else:
            y = y.flatten().long()  # OGB keeps its labels as (N, 1)
            loss = self._loss(logits, y, node_norm)
            metrics.update(logits.argmax(dim=-1), y)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage != "train", batch_size=logits.size(0))
        return loss, logits.size(0)

    def _loss(self, logits: Tensor, y: Tensor, node_norm: Tensor | None) -> Tensor:
        loss: Tensor
        if node_norm is None:
            loss = self.criterion(logits, y)
            return loss
        loss = self._criterion_by_node(logits, y).view(len(y), -1).mean(dim=-1)  # a mean over a node's labels
        return (node_norm * loss).sum() / node_norm.sum()

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)

    def _logits(self, batch: Any, rows: slice | Tensor, *, use_layerwise: bool = True) -> Tensor:
        # Only a batch of seeds alone relies on them; any other comes from a loader that is not the DataModule's.
        if use_layerwise and self._layerwise is not None and batch.get("num_sampled_edges") == []:
            layerwise: Tensor = self._layerwise.rows(batch.n_id[rows])
            return layerwise
        logits: Tensor = self(batch)
        return logits[rows]

    def _features(self, batch: Any) -> Tensor:
        x: Tensor = batch.x
        if x.layout != torch.strided:
            raise ValueError(
                f"`batch.x` must be dense, but its layout is {x.layout}."
                " HINT: call `data.x = data.x.to_dense()`, or load sampled batches with `GraphDataModule`."
            )
        if isinstance(self.in_channels, int) and self.in_channels > 0 and x.size(-1) != self.in_channels:
            raise ValueError(
                f"`batch.x` must have `in_channels` = {self.in_channels} features per node, but has {x.size(-1)}."
                " HINT: pass `in_channels=data.num_features`."
            )
        # Features may be stored in half precision, and Lightning's "*-true" precisions leave a `Data` in float32.
        return x.to(self.dtype)

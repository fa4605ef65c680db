"""What a model, a loader and a policy must be like for the batches of a stage to be controlled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.memory.any_batch import names_seeds
from lightning_gnnopt.memory.drawing import takes_transforms
from lightning_gnnopt.memory.features import is_batch
from lightning_gnnopt.memory.once import WarnOnce


def refuse_lazy(pl_module: nn.Module) -> None:
    """Refuse parameters without a shape.

    Raises:
        ValueError: If there is one.
    """
    if any(is_lazy(parameter) for parameter in pl_module.parameters()):
        raise ValueError(
            f"`MemoryControl` needs parameters that have a shape, but {type(pl_module).__name__} has lazy ones."
            " HINT: run one batch through the model before the Trainer starts, or give the layers their sizes."
        )


def refuse_too_little(budget_bytes: int, held_bytes: int) -> None:
    """Refuse a budget that no batch fits into.

    Raises:
        ValueError: If what is held whatever the batch takes all of it.
    """
    if held_bytes >= budget_bytes:
        raise ValueError(
            f"`budget` must be larger than the {held_bytes:,} bytes that the model, its gradients and its optimizer"
            f" take, but is {budget_bytes:,}. HINT: raise `budget`, or lower the model's width; smaller batches cannot"
            " help."
        )


def refuse_without_return(loader: Any) -> None:
    """Refuse to give seeds back to a loader that cannot bring them later.

    Raises:
        ValueError: If it cannot.
    """
    if not takes_transforms(loader):
        raise ValueError(
            "`on_exceed='shrink'` brings seeds back in further batches, which needs `GraphDataModule` or"
            f" `PrefetchLoader`, but the loader is a {type(loader).__name__}. HINT: use 'split' or 'prune'."
        )


def refuse_unknown(batch: Any, stage: str) -> None:
    """Refuse what is no batch of PyG's.

    Raises:
        TypeError: If it is none.
    """
    if not is_batch(batch):
        raise TypeError(
            f"`MemoryControl` needs batches that are PyG's `Data` or `HeteroData`, but the {stage!r} loader yields"
            f" {type(batch).__name__}. HINT: load with `GraphDataModule` or one of PyG's loaders, or leave"
            " `MemoryControl` out."
        )


def check_splits(pl_module: nn.Module, example: Any, stage: str, world_size: int, warn: WarnOnce) -> None:
    """See whether a stage's batches can be run in parts.

    Args:
        pl_module: The model.
        example: A batch.
        stage: The stage.
        world_size: Number of processes.
        warn: Says so where gradients will not add up exactly.

    Raises:
        ValueError: If they cannot.
    """
    counts_degrees = sorted({type(module).__name__ for module in pl_module.modules() if _counts_degrees(module)})
    if counts_degrees:
        warn(
            "degrees",
            f"Batches that are run in parts give {', '.join(counts_degrees)} other degrees at the rim of a part"
            " than in the whole batch, so gradients do not add up exactly. HINT: `normalize=False` with weights"
            " from the whole graph, or this package's `GCN`.",
        )
    if not names_seeds(example):
        raise ValueError(
            f"{'`on_exceed`' if stage == 'train' else '`exact=True`'} runs batches in parts, which needs batches of"
            f" nodes of one type that say their seeds (`batch_size`), but the {stage!r} loader yields"
            f" {type(example).__name__} with {', '.join(map(str, example.keys()))}. HINT: ('resample', 'prune')."
        )
    if world_size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in pl_module.modules()):
        raise ValueError(
            "Processes that run batches in different numbers of parts cannot synchronise within a step, but the"
            " model has `SyncBatchNorm`. HINT: `sync_batchnorm=False`, or let batches be pruned."
        )


def weights_reader(datamodule: L.LightningDataModule | None, name: str, example: Any) -> Callable[[Any], Any]:
    """Make what reads the weights of a batch's edges.

    Args:
        datamodule: Where the weights of subgraphs are, whose attributes are not sliced yet.
        name: The attribute of edges.
        example: A batch.

    Raises:
        ValueError: If the batch has no such attribute.
    """
    if example.get(name) is None:
        raise ValueError(
            f"`weight_attr` must name an attribute of the edges of each batch, but {name!r} is none:"
            f" there are {', '.join(map(str, example.keys()))}. HINT: weights are sliced like `edge_attr`."
        )
    graph: Any = datamodule

    def weights(batch: Any) -> Any:
        if hasattr(batch, "positions"):
            return np.asarray(graph.data[name])[graph.topology.edge_ids[batch.positions]]
        return batch[name].detach().cpu().numpy()

    return weights


def _counts_degrees(module: nn.Module) -> bool:
    """Whether a layer of PyG's normalises by the degrees that it finds in the batch."""
    if not isinstance(module, MessagePassing) or not getattr(module, "normalize", True):
        return False
    return hasattr(inspect.getmodule(type(module)), "gcn_norm")

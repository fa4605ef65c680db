"""Draw batches from loaders beside the ones they yield: smaller ones, the same seeds again, those to come."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.structure import BatchStructure, select

Draw = Callable[[int], Any]
"""Draws a batch around so many of a loader's inputs."""
_LOOKED_AT = 8


def takes_transforms(loader: Any) -> bool:
    """Whether batches can be looked at in the loader's own threads."""
    return hasattr(loader, "add_transform")


def draw_from(loader: Any) -> tuple[Draw, int]:
    """Make what draws from a loader that takes transforms, and say how many inputs its batches have."""
    return lambda num_inputs: loader.draw(num_inputs)[1], -(-loader.order.num_local // max(1, len(loader.order)))


def cut_from(batch: Any, depth: int | None) -> tuple[Draw, int]:
    """Make what cuts smaller batches out of one, and say how many seeds it has.

    Args:
        batch: A PyG batch; a ``HeteroData`` stays as it is.
        depth: Layers of the model, for batches without hops.
    """
    if isinstance(batch, HeteroData):
        return lambda num_inputs: batch, 1
    structure = BatchStructure.of_batch(batch)

    def draw(num_inputs: int) -> Any:
        if num_inputs >= structure.num_seeds:
            return batch
        return cut_batch(batch, select(structure, seeds=np.arange(num_inputs), depth=depth))

    return draw, structure.num_seeds


def resample_of(loader: Any, batch: Any, trainer: L.Trainer, index: int) -> Callable[[int], Any] | None:
    """Say how PyG's loaders around nodes draw the same seeds again; None for others.

    Args:
        loader: The loader.
        batch: What it yielded.
        trainer: Converts what is drawn as it does the loader's batches before their transfer.
        index: The loader's number.
    """
    ids = batch.get("input_id") if isinstance(batch, Data) else None
    if not isinstance(loader, NodeLoader) or ids is None:
        return None
    plugin, module = trainer.precision_plugin, trainer.lightning_module
    known = loader.input_data.input_id
    places = ids.cpu()
    if known is not None:  # they are names of the user's, or of nodes
        order = known.argsort()
        places = order[torch.searchsorted(known[order], places).clamp(max=len(known) - 1)]
        if not torch.equal(known[places], ids.cpu()):
            return None

    def resample(attempt: int) -> Any:
        with isolate_rng():  # which PyG draws from: other batches are not to depend on this one's draws
            torch.manual_seed(zlib.crc32(ids.cpu().numpy().tobytes()) + attempt)
            drawn = plugin.convert_input(loader(places))
        return module._on_before_batch_transfer(drawn, dataloader_idx=index)

    return resample


def batches_ahead(loader: Any, device: torch.device, *, returns_seeds: bool) -> Ahead:
    """Count the batches that a loader has ready while a step runs, on the device that trains.

    Args:
        loader: The loader.
        device: The device.
        returns_seeds: Whether it brings seeds back, and so has no length.
    """
    options = getattr(loader, "options", None)
    if options is not None and hasattr(options, "max_ahead"):
        batches = options.max_ahead if options.num_workers else 0
        # Of a loader without a length Lightning asks for one batch ahead.
        return Ahead(batches=batches + returns_seeds, max_bytes=options.max_bytes)
    workers = int(getattr(loader, "num_workers", 0) or 0)
    if device.type != "cpu" or not workers:
        return Ahead()
    return Ahead(batches=workers * int(getattr(loader, "prefetch_factor", None) or 2))


def look_ahead(loader: Any, footprint: Footprint) -> list[NDArray[np.float64]]:
    """See how large batches are, from some that are sampled and not built: those that wait may be as large.

    Args:
        loader: The loader; of one that cannot sample alone nothing is seen.
        footprint: Is told of the largest.

    Returns:
        Their features; none of a loader that cannot sample alone.
    """
    if not hasattr(loader, "sample"):
        return []
    whole = max(1, len(loader.order) - 1)  # the last one may be smaller
    numbers = np.linspace(0, whole - 1, min(_LOOKED_AT, whole)).astype(int)
    # Always those of the first epoch: a resumed run is to find the same batches too large as the one it goes on with.
    rows = [footprint.features(loader.sample(int(number), epoch=0)) for number in numbers]
    footprint.ahead = replace(footprint.ahead, least_bytes=max(map(footprint.batch_bytes, rows)))
    return rows


def spread_of(footprint: Footprint, rows: Sequence[NDArray[np.float64]]) -> float | None:
    """Take the standard deviation of what steps on some batches take, in bytes; None if it cannot be told."""
    if len(rows) < 2 or not footprint.is_ready:
        return None
    return float(np.std([footprint.upper(row) for row in rows], ddof=1))

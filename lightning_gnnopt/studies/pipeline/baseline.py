"""What a setting is compared with: PyG's loader at its best, or our own without prefetching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData

from lightning_gnnopt.studies.pipeline.fits import Fit
from lightning_gnnopt.studies.pipeline.loaders import PygBatches, for_pyg, num_parts, pyg_samples_with
from lightning_gnnopt.studies.pipeline.settings import Setting
from lightning_gnnopt.studies.pipeline.theory import Stages

_WORKERS = (0, 1, 2)  # that PyG's loader is tried with


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a setting is compared with.

    Attributes:
        name: What it is, in words.
        make: Makes its DataModule, given the passes of an epoch.
        is_ours: Whether its batches are our loader's.
        num_workers: Its processes or threads that prepare batches.
        pass_s: Seconds of a pass over the nodes, validation included.
        stages: Stages of a pass that prepares each batch when it is asked for.
        tries_s: Seconds of a pass by the number of workers that was tried.
        note: Why it is not PyG's loader; ``""`` if it is.
    """

    name: str
    make: Callable[[int], L.LightningDataModule]
    is_ours: bool
    num_workers: int
    pass_s: float
    stages: Stages
    tries_s: Mapping[str, float]
    note: str = ""

    def stages_of(self, fit: Fit, passes: int) -> Stages:
        """Take the stages of a fit's epochs; those of the first try where workers prepare beside it."""
        if self.num_workers == 0 and fit.stages is not None:
            return fit.stages
        return self.stages.times(passes)


def find_baseline(
    setting: Setting,
    data: Data,
    study: Mapping[str, Any],
    make_ours: Callable[..., L.LightningDataModule],
    try_out: Callable[[L.LightningDataModule], Fit],
) -> Baseline:
    """Find the best baseline there is: PyG's loader with 0, 1 or 2 workers, or else ours without any.

    Args:
        setting: Sampler and batch size.
        data: The graph.
        study: The config's group `pipeline`.
        make_ours: Makes our DataModule, given `passes` and `num_workers`.
        try_out: Runs a short fit of a DataModule; it warms up what it uses, too.
    """
    inline = try_out(make_ours(passes=1, num_workers=0))
    note, peer = "PyG has nothing to sample with (neither pyg-lib nor torch-sparse is installed)", pyg_samples_with()
    if peer is not None:
        try:
            return _pyg_baseline(setting, for_pyg(data), study, peer, try_out)
        except (ImportError, RuntimeError) as error:  # no METIS within them, or one built for another torch
            lines = str(error).splitlines() or [type(error).__name__]
            note = f"PyG's loader does not run with {peer}: {lines[0]}"
    return Baseline(
        name="our loader, 0 workers",
        make=lambda passes: make_ours(passes=passes, num_workers=0),
        is_ours=True,
        num_workers=0,
        pass_s=inline.epoch_s,
        stages=_stages(inline),
        tries_s={"0": inline.epoch_s},
        note=note,
    )


def _pyg_baseline(
    setting: Setting, data: Data, study: Mapping[str, Any], peer: str, try_out: Callable[[L.LightningDataModule], Fit]
) -> Baseline:
    joined = study["clusters_per_batch"]
    clusters = None
    if setting.sampler == "cluster":
        clusters = ClusterData(data, num_parts=num_parts(data, setting, joined), log=False)
    make = partial(
        PygBatches,
        data,
        batch_size=setting.batch_size,
        fanouts=[study["num_neighbors"]] * setting.layers,
        clusters=clusters,
        clusters_per_batch=joined,
    )
    fits = {workers: try_out(make(passes=1, num_workers=workers)) for workers in _WORKERS}
    best = min(fits, key=lambda workers: fits[workers].epoch_s)
    return Baseline(
        name=f"PyG's loader with {peer}, {best} workers",
        make=lambda passes: make(passes=passes, num_workers=best),
        is_ours=False,
        num_workers=best,
        pass_s=fits[best].epoch_s,
        stages=_stages(fits[0]),
        tries_s={str(workers): fit.epoch_s for workers, fit in fits.items()},
    )


def _stages(fit: Fit) -> Stages:
    assert fit.stages is not None  # validation ran within training
    return fit.stages

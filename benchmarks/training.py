"""Training of PyG's GraphSAGE under Lightning, with our loader and with PyG's: the same module, graph and steps.

Every layer computes all nodes of a batch with either loader, so that the two differ in their batches' preparation only.
(`NodeClassifier` leaves out what no later layer reads, as our batches say where the hops lie: not counted here.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch_geometric.nn import GraphSAGE
from typing_extensions import override

from benchmarks.backends import Backend
from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios
from benchmarks.loading_scale import LoadingScale
from benchmarks.loading_sides import PEERS, LoadingGraph, best_side, missing_peers, pyg_samples_with
from lightning_gnnopt.studies.quiet import quiet

HIDDEN = 64
REACH = 0.75


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The epochs of a training run that count.

    Attributes:
        steps: Steps of an epoch.
        epoch_s: Seconds of an epoch, the median of those that count.
        wait_share: Share of those epochs in which training waited for batches.
    """

    steps: int
    epoch_s: float
    wait_share: float


class EpochClock(Callback):
    """Times epochs, from the request of the first batch until the device has done all, and the waits in them."""

    def __init__(self) -> None:
        self.epoch_s: list[float] = []
        self.wait_s: list[float] = []
        self.steps: list[int] = []
        self._start = self._mark = 0.0

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.wait_s.append(0.0)
        self.steps.append(0)
        self._start = self._mark = time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.wait_s[-1] += time.perf_counter() - self._mark

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps[-1] += 1
        self._mark = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.epoch_s.append(time.perf_counter() - self._start)

    def counted(self) -> Epochs:
        """All epochs but the first."""
        epoch_s, wait_s = self.epoch_s[1:], self.wait_s[1:]
        return Epochs(steps=self.steps[-1], epoch_s=median(epoch_s), wait_share=sum(wait_s) / sum(epoch_s))


class SageModule(L.LightningModule):
    """PyG's GraphSAGE, trained on the seeds of each batch.

    Args:
        in_channels: Number of features.
        out_channels: Number of classes.
        num_layers: Number of layers.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_layers: int) -> None:
        super().__init__()
        self.net = GraphSAGE(in_channels, HIDDEN, num_layers, out_channels)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out: Tensor = self.net(batch.x, batch.edge_index)
        return torch.nn.functional.cross_entropy(out[: batch.batch_size], batch.y[: batch.batch_size])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.003)


def measure_training(graph: LoadingGraph, scale: LoadingScale, *, backend: Backend | None = None) -> Measured:
    """Train with both libraries' loaders, in turn.

    Args:
        graph: The graph.
        scale: How much to measure.
        backend: The device to train on; None for the CPU.

    Returns:
        The figures, and a row per side.
    """
    on_cuda = backend is not None and backend.accelerator != "cpu"
    missing = missing_peers()
    sizes: dict[str, Any] = {"batch_size": scale.batch_size, "num_batches": scale.train_steps}
    sides: dict[str, Callable[[], Epochs]] = {}
    for num in scale.workers:
        make = partial(
            graph.loader,
            scale.train_fanouts,
            num_workers=num,
            streams=backend.streams if backend is not None and on_cuda else None,
            **sizes,
        )
        sides[f"ours, {num} workers"] = partial(_fit, make, graph, scale, on_cuda)
        for peer in (peer for peer in PEERS if peer not in missing):
            make_theirs = partial(
                graph.pyg_loader,
                scale.train_fanouts,
                num_workers=num,
                persistent_workers=num > 0,  # or each epoch would start processes
                pin_memory=on_cuda,
                **sizes,
            )
            sides[f"PyG with {peer}, {num} workers"] = partial(_fit_with, peer, make_theirs, graph, scale, on_cuda)
    with quiet():
        runs = alternate(sides, rounds=scale.train_rounds, warmup=0)  # each run's first epoch is not counted
    seconds = {name: [run.epoch_s for run in of_side] for name, of_side in runs.items()}
    ours = best_side(seconds, "ours")
    waits = [run.wait_share for run in runs[ours]]
    figures = [Figure.of_runs("share of the epoch waited for batches, best of ours", waits, unit="share")]
    for peer in PEERS:
        if peer in missing:
            continue
        theirs = best_side(seconds, f"PyG with {peer}")
        goal: dict[str, Any] = {"reach": REACH, "sense": "<="} if peer == "torch-sparse" else {}
        name = f"epoch of training, ours over PyG with {peer}, best of each"
        figures.append(Figure.of_runs(name, ratios(seconds[ours], seconds[theirs]), unit="x", **goal))
        waits = [run.wait_share for run in runs[theirs]]
        figures.append(Figure.of_runs(f"share waited for batches, best of PyG with {peer}", waits, unit="share"))
    rows = [_row(graph, scale, name, of_side, on_cuda) for name, of_side in runs.items()]
    rows += [
        {"part": "training", "side": f"PyG with {name}", "note": f"not measured: {why}"}
        for name, why in missing.items()
    ]
    return figures, rows


def _fit_with(
    peer: str, make_loader: Callable[[], Any], graph: LoadingGraph, scale: LoadingScale, on_cuda: bool
) -> Epochs:
    with pyg_samples_with(peer):
        return _fit(make_loader, graph, scale, on_cuda)


def _fit(make_loader: Callable[[], Any], graph: LoadingGraph, scale: LoadingScale, on_cuda: bool) -> Epochs:
    torch.manual_seed(0)
    module = SageModule(graph.data.num_features, int(graph.data.y.max()) + 1, num_layers=len(scale.train_fanouts))
    clock = EpochClock()
    trainer = L.Trainer(
        accelerator="gpu" if on_cuda else "cpu",
        devices=1,
        max_epochs=1 + scale.train_epochs,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=make_loader())
    return clock.counted()


def _row(
    graph: LoadingGraph, scale: LoadingScale, name: str, runs: Sequence[Epochs], on_cuda: bool
) -> Mapping[str, Cell]:
    epoch_s = median([run.epoch_s for run in runs])
    fanouts = "/".join(map(str, scale.train_fanouts))
    return {
        "part": "training",
        "side": name,
        "graph": graph.label,
        "batch_ms": 1000 * epoch_s / runs[0].steps,
        "wait_share": median([run.wait_share for run in runs]),
        "note": f"{runs[0].steps} steps, fan-outs {fanouts}, on {'CUDA' if on_cuda else 'the CPU'}",
    }

# %% [markdown]
# # From plain PyG and Lightning, one step at a time
#
# A graph, a PyG network and a LightningModule of our own: the nearest-neighbour graph of 1,797 hand-written digits.
# Each step adds one part of `lightning_gnnopt`, changes nothing in the model, and prints what it gained or lost. It
# runs as a script (`python recipes/tutorial/tutorial.py`) and as a notebook (`jupytext --to notebook tutorial.py`).

# %%
# ruff: noqa: D100
import logging
import statistics
import time
import warnings
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GraphSAGE

from lightning_gnnopt import AsyncValidation, GNNProfiler, GraphDataModule, MemoryControl, RunSummary
from lightning_gnnopt.datasets import load_dataset

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # neither tips nor a list of the devices there are not
warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec).*")
data = load_dataset("digits-knn")
print(data)


# %% [markdown]
# ## Plain: a LightningModule, and the whole graph in each step
#
# The loss is that of the seeds. A sampled batch has them in its first `batch_size` rows; the whole graph has masks.


# %%
class Classifier(L.LightningModule):
    """GraphSAGE as PyG has it, for sampled batches and for the whole graph."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = GraphSAGE(in_channels, 64, num_layers=2, out_channels=out_channels, dropout=0.5)

    def _loss_and_accuracy(self, batch: Data, split: str) -> tuple[torch.Tensor, torch.Tensor, int]:
        logits = self.net(batch.x, batch.edge_index)
        seeds = slice(batch.batch_size) if "n_id" in batch else batch[f"{split}_mask"]  # n_id: a sampled batch
        logits, y = logits[seeds], batch.y[seeds]
        return F.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean(), len(y)

    def training_step(self, batch: Data, batch_idx: int) -> torch.Tensor:
        """Log and return the loss."""
        loss, _, num_seeds = self._loss_and_accuracy(batch, "train")
        self.log("train/loss", loss, batch_size=num_seeds)
        return loss

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Log the accuracy."""
        _, accuracy, num_seeds = self._loss_and_accuracy(batch, "val")
        self.log("val/acc", accuracy, batch_size=num_seeds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.005)


def fit(loaders: Any, epochs: int, **trainer: Any) -> tuple[L.Trainer, RunSummary, float]:
    """Train a model from the same start; return the Trainer, a summary and the seconds that it took."""
    L.seed_everything(1, verbose=False)
    summary = RunSummary()
    callbacks = [summary, *trainer.pop("callbacks", [])]
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    made = L.Trainer(max_epochs=epochs, callbacks=callbacks, **(quiet | trainer))
    began_s = time.perf_counter()
    made.fit(Classifier(data.num_features, 10), **loaders)
    return made, summary, time.perf_counter() - began_s


def told(trainer: L.Trainer, summary: RunSummary) -> str:
    """Say what a run came to; the first epoch is left out of the time, as it compiles."""
    epoch_ms = 1000 * statistics.median(epoch.train_s for epoch in summary.epochs[1:])
    accuracy = trainer.callback_metrics["val/acc"]
    return f"{trainer.global_step} steps, {epoch_ms:.0f} ms an epoch, val/acc {accuracy:.3f}"


# %%
whole = {"train_dataloaders": DataLoader([data]), "val_dataloaders": DataLoader([data])}
trainer, summary, _ = fit(whole, epochs=15)
print(f"\n1. Whole graph: {told(trainer, summary)}")

# %% [markdown]
# ## Sampled batches
#
# On a graph that does not fit, one samples. With PyG that is
#
#     NeighborLoader(data, num_neighbors=[10, 10], input_nodes=data.train_mask, batch_size=128, shuffle=True)
#
# which needs pyg-lib or torch-sparse. `GraphDataModule` needs neither, and its batches look the same. With
# `num_workers=0` a batch is prepared when the step asks for it: the time of that is waited for.

# %%
sampled: dict[str, Any] = {"num_neighbors": [10, 10], "batch_size": 128}
epochs = 15


def waited_s(summary: RunSummary) -> float:
    """Seconds per epoch that training waited for batches, without the first epoch."""
    rest = summary.epochs[1:]
    return sum(epoch.wait_s for epoch in rest) / len(rest)


trainer, at_once, _ = fit({"datamodule": GraphDataModule(data, num_workers=0, **sampled)}, epochs)
print(f"2. Sampled: {told(trainer, at_once)}")

# %% [markdown]
# ## Prefetching
#
# One worker thread prepares the next batches while a step computes. The batches are the same bits.

# %%
trainer, ahead, _ = fit({"datamodule": GraphDataModule(data, num_workers=1, **sampled)}, epochs)
before_ms, after_ms = 1000 * waited_s(at_once), 1000 * waited_s(ahead)
print(f"3. Prefetching: waiting for batches {before_ms:.1f} -> {after_ms:.1f} ms per epoch")

# %% [markdown]
# ## Validation beside training
#
# Training stands still while Lightning validates. `AsyncValidation` hands copies of the weights to a second process,
# which takes some seconds to start: on a graph as small as this one the whole run gets slower, and only the time that
# training stands still gets shorter. It pays where validation takes a good part of an epoch and the run takes minutes.

# %%
validation = AsyncValidation(monitor="val/acc", num_threads=1, dirpath="tutorial_checkpoints", save_top_k=1)
trainer, beside, async_s = fit(
    {"datamodule": GraphDataModule(data, num_workers=1, **sampled)},
    epochs,
    callbacks=[validation],
    enable_checkpointing=True,
)
still_before_s = sum(epoch.val_s for epoch in ahead.epochs)
still_after_s = sum(epoch.val_s for epoch in beside.epochs)
print(f"4. AsyncValidation: training stood still {still_before_s:.2f} -> {still_after_s:.2f} s for validation")
print(f"   {len(validation.lags)} of {epochs} snapshots judged, best val/acc {validation.best_model_score:.3f},")
print(f"   the whole run {async_s:.1f} s, most of it the start of the process")

# %% [markdown]
# ## A memory budget
#
# First look: `on_exceed="watch"` changes nothing and measures. Then a budget a little below the largest peak.

# %%
watch = MemoryControl(budget="4GiB", on_exceed="watch", measure_every=1, verbose=False)
fit({"datamodule": GraphDataModule(data, num_workers=1, **sampled)}, 4, callbacks=[watch], limit_val_batches=0)
largest_bytes = int(watch.tally.largest_bytes)
budget_bytes = int(0.97 * largest_bytes)
control = MemoryControl(budget=budget_bytes, measure_every=1, verbose=False)
fit({"datamodule": GraphDataModule(data, num_workers=1, **sampled)}, 4, callbacks=[control], limit_val_batches=0)
done = control.tally
print(f"5. MemoryControl: largest step {largest_bytes:,} -> {int(done.largest_bytes):,} bytes, budget {budget_bytes:,}")
print(
    f"   {done.measured_over} of {done.measured} steps over it; {done.over} of {done.batches} batches were, as drawn;"
)
print(f"   {done.resamples} draws anew, {done.pruned_edges / done.edges:.2%} of edges pruned")

# %% [markdown]
# ## What to do next: measure
#
# `GNNProfiler` goes where `SimpleProfiler` would. `report.save(folder)` writes a page with tables and figures.

# %%
profiler = GNNProfiler(filename="gnn_profile", dirpath="tutorial_report")
fit({"datamodule": GraphDataModule(data, num_workers=1, **sampled)}, 8, profiler=profiler)
report = profiler.report()
report.save("tutorial_report")
print(f"6. GNNProfiler: {report.verdict}")
for advice in report.advice[:2]:
    print(f"   - {advice.finding}")
print("   All of it: tutorial_report/report.html")

"""``make demo``'s training through `GraphDataModule`, beside plain full-batch training of the same network.

The hyper-parameters are those of ``conf/experiment/digits.yaml``. An epoch shows every training node once on all
sides, but is one optimizer step in full-batch training and one per batch in sampled training; so full-batch training
runs twice, for as many epochs and for as many steps. Sampled training runs under a Lightning `Trainer`, with the
demo's metrics, validation and checkpoints; full-batch training is the plain loop of PyG's examples, so Lightning's own
time counts against us. Everything runs on the CPU.

Epoch times leave validation out on all sides. The weights tested are those that validated best; sampled
training is judged on sampled neighbours, as in the demo, full-batch training on all of them. Round ``k`` trains
with the config's seed plus ``k`` on all sides.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from lightning_gnnopt import NodeClassifier, RunSummary
from lightning_gnnopt.studies.quiet import quiet
from lightning_gnnopt.train import build, build_members

OVERRIDES = (
    "experiment=digits",
    "trainer=cpu",
    "logger=none",
    "~callbacks.progress_bar",
    "trainer.enable_progress_bar=false",
)
ROUNDS, QUICK_ROUNDS = 9, 3  # multiples of the number of sides
WARMUP, WARMUP_EPOCHS = 1, 2  # an epoch compiles and allocates all there is
SAMPLED, EQUAL_EPOCHS, EQUAL_STEPS = "sampled", "full-batch, equal epochs", "full-batch, equal steps"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run.

    Attributes:
        epochs: Its epochs.
        steps: Its optimizer steps.
        epoch_s: Median time of an epoch, without the first one and without validation.
        train_s: Time of all epochs, without validation.
        wait_share: Share of the epochs, without the first one, in which training waited for batches; None without
            batches.
        test_acc: Accuracy on the test nodes of the weights that validated best.
    """

    epochs: int
    steps: int
    epoch_s: float
    train_s: float
    wait_share: float | None
    test_acc: float


def measure(quick: bool) -> Measured:
    """Train on all sides in turn.

    Args:
        quick: Whether to run fewer rounds; each of them is whole, as accuracy needs all epochs.

    Returns:
        The figures, and a row per side.
    """
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose("train", overrides=list(OVERRIDES))
    batches = len(build(config)[0].train_dataloader())
    sides = {
        SAMPLED: _seeded(config, _train_sampled),
        EQUAL_EPOCHS: _seeded(config, _train_full_batch),
        EQUAL_STEPS: _seeded(config, partial(_train_full_batch, factor=batches)),
    }
    with quiet():
        runs = alternate(sides, rounds=QUICK_ROUNDS if quick else ROUNDS, warmup=WARMUP)
    return _figures(runs), [_row(side, runs[side]) for side in sides]


def _seeded(config: DictConfig, train: Callable[[DictConfig], Training]) -> Callable[[], Training]:
    """Make the side that trains with the next seed each time, after a short run or more to warm up."""
    rounds = itertools.count(-WARMUP)

    def run() -> Training:
        job, number = config.copy(), next(rounds)
        if number < 0:
            job.trainer.max_epochs = WARMUP_EPOCHS
        job.seed += max(number, 0)
        L.seed_everything(job.seed, workers=True, verbose=False)
        return train(job)

    return run


def _train_sampled(config: DictConfig) -> Training:
    datamodule, model = build(config)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        callbacks = build_members(config.callbacks)
        trainer: L.Trainer = instantiate(config.trainer, callbacks=callbacks, logger=False, _convert_="all")
        trainer.fit(model, datamodule=datamodule)
        trainer.test(model, datamodule=datamodule, ckpt_path="best", verbose=False)
    (summary,) = (callback for callback in callbacks if isinstance(callback, RunSummary))
    epochs = summary.steady_epochs
    return Training(
        epochs=len(summary.epochs),
        steps=trainer.global_step,
        epoch_s=median([epoch.train_s for epoch in epochs]),
        train_s=sum(epoch.train_s for epoch in summary.epochs),
        wait_share=sum(epoch.wait_s for epoch in epochs) / sum(epoch.train_s for epoch in epochs),
        test_acc=summary.metrics["test/acc"],
    )


def _train_full_batch(config: DictConfig, *, factor: int = 1) -> Training:
    """Train for `factor` times the config's epochs, and validate as often as the config says.

    Each further look at the validation set would be one more choice of weights.
    """
    epochs = factor * config.trainer.max_epochs
    datamodule, model = build(config)
    data: Any = datamodule.data
    optimizer = model.configure_optimizers()
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"`scheduler` must be null to train full-batch, but is {config.model.scheduler}."
            " HINT: teach `benchmarks.endtoend` what an epoch of the schedule is in full-batch training."
        )
    epoch_s, best_acc, test_acc = [], -1.0, 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        model.train()
        optimizer.zero_grad()
        loss = model.criterion(model(data)[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
        epoch_s.append(time.perf_counter() - start)
        if epoch % factor == 0:
            val_acc, acc = _evaluate(model, data)
            if val_acc > best_acc:
                best_acc, test_acc = val_acc, acc
    return Training(
        epochs=epochs,
        steps=epochs,
        epoch_s=median(epoch_s[1:] or epoch_s),
        train_s=sum(epoch_s),
        wait_share=None,
        test_acc=test_acc,
    )


@torch.no_grad()
def _evaluate(model: NodeClassifier, data: Any) -> tuple[float, float]:
    model.eval()
    right = model(data).argmax(dim=-1) == data.y
    return float(right[data.val_mask].float().mean()), float(right[data.test_mask].float().mean())


def _figures(runs: dict[str, list[Training]]) -> list[Figure]:
    epoch_s = {side: [run.epoch_s for run in trainings] for side, trainings in runs.items()}
    train_s = {side: [run.train_s for run in trainings] for side, trainings in runs.items()}
    accs = {side: [run.test_acc for run in trainings] for side, trainings in runs.items()}
    versus_epoch = ratios(epoch_s[SAMPLED], epoch_s[EQUAL_EPOCHS])
    versus_steps = ratios(train_s[SAMPLED], train_s[EQUAL_STEPS])
    return [
        Figure.of_runs("test accuracy, sampled", accs[SAMPLED], unit="share", reach=0.97, sense=">="),
        Figure.of_runs("test accuracy, full-batch, equal epochs", accs[EQUAL_EPOCHS], unit="share"),
        Figure.of_runs("test accuracy, full-batch, equal steps", accs[EQUAL_STEPS], unit="share"),
        Figure.of_runs("epoch time, sampled", epoch_s[SAMPLED], unit="s"),
        Figure.of_runs("epoch time, full-batch", epoch_s[EQUAL_EPOCHS], unit="s"),
        Figure.of_runs("epoch time, sampled over full-batch", versus_epoch, unit="x"),
        Figure.of_runs("training time, sampled over full-batch at equal steps", versus_steps, unit="x"),
        Figure.of_runs("share of the epoch waited for batches, sampled", _waits(runs[SAMPLED]), unit="share"),
    ]


def _waits(trainings: Sequence[Training]) -> list[float]:
    return [run.wait_share for run in trainings if run.wait_share is not None]


def _row(side: str, trainings: Sequence[Training]) -> dict[str, Cell]:
    first = trainings[0]
    return {
        "side": side,
        "device": "cpu",
        "epochs": first.epochs,
        "steps": first.steps,
        "epoch_ms": 1000 * median([run.epoch_s for run in trainings]),
        "step_ms": 1000 * median([run.train_s / run.steps for run in trainings]),
        "train_s": median([run.train_s for run in trainings]),
        "wait_share": median(waits) if (waits := _waits(trainings)) else None,
        "test_acc": median([run.test_acc for run in trainings]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit status.
    """
    return run_benchmark("endtoend", measure, description=(__doc__ or "").split("\n")[0], argv=argv)


if __name__ == "__main__":
    sys.exit(main())

"""Late metrics: where a Trainer and its callbacks look for them, when they may, and no longer."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_gnnopt.evaluation.messages import Verdict

LAG = "async_val/lag_steps"
SECONDS = "async_val/seconds"


class Delivery:
    """Hands verdicts to a Trainer, its loggers and those of its callbacks that wait for them.

    A verdict is logged at the step of its snapshot. It is in `callback_metrics` until the epoch in which it arrived is
    over, so that no callback takes it for a new one in the next. `EarlyStopping` looks at each verdict once, when it
    arrives; `ReduceLROnPlateau` at the end of an epoch with a verdict. Until there is one, neither misses it.

    Args:
        trainer: The Trainer, when training starts.
        monitor: A metric that verdicts are known to have.
    """

    def __init__(self, trainer: L.Trainer, *, monitor: str | None = None) -> None:
        self._trainer: Any = trainer
        self._known: set[str | None] = {monitor} - {None}
        self._fresh: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._stoppers: list[tuple[EarlyStopping, bool, bool | None]] = [
            (callback, callback.strict, callback._check_on_train_epoch_end) for callback in _stoppers_of(trainer)
        ]
        self._plateaus = [(c, c.strict) for c in self._trainer.lr_scheduler_configs if c.reduce_on_plateau]
        for callback, _, _ in self._stoppers:
            callback.strict = False
        for config, _ in self._plateaus:
            config.strict = False
        self._adopt()

    def deliver(self, verdict: Verdict, *, log_step: int, is_over: bool = False) -> None:
        """Hand over a verdict.

        Args:
            verdict: The verdict; in the order of their steps.
            log_step: The step that loggers count its snapshot under.
            is_over: Whether training has ended, so that there is nothing to stop.
        """
        trainer = self._trainer
        first, lag = not self._last, float(trainer.global_step - verdict.step)
        late = {LAG: lag, SECONDS: verdict.ended_s - verdict.started_s}
        device = trainer.strategy.root_device
        self._fresh |= {name: value.to(device) for name, value in verdict.metrics.items()}
        self._last = dict(self._fresh)
        self._known |= set(verdict.metrics)
        trainer.callback_metrics.update(self._fresh)
        trainer.progress_bar_metrics.update({name: float(value) for name, value in verdict.shown.items()} | {LAG: lag})
        trainer.logged_metrics.update(verdict.logged)
        logged = {name: float(value) for name, value in verdict.logged.items() if value.numel() == 1}
        for logger in trainer.loggers:
            for metrics, step in verdict.records:
                logger.log_metrics(metrics, step=log_step if step is None else step)
            logger.log_metrics({**logged, **late, "epoch": verdict.epoch}, step=log_step)
        if first:
            self._adopt()
            self._give_back(known=False)
        if not is_over:
            for callback, _, _ in self._stoppers:  # those that look after a validation: this is one
                if callback.monitor in verdict.metrics or callback.monitor not in self._fresh:
                    callback.on_validation_end(trainer, trainer.lightning_module)

    def expire(self) -> None:
        """Take away what was delivered: a new epoch begins."""
        held = self._trainer.callback_metrics
        for name, value in self._fresh.items():
            if held.get(name) is value:
                del held[name]
        self._fresh = {}

    def give_up(self) -> None:
        """Leave the rest to Lightning's own validation, for which nobody has to wait."""
        self.expire()
        self._give_back(known=True)
        self._give_back(known=False)

    def settle(self) -> None:
        """Leave the last verdict's metrics to what comes after training, such as a sweeper."""
        self._trainer.callback_metrics.update(self._last)

    def close(self) -> None:
        """Leave callbacks and schedulers as they were; may be called again."""
        for callback, _, checks in self._stoppers:
            callback._check_on_train_epoch_end = checks
        self._give_back(known=True)
        self._give_back(known=False)
        self._stoppers, self._plateaus = [], []

    def _adopt(self) -> None:
        """Let those look at each verdict that would look at the end of each epoch."""
        for callback, _, _ in self._stoppers:
            if callback.monitor in self._known:
                callback._check_on_train_epoch_end = False

    def _give_back(self, *, known: bool) -> None:
        """Let those be strict again who are, and wait for what verdicts have or have not."""
        for callback, strict, _ in self._stoppers:
            if (callback.monitor in self._known) is known:
                callback.strict = strict
        for config, strict in self._plateaus:
            if (config.monitor in self._known) is known:
                config.strict = strict


def _stoppers_of(trainer: Any) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]

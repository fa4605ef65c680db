"""What `AsyncValidation` was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.evaluation.backlog import WhenBusy

Mode = Literal["min", "max"]
OnFailure = Literal["block", "raise"]

_CHOICES = {"mode": ("min", "max"), "when_busy": ("coalesce", "queue", "wait"), "on_failure": ("block", "raise")}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `AsyncValidation`, which says what they mean, checked.

    Raises:
        ValueError: If one is out of its range.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    monitor: str | None = None
    mode: Mode = "max"
    device: str = "auto"
    save_top_k: int = 1
    max_pending: int = 2
    when_busy: WhenBusy = "coalesce"
    timeout_s: float | None = 600.0
    on_failure: OnFailure = "block"
    datamodule_factory: Callable[[], Any] | None = None
    callbacks: Sequence[Callback] = ()
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(unknown_name(name, getattr(self, name), choices))
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            raise ValueError(
                "`every_n_epochs` and `every_n_steps` cannot both be given, but are"
                f" {self.every_n_epochs} and {self.every_n_steps}. HINT: leave one out."
            )
        at_least: dict[str, tuple[float | None, float]] = {
            "every_n_epochs": (self.every_n_epochs, 1),
            "every_n_steps": (self.every_n_steps, 1),
            "save_top_k": (self.save_top_k, -1),
            "max_pending": (self.max_pending, 1),
            "num_threads": (self.num_threads, 1),
        }
        for name, (value, least) in at_least.items():
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, but is {value}. HINT: leave it out.")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"`timeout_s` must be above 0, but is {self.timeout_s}. HINT: None waits for ever.")
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"`device` must be 'auto' or a device of torch, but is {self.device!r} ({error})."
                    " HINT: 'cpu' or 'cuda:1'."
                ) from error

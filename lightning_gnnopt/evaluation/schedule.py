"""When to validate."""

from __future__ import annotations

from typing import Any


class Schedule:
    """Says when a validation is due: every n epochs, or every n optimizer steps.

    Args:
        every_n_epochs: After how many epochs, at an epoch's end.
        every_n_steps: After how many of the Trainer's global steps.

    Raises:
        ValueError: Unless exactly one is given, a whole number of at least 1.

    Example:
        >>> schedule = Schedule(every_n_steps=2)
        >>> [schedule.due_at_step(step) for step in (1, 1, 2, 2, 3, 3, 4)]
        [False, False, True, False, False, False, True]
    """

    def __init__(self, *, every_n_epochs: int | None = None, every_n_steps: int | None = None) -> None:
        if (every_n_epochs is None) == (every_n_steps is None):
            raise ValueError(
                "Exactly one of `every_n_epochs` and `every_n_steps` must be given, but got"
                f" {every_n_epochs!r} and {every_n_steps!r}. HINT: set the other one to None."
            )
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"`{name}` must be a whole number of at least 1, but got {value!r}. HINT: 1 validates most often."
                )
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self._last_step: int | None = None

    def due_at_step(self, global_step: int) -> bool:
        """Say whether a validation is due after a batch; a step is due once.

        The global step stays the same while gradients accumulate, and grows by more than one where several optimizers
        step in a batch, so what counts is that it reached or passed a multiple of `every_n_steps`.

        Args:
            global_step: The Trainer's `global_step` after the batch. A smaller one than before starts a new count.
        """
        if self.every_n_steps is None:
            return False
        if self._last_step is None or global_step < self._last_step:
            self._last_step = max(global_step - 1, 0)
        due = global_step // self.every_n_steps > self._last_step // self.every_n_steps
        self._last_step = global_step
        return due

    def due_at_epoch(self, epoch: int) -> bool:
        """Say whether a validation is due at the end of an epoch; the first epoch is 0."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def state_dict(self) -> dict[str, Any]:
        """Return plain types that :meth:`load_state_dict` takes."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run was."""
        self._last_step = state["last_step"]

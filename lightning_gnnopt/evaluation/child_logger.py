"""The logger of the validation process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from typing_extensions import override


class ChildLogger(DummyLogger):
    """Keeps the metrics that a module gives to its logger itself, for the loggers of the training process.

    All else that a module may ask of a logger, such as `self.logger.experiment.add_image(...)`, does nothing.

    Args:
        place: Name, version and folder of the training process's logger, which files may be written beside.
    """

    def __init__(self, place: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._place = dict(place or {})
        self._records: list[tuple[dict[str, float], int | None]] = []
        self._is_silent = False

    @property
    @override
    def name(self) -> str:
        return str(self._place.get("name", ""))

    @property
    @override
    def version(self) -> Any:
        return self._place.get("version", "")

    @property
    @override
    def save_dir(self) -> str | None:  # which `trainer.log_dir` is
        return self._place.get("log_dir")

    @property
    @override
    def log_dir(self) -> str | None:
        return self._place.get("log_dir")

    @override
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if not self._is_silent:
            self._records.append(({name: float(value) for name, value in metrics.items()}, step))

    def take(self) -> list[tuple[dict[str, float], int | None]]:
        """Give the metrics since the last call, with the steps that were said; the logger forgets them."""
        records, self._records = self._records, []
        return records

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Keep nothing meanwhile: what the Trainer logs by itself is part of its results."""
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False

"""Warnings that are not repeated."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn


class WarnOnce:
    """Warns of each kind of thing once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, kind: str, message: str) -> None:
        """Warn, on the first process, unless it has been of this kind before."""
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)

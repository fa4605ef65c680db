"""Hooks that stay with the model they hang on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UncopiedHook:
    """A hook that is not copied or pickled with the model it hangs on: the copy has one that does nothing.

    Args:
        function: What it calls.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call it, and change nothing."""
        self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _nothing(*_: Any, **__: Any) -> None:
    """What a copy of a model has in the place of a hook."""


def _no_hook() -> Callable[..., None]:
    return _nothing

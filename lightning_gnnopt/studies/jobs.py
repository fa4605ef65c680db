"""What the jobs of all studies do alike."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from lightning_gnnopt._cli import explain
from lightning_gnnopt.memory import MemoryBudgetError
from lightning_gnnopt.memory.oom import is_out_of_memory


def plain(config: Any) -> dict[str, Any]:
    """Resolve a group of a config into plain types; an empty one, or none, is an empty dict."""
    found: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return found or {}


def judge(error: Exception) -> tuple[str, bool]:
    """Say why something could not be run, and whether it would fail again.

    Out of memory, and what this package, Hydra or Lightning refuse, would. Anything else is a fault of the program.

    Args:
        error: What was raised.

    Returns:
        A sentence, and whether it is final.
    """
    if is_out_of_memory(error):
        return "Out of memory", True
    sentence = str(error) if isinstance(error, MemoryBudgetError) else explain(error)
    return (f"{type(error).__name__}: {error}", False) if sentence is None else (sentence, True)

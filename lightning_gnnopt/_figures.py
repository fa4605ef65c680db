"""Figures on their way into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Draw a figure into a file, and let go of it: pyplot keeps all that it has made, one for each job of a sweep.

    Args:
        figure: The matplotlib figure.
        path: The file; folders above it are made.
        **options: Arguments of `savefig`.

    Raises:
        OSError: If it cannot be written.
    """
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, **options)
    finally:
        plt.close(figure)

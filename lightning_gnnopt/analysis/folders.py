"""Folders that reports are written to."""

from __future__ import annotations

from pathlib import Path


def make_writable(folder: Path) -> Path:
    """Make a folder, and find out before a run, not after it, whether something can be written into it.

    Raises:
        OSError: If it cannot be made, or nothing can be written into it.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_writable(folder, error) from error
    return folder


def not_writable(folder: Path, error: OSError) -> OSError:
    """Say that a report cannot be written into a folder, and why."""
    return OSError(
        f"The report cannot be written to `{folder}`: {error}. HINT: give a folder that can be made and written to, on"
        " a disk that is not full."
    )

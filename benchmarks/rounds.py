"""Running sides in turn, and what to make of their runs."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def alternate(sides: Mapping[str, Callable[[], T]], *, rounds: int, warmup: int = 1) -> dict[str, list[T]]:
    """Run each side once per round, so that whatever slows the machine down meets all sides alike.

    Each round starts with the next side: A B C, B C A, C A B, and so on. Rounds that warm up run first, in the order
    given, and are not counted. Garbage is collected before each run, so that no side clears up after another.

    Args:
        sides: What to run, by name. A side measures itself and returns what it found.
        rounds: Rounds that count. A multiple of the number of sides gives each side each place equally often.
        warmup: Rounds before them, for compilation, caches and the allocator.

    Returns:
        Each side's results by round: those of one index ran beside each other.

    Raises:
        ValueError: If there is no side, `rounds` is below 1 or `warmup` is negative.

    Examples:
        >>> alternate({"a": lambda: 1, "b": lambda: 2}, rounds=3)
        {'a': [1, 1, 1], 'b': [2, 2, 2]}
    """
    if not sides:
        raise ValueError("`sides` must name at least one side, but is empty. HINT: pass `{name: function}`.")
    if rounds < 1 or warmup < 0:
        raise ValueError(
            f"`rounds` must be at least 1 and `warmup` at least 0, but got {rounds} and {warmup}."
            " HINT: one round without warming up is `rounds=1, warmup=0`."
        )
    names = list(sides)
    results: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            _show(f"round {number + 1} of {rounds}: {name}" if number >= 0 else f"warming up: {name}")
            gc.collect()
            result = sides[name]()
            if number >= 0:
                results[name].append(result)
    _show("")
    return results


def median(runs: Sequence[float]) -> float:
    """Take the middle run, or the mean of the two in the middle.

    Args:
        runs: At least one number.

    Raises:
        ValueError: If there is no run.

    Examples:
        >>> median([3.0, 1.0, 100.0])
        3.0
    """
    if not runs:
        raise ValueError("`runs` must hold at least one run, but is empty. HINT: `alternate(..., rounds=1)` gives one.")
    return float(statistics.median(runs))


def ratios(a_runs: Sequence[float], b_runs: Sequence[float]) -> list[float]:
    """Divide each run of one side by the other side's run of the same round.

    Args:
        a_runs: Runs of side A by round.
        b_runs: Runs of side B by round, none of them 0.

    Returns:
        ``a / b`` by round.

    Raises:
        ValueError: If the sides have different numbers of runs, or B has a run of 0.

    Examples:
        >>> ratios([2.0, 6.0], [1.0, 2.0])
        [2.0, 3.0]
    """
    if len(a_runs) != len(b_runs):
        raise ValueError(
            f"`a_runs` and `b_runs` must be of the same rounds, but got {len(a_runs)} and {len(b_runs)} runs."
            " HINT: measure both in one `alternate`."
        )
    if 0 in b_runs:
        raise ValueError(
            f"`b_runs` must hold no 0, but got {list(b_runs)}. HINT: give the side more work, so that it takes time."
        )
    return [a / b for a, b in zip(a_runs, b_runs, strict=True)]


def ratio(a_runs: Sequence[float], b_runs: Sequence[float]) -> float:
    """Take the median of the :func:`ratios` of each round.

    The two runs of a round met the same machine; a ratio of two medians could compare a busy minute with a quiet one.

    Args:
        a_runs: Runs of side A by round.
        b_runs: Runs of side B by round, none of them 0.

    Raises:
        ValueError: If there is no run, the sides have different numbers of runs, or B has a run of 0.

    Examples:
        >>> ratio([2.0, 6.0, 40.0], [1.0, 2.0, 20.0])
        2.0
    """
    return median(ratios(a_runs, b_runs))


def _show(text: str) -> None:
    """Say what runs, on one line that is written over; between the runs only, so that none is disturbed."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()

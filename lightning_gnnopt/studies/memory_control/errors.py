"""How far predictions are from what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def prediction_errors(predicted: ArrayLike, measured: ArrayLike) -> dict[str, float | None]:
    """Compare predictions with what was measured.

    Args:
        predicted: Predicted bytes, shape ``(S,)``.
        measured: Measured bytes, all above 0, shape ``(S,)``.

    Returns:
        ``median``, ``p99`` and ``max`` of the relative errors ``|predicted / measured - 1|``; ``worst_under``, the
        largest ``1 - predicted / measured``, at least 0; ``under`` and ``exact``, the shares of predictions that are,
        rounded to a byte, below and equal to what was measured; ``r2``, the share of the variance that is explained,
        None where all measured are alike.

    Raises:
        ValueError: If there are none, the shapes differ, or a measured number is not above 0.

    Examples:
        >>> found = prediction_errors([90, 200, 330], [100, 200, 300])
        >>> round(found["max"], 3), round(found["under"], 3), round(found["r2"], 3)
        (0.1, 0.333, 0.95)
    """
    guesses, truth = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if guesses.shape != truth.shape or truth.ndim != 1 or not len(truth) or not (truth > 0).all():
        raise ValueError(
            "`predicted` and `measured` must be of one shape (S,), with S at least 1 and all measured above 0, but are"
            f" of shapes {guesses.shape} and {truth.shape}. HINT: give one number a batch."
        )
    relative = guesses / truth - 1
    whole = np.round(guesses)
    variation = float(((truth - truth.mean()) ** 2).sum())
    return {
        "median": float(np.median(np.abs(relative))),
        "p99": float(np.quantile(np.abs(relative), 0.99)),
        "max": float(np.abs(relative).max()),
        "worst_under": float(max(0.0, (0.0 - relative).max())),
        "under": float((whole < truth).mean()),
        "exact": float((whole == truth).mean()),
        "r2": 1 - float(((truth - guesses) ** 2).sum()) / variation if variation > 0 else None,
    }

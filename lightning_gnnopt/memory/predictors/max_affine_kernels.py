"""Alternating least squares for maxima of affine functions."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def alternate(
    design: NDArray[np.float64],
    targets: NDArray[np.float64],
    parts: NDArray[np.int64],
    num_pieces: int,
    prior: NDArray[np.float64],
    ridge: float,
    max_rounds: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Fit a plane to each part, move each sample to the plane that is the largest there, and repeat.

    Args:
        design: Shape ``(S, Q)``, its first column 1.
        targets: Shape ``(S,)``.
        parts: The part of each sample to begin with, int64 of shape ``(S,)``.
        num_pieces: Number of parts ``K``.
        prior: Coefficients that the ridge pulls towards, shape ``(Q,)``.
        ridge: Its weight, positive.
        max_rounds: After so many rounds it ends, if the parts did not come to rest before.

    Returns:
        The best round's coefficients, shape ``(K, Q)``, a piece without samples with a constant of minus infinity;
        the part of each sample under them; their sum of squared errors.
    """
    num_samples, width = design.shape
    parts = parts.copy()
    best = np.zeros((num_pieces, width))
    best_parts = parts.copy()
    best_loss = np.inf
    planes = np.zeros((num_pieces, width))
    for _ in range(max_rounds):
        grams = np.zeros((num_pieces, width, width))
        moments = np.zeros((num_pieces, width))
        counts = np.zeros(num_pieces, np.int64)
        for sample in range(num_samples):
            part = parts[sample]
            counts[part] += 1
            for i in range(width):
                value = design[sample, i]
                moments[part, i] += value * targets[sample]
                for j in range(width):
                    grams[part, i, j] += value * design[sample, j]
        for part in range(num_pieces):
            if counts[part] == 0:
                planes[part] = 0.0
                planes[part, 0] = -np.inf
                continue
            for i in range(width):
                grams[part, i, i] += ridge
            planes[part] = np.linalg.solve(grams[part], moments[part] + ridge * prior)
        moved = False
        loss = 0.0
        for sample in range(num_samples):
            largest, winner = -np.inf, 0
            for part in range(num_pieces):
                value = 0.0
                for i in range(width):
                    value += planes[part, i] * design[sample, i]
                if value > largest:
                    largest, winner = value, part
            loss += (largest - targets[sample]) ** 2
            moved = moved or winner != parts[sample]
            parts[sample] = winner
        if loss < best_loss:
            best_loss = loss
            best[:] = planes
            best_parts[:] = parts
        if not moved:
            break
    return best, best_parts, best_loss

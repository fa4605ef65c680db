"""A convex piecewise linear function of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.predictors.affine_pieces import AffinePredictor
from lightning_gnnopt.memory.predictors.max_affine_kernels import alternate

_RIDGE = 1e-8  # per sample, of a standardised column's weight
_MAX_ROUNDS = 30
_NUM_FOLDS = 3


class MaxAffinePredictor(AffinePredictor):
    """The largest of a few affine functions: what a peak is, since it is a maximum over the moments of a step.

    Alternating least squares (Magnani and Boyd, 2009): each piece is fitted to the samples where it is the largest,
    until no sample changes hands. The number of pieces grows one by one; each time it is tried from the best partition
    so far, with each part cut in two along each feature at its median (in the manner of Hannah and Dunson, 2013), and
    from random partitions. A slight ridge draws each piece to the line through all samples, which decides where a part
    has too few. More pieces are taken if they clearly lower the error in three-fold cross-validation; a line thus stays
    a line. The held-out predictions of these folds calibrate the margin: it is that of fits to two thirds of the
    samples, which errs on the safe side.

    Args:
        feature_names: Names of the ``P`` columns.
        num_pieces: The most pieces.
        num_restarts: Random partitions tried for each number of pieces.
        seed: Seed of these.
        **settings: `coverage`, `window`, `tolerance`, `fingerprint`; see :class:`Predictor`.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> nodes = np.arange(1.0, 41.0)[:, None]
        >>> predictor = MaxAffinePredictor(["nodes"]).fit(nodes, np.maximum(100 + 2 * nodes, 10 * nodes)[:, 0])
        >>> round(predictor.predict([5]), 2), round(predictor.predict([100]), 2)
        (110.0, 1000.0)
    """

    kind: ClassVar[str] = "max_affine"

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        num_pieces: int = 4,
        num_restarts: int = 10,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(feature_names, **settings)
        if num_pieces < 1:
            raise ValueError(f"`num_pieces` must be at least 1, but got {num_pieces}. HINT: 4 is the default.")
        if num_restarts < 0:
            raise ValueError(f"`num_restarts` must be at least 0, but got {num_restarts}. HINT: 10 is the default.")
        self.num_pieces, self.num_restarts, self.seed = num_pieces, num_restarts, seed

    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale <= 1e-12 * np.abs(mean)] = 1.0  # a constant column, up to rounding
        scale[scale == 0] = 1.0
        design = np.column_stack([np.ones(len(features)), (features - mean) / scale])
        fold_of = np.arange(len(design)) % _NUM_FOLDS
        held_out = np.zeros((self.num_pieces, len(design)))
        for fold in range(min(_NUM_FOLDS, len(design))):
            inside, outside = fold_of != fold, fold_of == fold
            for count, planes in enumerate(self._path(design[inside], peak_bytes[inside], self.num_pieces)):
                held_out[count, outside] = (design[outside] @ planes.T).max(axis=1)
        chosen = _fewest(held_out - peak_bytes)
        planes = self._path(design, peak_bytes, chosen + 1)[-1]
        slopes = planes[:, 1:] / scale
        self._set_pieces(np.column_stack([planes[:, 0] - slopes @ mean, slopes]))
        best: NDArray[np.float64] = held_out[chosen]
        return best

    def _path(
        self, design: NDArray[np.float64], targets: NDArray[np.float64], num_pieces: int
    ) -> list[NDArray[np.float64]]:
        """Best coefficients for 1, 2, .. pieces, each of shape ``(K, P + 1)`` or less where pieces are of no use."""
        size, width = design.shape
        rng = np.random.default_rng(self.seed)
        ridge = _RIDGE * size
        flat = np.zeros(width)
        flat[0] = targets.mean()
        parts = np.zeros(size, np.int64)
        best, parts, best_loss = alternate(design, targets, parts, 1, flat, ridge, 1)
        prior = best[0]
        path = [best]
        for count in range(2, num_pieces + 1):
            starts = _halved(design, parts, count - 1)
            starts += [_around(design, count, rng) for _ in range(self.num_restarts)]
            for start in starts:
                planes, moved, loss = alternate(design, targets, start, count, prior, ridge, _MAX_ROUNDS)
                if loss < best_loss:
                    best, parts, best_loss = planes[np.isfinite(planes[:, 0])], moved, loss
            path.append(best)
        return path


def _fewest(errors: NDArray[np.float64]) -> int:
    """Choose a row of held-out errors, shape ``(K, S)``: the first one, unless a later one is clearly better."""
    squares = np.maximum(errors**2, 1.0)  # less than a byte is rounding
    # A mean of few squares is off by a good part of itself: by sqrt(2 / S) for normal errors, by more for others.
    worth = 1 - 2 / np.sqrt(squares.shape[1])
    chosen = 0
    for candidate in range(1, len(squares)):
        gain = squares[chosen] - squares[candidate]
        is_general = gain.mean() > gain.std() / np.sqrt(len(gain))  # and not owed to a single sample
        if is_general and squares[candidate].mean() < worth * squares[chosen].mean():
            chosen = candidate
    return chosen


def _halved(design: NDArray[np.float64], parts: NDArray[np.int64], new: int) -> list[NDArray[np.int64]]:
    """All ways to cut one part in two along one feature at its median; the upper half is the part `new`."""
    starts = []
    for part in np.unique(parts):
        inside = parts == part
        for values in design[:, 1:].T:
            start = parts.copy()
            start[inside & (values > np.median(values[inside]))] = new
            starts.append(start)
    return starts


def _around(design: NDArray[np.float64], num_pieces: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Parts of the samples nearest to random ones of them."""
    centres = design[rng.choice(len(design), min(num_pieces, len(design)), replace=False)]
    nearest: NDArray[np.int64] = ((design[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    return nearest

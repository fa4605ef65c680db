"""A line in the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.predictors.affine_pieces import AffinePredictor, total_columns

_RIDGE = 1e-10  # of a standardised column's weight: too little to be seen where the columns are independent
_LEVERAGE = 1 - 1e-6  # from here on a sample is left out in earnest


class LinearPredictor(AffinePredictor):
    """Ordinary least squares in the features, the thesis's predictor (Wang, 2021, chapter 4).

    Columns are standardised, and so slight a ridge is added that it only shows where columns depend on each other:
    there it takes the smallest coefficients. :meth:`update` is recursive least squares in its square-root form
    (Bierman, 1977): the triangular factor of the table so far is kept, and a row is rotated into it, in about 0.1 ms.
    The margin is calibrated by leave-one-out errors in closed form.

    Args:
        feature_names: Names of the ``P`` columns.
        totals_only: The thesis's line: in the number of nodes and the number of edges, over all hops and types.
        forgetting: Weight of a sample relative to the next one, in (0, 1]; 1 forgets nothing.
        **settings: `coverage`, `window`, `tolerance`, `fingerprint`; see :class:`Predictor`.

    Raises:
        ValueError: If an argument is outside of its range, or there is nothing to sum for `totals_only`.

    Examples:
        >>> line = LinearPredictor(["nodes", "edges"])
        >>> _ = line.fit([[1, 1], [2, 1], [1, 3], [4, 4]], [10 + 3 + 5, 10 + 6 + 5, 10 + 3 + 15, 10 + 12 + 20])
        >>> round(line.predict([10, 10]), 3)
        90.0
    """

    kind: ClassVar[str] = "linear"

    def __init__(
        self, feature_names: Sequence[str], *, totals_only: bool = False, forgetting: float = 1.0, **settings: Any
    ) -> None:
        super().__init__(feature_names, **settings)
        if not 0 < forgetting <= 1:
            raise ValueError(f"`forgetting` must lie in (0, 1], but got {forgetting}. HINT: 1 forgets nothing.")
        self.totals_only, self.forgetting = totals_only, forgetting
        names = self.feature_names
        self._columns = total_columns(names, keep_others=False) if totals_only else np.eye(len(names))
        self._mean = self._scale = np.zeros(0)
        self._factor = np.zeros((0, 0))

    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        inputs = features @ self._columns.T
        self._mean, self._scale = inputs.mean(axis=0), inputs.std(axis=0)
        self._scale[self._scale <= 1e-12 * np.abs(self._mean)] = 1.0  # a constant column, up to rounding
        self._scale[self._scale == 0] = 1.0
        design = self._design(inputs)
        weights = np.sqrt(self.forgetting) ** np.arange(len(design) - 1, -1, -1)
        table = np.column_stack([design, peak_bytes]) * weights[:, None]
        self._factor = _triangular(table)
        coefficients = _solve(self._factor)
        self._set_line(coefficients)
        return _left_out(table, self._factor, coefficients, design, peak_bytes)

    def _learn(self, features: NDArray[np.float64], peak_bytes: float) -> None:
        row = np.append(self._design(features[None] @ self._columns.T)[0], peak_bytes)
        self._factor = _upper_factor(np.vstack([np.sqrt(self.forgetting) * self._factor, row]))
        self._set_line(_solve(self._factor))

    def _design(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(inputs)), (inputs - self._mean) / self._scale])

    def _set_line(self, coefficients: NDArray[np.float64]) -> None:
        """Turn coefficients of standardised inputs into those of the features."""
        slopes = coefficients[1:] / self._scale
        constant = coefficients[0] - slopes @ self._mean
        self._set_pieces(np.concatenate([[constant], slopes @ self._columns])[None])


def _triangular(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factor of the weighted table ``[design, peaks]``, shape ``(Q + 2, Q + 2)``, with the ridge in it."""
    size = table.shape[1]
    ridge = np.sqrt(_RIDGE * len(table)) * np.eye(size)[1:-1]
    last = np.zeros((2, size))  # so that there are always enough rows
    return _upper_factor(np.vstack([table, ridge, last]))


def _upper_factor(table: NDArray[np.float64]) -> NDArray[np.float64]:
    factor: NDArray[np.float64] = np.asarray(np.linalg.qr(table, mode="r"))
    return factor


def _solve(factor: NDArray[np.float64]) -> NDArray[np.float64]:
    coefficients: NDArray[np.float64] = np.asarray(np.linalg.solve(factor[:-1, :-1], factor[:-1, -1]), np.float64)
    return coefficients


def _left_out(
    table: NDArray[np.float64],
    factor: NDArray[np.float64],
    coefficients: NDArray[np.float64],
    design: NDArray[np.float64],
    peak_bytes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Predict each sample by the fit to all others: its error grows by ``1 / (1 - leverage)``."""
    leverages = (np.linalg.solve(factor[:-1, :-1].T, table[:, :-1].T) ** 2).sum(axis=0)
    predictions: NDArray[np.float64] = peak_bytes - (peak_bytes - design @ coefficients) / np.maximum(
        1 - leverages, 1 - _LEVERAGE
    )
    for place in np.flatnonzero(leverages > _LEVERAGE):  # nought by nought: as many as there are coefficients at most
        predictions[place] = design[place] @ _solve(_triangular(np.delete(table, place, axis=0)))
    return predictions

"""Predictions that are the largest of a few affine functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_gnnopt.memory.predictors.base import Predictor


class AffinePredictor(Predictor):
    """A predictor whose value is the largest of 0 and ``c + a . features`` over its pieces.

    A row takes a few microseconds: one product with a small matrix. The pieces also tell how many edges fit a budget
    without trying.
    """

    def __init__(self, feature_names: Sequence[str], **settings: Any) -> None:
        super().__init__(feature_names, **settings)
        self._row_shape = (len(self.feature_names),)
        # Constants (K,), slopes (K, P) and both together, in one place: other threads see those of one model.
        self._affine: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def pieces(self) -> NDArray[np.float64] | None:
        """Rows ``[c, a_1..a_P]``, shape ``(K, P + 1)``, one of them zero; None before the first fit."""
        return None if self._affine is None else self._affine[2]

    def predict(self, features: ArrayLike) -> float | NDArray[np.float64]:
        """Predict peak bytes, never less than 0; see :meth:`Predictor.predict`."""
        affine = self._affine
        if (
            affine is not None
            and type(features) is np.ndarray
            and features.shape == self._row_shape
            and features.dtype == np.float64
        ):
            peak = float((affine[1].dot(features) + affine[0]).max())
            if peak < math.inf:  # false for NaN as well: the slow way says what is wrong
                return peak
        return super().predict(features)

    def _predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self._affine is not None  # `predict` has seen to it
        constants, slopes, _ = self._affine
        peaks: NDArray[np.float64] = (features @ slopes.T + constants).max(axis=1)
        return peaks

    def _set_pieces(self, pieces: NDArray[np.float64]) -> None:
        """Take over pieces, shape ``(K, P + 1)``, and a zero row if they have none."""
        pieces = pieces.copy() if (pieces == 0).all(axis=1).any() else np.vstack([pieces, np.zeros(pieces.shape[1])])
        pieces.flags.writeable = False
        self._affine = pieces[:, 0].copy(), pieces[:, 1:].copy(), pieces


def total_columns(feature_names: Sequence[str], *, keep_others: bool) -> NDArray[np.float64]:
    """Matrix of shape ``(Q, P)`` that sums the features of nodes, and those of edges, over hops and types.

    Args:
        feature_names: Names of the ``P`` columns.
        keep_others: Whether columns that count neither, such as hyper-parameters, follow as they are.

    Raises:
        ValueError: If no column counts nodes or edges.

    Examples:
        >>> total_columns(["nodes_0", "nodes_1", "edges_1", "hidden"], keep_others=True)
        array([[1., 1., 0., 0.],
               [0., 0., 1., 0.],
               [0., 0., 0., 1.]])
    """
    counts = {
        what: [name == what or name.startswith(f"{what}_") for name in feature_names] for what in ("nodes", "edges")
    }
    missing = [what for what, places in counts.items() if not any(places)]
    if missing:
        raise ValueError(
            f"`totals_only` needs columns named {missing[0]}_*, but there are {', '.join(feature_names)}."
            " HINT: use `totals_only=False`."
        )
    rows = np.array(list(counts.values()), np.float64)
    others = np.eye(len(feature_names))[rows.sum(axis=0) == 0]
    return np.vstack([rows, others]) if keep_others else rows

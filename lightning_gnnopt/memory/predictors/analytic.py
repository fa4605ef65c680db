"""Predictions from an allocation tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lightning_gnnopt.memory.predictors.affine_pieces import AffinePredictor
from lightning_gnnopt.memory.predictors.base import PATIENCE


class AnalyticPredictor(AffinePredictor):
    """The largest of affine functions that were solved from the allocations of a few tiny steps: exact, not fitted.

    Samples only watch. They feed the margin, which is exactly 0 as long as every prediction is right to the byte, and
    tell when the step has changed: see :attr:`has_drifted`. Then it is time to probe again and to make another
    predictor.

    Args:
        pieces: Rows ``[c, a_1..a_P]``, shape ``(K, P + 1)``; a zero row is added if there is none, as a peak over what
            was held before is never negative.
        feature_names: Names of the ``P`` columns.
        tolerance: Relative error from which on a prediction counts as wrong.
        **settings: `coverage`, `window`, `fingerprint`; see :class:`Predictor`.

    Raises:
        ValueError: If the shape of `pieces` is wrong, or a number is not finite.

    Examples:
        >>> predictor = AnalyticPredictor([[0, 8, 4], [100, 2, 4]], feature_names=["nodes", "edges"])
        >>> predictor.predict([10, 5]), predictor.predict([100, 5])
        (140.0, 820.0)
    """

    kind: ClassVar[str] = "analytic"
    _is_refitted: ClassVar[bool] = False

    def __init__(
        self, pieces: ArrayLike, *, feature_names: Sequence[str], tolerance: float = 0.001, **settings: Any
    ) -> None:
        super().__init__(feature_names, tolerance=tolerance, **settings)
        self._set_checked(pieces)

    @property
    def is_fitted(self) -> bool:
        """Always: the pieces are given."""
        return True

    @property
    def is_exact(self) -> bool:
        """Whether all of the last 20 samples were predicted within the tolerance; true without samples."""
        return all(abs(error) <= self.tolerance for error in self._errors)

    @property
    def has_drifted(self) -> bool:
        """Whether there were 20 samples, and each of the last 20 was predicted outside of the tolerance."""
        return len(self._errors) == PATIENCE and all(abs(error) > self.tolerance for error in self._errors)

    @property
    def drift(self) -> float:
        """Median of measured / predicted - 1 over the last 20 samples, 0 without samples."""
        return float(np.median(self._errors)) if self._errors else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The samples and the pieces, as plain types and tensors."""
        return {**super().state_dict(), "pieces": torch.tensor(self.pieces)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the samples and the pieces of a state, unless it is of another model.

        Raises:
            ValueError: If the state's table or its pieces are damaged.
        """
        if all(state.get(name) == mine for name, mine in self._identity().items()):
            self._set_checked(np.asarray(state["pieces"]))
        super().load_state_dict(state)

    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._predict(features)

    def _set_checked(self, pieces: ArrayLike) -> None:
        rows = np.asarray(pieces, np.float64)
        width = len(self.feature_names) + 1
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise ValueError(
                f"`pieces` must be of shape (K, P + 1) with P + 1 = {width}, but are of shape {rows.shape}."
                " HINT: an allocation tape has them."
            )
        if not np.isfinite(rows).all():
            raise ValueError(
                f"`pieces` must be finite, but hold {rows[~np.isfinite(rows)][0]}. HINT: an allocation tape has them."
            )
        self._set_pieces(rows)

"""A random forest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.predictors.affine_pieces import total_columns
from lightning_gnnopt.memory.predictors.base import Predictor


class ForestPredictor(Predictor):
    """scikit-learn's random forest, the thesis's predictor where hyper-parameters vary (Wang, 2021, chapter 4).

    Hyper-parameters are columns like any other, constant for one model: give them names of their own. A forest cannot
    extrapolate: it never predicts more than the largest peak it was fitted to. Prefer it only for tables of many
    models. The margin is calibrated by out-of-bag predictions.

    Args:
        feature_names: Names of the ``P`` columns.
        totals_only: Sum nodes and edges over hops and types, as in the thesis; other columns stay.
        num_trees: Number of trees.
        seed: Seed of the forest.
        **settings: `coverage`, `window`, `tolerance`, `fingerprint`; see :class:`Predictor`.

    Raises:
        ValueError: If an argument is outside of its range, or there is nothing to sum for `totals_only`.
    """

    kind: ClassVar[str] = "forest"

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        totals_only: bool = True,
        num_trees: int = 100,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(feature_names, **settings)
        if num_trees < 20:
            raise ValueError(
                f"`num_trees` must be at least 20, but got {num_trees}."
                " HINT: with fewer, samples are left that no tree has left out, and the margin has no errors of theirs."
            )
        self.totals_only, self.num_trees, self.seed = totals_only, num_trees, seed
        names = self.feature_names
        self._columns = total_columns(names, keep_others=True) if totals_only else np.eye(len(names))
        self._model: Any = None

    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        from sklearn.ensemble import RandomForestRegressor  # a second to import, which only this predictor needs

        # On one thread: jobs of a pool would cost more than they save, and take cores from the loader.
        model = RandomForestRegressor(self.num_trees, oob_score=True, random_state=self.seed, n_jobs=1)
        self._model = model.fit(features @ self._columns.T, peak_bytes)
        held_out: NDArray[np.float64] = model.oob_prediction_
        return held_out

    def _predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        peaks: NDArray[np.float64] = self._model.predict(features @ self._columns.T)
        return peaks

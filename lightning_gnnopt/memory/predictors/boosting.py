"""Gradient-boosted quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.predictors.base import Predictor

_NUM_FOLDS = 3


class BoostingPredictor(Predictor):
    """LightGBM's gradient-boosted trees for a high quantile of the peak.

    Like a forest it cannot extrapolate. It is fitted again as the base class says, in the calling thread, on one
    thread, with a fixed seed and LightGBM's ``deterministic`` mode: the same samples give the same predictions. The
    margin is calibrated by the held-out predictions of three folds.

    Args:
        feature_names: Names of the ``P`` columns; hyper-parameters may be among them.
        quantile: Which quantile it predicts, in (0, 1).
        num_rounds: Number of trees.
        seed: Seed of LightGBM.
        **settings: `coverage`, `window`, `tolerance`, `fingerprint`; see :class:`Predictor`.

    Raises:
        ValueError: If an argument is outside of its range.
    """

    kind: ClassVar[str] = "boosting"
    _is_centred: ClassVar[bool] = False  # a high quantile is nearly always above

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        quantile: float = 0.95,
        num_rounds: int = 300,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(feature_names, **settings)
        if not 0 < quantile < 1:
            raise ValueError(f"`quantile` must lie in (0, 1), but got {quantile}. HINT: 0.95 is the default.")
        if num_rounds < 1:
            raise ValueError(f"`num_rounds` must be at least 1, but got {num_rounds}. HINT: 300 is the default.")
        self.quantile, self.num_rounds, self.seed = quantile, num_rounds, seed
        self._model: Any = None

    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        held_out = np.zeros(len(features))
        fold_of = np.arange(len(features)) % _NUM_FOLDS
        for fold in range(min(_NUM_FOLDS, len(features))):
            inside, outside = fold_of != fold, fold_of == fold
            held_out[outside] = self._train(features[inside], peak_bytes[inside]).predict(features[outside])
        self._model = self._train(features, peak_bytes)
        return held_out

    def _predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        peaks: NDArray[np.float64] = np.asarray(self._model.predict(features), np.float64)
        return peaks

    def _train(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> Any:
        import lightgbm  # loads OpenMP, which only this predictor needs

        settings = {
            "objective": "quantile",
            "alpha": self.quantile,
            "min_data_in_leaf": max(2, min(20, len(features) // 10)),
            "min_data_in_bin": 1,
            "learning_rate": 0.1,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": self.seed,
            "verbosity": -1,
        }
        return lightgbm.train(settings, lightgbm.Dataset(features, peak_bytes, params=settings), self.num_rounds)

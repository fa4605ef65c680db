"""What every predictor of a batch's peak memory is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import ArrayLike, NDArray

from lightning_gnnopt.memory.predictors.conformal import ConformalMargin

MIN_SAMPLES = 8
"""An unfitted predictor fits itself at this number of updates."""
PATIENCE = 20
"""So many errors in a row beyond the tolerance mean that the step is another one."""


class Predictor(ABC):
    """Predicts the peak bytes of a step from the features of its batch, and learns from the batches that ran.

    It keeps the last `window` samples. :meth:`update` hands the margin the error of each new one (predicted before it
    was learned). The model is fitted again, at once and in the calling thread, so that a run can be repeated:

    * when there are as many new samples as it was fitted to,
    * when an error has left `tolerance`, and there are a quarter as many new samples as it was fitted to (at least 8),
    * when the last 20 errors have left it on one side: the step has changed. Only these 20 samples are kept.

    Each fit recalibrates the margin with *held-out* predictions of the samples, never with those of the fit itself.

    One thread may update while others predict.

    Args:
        feature_names: Names of the ``P`` columns.
        coverage: Probability with which :meth:`upper` holds; see :class:`ConformalMargin`.
        window: Number of recent samples kept.
        tolerance: Relative error from which on a prediction counts as wrong.
        fingerprint: What the model and its step are known by; a state of another one is not loaded.

    Attributes:
        margin: The :class:`ConformalMargin`; set its ``near_bytes`` to the budget.

    Raises:
        ValueError: If an argument is outside of its range.
    """

    kind: ClassVar[str]
    """The name in the registry."""
    _is_refitted: ClassVar[bool] = True
    _is_centred: ClassVar[bool] = True  # whether errors lie on both sides

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        coverage: float = 0.999,
        window: int = 2000,
        tolerance: float = 0.005,
        fingerprint: str = "",
    ) -> None:
        self.feature_names = tuple(feature_names)
        if not self.feature_names or len(set(self.feature_names)) < len(self.feature_names):
            raise ValueError(
                f"`feature_names` must be different names, at least one, but got {self.feature_names}."
                " HINT: `FeatureReader.names` has them."
            )
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"`tolerance` must be a number from 0 up, but got {tolerance}. HINT: 0.005 is 0.5 %.")
        self.margin = ConformalMargin(coverage, window=window)
        self.tolerance, self.fingerprint = tolerance, fingerprint
        self._window = window
        self._samples: deque[tuple[NDArray[np.float64], float, bool]] = deque(maxlen=window)
        self._errors: deque[float] = deque(maxlen=PATIENCE)
        self._num_fitted = self._num_new = 0
        self._has_missed = False

    @property
    def num_samples(self) -> int:
        """How many samples are kept."""
        return len(self._samples)

    @property
    def is_fitted(self) -> bool:
        """Whether it can predict."""
        return self._num_fitted > 0

    @property
    def pieces(self) -> NDArray[np.float64] | None:
        """Rows ``[c, a_1..a_P]`` whose largest ``c + a . features`` is the prediction; None if there are none."""
        return None

    @abstractmethod
    def _fit(self, features: NDArray[np.float64], peak_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fit the model to at least two samples, oldest first; return a held-out prediction of each, shape ``(S,)``."""

    @abstractmethod
    def _predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict rows, shape ``(S, P)``; what is negative is cut off by the caller."""

    def _learn(self, features: NDArray[np.float64], peak_bytes: float) -> None:  # noqa: B027
        """Take one sample into the model between two fits, where it can be done quickly."""

    def fit(self, features: ArrayLike, peak_bytes: ArrayLike) -> Self:
        """Fit to samples that take the place of all earlier ones.

        They calibrate the margin as samples that no budget has chosen.

        Args:
            features: Shape ``(S, P)``, ``S`` at least 2, oldest first.
            peak_bytes: Measured peaks, shape ``(S,)``.

        Returns:
            The predictor.

        Raises:
            ValueError: If a shape is wrong, or a number is not finite or a peak is negative.
        """
        rows = self._checked_features(features, ndim=2).copy()
        peaks = _checked_peaks(peak_bytes, (len(rows),))
        if len(rows) < 2:
            raise ValueError(f"A fit needs at least 2 samples, but got {len(rows)}. HINT: measure more batches.")
        self._samples.clear()
        self._samples.extend((row, float(peak), False) for row, peak in zip(rows, peaks, strict=True))
        self._refit()
        return self

    def predict(self, features: ArrayLike) -> float | NDArray[np.float64]:
        """Predict peak bytes, never less than 0.

        Args:
            features: One row of shape ``(P,)``, or rows of shape ``(S, P)``.

        Returns:
            A float, or floats of shape ``(S,)``.

        Raises:
            RuntimeError: If it was not fitted.
            ValueError: If the shape is wrong or a number is not finite.
        """
        if not self.is_fitted:
            raise RuntimeError(
                f"The {self.kind} predictor must be fitted before it predicts, but has {self.num_samples} samples."
                f" HINT: call `fit`, or `update` {MIN_SAMPLES} times."
            )
        rows = self._checked_features(features)
        peaks = np.maximum(self._predict(np.atleast_2d(rows)), 0.0)
        return float(peaks[0]) if rows.ndim == 1 else peaks

    def upper(self, features: ArrayLike, coverage: float | None = None) -> float | NDArray[np.float64]:
        """Bound peak bytes from above: the prediction times the margin's factor.

        Args:
            features: One row of shape ``(P,)``, or rows of shape ``(S, P)``.
            coverage: Probability with which the bound holds. None: the margin's own, at its adaptive level.

        Returns:
            A float, or floats of shape ``(S,)``.

        Raises:
            RuntimeError: If it was not fitted.
            ValueError: If the shape is wrong, a number is not finite, or `coverage` is no probability.
        """
        return self.predict(features) * (self.margin.factor if coverage is None else self.margin.factor_at(coverage))

    def update(self, features: ArrayLike, peak_bytes: float, *, accepted: bool = True) -> None:
        """Learn from a batch that ran.

        Args:
            features: Its row, shape ``(P,)``.
            peak_bytes: Its measured peak.
            accepted: Whether it ran because :meth:`upper` was within the budget.

        Raises:
            ValueError: If the shape is wrong, or a number is not finite or the peak is negative.
        """
        row = self._checked_features(features, ndim=1).copy()
        peak = float(_checked_peaks(peak_bytes, ()))
        predicted = float(self.predict(row)) if self.is_fitted else None
        self._samples.append((row, peak, bool(accepted)))
        self._num_new += 1
        if predicted is not None:
            error = (peak - predicted) / max(predicted, 1.0)
            self._errors.append(error)
            self._has_missed |= abs(error) > self.tolerance
            self.margin.update(predicted, peak, accepted=accepted)
            self._learn(row, peak)
        if self._is_refitted and self._is_due():
            self._refit()

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs: plain types and tensors. Settings belong to the constructor."""
        features, peaks, accepted = self._table()
        return {
            **self._identity(),
            "features": torch.from_numpy(features),
            "peak_bytes": torch.from_numpy(peaks),
            "accepted": torch.from_numpy(accepted),
            "debt": self.margin.debt,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the samples of a state and fit to them.

        A state of another kind, fingerprint or features is of no use: it is discarded, with a warning.

        Raises:
            ValueError: If the state's table is damaged.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                rank_zero_warn(
                    f"The samples of a memory predictor in the checkpoint were discarded: their `{name}` is"
                    f" {state.get(name)!r}, but this predictor's is {mine!r}."
                )
                return
        # A tensor may say that it has more rows than there is memory.
        newest = {name: np.atleast_1d(state[name])[-self._window :] for name in ("features", "peak_bytes", "accepted")}
        features = self._checked_features(newest["features"], ndim=2)
        peaks = _checked_peaks(newest["peak_bytes"], (len(features),))
        accepted = newest["accepted"].astype(np.bool_).tolist()
        self._samples.clear()
        self._samples.extend(zip(features, peaks.tolist(), accepted, strict=True))
        if self.num_samples >= 2:
            self._refit()
        self.margin.debt = float(state["debt"])

    def _identity(self) -> dict[str, Any]:
        """What a state must share with this predictor to be of use."""
        return {"kind": self.kind, "fingerprint": self.fingerprint, "feature_names": list(self.feature_names)}

    def _is_due(self) -> bool:
        if not self.is_fitted:
            return self.num_samples >= MIN_SAMPLES
        if len(self._errors) == PATIENCE:
            least, most = min(self._errors), max(self._errors)
            if least > self.tolerance or (self._is_centred and most < -self.tolerance):
                while self.num_samples > PATIENCE:
                    self._samples.popleft()
                return True
        enough = max(MIN_SAMPLES, self._num_fitted // 4 if self._has_missed else self._num_fitted)
        return self._num_new >= enough

    def _refit(self) -> None:
        features, peaks, accepted = self._table()
        held_out = np.maximum(self._fit(features, peaks), 0.0)
        self.margin.replace(held_out, peaks, accepted)
        self._num_fitted, self._num_new, self._has_missed = len(peaks), 0, False
        self._errors.clear()

    def _table(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        features = np.array([row for row, _, _ in self._samples], np.float64).reshape(-1, len(self.feature_names))
        peaks = np.array([peak for _, peak, _ in self._samples], np.float64)
        return features, peaks, np.array([accepted for _, _, accepted in self._samples], np.bool_)

    def _checked_features(self, features: ArrayLike, *, ndim: int | None = None) -> NDArray[np.float64]:
        rows = np.asarray(features, np.float64)
        num_columns = len(self.feature_names)
        if rows.ndim not in ((1, 2) if ndim is None else (ndim,)) or rows.shape[-1] != num_columns:
            expected = {1: "(P,)", 2: "(S, P)", None: "(P,) or (S, P)"}[ndim]
            raise ValueError(
                f"`features` must be of shape {expected} with P = {num_columns} ({', '.join(self.feature_names)}), but"
                f" is of shape {rows.shape}. HINT: `FeatureReader` makes such rows."
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"`features` must be finite, but holds {rows[~np.isfinite(rows)][0]}. HINT: give counts.")
        return rows


def _checked_peaks(peak_bytes: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    peaks = np.asarray(peak_bytes, np.float64)
    if peaks.shape != shape:
        raise ValueError(
            f"`peak_bytes` must be of shape {shape}, but is of shape {peaks.shape}. HINT: give one number a sample."
        )
    wrong = ~((peaks >= 0) & (peaks < math.inf))
    if wrong.any():
        raise ValueError(
            f"`peak_bytes` must be finite and not negative, but holds {peaks[wrong].flat[0]}."
            " HINT: a peak is the growth over what was held when the step began."
        )
    return peaks

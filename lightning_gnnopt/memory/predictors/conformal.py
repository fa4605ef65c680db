"""How far above its prediction a peak can be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SMALL = 0.01  # of the largest peak: relative errors of smaller batches say nothing about large ones
_GROUP = 0.1  # of the accepted samples: those nearest to the budget
_ROUNDING = 1e-9  # a peak above its bound by less is no miss


class ConformalMargin:
    """A one-sided bound on measured over predicted bytes, from the recent samples.

    Split conformal prediction (Papadopoulos et al., 2002; Lei et al., 2018): of ``n`` ratios measured / predicted that
    the model was not fitted to, the one of rank ``ceil((n + 1) * coverage)`` covers the next one with the probability
    `coverage`, whatever the model, as long as the order of the samples tells nothing (exchangeability). Fewer than
    ``coverage / (1 - coverage)`` samples, 999 for 0.999, cannot state that much: then the largest ratio is taken, and
    never less than 1, which covers with ``n / (n + 1)``; :meth:`stated_coverage` says which holds.

    What is guaranteed is P(a batch is accepted, and its peak is over the budget) <= 1 - coverage. So that it holds
    among the *accepted* batches alone as well, they calibrate by themselves as soon as there are enough of them; and
    where :attr:`near_bytes`, the budget, is known, the tenth of them whose predictions are nearest to it (never fewer
    than are needed).

    Drift breaks exchangeability. Two things answer it: only the last `window` samples count, and the level adapts
    (adaptive conformal inference, Gibbs and Candes, NeurIPS 2021): each accepted batch that is over the budget (without
    a budget: above its bound) adds one to a debt, each accepted batch pays ``1 - coverage`` back, and the share of
    misses allowed shrinks by `adapt` for each one owed. It never grows beyond ``1 - coverage``: a long good time buys
    no misses. When nothing is allowed any more the bound is the largest ratio, and from there moves up by the distance
    from the median to the largest for every ``1 / adapt`` misses. In the long run the rate of misses among accepted
    batches is at most ``1 - coverage``, as long as the batches' ratios stay within reach of that.

    A model without error has a factor of exactly 1. Relative errors of batches predicted below a hundredth of the
    window's largest peak are taken relative to that hundredth.

    One thread may update while others read.

    Args:
        coverage: Probability with which a bound holds, in (0, 1).
        window: Number of recent samples that count.
        adapt: Part of the allowed misses that one miss too many takes away; 0 turns the adaptive level off.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> margin = ConformalMargin(0.75)
        >>> margin.replace([100, 100, 100, 100], [101, 103, 98, 102])
        >>> margin.factor  # rank ceil(5 * 0.75) = 4
        1.03
    """

    def __init__(self, coverage: float = 0.999, *, window: int = 2000, adapt: float = 0.25) -> None:
        self.coverage = checked_coverage(coverage)
        if window < 1:
            raise ValueError(f"`window` must be at least 1, but got {window}. HINT: 2000 is the default.")
        if not 0 <= adapt < math.inf:
            raise ValueError(f"`adapt` must be a number from 0 up, but got {adapt}. HINT: 0.25 is the default.")
        self.window, self.adapt = window, adapt
        self._predicted, self._measured = np.zeros(window), np.zeros(window)
        self._accepted = np.zeros(window, np.bool_)
        self._num_seen = 0
        self._near_bytes: float | None = None
        self._debt = 0.0
        self._factor = 1.0

    @property
    def num_samples(self) -> int:
        """How many samples the window holds."""
        return min(self._num_seen, self.window)

    @property
    def factor(self) -> float:
        """Bound on measured / predicted at the adaptive level; 1 as long as there is no sample."""
        return self._factor

    @property
    def debt(self) -> float:
        """Misses among accepted batches beyond what the coverage allows so far, at least 0."""
        return self._debt

    @debt.setter
    def debt(self, debt: float) -> None:
        if not 0 <= debt < math.inf:
            raise ValueError(f"`debt` must be a number from 0 up, but got {debt}. HINT: 0 forgets earlier misses.")
        self._debt = float(debt)
        self._refresh()

    @property
    def near_bytes(self) -> float | None:
        """Where on the scale of predictions the bound must hold: the budget. None if nowhere in particular."""
        return self._near_bytes

    @near_bytes.setter
    def near_bytes(self, near_bytes: float | None) -> None:
        if near_bytes is not None and not 0 < near_bytes < math.inf:
            raise ValueError(
                f"`near_bytes` must be a positive number of bytes or None, but got {near_bytes}."
                " HINT: it is what the budget leaves to a step."
            )
        self._near_bytes = near_bytes
        self._refresh()

    def update(self, predicted_bytes: float, measured_bytes: float, *, accepted: bool = True) -> None:
        """Add a batch that the model was not fitted to when it predicted it.

        Args:
            predicted_bytes: What the model said before, at least 0.
            measured_bytes: What it took, at least 0.
            accepted: Whether it ran because its bound was within the budget.
        """
        if accepted:
            if self._near_bytes is None:
                floor = max(_SMALL * max(self._largest(), measured_bytes), 1.0)
                ratio = 1 + (measured_bytes - predicted_bytes) / max(predicted_bytes, floor)
                is_miss = self.num_samples > 0 and ratio > self._factor * (1 + _ROUNDING)
            else:
                is_miss = measured_bytes > self._near_bytes
            self._debt = max(0.0, self._debt + is_miss - (1 - self.coverage))
        place = self._num_seen % self.window
        self._predicted[place], self._measured[place] = predicted_bytes, measured_bytes
        self._accepted[place] = accepted
        self._num_seen += 1
        self._refresh()

    def replace(self, predicted_bytes: ArrayLike, measured_bytes: ArrayLike, accepted: ArrayLike | None = None) -> None:
        """Put other samples in the place of all; the debt stays. For a model that was fitted anew.

        Args:
            predicted_bytes: Held-out predictions, shape ``(S,)``, oldest first.
            measured_bytes: What the batches took, shape ``(S,)``.
            accepted: Which of them ran because their bound was within the budget, shape ``(S,)``; none by default.

        Raises:
            ValueError: If the shapes differ.
        """
        predicted = np.asarray(predicted_bytes, np.float64)[-self.window :]
        measured = np.asarray(measured_bytes, np.float64)[-self.window :]
        flags = np.zeros(len(predicted), np.bool_) if accepted is None else np.asarray(accepted, np.bool_)
        flags = flags[-self.window :]
        if not predicted.shape == measured.shape == flags.shape:
            raise ValueError(
                f"Predictions, measurements and flags must be of one shape, but are of {predicted.shape},"
                f" {measured.shape} and {flags.shape}. HINT: give one of each for every sample."
            )
        self._num_seen = size = len(predicted)
        self._predicted[:size], self._measured[:size], self._accepted[:size] = predicted, measured, flags
        self._refresh()

    def factor_at(self, coverage: float) -> float:
        """Bound on measured / predicted at another coverage than the margin's own, without the adaptive level."""
        ratios = self._ratios(checked_coverage(coverage))
        return _ranked(ratios, 1 - coverage) if len(ratios) else 1.0

    def stated_coverage(self, coverage: float | None = None) -> float:
        """Which coverage the samples can state: the one asked for, or what so few of them allow, 0 for none."""
        coverage = self.coverage if coverage is None else checked_coverage(coverage)
        num_samples = len(self._ratios(coverage))
        return min(coverage, num_samples / (num_samples + 1))

    def _refresh(self) -> None:
        ratios = self._ratios(self.coverage)
        if not len(ratios):
            self._factor = 1.0
            return
        used_up = self.adapt * self._debt  # part of the allowed misses
        factor = _ranked(ratios, (1 - self.coverage) * max(0.0, 1 - used_up))
        if used_up > 1:
            factor += (used_up - 1) * float(ratios.max() - np.median(ratios))
        self._factor = factor

    def _ratios(self, coverage: float) -> NDArray[np.float64]:
        """Ratios of the samples that calibrate: of accepted ones near the budget, if there are enough."""
        size = self.num_samples
        predicted, measured, accepted = self._predicted[:size], self._measured[:size], self._accepted[:size]
        floor = max(_SMALL * self._largest(), 1.0)
        needed = _needed(coverage)
        if np.count_nonzero(accepted) >= needed:
            predicted, measured = predicted[accepted], measured[accepted]
            group = max(needed, math.ceil(_GROUP * len(predicted)))
            if self._near_bytes is not None and group < len(predicted):
                nearest = np.argpartition(np.abs(predicted - self._near_bytes), group - 1)[:group]
                predicted, measured = predicted[nearest], measured[nearest]
        ratios: NDArray[np.float64] = 1 + (measured - predicted) / np.maximum(predicted, floor)
        return ratios

    def _largest(self) -> float:
        return float(self._measured[: self.num_samples].max(initial=0.0))


def checked_coverage(coverage: float) -> float:
    """Refuse a coverage that is no probability below 1."""
    if not 0 < coverage < 1:
        raise ValueError(
            f"`coverage` must lie between 0 and 1, both excluded, but got {coverage}."
            " HINT: 0.999 lets one batch in a thousand pass its bound."
        )
    return float(coverage)


def _needed(coverage: float) -> int:
    """Smallest number of samples whose largest ratio has the coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-6)


def _ranked(ratios: NDArray[np.float64], miss_rate: float) -> float:
    """The ratio of rank ``ceil((n + 1) * (1 - miss_rate))``, or the largest if there are too few, but at least 1."""
    size = len(ratios)
    rank = math.ceil((size + 1) * (1 - miss_rate) - 1e-6)
    if rank > size:
        return max(1.0, float(ratios.max()))
    return float(np.partition(ratios, rank - 1)[rank - 1])

"""What prefetching and validation beside training can save at most, given the stages of an epoch without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

SIDES = ("baseline", "prefetch", "async", "both")
"""What is compared: neither, prefetching, validation beside training, and both."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of an epoch in which everything happens one after the other.

    Attributes:
        train_prepare_s: Seconds in which the training batches are prepared.
        train_compute_s: Seconds of all the rest of training: steps, logs, checkpoints.
        val_prepare_s: Seconds in which the batches of validation are prepared.
        val_compute_s: Seconds of all the rest of validation.
        train_batches: Training batches of a pass over the nodes; the pipeline runs dry at the end of each pass.
        val_batches: Batches of validation of a pass.
    """

    train_prepare_s: float
    train_compute_s: float
    val_prepare_s: float
    val_compute_s: float
    train_batches: int
    val_batches: int

    @property
    def train_s(self) -> float:
        """Seconds of training."""
        return self.train_prepare_s + self.train_compute_s

    @property
    def val_s(self) -> float:
        """Seconds of validation."""
        return self.val_prepare_s + self.val_compute_s

    @property
    def epoch_s(self) -> float:
        """Seconds of the epoch."""
        return self.train_s + self.val_s

    def times(self, passes: float) -> Stages:
        """Take an epoch of so many times as many passes."""
        return replace(
            self,
            train_prepare_s=passes * self.train_prepare_s,
            train_compute_s=passes * self.train_compute_s,
            val_prepare_s=passes * self.val_prepare_s,
            val_compute_s=passes * self.val_compute_s,
        )


def overlapped_s(prepare_s: float, compute_s: float, *, batches: int, workers: int, cores: int) -> float:
    """Compute the least time of a pass whose batches are prepared while the ones before them are computed.

    Of `n` batches, the first is prepared while nothing is computed, and the last computed while nothing is prepared:
    ``(prepare + compute) / n``. In between, the slowest of three decides, the workers together, the training thread or
    the cores: ``(n - 1) / n * max(prepare / workers, compute, (prepare + compute) / cores)``. Several passes take as
    many times as long, so the seconds may be sums over passes.

    Args:
        prepare_s: Seconds to prepare all batches, one after the other.
        compute_s: Seconds to compute them.
        batches: Number of batches of a pass, at least 1.
        workers: Threads that prepare, at least 1.
        cores: Cores, at least 1.

    Examples:
        >>> overlapped_s(1.0, 3.0, batches=4, workers=1, cores=2)
        3.25
        >>> overlapped_s(1.0, 3.0, batches=4, workers=1, cores=1)
        4.0
    """
    alone = 1 / batches
    total_s = prepare_s + compute_s
    return alone * total_s + (1 - alone) * max(prepare_s / workers, compute_s, total_s / cores)


def least_epoch_s(stages: Stages, *, workers: int, cores: int) -> dict[str, float]:
    """Compute the least time of an epoch in a steady state, by side.

    * ``prefetch``: training, then validation, each with its two stages overlapped (:func:`overlapped_s`).
    * ``async``: ``max(train, validation, (train + validation) / cores)``.
    * ``both``: ``max(overlapped train, overlapped validation, (train + validation) / cores)``. These are up to four
      things at once; on two cores the last term often decides, and both together save less than the product of what
      each saves.

    Args:
        stages: The stages of an epoch without either.
        workers: Threads that prepare batches where they are prefetched.
        cores: Cores.
    """
    train_s, val_s = _overlapped(stages, workers, cores)
    by_cores_s = stages.epoch_s / cores
    return {
        "baseline": stages.epoch_s,
        "prefetch": train_s + val_s,
        "async": max(stages.train_s, stages.val_s, by_cores_s),
        "both": max(train_s, val_s, by_cores_s),
    }


def least_fit_s(stages: Stages, *, epochs: int, workers: int, cores: int) -> dict[str, float]:
    """Compute the least time of a whole fit, by side; the validation process's start-up is not in it.

    Beside a validation process, the first epoch's training and the last epoch's validation have nothing to run beside:
    ``train + (epochs - 1) * steady epoch + validation``, with each overlapped in itself where there is prefetching.

    Args:
        stages: The stages of an epoch without either.
        epochs: Epochs of the fit.
        workers: Threads that prepare batches where they are prefetched.
        cores: Cores.
    """
    steady_s = least_epoch_s(stages, workers=workers, cores=cores)
    train_s, val_s = _overlapped(stages, workers, cores)
    return {
        "baseline": epochs * steady_s["baseline"],
        "prefetch": epochs * steady_s["prefetch"],
        "async": stages.epoch_s + (epochs - 1) * steady_s["async"],
        "both": train_s + val_s + (epochs - 1) * steady_s["both"],
    }


def effect(measured: float, theoretical: float) -> float:
    """Compute the part of a theoretical speed-up that was measured: 1 if all of it.

    Examples:
        >>> effect(1.5, 2.0)
        0.75
    """
    return measured / theoretical


def gain_share(measured: float, theoretical: float, *, least: float = 0.05) -> float | None:
    """Compute the part of a theoretical gain, the speed-up less 1, that was measured; None if there is hardly any.

    Args:
        measured: The measured speed-up.
        theoretical: The theoretical one.
        least: Theoretical gain below which a share of it would say more of noise than of the gain.

    Examples:
        >>> gain_share(1.25, 1.5), gain_share(1.0, 1.01)
        (0.5, None)
    """
    gain = theoretical - 1
    return (measured - 1) / gain if gain >= least else None


def speedups(seconds: Mapping[str, float]) -> dict[str, float]:
    """Compute the speed-up of each side over the baseline, from the seconds of all.

    Examples:
        >>> speedups({"baseline": 3.0, "both": 2.0})
        {'both': 1.5}
    """
    return {side: seconds["baseline"] / taken_s for side, taken_s in seconds.items() if side != "baseline"}


def _overlapped(stages: Stages, workers: int, cores: int) -> tuple[float, float]:
    """Seconds of training and of validation, each overlapped in itself."""
    train_s = overlapped_s(
        stages.train_prepare_s, stages.train_compute_s, batches=stages.train_batches, workers=workers, cores=cores
    )
    val_s = overlapped_s(
        stages.val_prepare_s, stages.val_compute_s, batches=stages.val_batches, workers=workers, cores=cores
    )
    return train_s, val_s

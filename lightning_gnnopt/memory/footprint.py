"""What is held at the peak of a step on a batch: the model, the batches and what the step adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.predictors import AnalyticPredictor, Predictor

UNSURE = 0.5
"""Share that is added to a fitted prediction without samples: 9 % with 32 of them, 5 % with 100, nothing with 999."""


_LARGER = 1.1


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """The batches that a loader has ready beside the one that is computed on.

    Each is taken to be as large as that one, or, where some that were looked at are larger, up to a tenth larger:
    those that wait have been made to fit, too.

    Attributes:
        batches: How many there are at most.
        least_bytes: Bytes of the largest batch that was looked at.
        max_bytes: How many bytes they hold at most, all together; None for no limit.
    """

    batches: int = 0
    least_bytes: float = 0.0
    max_bytes: int | None = None

    def nbytes(self, batch_bytes: float) -> float:
        """Bytes of all of them beside a batch of so many bytes."""
        nbytes = self.batches * max(batch_bytes, min(self.least_bytes, _LARGER * batch_bytes))
        return nbytes if self.max_bytes is None else min(nbytes, self.max_bytes)


@dataclass(kw_only=True, eq=False)
class Footprint:
    """The bytes at the peak of a stage's steps, as a function of a batch's features.

    ``held + batch + ahead + growth``: what is there whatever the batch (:func:`held_bytes`), the batch itself, those
    that wait behind it, and what the step adds to all that, which the predictors say.

    These are bytes that are asked for, and so are predictions. On CUDA a step passes if the device can give what the
    caching allocator must reserve for them, which is more: bounds, which are held against a budget, are
    `reserved_factor` times the sum.

    Attributes:
        reader: Reads the features, ``P`` of them.
        predictors: Predict the growth of each kind of step; ``"step"`` for whole ones.
        batch_row: The bytes of a batch as an affine function of its features, ``[c, a_1 .. a_P]``.
        held_bytes: What is held whatever the batch.
        ahead: The batches that wait.
        reserve_bytes: What a step may add beyond its prediction: the first one of an epoch makes room for what is
            logged.
        kinds: The kinds of steps that batches of this stage can meet.
        part_kinds: Those that the parts of a split batch can meet.
        reserved_factor: Bytes that must be reserved for each byte asked for, at least 1; see
            :class:`~lightning_gnnopt.memory.reserved_factor.ReservedFactor`. May be set anew between steps.
    """

    reader: FeatureReader
    predictors: Mapping[str, Predictor]
    batch_row: NDArray[np.float64]
    held_bytes: int
    ahead: Ahead = field(default_factory=Ahead)
    reserve_bytes: int = 0
    kinds: Sequence[str] = ("step",)
    part_kinds: Sequence[str] = ("step",)
    reserved_factor: float = 1.0

    @property
    def is_ready(self) -> bool:
        """Whether there is something to predict with."""
        return all(self.predictors[kind].is_fitted for kind in self.kinds)

    def features(self, batch: Any) -> NDArray[np.float64]:
        """Read a subgraph's or batch's features, shape ``(P,)``."""
        return self.reader(batch)

    def batch_bytes(self, features: NDArray[np.float64]) -> float:
        """Bytes of the batch itself."""
        return float(self.batch_row[0] + self.batch_row[1:] @ features)

    def constant_bytes(self, features: NDArray[np.float64]) -> float:
        """Bytes that are held before the step starts."""
        batch_bytes = self.batch_bytes(features)
        return self.held_bytes + batch_bytes + self.ahead.nbytes(batch_bytes)

    def predict(self, features: NDArray[np.float64], *, kind: str | None = None) -> float:
        """Predict the bytes asked for at the peak, without a margin; of the costliest kind of step by default."""
        kinds = self.kinds if kind is None else (kind,)
        growth = max(float(self.predictors[kind].predict(features)) for kind in kinds)
        return self.constant_bytes(features) + growth

    def upper(self, features: NDArray[np.float64]) -> float:
        """Bound what the peak takes of the device from above, with the coverage of the predictors' margins."""
        return self.reserved_factor * (self.constant_bytes(features) + self._upper_growth(features, self.kinds))

    def upper_of_part(self, whole: NDArray[np.float64], part: NDArray[np.float64]) -> float:
        """Bound what is taken while one part of a split batch runs: the whole batch stays, and the part is a copy."""
        constant = self.constant_bytes(whole) + self.batch_bytes(part)
        return self.reserved_factor * (constant + self._upper_growth(part, self.part_kinds))

    def pieces(self) -> NDArray[np.float64] | None:
        """Give :meth:`upper` as a maximum of affine functions, shape ``(K, P + 1)``; None where it is none.

        About that: the batches ahead are taken to be as large as the batch itself, and to have no limit.
        """
        growths: list[NDArray[np.float64]] = []
        for predictor in (self.predictors[kind] for kind in self.kinds):
            if predictor.pieces is None:
                return None
            growths.append(predictor.pieces * predictor.margin.factor * _allowance(predictor))
        pieces = np.concatenate(growths)
        pieces += (1 + self.ahead.batches) * self.batch_row
        pieces[:, 0] += self.held_bytes + self.reserve_bytes
        pieces *= self.reserved_factor
        return pieces

    def _upper_growth(self, features: NDArray[np.float64], kinds: Sequence[str]) -> float:
        chosen = [self.predictors[kind] for kind in kinds]
        growth = max(float(predictor.upper(features)) * _allowance(predictor) for predictor in chosen)
        return self.reserve_bytes + growth


def _allowance(predictor: Predictor) -> float:
    """What is added while a fitted predictor has fewer samples than its coverage can be stated with."""
    if isinstance(predictor, AnalyticPredictor):
        return 1.0
    margin = predictor.margin
    return 1.0 + UNSURE * math.sqrt(max(0.0, 1 - margin.stated_coverage() / margin.coverage))

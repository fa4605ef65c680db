"""The predictors by name."""

from __future__ import annotations

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.memory.predictors.analytic import AnalyticPredictor
from lightning_gnnopt.memory.predictors.base import Predictor
from lightning_gnnopt.memory.predictors.boosting import BoostingPredictor
from lightning_gnnopt.memory.predictors.forest import ForestPredictor
from lightning_gnnopt.memory.predictors.linear import LinearPredictor
from lightning_gnnopt.memory.predictors.max_affine import MaxAffinePredictor

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.kind: predictor
    for predictor in (AnalyticPredictor, LinearPredictor, ForestPredictor, BoostingPredictor, MaxAffinePredictor)
}


def resolve_predictor(name: str) -> type[Predictor]:
    """Find a predictor class by its name.

    Args:
        name: A key of :data:`PREDICTORS`.

    Returns:
        The class. Its first argument is the names of the features; that of ``analytic`` its pieces.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> resolve_predictor("max-affine")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Unknown predictor 'max-affine'. Did you mean 'max_affine'? Known: analytic, boosting, ...
    """
    if name not in PREDICTORS:
        raise ValueError(unknown_name("predictor", name, PREDICTORS))
    return PREDICTORS[name]

"""Predictors of a batch's peak memory."""

from lightning_gnnopt.memory.predictors.analytic import AnalyticPredictor
from lightning_gnnopt.memory.predictors.base import Predictor
from lightning_gnnopt.memory.predictors.boosting import BoostingPredictor
from lightning_gnnopt.memory.predictors.conformal import ConformalMargin
from lightning_gnnopt.memory.predictors.forest import ForestPredictor
from lightning_gnnopt.memory.predictors.linear import LinearPredictor
from lightning_gnnopt.memory.predictors.max_affine import MaxAffinePredictor
from lightning_gnnopt.memory.predictors.registry import PREDICTORS, resolve_predictor

__all__ = [
    "PREDICTORS",
    "AnalyticPredictor",
    "BoostingPredictor",
    "ConformalMargin",
    "ForestPredictor",
    "LinearPredictor",
    "MaxAffinePredictor",
    "Predictor",
    "resolve_predictor",
]

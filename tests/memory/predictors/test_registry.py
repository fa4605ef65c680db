from __future__ import annotations

import pytest

from lightning_gnnopt.memory.predictors import (
    PREDICTORS,
    AnalyticPredictor,
    BoostingPredictor,
    ForestPredictor,
    LinearPredictor,
    MaxAffinePredictor,
    resolve_predictor,
)


def test_names() -> None:
    expected = {
        "analytic": AnalyticPredictor,
        "linear": LinearPredictor,
        "forest": ForestPredictor,
        "boosting": BoostingPredictor,
        "max_affine": MaxAffinePredictor,
    }
    assert expected == PREDICTORS
    assert resolve_predictor("linear") is LinearPredictor


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown predictor 'forrest'. Did you mean 'forest'\?"):
        resolve_predictor("forrest")

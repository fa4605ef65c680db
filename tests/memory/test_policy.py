from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_gnnopt.memory.policy import Policy


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({}, ("resample", "prune"), ("prune",)),
        ({"exact": True}, ("resample", "prune"), ("split",)),
        ({"on_exceed": "split"}, ("split",), ("prune",)),
        ({"on_exceed": ["resample", "shrink", "split"]}, ("resample", "shrink", "split"), ("prune",)),
        ({"on_exceed": "watch"}, ("watch",), ("watch",)),
        ({"on_exceed": "watch", "exact": True}, ("watch",), ("watch",)),
    ],
)
def test_what_is_tried(options: dict[str, Any], train: tuple[str, ...], val: tuple[str, ...]) -> None:
    policy = Policy(**options)
    assert tuple(policy.remedies("train")) == train
    for stage in ("val", "test", "predict"):
        assert tuple(policy.remedies(stage)) == val


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_exceed": "prunee"}, r"Unknown on_exceed 'prunee'\. Did you mean 'prune'"),
        ({"on_exceed": ()}, r"`on_exceed` must name each remedy once and at least one, but got \(\)\. HINT: "),
        ({"on_exceed": ("prune", "prune")}, r"each remedy once and at least one, but got \('prune', 'prune'\)\. HINT"),
        ({"on_exceed": "resample"}, r"must end with what makes any batch smaller, but got 'resample' alone\. HINT"),
        ({"on_exceed": ("prune", "resample")}, r"`on_exceed` .*HINT"),
        ({"on_exceed": ("watch", "prune")}, r"changes no batch and must stand alone, but got \('watch', 'prune'\)"),
        ({"pruning": "degre"}, r"Unknown pruning 'degre'\. Did you mean 'degree'"),
        ({"max_resamples": -1}, r"`max_resamples` must be 0 or more, but got -1\. HINT"),
        ({"max_resamples": True}, r"`max_resamples` must be 0 or more, but got True\. HINT"),
        ({"depth": 0}, r"`depth` must be at least 1, but got 0\. HINT"),
        ({"loss_reduction": "men"}, r"Unknown loss_reduction 'men'\. Did you mean 'mean'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**options)


@pytest.mark.parametrize(
    ("given", "layers", "expected"), [(None, 3, 3), (2, 3, 2), (None, None, None), (None, 0, None)]
)
def test_the_depth_is_the_models_where_none_was_given(given: int | None, layers: Any, expected: int | None) -> None:
    assert Policy(depth=given).with_depth_of(SimpleNamespace(num_layers=layers)).depth == expected
    assert Policy(depth=given).with_depth_of(object()).depth == given

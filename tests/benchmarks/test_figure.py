from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from benchmarks.figure import Figure, Sense


@pytest.mark.parametrize(
    ("value", "sense", "met"),
    [
        (0.98, ">=", True),
        (0.97, ">=", True),
        (0.96, ">=", False),
        (0.98, "<=", False),
        (0.97, "<=", True),
        (0.96, "<=", True),
    ],
)
def test_met(value: float, sense: Sense, met: bool) -> None:
    assert Figure(name="f", value=value, unit="x", reach=0.97, sense=sense).met is met


def test_a_reported_figure_is_neither_met_nor_missed() -> None:
    assert Figure(name="f", value=1.0, unit="s").met is None


def test_of_runs_takes_the_median() -> None:
    figure = Figure.of_runs("f", [3.0, 1.0, 100.0], unit="s", reach=4.0, sense="<=")
    assert figure == Figure(name="f", value=3.0, unit="s", runs=(3.0, 1.0, 100.0), reach=4.0, sense="<=")


def test_as_dict() -> None:
    figure = Figure.of_runs("f", [1.0, 2.0], unit="s", reach=1.0, sense=">=")
    assert list(figure.as_dict().items()) == [
        ("name", "f"),
        ("value", 1.5),
        ("reach", 1.0),
        ("sense", ">="),
        ("unit", "s"),
        ("runs", [1.0, 2.0]),
    ]
    reported = Figure(name="f", value=1.0, unit="s").as_dict()
    assert (reported["reach"], reported["sense"], reported["runs"]) == (None, None, [])


@pytest.mark.parametrize(("reach", "sense"), [(1.0, None), (None, ">="), (1.0, ">"), (None, ">")])
def test_reach_and_sense_go_together(reach: float | None, sense: Sense | None) -> None:
    with pytest.raises(ValueError, match=f"of figure 'f' must be a number with '>=' or '<=', .* {reach} and {sense!r}"):
        Figure(name="f", value=1.0, unit="s", reach=reach, sense=sense)


@pytest.mark.parametrize(
    ("value", "runs", "reach"), [(math.nan, (), 1.0), (1.0, (1.0, math.inf), 1.0), (1.0, (), -math.inf)]
)
def test_numbers_must_be_finite(value: float, runs: tuple[float, ...], reach: float) -> None:
    with pytest.raises(ValueError, match="of figure 'f' must be finite"):
        Figure(name="f", value=value, unit="s", runs=runs, reach=reach, sense=">=")


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Figure(name="f", value=1.0, unit="s").value = 2.0  # type: ignore[misc]

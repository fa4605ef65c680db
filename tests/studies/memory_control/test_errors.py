"""Error measures against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_percentage_error, r2_score

from lightning_gnnopt.memory import Tally
from lightning_gnnopt.studies.memory_control.errors import prediction_errors
from lightning_gnnopt.studies.memory_control.overhead import Timed, wall_shares


def test_errors_worked_by_hand() -> None:
    found = prediction_errors([110.0, 190.0, 400.0, 500.0], [100.0, 200.0, 400.0, 500.0])
    # relative: +0.1, -0.05, 0, 0; sorted absolute: 0, 0, 0.05, 0.1
    assert found["median"] == pytest.approx(0.025)
    assert found["p99"] == pytest.approx(0.05 + 0.97 * 0.05)  # at place 0.99 * 3 = 2.97
    assert found["max"] == pytest.approx(0.1)
    assert found["worst_under"] == pytest.approx(0.05)
    assert (found["under"], found["exact"]) == (0.25, 0.5)
    # squares of the errors: 100 + 100; around the mean of 300: 40,000 + 10,000 + 10,000 + 40,000
    assert found["r2"] == pytest.approx(1 - 200 / 100_000)


def test_errors_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    measured = rng.uniform(1e6, 2e6, 200)
    predicted = measured * rng.normal(1, 0.02, 200)
    found = prediction_errors(predicted, measured)
    assert found["r2"] == pytest.approx(r2_score(measured, predicted))
    relative = np.abs(predicted / measured - 1)
    assert mean_absolute_percentage_error(measured, predicted) == pytest.approx(relative.mean())
    assert found["p99"] == pytest.approx(np.percentile(relative, 99))
    assert found["under"] == (np.round(predicted) < measured).mean()


def test_a_prediction_is_exact_and_not_under_if_it_rounds_to_the_byte() -> None:
    found = prediction_errors([99.6, 200.4], [100.0, 200.0])
    assert (found["exact"], found["under"]) == (1.0, 0.0)


def test_batches_that_are_all_alike_have_no_variance_to_explain() -> None:
    assert prediction_errors([7.0, 7.0], [7.0, 7.0])["r2"] is None


@pytest.mark.parametrize(("predicted", "measured"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_what_cannot_be_compared_is_refused(predicted: list[float], measured: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must be of one shape \(S,\).*HINT"):
        prediction_errors(predicted, measured)


def test_shares_of_a_run() -> None:
    tally = Tally(inline_s=0.3, worker_s=0.2, probe_s=0.1)
    run = Timed(fit_s=10.0, epochs_s=[5.0, 2.0, 1.0], tally=tally, own_epochs_s=[0.4, 0.05, 0.1])
    assert (run.own_s, run.probe_s, run.epoch_s) == (0.5, 0.1, 1.5)
    assert run.steady == pytest.approx(0.15 / 3.0)
    without = Timed(fit_s=1.0, epochs_s=[1.0])
    assert (without.own_s, without.probe_s, without.epoch_s) == (0.0, 0.0, 1.0)
    assert wall_shares([2.0, 1.0], [1.0, 1.5]) == [0.5, -0.5]

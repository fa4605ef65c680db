"""A short soak in the suite; `make soak` runs a long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .faults import FAULTS
from .leftovers import slope_per_100
from .plans import NUM_RECIPES, SAMPLERS, draw_plan, draw_recipe


def test_plans_depend_on_their_seed_and_number_only() -> None:
    assert [draw_plan(3, number) for number in range(50)] == [draw_plan(3, number) for number in range(50)]
    assert draw_plan(3, 7) != draw_plan(4, 7)
    assert {draw_recipe(3, number).sampler for number in range(NUM_RECIPES)} == set(SAMPLERS)


def test_each_fault_is_drawn_where_it_fits() -> None:
    plans = [draw_plan(0, number) for number in range(4000)]
    assert {plan.fault for plan in plans} == {None, *FAULTS}
    assert all(plan.fault is None or FAULTS[plan.fault].fits(plan) for plan in plans)
    assert 0.2 < sum(plan.fault is None for plan in plans) / 4000 < 0.5


def test_the_slope_is_that_of_most_points() -> None:
    points = [(number, 600.0 + 0.02 * number + 50.0 * (number == 130)) for number in range(100, 200, 5)]
    assert slope_per_100(points) == pytest.approx(2.0)


@pytest.mark.slow
def test_fits_with_faults_leave_nothing_and_lose_no_bit() -> None:
    """In a process of its own: what other tests have left running is none of its business."""
    command = [sys.executable, "-m", "tests.soak", "--minutes", "1.2", "--seed", "2024"]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-3000:]
    assert "wrong: 0" in done.stdout

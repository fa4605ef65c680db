from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gnnopt.analysis.conclusions import rules_time
from lightning_gnnopt.analysis.conclusions.facts import Facts
from tests.analysis.conclusions.rule_cases import Rule, said


def test_validation_is_bounded_by_the_longer_of_itself_and_training() -> None:
    facts = Facts(fit_s=100.0, validation_s=41.0, validations=5)
    advice = said(rules_time.validation_blocks, facts)
    assert advice.finding == "Evaluation is 41 % of the fit (41 s of 100 s, 5 validations)."
    assert advice.remedy.endswith("bounds the gain at 1.7x.")
    assert advice.speedup == pytest.approx(100 / 59)
    advice = said(rules_time.validation_blocks, replace(facts, validation_s=80.0, validations=1))
    assert advice.finding == "Evaluation is 80 % of the fit (80 s of 100 s, 1 validation)."
    assert "at 1.2x, as it takes longer than training: validate less often too" in advice.remedy
    assert advice.speedup == pytest.approx(100 / 80)


def test_time_between_epochs_has_a_threshold_and_its_numbers() -> None:
    facts = Facts(fit_s=100.0, between_s=10.1, epochs=4)
    advice = said(rules_time.between_epochs, replace(facts, between_s=25.0))
    assert advice.finding == "25 % of the fit lies before, between and after its epochs (25 s of 100 s, 4 epochs)."
    assert advice.remedy.endswith("(`every_n_epochs`; at most 1.3x).")
    assert advice.speedup == pytest.approx(100 / 75)
    assert rules_time.between_epochs(facts) is not None
    assert rules_time.between_epochs(replace(facts, between_s=10.0)) is None
    assert rules_time.between_epochs(replace(facts, between_s=None)) is None
    assert rules_time.between_epochs(replace(facts, fit_s=None)) is None


@pytest.mark.parametrize(
    "changes", [{"validation_s": 9.9}, {"async_validation": True}, {"fit_s": None}, {"fit_s": 0.0}, {"validation_s": 0}]
)
def test_short_and_asynchronous_validation_is_no_bottleneck(changes: dict[str, Any]) -> None:
    facts = Facts(fit_s=100.0, validation_s=10.1)
    assert rules_time.validation_blocks(facts) is not None
    assert rules_time.validation_blocks(replace(facts, **changes)) is None


@pytest.mark.parametrize(
    ("rule", "phase", "threshold"),
    [
        (rules_time.callbacks_slow, "callbacks", 0.05),
        (rules_time.optimizer_slow, "optimizer", 0.15),
        (rules_time.overhead_other, "other", 0.20),
    ],
)
def test_a_phase_is_too_long_above_its_threshold(rule: Rule, phase: str, threshold: float) -> None:
    assert rule(Facts(step_s=0.01, phase_s={phase: 0.01 * (threshold - 0.001)})) is None
    assert rule(Facts(step_s=0.01, phase_s={phase: 0.01 * (threshold + 0.001)})) is not None
    assert rule(Facts(phase_s={phase: 0.01})) is None
    assert rule(Facts(step_s=0.01)) is None
    advice = said(rule, Facts(step_s=0.01, phase_s={phase: 0.005}))
    assert "50 % of the step (5.0 ms of 10 ms)" in advice.finding
    assert "(at most 2.0x)" in advice.remedy
    assert advice.speedup == 2.0


def test_a_phase_that_is_all_of_the_step_has_a_finite_bound() -> None:
    advice = said(rules_time.overhead_other, Facts(step_s=0.01, phase_s={"other": 0.01}))
    assert advice.speedup == 100.0
    assert advice.remedy.endswith("(at most 100x).")


def test_few_steps_give_rough_numbers() -> None:
    assert rules_time.too_few_steps(Facts(timed_steps=10)) is None
    assert said(rules_time.too_few_steps, Facts(timed_steps=9)).finding == (
        "Only 9 steps were timed: the numbers are rough."
    )
    assert said(rules_time.too_few_steps, Facts(timed_steps=1)).finding == (
        "Only 1 step was timed: the numbers are rough."
    )
    assert said(rules_time.too_few_steps, Facts()).finding == "No step was timed."


def test_the_profilers_own_share_is_told() -> None:
    assert rules_time.profiler_overhead(Facts(overhead=0.05)) is None
    assert rules_time.profiler_overhead(Facts()) is None
    advice = said(rules_time.profiler_overhead, Facts(overhead=0.08, step_s=0.05))
    assert advice.finding.startswith("The profiler itself is 8.0 % of the timed steps (4.0 ms of each)")

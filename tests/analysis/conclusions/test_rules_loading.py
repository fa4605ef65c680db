from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gnnopt.analysis.conclusions import rules_loading
from lightning_gnnopt.analysis.conclusions.facts import Facts
from tests.analysis.conclusions.rule_cases import said


def waiting(share: float, **changes: Any) -> Facts:
    """Steps of 100 ms on 8 cores and a GPU, of which a share waits."""
    numbers: dict[str, Any] = {"timed_steps": 50, "step_s": 0.1, "device": "NVIDIA H200", "cores": 8, "num_workers": 1}
    return Facts(**numbers | {"phase_s": {"wait": 0.1 * share, "forward": 0.1 * (1 - share)}} | changes)


def test_waiting_has_a_threshold() -> None:
    assert rules_loading.WAIT_SHARE == 0.05
    assert rules_loading.waits_for_batches(waiting(0.049)) is None
    assert rules_loading.waits_for_batches(waiting(0.051)) is not None
    assert rules_loading.waits_for_batches(Facts()) is None


def test_waiting_for_the_first_batches_of_epochs_has_a_remedy_of_its_own() -> None:
    advice = said(rules_loading.waits_for_batches, waiting(0.4, first_wait=0.75))
    assert advice.finding == (
        "40 % of the step waits for batches (40 ms of 100 ms); 75 % of that is for the first batches of epochs."
    )
    assert "`persistent_workers=True`" in advice.remedy
    assert advice.speedup == pytest.approx(100 / 70)
    usual = said(rules_loading.waits_for_batches, waiting(0.4, first_wait=0.5))
    assert "persistent_workers" not in usual.remedy


def test_a_worker_hides_what_is_prepared_inline() -> None:
    advice = said(rules_loading.waits_for_batches, waiting(0.37, num_workers=0, sample_s=0.03, slice_s=0.007))
    assert advice.finding == (
        "37 % of the step waits for batches (37 ms of 100 ms), which the training loop prepares itself."
    )
    assert advice.remedy == "`num_workers` 0 -> 1 would hide it (theoretical 1.6x)."
    assert advice.speedup == pytest.approx(100 / 63)  # 37 ms beside 63 ms


def test_inline_preparation_that_takes_longer_than_the_step_needs_more_workers() -> None:
    facts = waiting(0.7, num_workers=0, sample_s=0.05, slice_s=0.02)  # 70 ms beside 30 ms: 3 workers
    advice = said(rules_loading.waits_for_batches, facts)
    assert advice.remedy == "`num_workers` 0 -> 3 would hide it (theoretical 3.3x)."
    assert advice.speedup == pytest.approx(100 / 30)
    advice = said(rules_loading.waits_for_batches, replace(facts, cores=2, device="cpu"))  # one at most
    assert advice.remedy == (
        "`num_workers` 0 -> 1 would hide a part of it (theoretical 1.4x);"
        " a worker takes a core that training computes with."
    )
    assert advice.speedup == pytest.approx(100 / 70)


def test_more_workers_hide_what_one_does_not() -> None:
    facts = waiting(0.37, beside=True, sample_s=0.08, slice_s=0.02, queued=0.1)  # 100 ms beside 63 ms
    advice = said(rules_loading.waits_for_batches, facts)
    assert advice.finding == "37 % of the step waits for batches (37 ms of 100 ms): preparing one takes 100 ms."
    assert advice.remedy == "`num_workers` 1 -> 2 would hide it (theoretical 1.6x)."
    assert advice.speedup == pytest.approx(100 / 63)


def test_as_many_workers_as_there_are_cores_for() -> None:
    facts = waiting(0.75, beside=True, sample_s=0.1, slice_s=0.02, queued=0.0)  # 120 ms beside 25 ms: 5 workers
    assert (
        "`num_workers` 1 -> 5 would hide it (theoretical 4.0x)" in said(rules_loading.waits_for_batches, facts).remedy
    )
    advice = said(rules_loading.waits_for_batches, replace(facts, cores=4))  # 3 workers: 40 ms
    assert "`num_workers` 1 -> 3 would hide a part of it (theoretical 2.5x)" in advice.remedy
    assert advice.speedup == pytest.approx(100 / 40)
    advice = said(rules_loading.waits_for_batches, replace(facts, cores=None))
    assert advice.remedy.endswith(
        "1 -> 5 would hide it (theoretical 4.0x), if there are as many cores and one for training."
    )


def test_a_step_that_only_waits_gets_a_bounded_number_of_workers() -> None:
    facts = waiting(1.0, beside=True, sample_s=0.1, slice_s=0.0, queued=0.0, cores=None)
    advice = said(rules_loading.waits_for_batches, facts)
    assert "`num_workers` 1 -> 16 would hide a part of it (theoretical 16x)" in advice.remedy
    assert advice.speedup == pytest.approx(16)


@pytest.mark.parametrize(
    ("sample_s", "slice_s", "what"),
    [
        (0.09, 0.03, "sampling takes most of it (90 ms, slicing 30 ms): smaller fan-outs or `sampler='labor'`"),
        (0.03, 0.09, "slicing takes most of it (90 ms, sampling 30 ms): `feature_dtype='float16'` halves"),
    ],
)
def test_without_a_free_core_batches_must_become_cheaper(sample_s: float, slice_s: float, what: str) -> None:
    facts = waiting(0.6, device="cpu", cores=2, beside=True, sample_s=sample_s, slice_s=slice_s, queued=0.0)
    advice = said(rules_loading.waits_for_batches, facts)
    assert advice.remedy.startswith(
        f"No core is free for another worker (2 cores), so make batches cheaper (theoretical 2.5x): {what}"
    )
    assert advice.speedup == pytest.approx(100 / 40)
    free = said(rules_loading.waits_for_batches, replace(facts, cores=3))
    assert "`num_workers` 1 -> 2 would hide a part of it (theoretical 1.7x)" in free.remedy  # 60 ms, not 40


def test_a_single_core_has_none_for_a_worker() -> None:
    facts = waiting(0.2, device="cpu", cores=1, num_workers=0, sample_s=0.02, slice_s=None)
    remedy = said(rules_loading.waits_for_batches, facts).remedy
    assert "(1 core)" in remedy
    assert "`sampler='labor'` draw fewer nodes; `feature_dtype" in remedy  # which is larger is not known


def test_batches_that_are_ready_while_training_waits_mean_contention() -> None:
    facts = waiting(0.2, num_workers=3, beside=True, sample_s=0.1, slice_s=0.1, queued=0.99)
    assert "OMP_NUM_THREADS" not in said(rules_loading.waits_for_batches, facts).remedy
    advice = said(rules_loading.waits_for_batches, replace(facts, queued=1.8))
    assert "although 1.8 were ready on average" in advice.finding
    assert advice.remedy == (
        "Free a core for the training thread: fewer workers than 3, or a lower `OMP_NUM_THREADS` (theoretical 1.2x)."
    )
    assert advice.speedup == pytest.approx(100 / 80)


def test_workers_that_keep_up_on_average_need_to_be_further_ahead() -> None:
    facts = waiting(0.2, num_workers=2, beside=True, sample_s=0.1, slice_s=0.05, queued=0.3)  # 150 ms <= 2 x 80 ms
    advice = said(rules_loading.waits_for_batches, facts)
    assert advice.finding.endswith("preparing one takes 150 ms, which 2 workers keep up with on average.")
    assert "a larger `prefetch_factor`" in advice.remedy
    advice = said(rules_loading.waits_for_batches, replace(facts, slice_s=0.07))  # 170 ms
    assert "`num_workers` 2 -> 3 would hide it" in advice.remedy


def test_a_bus_that_is_slower_than_anything_else_is_named() -> None:
    facts = waiting(0.5, num_workers=2, beside=True, sample_s=0.06, slice_s=0.06, queued=0.0, transfer_s=0.095)
    advice = said(rules_loading.waits_for_batches, facts)
    assert "moving it to the device 95 ms, longer than anything else" in advice.finding
    assert "`feature_dtype='float16'`" in advice.remedy
    assert advice.speedup == pytest.approx(100 / 60)  # then preparing, 120 ms by two
    assert "num_workers" in said(rules_loading.waits_for_batches, replace(facts, transfer_s=0.05)).remedy


def test_a_loader_that_does_not_tell_is_taken_to_be_busy() -> None:
    facts = waiting(0.37, beside=True)  # a worker that is busy all the time: 100 ms for each batch
    advice = said(rules_loading.waits_for_batches, facts)
    assert advice.remedy == (
        "`num_workers` 1 -> 2 would hide it (theoretical 1.6x); the loader does not tell its stages: `GraphDataModule`"
        " does, and prepares batches beside training."
    )
    advice = said(rules_loading.waits_for_batches, replace(facts, num_workers=None, beside=False))
    assert advice.finding.endswith("(37 ms of 100 ms), and the loader does not tell what it does.")
    assert advice.remedy == (
        "`GraphDataModule` prepares batches beside training (theoretical 1.6x), and tells its stages."
    )


def test_transfer_has_a_threshold_and_a_remedy() -> None:
    phases = {"transfer": 0.0049, "forward": 0.0951}
    facts = Facts(step_s=0.1, phase_s=phases, device="NVIDIA H200", loaded_bytes=120e6)
    assert rules_loading.transfer(facts) is None
    advice = said(rules_loading.transfer, replace(facts, phase_s={"transfer": 0.02, "forward": 0.08}))
    assert advice.finding == "20 % of the step moves the batch to its device (20 ms): 120.0 MB at 6.0 GB/s."
    assert "on a side stream while this one computes (theoretical 1.2x)" in advice.remedy
    assert advice.speedup == pytest.approx(1.25)
    assert rules_loading.transfer(replace(facts, phase_s={"transfer": 0.0051})) is not None


def test_nothing_is_copied_on_the_cpu() -> None:
    advice = said(rules_loading.transfer, Facts(step_s=1.0, phase_s={"transfer": 0.5}, device="cpu", loaded_bytes=9.0))
    assert advice.finding == (
        "50 % of the step moves the batch to its device (500 ms), although nothing has to be copied on the CPU."
    )
    assert "`on_before_batch_transfer`" in advice.remedy
    assert advice.speedup == 2.0

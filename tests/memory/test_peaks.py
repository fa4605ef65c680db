from __future__ import annotations

import pytest
import torch

from lightning_gnnopt.memory.peaks import StepPeaks
from tests.memory.fake_cuda import FakeCuda

CPU = torch.device("cpu")


def step(peaks: StepPeaks, stage: str, num_bytes: int = 4000, **options: bool) -> int | None:
    """A step that takes so many bytes at once, and gives them back; what was measured of it."""
    peaks.start(stage, **options)
    torch.empty(num_bytes, dtype=torch.uint8)
    peak = peaks.stop(stage)
    return None if peak is None else peak.allocated_bytes


def counted(peaks: StepPeaks, stage: str, num_steps: int) -> list[int]:
    return [number for number in range(num_steps) if step(peaks, stage) is not None]


def test_of_training_the_second_of_two_steps_in_a_row_counts() -> None:
    assert counted(StepPeaks(CPU), "train", 620) == [1, 2, 199, 399, 599]


@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_of_evaluation_each_measured_step_counts(stage: str) -> None:
    assert counted(StepPeaks(CPU), stage, 410) == [0, 1, 2, 198, 199, 398, 399]


def test_steps_to_learn_from_are_measured_more_often() -> None:
    peaks = StepPeaks(CPU)
    peaks.learn()
    assert counted(peaks, "train", 110) == [1, 2, 49, 99]
    asked_for = StepPeaks(CPU, every=100)
    asked_for.learn()
    assert counted(asked_for, "train", 110) == [1, 2, 99]


@pytest.mark.parametrize(("every", "expected"), [(1, range(1, 12)), (2, range(1, 12)), (3, [1, 2, 5, 8, 11])])
def test_every_so_many_steps(every: int, expected: object) -> None:
    assert counted(StepPeaks(CPU, every=every), "train", 12) == list(expected)  # type: ignore[call-overload]


def test_what_is_measured_is_the_peak_of_the_step() -> None:
    peaks = StepPeaks(CPU, every=1)
    step(peaks, "train", 100)
    assert [step(peaks, "train", size) for size in (5000, 300, 70_001)] == [5000, 300, 70_001]


def test_stages_are_counted_each_by_itself() -> None:
    peaks = StepPeaks(CPU)
    counted(peaks, "train", 10)
    assert counted(peaks, "val", 5) == [0, 1, 2]
    assert counted(peaks, "train", 200) == [189]  # the 200th of training


def test_validation_between_does_not_make_a_training_step_count() -> None:
    """The gradients that step 198 releases were allocated in step 197, which was not recorded."""
    peaks = StepPeaks(CPU)
    counted(peaks, "train", 198)
    assert counted(peaks, "val", 3) == [0, 1, 2]
    assert counted(peaks, "train", 2) == [1]


def test_a_wanted_step_is_measured_and_counts_after_another() -> None:
    peaks = StepPeaks(CPU)
    counted(peaks, "train", 10)
    assert [step(peaks, "train", 700, wanted=True) for _ in range(3)] == [None, 700, 700]
    assert step(peaks, "train") is None
    assert step(peaks, "val", 700, wanted=True) == 700


def test_no_step_no_peak() -> None:
    assert StepPeaks(CPU).stop("train") is None


def test_a_step_that_an_error_ended() -> None:
    peaks = StepPeaks(CPU, every=1)
    step(peaks, "train")
    peaks.start("train")
    peaks.close()
    peaks.close()
    assert peaks.stop("train") is None
    # Nobody knows what it left.
    assert [step(peaks, "train", 800), step(peaks, "train", 900)] == [None, 900]


def test_a_step_that_never_came_to_its_end() -> None:
    peaks = StepPeaks(CPU, every=1)
    step(peaks, "train")
    peaks.start("train")
    held = torch.empty(10_000, dtype=torch.uint8)
    assert [step(peaks, "train", 800), step(peaks, "train", 900)] == [None, 900]
    del held


def test_under_another_profiler_nothing_is_measured() -> None:
    peaks = StepPeaks(CPU, every=1)
    step(peaks, "train")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert step(peaks, "train") is None
    assert [step(peaks, "train", 800), step(peaks, "train", 900)] == [None, 900]


def test_an_accelerator_counts_anyway(fake_cuda: FakeCuda) -> None:
    peaks = StepPeaks(torch.device("cuda"))
    assert peaks.every == 1
    grown = []
    for size in (512, 1024):
        peaks.start("train")
        fake_cuda.allocate(size)
        fake_cuda.release(size)
        peak = peaks.stop("train")
        grown.append(None if peak is None else peak.allocated_bytes)
    assert grown == [512, 1024]

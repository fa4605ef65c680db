from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gnnopt.studies.pipeline.theory import (
    Stages,
    effect,
    gain_share,
    least_epoch_s,
    least_fit_s,
    overlapped_s,
    speedups,
)
from tests.studies.pipeline.made import STAGES


def simulated_s(prepare_s: float, compute_s: float, *, batches: int, workers: int) -> float:
    """Play batch by batch what threads on enough cores do: each worker takes the next batch, in order."""
    free_s = [0.0] * workers
    ends_s = 0.0
    for batch in range(batches):
        free_s[batch % workers] += prepare_s / batches
        ends_s = max(ends_s, free_s[batch % workers]) + compute_s / batches
    return ends_s


@pytest.mark.parametrize("batches", [1, 2, 7, 50])
@pytest.mark.parametrize(("prepare_s", "compute_s"), [(1.0, 3.0), (3.0, 1.0), (2.0, 2.0), (0.0, 1.0)])
def test_one_worker_overlaps_as_if_played_batch_by_batch(prepare_s: float, compute_s: float, batches: int) -> None:
    found = overlapped_s(prepare_s, compute_s, batches=batches, workers=1, cores=2)
    assert found == pytest.approx(simulated_s(prepare_s, compute_s, batches=batches, workers=1))


def test_several_workers_share_the_preparing_and_the_cores() -> None:
    # Between the first batch and the last: 8 s of preparing on two workers, 1 s of computing.
    assert overlapped_s(8.0, 1.0, batches=4, workers=2, cores=4) == pytest.approx(9 / 4 + 3 / 4 * 4)
    played = simulated_s(800.0, 100.0, batches=1000, workers=2)
    assert overlapped_s(800.0, 100.0, batches=1000, workers=2, cores=4) == pytest.approx(played, rel=0.01)
    # Two cores for both: (8 + 1) / 2 is more than 8 / 2.
    assert overlapped_s(8.0, 1.0, batches=4, workers=2, cores=2) == pytest.approx(9 / 4 + 3 / 4 * 4.5)


def test_an_epoch_by_side() -> None:
    # Training 1 + 3 in 4 batches: 4 / 4 + 3 / 4 * 3 = 3.25. Validation 0.5 + 1.5 in 2: 2 / 2 + 1 / 2 * 1.5 = 1.75.
    found = least_epoch_s(STAGES, workers=1, cores=4)
    assert found == {"baseline": 6.0, "prefetch": 5.0, "async": 4.0, "both": 3.25}
    assert speedups(found) == {"prefetch": 1.2, "async": 1.5, "both": pytest.approx(6 / 3.25)}


def test_cores_bound_both_together() -> None:
    # Training 3 + 3: 6 / 4 + 3 / 4 * 3 = 3.75. All of it, 8 s, on two cores: 4.
    wide = replace(STAGES, train_prepare_s=3.0)
    assert least_epoch_s(wide, workers=1, cores=2)["both"] == 4.0
    assert least_epoch_s(wide, workers=1, cores=4)["both"] == 3.75


def test_one_core_saves_nothing() -> None:
    assert speedups(least_epoch_s(STAGES, workers=1, cores=1)) == {"prefetch": 1.0, "async": 1.0, "both": 1.0}


def test_validation_that_is_longer_decides() -> None:
    long = replace(STAGES, val_compute_s=9.5)
    assert least_epoch_s(long, workers=1, cores=2)["async"] == 10.0


def test_a_fit_by_side() -> None:
    found = least_fit_s(STAGES, epochs=3, workers=1, cores=4)
    # The first training, two steady epochs, the last validation.
    assert found == {"baseline": 18.0, "prefetch": 15.0, "async": 4 + 2 * 4 + 2, "both": 3.25 + 2 * 3.25 + 1.75}


def test_stages_sum_up_and_scale() -> None:
    assert (STAGES.train_s, STAGES.val_s, STAGES.epoch_s) == (4.0, 2.0, 6.0)
    assert STAGES.times(3) == Stages(
        train_prepare_s=3.0, train_compute_s=9.0, val_prepare_s=1.5, val_compute_s=4.5, train_batches=4, val_batches=2
    )


def test_parts_of_what_is_possible() -> None:
    assert effect(1.2, 1.6) == pytest.approx(0.75)
    assert gain_share(1.2, 1.4) == pytest.approx(0.5)
    assert gain_share(0.9, 1.5) == pytest.approx(-0.2)
    assert gain_share(1.0, 1.04) is None

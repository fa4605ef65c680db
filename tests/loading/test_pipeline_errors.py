"""Errors in a pipeline come in their place, and leave it usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from lightning_gnnopt.loading import DevicePlacement, HostPlacement, SimulatedDevice
from lightning_gnnopt.loading.placement import Placed
from lightning_gnnopt.loading.plan import BatchPlan

from .graphs import prefetch_threads
from .test_ordered import wait_until
from .values import make_pipeline, numbers_in, taken, value_plan

WORKERS = [0, 1, 2, 5]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: prefetch_threads() == [])


# ---- errors ----------------------------------------------------------------------------------------------------------


class ThirdError(Exception):
    """Raised for batch 3."""


def fail_at_3(i: int) -> int:
    if i == 3:
        raise ThirdError("three")
    return i


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize(
    ("on_device", "stage"),
    [(False, "sample"), (False, "plan"), (False, "write")]
    + [(True, stage) for stage in ("sample", "plan", "write", "allocate", "submit")],
)
def test_an_error_comes_in_its_place_and_names_its_batch(stage: str, num_workers: int, on_device: bool) -> None:

    def on(name: str, i: int) -> int:
        return fail_at_3(i) if name == stage else i

    with SimulatedDevice(host_computes=True) as device:
        placement = DevicePlacement(device) if on_device else HostPlacement()
        if isinstance(placement, DevicePlacement):
            place = placement.place

            def place_broken(plan: BatchPlan, name: str = "") -> Placed:
                if name.startswith("batch 3 "):
                    broken = SimpleNamespace(
                        copies=device.copies, active=device.active, device_memory=device.device_memory
                    )
                    if stage == "submit":
                        broken.copies = SimpleNamespace(
                            record=device.copies.record,
                            wait=device.copies.wait,
                            submit=lambda work, nbytes=0: fail_at_3(3),
                        )
                    other = DevicePlacement(device)
                    other.streams = broken
                    if stage == "allocate":
                        other._slabs._allocate = lambda nbytes: fail_at_3(3)
                    return other.place(plan, name)
                return place(plan, name)

            if stage in ("allocate", "submit"):
                placement.place = place_broken
        pipeline = make_pipeline(
            10,
            sample=lambda i: on("sample", i),
            plan=lambda i: value_plan(on("plan", i), write=lambda i: on("write", i)),
            placement=placement,
            num_workers=num_workers,
        )
        received: list[set[float]] = []
        with pytest.raises(ThirdError, match="three") as caught:
            received.extend(numbers_in(batch) for batch in taken(pipeline))
    assert received == [{0.0}, {1.0}, {2.0}]
    assert caught.value.__notes__ == ["This happened while batch 3 of epoch 9 was prepared."]
    assert any(entry.name == "fail_at_3" for entry in caught.traceback)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_error_on_the_device_names_its_batch(num_workers: int) -> None:
    with SimulatedDevice() as device:
        pipeline = make_pipeline(
            30,
            plan=lambda i: value_plan(i, unpack=fail_at_3),
            placement=DevicePlacement(device),
            num_workers=num_workers,
        )
        num = 0
        with pytest.raises(ThirdError, match="three") as caught:
            for num, _ in enumerate(taken(pipeline), 1):  # noqa: B007
                pass
    assert num >= 3 or num_workers > 1  # batches may be submitted out of order; an error ends them all, as CUDA's does
    assert caught.value.__notes__ == ["This happened while batch 3 of epoch 9 was unpacked on the device."]
    assert any(entry.name == "fail_at_3" for entry in caught.traceback)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_copy_that_fails_does_not_go_unseen(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with SimulatedDevice() as device:
        submit, copies = device.copies.submit, iter(range(100))

        def submit_broken(work: Callable[[], object], *, nbytes: int = 0, seconds: float = 0.0) -> None:
            number = next(copies) if nbytes else -1
            submit(lambda: (fail_at_3(number), work()), nbytes=nbytes)

        monkeypatch.setattr(device.copies, "submit", submit_broken)
        pipeline = make_pipeline(30, placement=DevicePlacement(device), num_workers=num_workers)
        with pytest.raises(ThirdError, match="three") as caught:
            list(taken(pipeline))
    assert any(entry.name == "fail_at_3" for entry in caught.traceback)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_slabs_are_not_lost_over_a_hundred_passes_half_of_which_fail(num_workers: int) -> None:
    with SimulatedDevice(host_computes=True) as device:
        placement = DevicePlacement(device)
        for number in range(100):
            write = fail_at_3 if number % 2 else int
            pipeline = make_pipeline(
                6, plan=lambda i, write=write: value_plan(i, write=write), placement=placement, num_workers=num_workers
            )
            received = []
            try:
                received.extend(numbers_in(batch) for batch in taken(pipeline))
            except ThirdError:
                assert number % 2
            assert received == [{float(i)} for i in range(3 if number % 2 else 6)]
        assert placement._slabs.num_slabs <= placement._slabs.target
        assert placement._staging.num_slabs <= placement._staging.target


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_abandoned_pass_leaves_the_placement_usable(num_workers: int) -> None:
    with SimulatedDevice(host_computes=True) as device:
        placement = DevicePlacement(device)
        for _ in range(20):
            batches = taken(make_pipeline(12, placement=placement, num_workers=num_workers))
            assert [numbers_in(next(batches)) for _ in range(3)] == [{0.0}, {1.0}, {2.0}]
            batches.close()
        assert placement._slabs.num_slabs <= placement._slabs.target
        whole = [numbers_in(batch) for batch in taken(make_pipeline(12, placement=placement, num_workers=num_workers))]
        assert whole == [{float(i)} for i in range(12)]

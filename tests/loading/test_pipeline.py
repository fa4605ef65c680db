"""The order and the bounds of a pipeline on the simulated device, with delays that are against it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_gnnopt.loading import DevicePlacement, HostPlacement, SimulatedDevice, simulated
from lightning_gnnopt.loading.pipeline import PipelineOptions
from lightning_gnnopt.loading.placement import Placed
from lightning_gnnopt.loading.plan import BatchPlan

from .graphs import prefetch_threads
from .test_ordered import wait_until
from .values import DEADLINE_S, SlowReader, in_time, make_pipeline, numbers_in, taken, value_plan

WORKERS = [0, 1, 2, 5]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: prefetch_threads() == [])


# ---- corruption and order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("prefetch_factor", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_batch_is_touched_while_it_is_used(num_workers: int, prefetch_factor: int, seed: int) -> None:
    """Batch ``i`` is full of ``i``; each is dropped as soon as its kernel is submitted, many steps ahead."""
    dice = random.Random(seed)
    pauses = [dice.choice([0.0, 0.0, 0.0005, 0.002]) for _ in range(1000)]
    sizes = [dice.randint(100, 3000) for _ in range(40)]

    def pause(i: int) -> None:
        time.sleep(pauses[i % 1000])

    def sample(i: int) -> int:
        pause(7 * i)
        return i

    def run() -> None:
        with SimulatedDevice(copy_delay_s=lambda nbytes: pauses[nbytes % 1000]) as device:
            reader = SlowReader(device)
            pipeline = make_pipeline(
                40,
                sample=sample,
                plan=lambda i: value_plan(i, numel=sizes[i], write=pause, unpack=pause),
                placement=DevicePlacement(device),
                num_workers=num_workers,
                prefetch_factor=prefetch_factor,
                max_bytes_in_flight=dice.choice([None, 30_000]),
            )
            for i, batch in enumerate(taken(pipeline)):
                reader.read(batch, seconds=pauses[13 * i % 1000])
                del batch
            device.synchronize()
        assert reader.seen == [{float(i)} for i in range(40)]

    in_time(run)


@pytest.mark.parametrize("broken", [False, True])
def test_a_pipeline_whose_copies_do_not_wait_is_found_out(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of batch 0 is held up until the copies of as many batches as there are slabs could have run."""
    gate, num = threading.Event(), 12
    with SimulatedDevice() as device:
        placement, reader = DevicePlacement(device), SlowReader(device)
        if broken:
            monkeypatch.setattr(device.copies, "wait", lambda event: None)
        pipeline = make_pipeline(num, placement=placement, num_workers=1, prefetch_factor=1)
        for i, batch in enumerate(taken(pipeline)):
            reader.read(batch, gate=lambda: gate.wait(DEADLINE_S))
            del batch
            if broken:
                device.copies.record().synchronize()  # nothing holds up the copies, and all slabs return
            if i == 4 and not broken:
                time.sleep(0.02)
                gate.set()
        device.copies.record().synchronize()
        gate.set()
        device.synchronize()
    assert (reader.seen == [{float(i)} for i in range(num)]) is not broken


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("on_device", [False, True])
def test_order_survives_any_delays(num_workers: int, on_device: bool) -> None:
    pauses = random.Random(3).choices([0.0, 0.0, 0.001, 0.004], k=60)
    with SimulatedDevice(host_computes=True) as device:
        pipeline = make_pipeline(
            60,
            plan=lambda i: value_plan(i, write=lambda i: time.sleep(pauses[i])),
            placement=DevicePlacement(device) if on_device else HostPlacement(),
            num_workers=num_workers,
        )
        assert [numbers_in(batch) for batch in taken(pipeline)] == [{float(i)} for i in range(60)]


# ---- backpressure ----------------------------------------------------------------------------------------------------


class Counting:
    """Notes which batches it was given."""

    def __init__(self) -> None:
        self.placed: list[int] = []
        self._inner = HostPlacement()

    def expect(self, in_flight: int, max_bytes: int | None = None) -> None:
        self._inner.expect(in_flight, max_bytes)

    def trim(self) -> None:
        self._inner.trim()

    def place(self, plan: BatchPlan, name: str = "a batch") -> Placed:
        self.placed.append(int(re.findall(r"\d+", name)[0]))
        return self._inner.place(plan)


def allowed(sizes: Sequence[int], received: int, max_ahead: int, max_bytes: int | None) -> int:
    """How many batches may have been begun when so many were received: the rule, spelled out."""
    ahead = 0
    while received + ahead < len(sizes) and ahead < max_ahead:
        total = sum(sizes[received : received + ahead + 1])
        if max_bytes is not None and total > max_bytes and ahead > 0:
            break
        ahead += 1
    return received + ahead


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("max_bytes", [1, 20_000, 60_000, None])
def test_neither_more_batches_nor_more_bytes_than_allowed_are_ahead(num_workers: int, max_bytes: int | None) -> None:
    dice = random.Random(num_workers)
    plans = [value_plan(i, numel=dice.choice([50, 500, 2_000, 9_000])) for i in range(25)]
    sizes = [plan.nbytes for plan in plans]
    placement = Counting()
    pipeline = make_pipeline(
        25,
        plan=plans.__getitem__,
        placement=placement,
        num_workers=num_workers,
        prefetch_factor=2,
        max_bytes_in_flight=max_bytes,
    )

    def run() -> None:
        for received, batch in enumerate(taken(pipeline), 1):
            assert numbers_in(batch) == {received - 1.0}
            expected = allowed(sizes, received, 2 * num_workers, max_bytes)
            wait_until(lambda expected=expected: len(placement.placed) == expected)
            time.sleep(0.002)  # time enough to go too far
            assert len(placement.placed) == expected
            if max_bytes is not None:
                assert pipeline.bytes_ahead == sum(sizes[received:expected])

    in_time(run)
    assert sorted(placement.placed) == list(range(25))
    assert pipeline.bytes_ahead == 0


@pytest.mark.parametrize("seed", range(12))
def test_no_deadlock_however_tight_the_bounds(seed: int) -> None:
    dice = random.Random(seed)
    sizes = [dice.choice([1, 10, 1_000, 20_000]) for _ in range(60)]
    pauses = [dice.choice([0.0, 0.0, 0.001]) for _ in range(60)]

    def sample(i: int) -> int:
        time.sleep(pauses[i])
        return i

    def run() -> None:
        with SimulatedDevice(host_computes=True) as device:
            pipeline = make_pipeline(
                60,
                sample=sample,
                plan=lambda i: value_plan(i, numel=sizes[i]),
                placement=DevicePlacement(device) if seed % 2 else HostPlacement(),
                num_workers=dice.choice([1, 2, 3, 7]),
                prefetch_factor=dice.choice([1, 2, 4]),
                max_bytes_in_flight=dice.choice([1, 500, 30_000]),
            )
            assert [numbers_in(batch) for batch in taken(pipeline)] == [{float(i)} for i in range(60)]

    in_time(run)


# ---- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
def test_bytes_copies_and_seconds_are_those_of_the_device(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated clock stands still but for what the device does."""
    monkeypatch.setattr(simulated, "time", SimpleNamespace(perf_counter=lambda: 0.0, sleep=lambda s: None))
    with SimulatedDevice(bytes_per_s=1e6, copy_delay_s=lambda nbytes: 0.5, host_computes=True) as device:
        pipeline = make_pipeline(9, placement=DevicePlacement(device), num_workers=num_workers)
        placed_stats = []
        for placed, stats in pipeline:
            placed.take()
            placed_stats.append(stats)
        transfer_s = sum(stats.transfer_s for stats in placed_stats) + pipeline.transfers_s(wait=True)
        assert [stats.copies for stats in placed_stats] == [1] * 9
        assert sorted(stats.moved_bytes for stats in placed_stats) == sorted(device.copied_bytes)
        assert len(device.copied_bytes) == 9
        assert transfer_s == pytest.approx(9 * 0.5 + sum(device.copied_bytes) / 1e6, rel=1e-9)
        assert {(stats.batches, stats.nodes, stats.edges, stats.nbytes) for stats in placed_stats} == {
            (1, 1000, 2000, value_plan(0).nbytes)
        }
        assert pipeline.transfers_s(wait=True) == 0.0


def test_in_host_memory_nothing_moves() -> None:
    pipeline = make_pipeline(9, num_workers=2)
    counted = [(s.moved_bytes, s.copies, s.transfer_s, s.nbytes) for _, s in pipeline]
    assert counted == [(0, 0, 0.0, value_plan(0).nbytes)] * 9
    assert pipeline.transfers_s(wait=True) == 0.0


@pytest.mark.parametrize(("num_workers", "prefetch_factor"), [(1, 1), (2, 2), (5, 1)])
def test_what_was_ready_when_the_consumer_asked_is_counted(num_workers: int, prefetch_factor: int) -> None:
    num, max_ahead = 12, num_workers * prefetch_factor
    pipeline = make_pipeline(num, num_workers=num_workers, prefetch_factor=prefetch_factor)
    queued = []
    for received, (_, stats) in enumerate(pipeline, 1):
        queued.append(stats.queued)
        expected = min(max_ahead, num - received)
        wait_until(lambda expected=expected: pipeline._prefetch.num_ready == expected)
    assert queued == [0, *(min(max_ahead, num - received) for received in range(1, num))]


def test_without_workers_nothing_is_ever_ready() -> None:
    assert [stats.queued for _, stats in make_pipeline(5, num_workers=0)] == [0] * 5


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options_say_what_they_mean() -> None:
    options = PipelineOptions()
    assert (options.max_bytes, options.max_ahead) == (2 * 2**30, 4)
    assert PipelineOptions(max_bytes_in_flight=None).max_bytes is None
    assert PipelineOptions(num_workers=3, prefetch_factor=5).max_ahead == 15
    assert PipelineOptions(num_workers=0, prefetch_factor=5).max_ahead == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_workers": -1},
            "`num_workers` must be 0 or more, or 'auto', but got -1. HINT: 0 uses no threads; 'auto' tries out whether"
            " threads pay.",
        ),
        ({"prefetch_factor": 0}, "`prefetch_factor` must be at least 1, but got 0."),
        ({"max_bytes_in_flight": 0}, "`max_bytes_in_flight` must be above 0, but got 0."),
        ({"max_bytes_in_flight": "0.1B"}, "`max_bytes_in_flight` must be above 0, but got '0.1B'."),
        ({"max_bytes_in_flight": "much"}, "`max_bytes_in_flight` must be a number of bytes, but got 'much'."),
        ({"max_bytes_in_flight": -5}, "`max_bytes_in_flight` must be a number of bytes, but got -5."),
        ({"timeout_s": 0}, "`timeout_s` must be above 0, but got 0. HINT: None waits for ever."),
        ({"timeout_s": float("nan")}, "`timeout_s` must be above 0, but got nan."),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PipelineOptions(**options)

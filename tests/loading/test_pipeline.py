"""The pipeline on the simulated device, with delays that are against it."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from lightning_gnnopt.loading import DevicePlacement, HostPlacement, SimulatedDevice, ordered, simulated
from lightning_gnnopt.loading.ordered import OrderedPrefetch
from lightning_gnnopt.loading.pipeline import BatchPipeline, PipelineOptions, Stages
from lightning_gnnopt.loading.placement import Placed, Placement
from lightning_gnnopt.loading.plan import BatchPlan

from .graphs import prefetch_threads
from .test_ordered import wait_until
from .values import DEADLINE_S, SlowReader, numbers_in, value_plan

WORKERS = [0, 1, 2, 5]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: prefetch_threads() == [])


def make_pipeline(
    num: int,
    *,
    plan: Callable[[int], BatchPlan] = value_plan,
    sample: Callable[[int], Any] = lambda i: i,
    placement: Placement | None = None,
    **options: Any,
) -> BatchPipeline:
    stages = Stages(sample=sample, plan=lambda i, sampled: plan(sampled), describe=lambda i: f"batch {i} of epoch 9")
    return BatchPipeline(stages, range(num), options=PipelineOptions(**options), placement=placement)


def taken(pipeline: BatchPipeline) -> Iterator[list[Tensor]]:
    with closing(iter(pipeline)) as batches:
        for placed, _ in batches:
            yield placed.take()
    pipeline.transfers_s(wait=True)


def in_time(work: Callable[[], object]) -> None:
    """Fail, rather than wait for ever, if it comes to a deadlock."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "a deadlock"
    if errors:
        raise errors[0]


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


@pytest.mark.parametrize("max_bytes", [1, 100_000])
def test_closing_ends_workers_that_wait_for_memory(max_bytes: int) -> None:
    pipeline = make_pipeline(50, num_workers=4, prefetch_factor=3, max_bytes_in_flight=max_bytes)
    batches = iter(pipeline)
    next(batches)
    in_time(batches.close)
    assert prefetch_threads() == []


def test_an_error_ends_workers_that_wait_for_memory() -> None:
    def fail(i: int) -> int:
        if i == 0:
            time.sleep(0.02)  # the others wait for memory by then
            raise RuntimeError("the first one")
        return i

    def run() -> None:
        with pytest.raises(RuntimeError, match="the first one"):
            list(taken(make_pipeline(50, sample=fail, num_workers=4, max_bytes_in_flight=1)))

    in_time(run)


# ---- a worker that stalls --------------------------------------------------------------------------------------------


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(ordered, "_JOIN_S", 0.01)
    go_on = threading.Event()

    def stands_still(*args: Any) -> None:
        go_on.wait(DEADLINE_S)

    yield stands_still
    go_on.set()


@pytest.mark.parametrize("stage", ["sample", "plan", "slice"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_worker_that_stalls_is_named(stage: str, num_workers: int, stall: Callable[..., Any]) -> None:
    def at(name: str, i: int) -> int:
        if (name, i) == (stage, 2):
            stall()
        return i

    pipeline = make_pipeline(
        20,
        sample=lambda i: at("sample", i),
        plan=lambda i: value_plan(at("plan", i), write=lambda i: at("slice", i)),
        num_workers=num_workers,
        timeout_s=0.3,
    )
    received: list[set[float]] = []

    def run() -> None:
        message = (
            rf"Worker 'gnnopt-prefetch-\d' has made no progress for \d s \(`timeout_s` is 0\.3\): it is at '{stage}' of"
            r" item 2\. HINT: raise `timeout_s` if that may take so long, or set it to None; the note below says where"
        )
        with pytest.raises(TimeoutError, match=message) as caught:
            received.extend(numbers_in(batch) for batch in taken(pipeline))
        (note,) = caught.value.__notes__
        assert re.match(r"'gnnopt-prefetch-\d' stands at:\n", note)
        assert "in stands_still" in note

    in_time(run)
    assert received == [{0.0}, {1.0}]


def test_all_workers_may_stall_at_once(stall: Callable[..., Any]) -> None:
    """As they do when a disk or a network does."""

    def run() -> None:
        with pytest.raises(TimeoutError, match="it is at 'sample' of item 0"):
            list(taken(make_pipeline(20, sample=stall, num_workers=3, timeout_s=0.1)))

    in_time(run)


def test_a_worker_that_waits_for_memory_is_not_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch is due and it has been quiet for too long, again and again, until there is room."""
    judged = []
    fits, report_if_stuck = OrderedPrefetch._fits, OrderedPrefetch._report_if_stuck

    def fits_late(prefetch: OrderedPrefetch[Any], place: int, nbytes: int) -> bool:
        return len(judged) >= 5 and fits(prefetch, place, nbytes)

    def judge(prefetch: OrderedPrefetch[Any]) -> None:
        report_if_stuck(prefetch)
        judged.append(prefetch._due_worker())
        prefetch._changed.notify_all()

    monkeypatch.setattr(OrderedPrefetch, "_fits", fits_late)
    monkeypatch.setattr(OrderedPrefetch, "_report_if_stuck", judge)
    pipeline = make_pipeline(1, num_workers=1, max_bytes_in_flight=1, timeout_s=0.4)
    assert [numbers_in(batch) for batch in taken(pipeline)] == [{0.0}]
    assert len(judged) >= 5
    assert None not in judged


def test_a_workers_own_timeout_is_an_error_like_any_other() -> None:
    def fail(i: int) -> int:
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket") as caught:
        list(taken(make_pipeline(5, sample=fail, num_workers=2)))
    assert caught.value.__notes__ == ["This happened while batch 0 of epoch 9 was prepared."]


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
        ({"num_workers": -1}, "`num_workers` must be 0 or more, but got -1. HINT: 0 uses no threads."),
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

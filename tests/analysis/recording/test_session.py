from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.analysis.recording import session as session_module
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.profile_options import ProfileOptions
from lightning_gnnopt.analysis.recording.session import HostSpan, ProfileSession
from lightning_gnnopt.analysis.recording.step_memory import Stretch
from lightning_gnnopt.analysis.records import BatchRecord, LayerRecord
from lightning_gnnopt.memory import PeakMeter
from tests.analysis.spending import HandClock, SpendingConv

CPU = torch.device("cpu")


def make_batch(nodes: int = 6, edges: int = 9) -> Data:
    torch.manual_seed(0)
    batch = Data(x=torch.randn(nodes, 3), edge_index=torch.randint(nodes, (2, edges)))
    batch.batch_size = 2
    return batch


def make_session(clock: HandClock, **options: int) -> tuple[ProfileSession, SpendingConv]:
    model = SpendingConv(clock)
    return ProfileSession(model, CPU, ProfileOptions(**options), clock=clock), model


def run_step(session: ProfileSession, model: nn.Module, batch: Data, *, number: int | None = None) -> None:
    """A step that takes 1 s of waiting, the layer's 31 and 62 s, and 100 s of the optimizer."""
    clock: Any = session.marks.clock
    session.open_step()
    if session.is_open:
        session.marks.push(Label("wait"))
    clock.now += 1
    if session.is_open:
        session.marks.pop()
    session.take_batch(batch, sampler="NeighborSampler", batch_size=4)
    session.begin_compute()
    session.marks.push(Label("forward"))
    loss = model(batch.x, batch.edge_index).sum()
    session.marks.pop()
    session.marks.push(Label("backward"))
    loss.backward()
    session.marks.pop()
    session.end_compute()
    session.marks.push(Label("optimizer"))
    clock.now += 100
    session.marks.pop()


def test_a_step_is_recorded_to_the_second() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=1, memory_every=0)
    for _ in range(3):
        run_step(session, model, make_batch())
    records = session.finish()

    step_s = 1 + 31 + 62 + 100
    nbytes = 6 * 3 * 4 + 2 * 9 * 8
    assert records.batches == [
        BatchRecord(number, "NeighborSampler", 4, 2, 6, 9, nbytes, step_s, None, number > 0) for number in range(3)
    ]
    assert {record.batch for record in records.times} == {1, 2}
    for number in (1, 2):
        times = {
            (record.phase, record.layer, record.kind, record.part): record.seconds
            for record in records.times
            if record.batch == number and record.seconds
        }
        assert times == {
            ("wait", "", "", ""): 1,
            ("forward", "", "vertex", ""): 17,
            ("forward", "", "edge", "message"): 2,
            ("forward", "", "edge", "aggregate"): 4,
            ("forward", "", "edge", "update"): 8,
            ("backward", "", "vertex", ""): 34,
            ("backward", "", "edge", "message"): 4,
            ("backward", "", "edge", "aggregate"): 8,
            ("backward", "", "edge", "update"): 16,
            ("optimizer", "", "", ""): 100,
        }
    assert records.layers == [LayerRecord("", "SpendingConv", 12, 2, 0, "")]
    assert records.info["steps"] == 3
    assert 0 < records.info["overhead_s"] < 1
    assert records.info["notes"] == []
    assert session.spans == []


def test_memory_is_recorded_in_steps_of_its_own_and_is_that_of_a_step_without_us() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=1, memory_every=2, detail_batches=1)
    batch = make_batch(500, 4000)
    for _ in range(5):
        run_step(session, model, batch)
        model.zero_grad()
    records = session.finish()

    def step() -> None:
        model(batch.x, batch.edge_index).sum().backward()

    with PeakMeter("cpu") as meter:
        step()
    peak = meter.peak.allocated_bytes
    # the peak of the first is not that of a step, as its tensors were followed
    assert [record.peak_bytes for record in records.batches] == [None, None, None, None, peak]
    assert [record.timed for record in records.batches] == [False, False, True, True, False]
    assert {record.batch for record in records.times} == {2, 3}
    assert {record.batch for record in records.memory} == {1, 4}
    by_label = {tuple(record)[:4]: record for record in _rows(records.memory) if record[-1] == 1}
    gathered = 4000 * 3 * 4
    assert by_label["forward", "", "edge", "gather"][5:7] == (gathered, gathered)
    assert max(record.peak_bytes for record in records.memory) == peak
    grads, loss = sum(parameter.numel() * 4 for parameter in model.parameters()), 4
    assert sum(record.live_bytes for record in records.memory if record.batch == 4) == grads + loss
    assert {record.batch for record in records.tensors} == {1}
    assert sum(record.nbytes for record in records.tensors) <= peak
    assert records.tensors[0].nbytes == gathered
    assert records.tensors[0].line.endswith("in forward")


def _rows(memory: list[Any]) -> list[tuple[Any, ...]]:
    return [(r.phase, r.layer, r.kind, r.part, r.peak_bytes, r.live_bytes, r.allocated_bytes, r.batch) for r in memory]


def test_what_the_profiler_itself_took_is_no_part_of_a_step_on_the_hosts_clock() -> None:
    for is_host, wait_s in ((True, 7.0), (False, 10.0)):
        clock = HandClock()
        clock.is_host = is_host
        session = ProfileSession(nn.Linear(1, 1), CPU, ProfileOptions(skip_batches=0, memory_every=0), clock=clock)
        session.open_step()
        session.marks.push(Label("wait"))
        clock.now += 10
        session.marks.spent_s += 3
        session.marks.pop()
        clock.now += 1
        session.take_batch(make_batch())
        records = session.finish()
        times = {record.phase: record.seconds for record in records.times}
        assert times["wait"] == pytest.approx(wait_s, abs=0.01)
        assert times["other"] == pytest.approx(1, abs=0.01)
        assert records.batches[0].step_s == pytest.approx(wait_s + 1, abs=0.02)


def test_a_device_that_lags_is_asked_later_and_waited_for_at_the_end() -> None:
    clock = HandClock()
    clock.reached = 300
    session, model = make_session(clock, skip_batches=0, memory_every=0)
    for _ in range(4):
        run_step(session, model, make_batch())
    assert [record.batch for record in session.records.batches] == [0]
    assert clock.released > 0
    assert [record.batch for record in session.finish().batches] == [0, 1, 2, 3]


def test_a_loader_that_has_no_more_makes_no_step() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=0, memory_every=0)
    run_step(session, model, make_batch())
    session.open_step()
    clock.now += 50
    records = session.finish()
    assert [record.step_s for record in records.batches] == [194]
    assert records.info["steps"] == 1


def test_after_the_last_recorded_step_nothing_is_touched_but_the_count() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=0, memory_every=0, max_batches=2)
    for _ in range(5):
        run_step(session, model, make_batch())
    assert not session.is_open
    assert not model._forward_hooks
    records = session.finish()
    assert len(records.batches) == 2
    assert records.info["steps"] == 5


def test_a_step_that_raises_is_dropped_and_leaves_no_hook() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=0, memory_every=1)
    run_step(session, model, make_batch())
    session.open_step()
    session.take_batch(make_batch())
    session.begin_compute()
    assert model._forward_hooks
    session.break_off()
    assert not model._forward_hooks
    assert len(session.finish().batches) == 1
    with PeakMeter("cpu"):  # nobody records any more
        pass


def test_validation_is_no_part_of_a_step() -> None:
    clock = HandClock()
    session, model = make_session(clock, skip_batches=0, memory_every=0)
    run_step(session, model, make_batch())
    session.marks.push(Label("validation"))
    clock.now += 1000
    session.marks.pop()
    records = session.finish()
    assert records.batches[0].step_s == 194
    assert [record.seconds for record in records.times if record.phase == "validation"] == [1000]


def test_traced_steps_keep_their_stretches_on_the_host() -> None:
    session, model = make_session(HandClock(), skip_batches=1, memory_every=0, trace_batches=1)
    for _ in range(3):
        run_step(session, model, make_batch())
    session.finish()
    assert {span.batch for span in session.spans} == {1}
    assert isinstance(session.spans[0], HostSpan)
    for before, after in zip(session.spans, session.spans[1:], strict=False):
        assert before.end_s == after.start_s
    assert [span.label.phase for span in session.spans][1] == "wait"


def test_what_cannot_be_looked_into_is_said() -> None:
    without = ProfileSession(nn.Linear(3, 3), CPU, ProfileOptions()).finish()
    assert without.layers == []
    assert "No layers of message passing" in without.info["notes"][0]

    model = nn.Sequential(torch.compile(SpendingConv(HandClock())))
    closed = ProfileSession(model, CPU, ProfileOptions()).finish()
    assert closed.layers == [LayerRecord("0", "", 0, 0, 0, "compiled by torch.compile")]
    assert closed.info["notes"] == [
        "`0` is compiled by torch.compile: its layers cannot be looked into, only its time as a whole is known."
    ]


def test_memory_that_another_profiler_holds_is_said_once() -> None:
    session, model = make_session(HandClock(), skip_batches=0, memory_every=1)
    with torch.autograd.profiler.profile():
        for _ in range(2):
            run_step(session, model, make_batch())
        records = session.finish()
    assert [record.peak_bytes for record in records.batches] == [None, None]
    assert len(records.info["notes"]) == 1
    assert "another profiler runs in this thread" in records.info["notes"][0]


def test_batches_are_found_in_what_loaders_yield() -> None:
    hetero = HeteroData()
    hetero["paper"].x = torch.zeros(5, 2)
    hetero["paper"].batch_size = 3
    hetero["author"].x = torch.zeros(7, 2)
    hetero["author", "writes", "paper"].edge_index = torch.zeros(2, 11, dtype=torch.long)
    full = Data(x=torch.zeros(8, 2), edge_index=torch.zeros(2, 4, dtype=torch.long))
    full.train_mask = torch.arange(8) < 5
    cases: list[tuple[Any, tuple[int, int, int]]] = [
        (hetero, (3, 12, 11)),
        ([{"a": 1}, (full,)], (5, 8, 4)),
        (Data(x=torch.zeros(4, 1), edge_index=torch.zeros(2, 0, dtype=torch.long)), (4, 4, 0)),
        ("no graph", (0, 0, 0)),
        ([Tensor(), None], (0, 0, 0)),
    ]
    for batch, expected in cases:
        session = ProfileSession(nn.Linear(1, 1), CPU, ProfileOptions(skip_batches=0))
        session.open_step()
        session.take_batch(batch)
        record = session.finish().batches[0]
        assert (record.seeds, record.nodes, record.edges) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_batches": -1}, "`skip_batches` must be 0 or more, but got -1."),
        ({"trace_batches": -3}, "`trace_batches` must be 0 or more, but got -3."),
        ({"max_batches": 3}, "`max_batches` must be above `skip_batches`, but is 3 and 3."),
    ],
)
def test_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ProfileOptions(**options)


def test_modes_of_steps() -> None:
    options = ProfileOptions(skip_batches=2, memory_every=3, detail_batches=1)
    modes = [options.mode(step) for step in range(9)]
    # the first of the first three, then one of each three
    assert modes == ["plain", "plain", "detail", "timed", "timed", "timed", "memory", "timed", "memory"]
    assert ProfileOptions(skip_batches=0, memory_every=0).mode(0) == "timed"
    assert {ProfileOptions(skip_batches=0, memory_every=1).mode(step) for step in range(2, 9)} == {"memory"}


@pytest.mark.parametrize("memory_every", [2, 3, 10, 17])
@pytest.mark.parametrize("epoch", [2, 5, 10, 20, 30])
def test_no_length_of_an_epoch_hides_batches_from_the_recording(memory_every: int, epoch: int) -> None:
    options = ProfileOptions(skip_batches=0, memory_every=memory_every, detail_batches=0)
    recorded = [step for step in range(300 * memory_every) if options.mode(step) == "memory"]
    assert [step // memory_every for step in recorded] == list(range(300))  # one of each stretch
    places = Counter(step % epoch for step in recorded)
    assert set(places) == set(range(epoch))
    assert max(places.values()) <= 2 * 300 / epoch


def test_what_a_device_holds_beside_model_and_batch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1000, 5000, 3000])

    class Memory:
        held_bytes: int | None = None

        def start(self) -> None:
            self.held_bytes = next(held)

        def mark(self) -> None:
            pass

        def stop(self) -> list[Stretch]:
            return []

    monkeypatch.setattr(session_module, "step_memory", lambda device: Memory())
    session, model = make_session(HandClock(), skip_batches=0, memory_every=1, detail_batches=0)
    assert session.beside_bytes(10) == 0
    batch = make_batch(10, 20)
    for _ in range(3):
        run_step(session, model, batch)
    session.finish()
    loaded = session.records.batches[0].loaded_bytes
    assert session.beside_bytes(100) == 5000 - loaded - 100
    assert session.beside_bytes(10**6) == 0

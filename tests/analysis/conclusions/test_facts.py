from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.records import (
    BatchRecord,
    LayerRecord,
    LoadRecord,
    Records,
    TensorRecord,
    TimeRecord,
    ValidationRecord,
)

GIB = 2**30


def step(
    batch: int, *, s: float = 1.0, edges: int = 100, loaded: int = 10, peak: int | None = None, timed: bool = True
) -> BatchRecord:
    return BatchRecord(batch, "neighbor", 8, 8, 50, edges, loaded, s, peak, timed)


def spent(batch: int, phase: str, s: float, layer: str = "", kind: str = "", part: str = "") -> TimeRecord:
    return TimeRecord(batch, phase, layer, kind, part, s, 1)


def load(
    batch: int,
    sample: float | None = 0.0,
    slice_: float | None = 0.0,
    *,
    beside: bool = True,
    transfer: float = 0.0,
    queued: float = 0.0,
) -> LoadRecord:
    return LoadRecord(batch, sample, slice_, transfer, 0.0, beside, queued)


def tensor(batch: int, nbytes: int, phase: str, layer: str = "", kind: str = "", part: str = "") -> TensorRecord:
    return TensorRecord(batch, nbytes, "1x1", "float32", phase, layer, kind, part, "aten::mm", "m.py:1 in f")


def test_nothing_recorded_leaves_the_defaults() -> None:
    assert Facts.from_records(Records()) == Facts()


def test_times_are_means_over_the_timed_steps_only() -> None:
    records = Records(
        batches=[step(0, s=100.0, timed=False), step(1, s=2.0), step(2, s=4.0)],
        times=[
            spent(0, "wait", 100.0),  # of a step that is not timed
            spent(1, "wait", 1.0),
            spent(1, "forward", 1.0, "conv", "edge", "message"),
            spent(2, "wait", 2.0),
            spent(2, "forward", 0.5),
            spent(2, "backward", 1.5, "conv", "vertex"),
            spent(2, "validation", 7.0),
        ],
    )
    facts = Facts.from_records(records)
    assert (facts.timed_steps, facts.step_s) == (2, 3.0)
    assert facts.phase_s == {"wait": 1.5, "forward": 0.75, "backward": 0.75}  # without validation
    assert sum(facts.phase_s.values()) == facts.step_s


def test_layers_kinds_and_parts_are_of_forward_and_backward_only() -> None:
    records = Records(
        batches=[step(0, s=9.0), step(1, s=9.0)],
        times=[
            spent(0, "forward", 1.0, "convs.é", "vertex"),
            spent(0, "forward", 2.0, "convs.é", "edge", "gather"),
            spent(1, "backward", 4.0, "convs.é", "edge", "message"),
            spent(1, "backward", 6.0, "", "edge", "normalize"),  # weights of edges, made outside of the layers
            spent(0, "forward", 8.0),
            spent(0, "optimizer", 16.0),
            spent(0, "wait", 32.0),
            spent(0, "callbacks", 64.0, "convs.é", "edge", "message"),  # a callback that runs the model
        ],
    )
    facts = Facts.from_records(records)
    assert facts.layer_s == {"convs.é": 3.5, "": 7.0}
    assert facts.kind_s == {"vertex": 0.5, "edge": 6.0, "": 4.0}
    assert facts.part_s == {"gather": 1.0, "message": 2.0, "normalize": 3.0}
    assert sum(facts.part_s.values()) == facts.kind_s["edge"]


def test_without_a_timed_step_there_are_no_times_but_memory() -> None:
    records = Records(
        batches=[step(0, peak=90, timed=False)],
        times=[spent(0, "wait", 1.0)],
        loads=[load(0, 1.0, 2.0, queued=3.0)],
        info={"overhead_s": 0.5},
    )
    facts = Facts.from_records(records)
    assert (facts.timed_steps, facts.step_s, facts.phase_s, facts.kind_s) == (0, None, {}, {})
    assert (facts.sample_s, facts.slice_s, facts.transfer_s, facts.queued, facts.overhead) == (None,) * 5
    assert (facts.peaks_bytes, facts.beside) == ((100,), True)


def test_what_the_loader_tells_is_averaged_over_the_timed_steps_that_it_tells_of() -> None:
    records = Records(
        batches=[step(0, timed=False), step(1), step(2), step(3)],
        loads=[
            load(0, 50.0, 50.0, queued=50.0),
            load(1, 1.0, None, queued=2.0),
            load(2, 3.0, 4.0, queued=1.0),
            load(3, None, None, queued=0.0),
        ],
    )
    facts = Facts.from_records(records)
    assert (facts.sample_s, facts.slice_s, facts.queued) == (2.0, 4.0, 1.5)


def test_a_loader_that_tells_nothing_has_no_stages_and_no_queue() -> None:
    records = Records(batches=[step(0)], loads=[load(0, None, None, beside=False)])
    facts = Facts.from_records(records)
    assert (facts.sample_s, facts.slice_s, facts.queued, facts.beside) == (None, None, None, False)


@pytest.mark.parametrize(("phase_s", "copied_s", "expected"), [(0.25, 0.5, 0.5), (0.5, 0.25, 0.5), (None, 0.25, 0.25)])
def test_transfer_is_the_longer_of_the_phase_and_the_copy_stream(
    phase_s: float | None, copied_s: float, expected: float
) -> None:
    times = [] if phase_s is None else [spent(0, "transfer", phase_s)]
    records = Records(batches=[step(0)], times=times, loads=[load(0, transfer=copied_s)])
    assert Facts.from_records(records).transfer_s == expected


def test_transfer_is_not_known_without_either() -> None:
    assert Facts.from_records(Records(batches=[step(0)])).transfer_s is None


def test_only_validation_that_training_stood_still_for_counts() -> None:
    records = Records(validations=[ValidationRecord(4, 1.5, False), ValidationRecord(8, 2.0, False)])
    facts = Facts.from_records(records)
    assert (facts.validation_s, facts.validations, facts.async_validation) == (3.5, 2, False)
    records.validations.append(ValidationRecord(12, 30.0, True))
    facts = Facts.from_records(records)
    assert (facts.validation_s, facts.validations, facts.async_validation) == (3.5, 3, True)
    assert Facts.from_records(Records(info={"async_validation": True})).async_validation


def test_peaks_include_the_batch_and_are_held_against_the_limit_with_the_model() -> None:
    records = Records(
        batches=[
            step(0, edges=10, loaded=10, peak=90),  # 100, and 50 of the model
            step(1, edges=20, loaded=20, peak=None),
            step(2, edges=30, loaded=30, peak=170),  # 200
            step(3, edges=40, loaded=100, peak=300),  # 400
        ],
        info={"static_bytes": 50, "limit_bytes": 150},
    )
    facts = Facts.from_records(records)
    assert facts.peaks_bytes == (100, 200, 400)
    assert facts.over_limit == pytest.approx(2 / 3)  # the first one, 150, is at the limit
    assert facts.excess_bytes == 100 + 300
    assert facts.measured_edges == 80
    assert facts.loaded_bytes == 40.0
    assert facts.expansion == pytest.approx((100 / 10 + 200 / 30 + 400 / 100) / 3)


def test_without_a_limit_or_measured_steps_there_is_no_share_over_it() -> None:
    assert Facts.from_records(Records(batches=[step(0, peak=5)])).over_limit is None
    facts = Facts.from_records(Records(batches=[step(0)], info={"limit_bytes": 1}))
    assert (facts.over_limit, facts.excess_bytes, facts.expansion, facts.edge_bytes) == (None, 0, None, None)


def test_batches_of_unknown_size_have_no_expansion() -> None:
    facts = Facts.from_records(Records(batches=[step(0, loaded=0, peak=50)]))
    assert (facts.peaks_bytes, facts.expansion, facts.loaded_bytes) == ((50,), None, None)


def test_edge_bytes_are_the_slope_of_least_squares_with_the_batch() -> None:
    edges, peaks, loaded = [10, 20, 40, 80, 80], [115, 205, 490, 830, 790], [5, 15, 10, 70, 90]
    rows = zip(edges, loaded, peaks, strict=True)
    records = Records(batches=[step(i, edges=e, loaded=b, peak=p) for i, (e, b, p) in enumerate(rows)])
    expected = np.polyfit(edges, np.add(peaks, loaded), 1)[0]
    assert Facts.from_records(records).edge_bytes == pytest.approx(expected)


def test_edge_bytes_keep_their_precision_for_huge_numbers() -> None:
    edges = [10**9, 10**9 + 1, 10**9 + 3]
    records = Records(batches=[step(i, edges=e, loaded=0, peak=48 * e + 100 * GIB) for i, e in enumerate(edges)])
    assert Facts.from_records(records).edge_bytes == pytest.approx(48.0, rel=1e-9)


@pytest.mark.parametrize(
    ("edges", "peaks", "expected"),
    [
        ([10, 20, 30], [90, 190, 290], 10.0),
        ([10, 20, 20], [90, 190, 190], None),  # two numbers of edges only
        ([0, 0, 0], [90, 190, 290], None),
        ([10, 20, 30], [290, 190, 90], None),  # it falls
        ([10, 20, 30], [90, 90, 90], None),
    ],
)
def test_edge_bytes_need_three_numbers_of_edges_and_a_line_that_rises(
    edges: list[int], peaks: list[int], expected: float | None
) -> None:
    records = Records(
        batches=[step(i, edges=e, loaded=0, peak=p) for i, (e, p) in enumerate(zip(edges, peaks, strict=True))]
    )
    found = Facts.from_records(records).edge_bytes
    assert found == (None if expected is None else pytest.approx(expected))


def test_tensors_are_those_of_the_step_that_held_most_by_where_they_were_made() -> None:
    records = Records(
        tensors=[
            tensor(3, 500, "forward", "conv", "edge", "gather"),
            tensor(13, 400, "forward", "conv", "edge", "message"),
            tensor(13, 200, "backward", "conv", "edge", "message"),
            tensor(13, 50, "forward", "conv", "vertex"),
            tensor(13, 30, "forward", "", "edge", "normalize"),
            tensor(13, 20, "forward"),
        ]
    )
    expected = {"conv message": 600, "conv vertex": 50, "normalize": 30, "forward": 20}
    assert Facts.from_records(records).alive_bytes == expected


def test_the_profilers_share_is_of_the_timed_steps() -> None:
    records = Records(batches=[step(0, s=50.0, timed=False), step(1, s=2.0), step(2, s=3.0)], info={"overhead_s": 0.2})
    assert Facts.from_records(records).overhead == pytest.approx(0.04)
    records = Records(batches=[step(0, s=0.0)], info={"overhead_s": 0.2})
    assert Facts.from_records(records).overhead is None


def test_modules_that_cannot_be_looked_into_are_counted() -> None:
    layers = [LayerRecord("conv", "GCNConv", 5, 3, 0, ""), LayerRecord("net", "", 0, 0, 0, "compiled by torch.compile")]
    assert Facts.from_records(Records(layers=layers)).closed == 1


def test_info_is_taken_over() -> None:
    info = {
        "device": "cpu",
        "model": "GAT",
        "num_workers": 2,
        "cores": 4,
        "fit_s": 12.5,
        "steps": 40,
        "static_bytes": 7,
        "limit_bytes": 6 * GIB,
        "memory_control": True,
        "notes": ["One.", "Two."],
    }
    facts = Facts.from_records(Records(info=info))
    assert (facts.device, facts.model, facts.num_workers, facts.cores) == ("cpu", "GAT", 2, 4)
    assert (facts.fit_s, facts.fit_steps, facts.static_bytes, facts.limit_bytes) == (12.5, 40, 7, 6 * GIB)
    assert (facts.memory_control, facts.notes) == (True, ("One.", "Two."))


def test_info_that_is_none_is_as_good_as_missing_and_cores_may_stand_in_the_environment() -> None:
    names = ("device", "model", "num_workers", "cores", "fit_s", "steps", "static_bytes", "limit_bytes")
    more = ("overhead_s", "async_validation", "memory_control", "notes", "environment")
    assert Facts.from_records(Records(info=dict.fromkeys(names + more))) == Facts()
    assert Facts.from_records(Records(info={"environment": {"cores": "6"}})).cores == 6


def test_waiting_for_the_first_batches_of_epochs_is_told_apart() -> None:
    loads = [LoadRecord(number, None, None, 0.0, wait, True, 0.0) for number, wait in enumerate([3.0, 1.0, 5.0, 1.0])]
    records = Records(batches=[step(number) for number in range(4)], loads=loads, info={"steps_per_epoch": 2})
    assert Facts.from_records(records).first_wait == 0.8
    for steps_per_epoch in (1, None):
        records.info["steps_per_epoch"] = steps_per_epoch
        assert Facts.from_records(records).first_wait is None


def test_time_between_epochs_is_the_fits() -> None:
    facts = Facts.from_records(Records(info={"between_s": 3.0, "epochs": 4, "fit_s": 10.0}))
    assert (facts.between_s, facts.epochs, facts.fit_s) == (3.0, 4, 10.0)


def test_what_lies_on_the_device_beside_the_model_counts_for_the_limit() -> None:
    info = {"limit_bytes": 1000, "static_bytes": 100}
    batches = [BatchRecord(0, "neighbor", 8, 8, 9, 10, 50, 1.0, 700, True)]
    assert Facts.from_records(Records(batches=batches, info=info)).over_limit == 0
    facts = Facts.from_records(Records(batches=batches, info=info | {"beside_bytes": 200}))
    assert (facts.fixed_bytes, facts.over_limit, facts.excess_bytes) == (300, 1.0, 50)

"""Sums of a profile's records."""

from __future__ import annotations

from lightning_gnnopt.analysis.conclusions.breakdown import Breakdown
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.records import BatchRecord, LoadRecord, PeakRecord, Records
from lightning_gnnopt.analysis.reporting.report import BottleneckReport
from lightning_gnnopt.analysis.reporting.tables import loading_table, peak_table


def batch(number: int, seeds: int, peak_bytes: int | None, *, sampler: str = "neighbor", size: int = 64) -> BatchRecord:
    return BatchRecord(number, sampler, size, seeds, 10, 20, 100, 1.0, peak_bytes, True)


def test_what_an_epoch_had_left_is_no_sample_of_its_batch_size() -> None:
    batches = [batch(0, 64, 900), batch(1, 64, 1000), batch(2, 7, 100), batch(3, 64, None), batch(4, 7, None)]
    found = Breakdown(Records(batches=batches))
    assert found.peaks_bytes == {("neighbor", 64): [1000, 1100]}
    assert found.left_out == 1
    assert len(Facts.from_records(Records(batches=batches)).peaks_bytes) == 3  # it has to fit all the same
    table = peak_table(BottleneckReport(Records(batches=batches)))
    assert table is not None
    assert table.title.endswith(", 1 smaller last batch left out")


def test_batches_of_any_number_of_seeds_are_all_samples() -> None:
    batches = [batch(number, seeds, 10, sampler="cluster") for number, seeds in enumerate((64, 41, 58, 64, 12))]
    found = Breakdown(Records(batches=batches, peaks=[PeakRecord("cluster", 64, 20, 5)]))
    assert found.peaks_bytes == {("cluster", 64): [110] * 5 + [25]}
    assert found.left_out == 0


def test_beside_training_the_transfer_is_that_of_the_loaders_stream() -> None:
    records = Records(batches=[batch(0, 64, None)], loads=[LoadRecord(0, 0.5, 0.25, 0.125, 0.0, True, 1.0)])
    table = loading_table(BottleneckReport(records))
    assert table is not None
    assert ("transfer", "125 ms") in table.rows
    records.loads = [LoadRecord(0, 0.5, 0.25, 0.0, 0.0, True, 1.0)]
    table = loading_table(BottleneckReport(records))
    assert table is not None
    assert not [row for row in table.rows if row[0] == "transfer"]

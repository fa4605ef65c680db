from __future__ import annotations

from pathlib import Path

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.analysis import BottleneckReport, sampling_sweep
from lightning_gnnopt.analysis.records import PeakRecord, Records
from lightning_gnnopt.datasets import load_dataset


def test_a_sweep_tells_the_peak_of_each_batch_and_the_report_draws_a_box_for_each_size(tmp_path: Path) -> None:
    model = NodeClassifier("sage", in_channels=64, out_channels=10, hidden_channels=8)
    records = Records()
    data = load_dataset("digits-knn")
    records.sweeps = sampling_sweep(data, model, batch_sizes=[32, 128], batches=4, peaks=records.peaks)

    groups: dict[tuple[str, int], list[PeakRecord]] = {}
    for peak in records.peaks:
        groups.setdefault((peak.sampler, peak.batch_size), []).append(peak)
    assert {key: len(peaks) for key, peaks in groups.items()} == {
        ("NeighborSampler", 32): 4, ("NeighborSampler", 128): 4, ("full", 898): 1,
    }  # fmt: skip
    for point in records.sweeps:
        of_point = groups[point.sampler, int(point.value)]
        assert max(peak.peak_bytes for peak in of_point) == point.peak_bytes
        assert sum(peak.loaded_bytes for peak in of_point) / len(of_point) == point.loaded_bytes

    report = BottleneckReport(records)
    assert "peaks" in report.available
    _, ax = report.plot("peaks")
    labels = [label.get_text().splitlines()[:2] for label in ax.get_xticklabels()]
    assert labels == [["NeighborSampler", "32 seeds"], ["NeighborSampler", "128 seeds"], ["full", "898 seeds"]]
    records.save(tmp_path)
    assert Records.load(tmp_path).peaks == records.peaks

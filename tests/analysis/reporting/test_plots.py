from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

from lightning_gnnopt.analysis.records import BatchRecord, Records, TimeRecord  # noqa: E402
from lightning_gnnopt.analysis.reporting.plots import KINDS  # noqa: E402
from lightning_gnnopt.analysis.reporting.report import BottleneckReport  # noqa: E402

from .profile_records import LAYER_MS, MIB, OUTSIDE_MS, PHASE_MS, make_facts, make_records, make_report  # noqa: E402

MEAN_SCALE = 1.05
"""Mean of the factors of the timed steps: half of them 1, half of them 1.1."""


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def bars(ax: Any) -> dict[tuple[str, str], float]:
    """Lengths of the horizontal bars, by legend and by the name of their row."""
    rows = {round(y): text.get_text() for y, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    found: dict[tuple[str, str], float] = defaultdict(float)
    for container in ax.containers:
        for patch in container.patches:
            row = rows[round(patch.get_y() + patch.get_height() / 2)]
            found[container.get_label(), row] += patch.get_width()
    return dict(found)


def test_all_kinds_draw_into_a_figure_of_their_own_and_into_given_axes() -> None:
    report = make_report()
    counts = {"sampling_sweep": 2, "graph_sweep": 6}
    assert report.available == tuple(KINDS)
    for kind, drawing in KINDS.items():
        figure, _ = drawing(report)
        assert len(figure.axes) == counts.get(kind, 1), kind
        assert all(ax.get_xlabel() or ax.get_ylabel() for ax in figure.axes), kind
        own, given = plt.subplots(1, counts.get(kind, 1))
        again, drawn = drawing(report, given)
        assert again is own
        assert (drawn is given) if kind not in counts else (list(drawn) == list(given)), kind
        assert str(drawing.describe(report)).endswith("."), kind


def test_a_wrong_number_of_axes_is_refused() -> None:
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"`ax` must be 2 axes, but got 1\. HINT: plt.subplots\(1, 2\)\."):
        make_report().plot("sampling_sweep", ax)
    with pytest.raises(ValueError, match=r"`ax` must be one axes, but got 2\."):
        make_report().plot("phases", plt.subplots(1, 2)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_data_is_named_with_the_way_to_record_it(kind: str) -> None:
    report = make_report(Records())
    assert report.available == ()
    with pytest.raises(ValueError, match=rf"^`{kind}` needs .*, but .* HINT: .*`"):
        report.plot(kind)
    assert plt.get_fignums() == []


def test_an_unknown_kind_is_told_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown kind of figure 'phase'. Did you mean 'phases'\?.*HINT: there is data"
    ):
        make_report().plot("phase")
    with pytest.raises(ValueError, match="HINT: there is data for none of them"):
        make_report(Records()).plot("phase")


def test_phases_are_the_means_of_the_timed_steps() -> None:
    _, ax = make_report().plot("phases")
    widths = [(container.get_label(), container.patches[0].get_width()) for container in ax.containers]
    forward_ms = sum(LAYER_MS.values()) * (1 + 2) + OUTSIDE_MS["forward"]
    backward_ms = 2 * sum(LAYER_MS.values()) * (1 + 2) + OUTSIDE_MS["backward"]
    expected = PHASE_MS | {"forward": forward_ms, "backward": backward_ms}
    order = ["wait", "transfer", "forward", "backward", "optimizer", "callbacks", "other"]
    total_ms = sum(expected.values())
    for (label, width), phase in zip(widths, order, strict=False):
        assert width == pytest.approx(MEAN_SCALE * expected[phase])
        assert label.startswith(f"{phase}: ")
        assert label.endswith(f", {100 * expected[phase] / total_ms:.1f} %")
    # the loader's stages lie beside; the transfer is a phase of the loop already
    assert [width for _, width in widths[len(order) :]] == pytest.approx([8.4, 3.15])
    assert ax.get_xlabel() == "time [ms]"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a step", "the loader,\nbeside it"]


def test_the_phases_lie_end_to_end_and_make_up_the_step() -> None:
    report = make_report()
    _, ax = report.plot("phases")
    patches = [patch for container in ax.containers for patch in container.patches if patch.get_y() < 0.5]
    ends = [0.0] + [patch.get_x() + patch.get_width() for patch in patches]
    assert [patch.get_x() for patch in patches] == pytest.approx(ends[:-1])
    assert ends[-1] == pytest.approx(1000 * report.breakdown.step_s)
    timed = [batch.step_s for batch in report.records.batches if batch.timed]
    assert ends[-1] == pytest.approx(1000 * statistics.mean(timed))


def test_a_loader_that_training_waits_for_has_no_bar_beside() -> None:
    _, ax = make_report(facts=make_facts(beside=False)).plot("phases")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a step"]


def test_layers_are_split_by_kind_and_pass() -> None:
    _, ax = make_report().plot("layers")
    edge_ms = sum(ms for (kind, _), ms in LAYER_MS.items() if kind == "edge")
    expected = {
        (f"{kind}, {phase}", layer): MEAN_SCALE * ms * factor * scale
        for layer, scale in (("conv1", 1), ("conv2", 2))
        for kind, ms in (("vertex", LAYER_MS["vertex", ""]), ("edge", edge_ms))
        for phase, factor in (("forward", 1), ("backward", 2))
    }
    expected |= {(f"other, {phase}", "outside the layers"): MEAN_SCALE * ms for phase, ms in OUTSIDE_MS.items()}
    assert {key: width for key, width in bars(ax).items() if width} == pytest.approx(expected)
    hatched = {container.get_label(): container.patches[0].get_hatch() for container in ax.containers}
    assert {label for label, hatch in hatched.items() if hatch} == {label for label in hatched if "backward" in label}


def test_edge_parts_add_up_both_passes() -> None:
    _, ax = make_report().plot("edge_parts")
    expected = {
        (part, layer): MEAN_SCALE * ms * 3 * scale
        for layer, scale in (("conv1", 1), ("conv2", 2))
        for (kind, part), ms in LAYER_MS.items()
        if kind == "edge"
    }
    assert bars(ax) == pytest.approx(expected)


def test_of_many_layers_the_slow_ones_are_drawn_and_the_others_added_up() -> None:
    report = make_report(make_records(layers=[f"layer{i}" for i in range(50)]))
    _, ax = report.plot("edge_parts")
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [*(f"layer{i}" for i in range(34, 50)), "and 34 more"]
    found = bars(ax)
    # the k-th layer takes k times as long; 34 of them together 34 * 35 / 2 times
    unit = 1000 if ax.get_xlabel().endswith("[ms]") else 1
    expected_s = 1e-3 * MEAN_SCALE * 3 * LAYER_MS["edge", "message"] * 34 * 35 / 2
    assert found["message", "and 34 more"] == pytest.approx(unit * expected_s)
    longest = max(sum(width for (_, row), width in found.items() if row == name) for name in names[:-1])
    assert ax.get_xlim()[1] == pytest.approx(1.5 * longest)  # the sum runs out of it, and its length is written
    assert any("s \u2192" in text.get_text() for text in ax.texts)


def test_memory_by_place_is_the_mean_over_the_recorded_steps() -> None:
    _, ax = make_report().plot("memory")
    assert ax.get_xlabel() == "bytes beyond those before the step [MiB]"
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["forward conv1", "forward conv2", "backward conv2", "backward conv1", "optimizer"]
    peaks, growth = ([patch.get_width() for patch in container.patches] for container in ax.containers)
    mean = statistics.mean(1 + batch for batch in (0, 2, 4, 6))
    assert peaks == pytest.approx([5 * mean, 6 * mean, 7 * mean, 6 * mean, 4 * mean])
    assert growth == pytest.approx([3 * mean, 3 * mean, -3 * mean, -3 * mean, 0])


def test_expansion_has_a_point_for_each_measured_step() -> None:
    _, ax = make_report().plot("expansion")
    points, mean = ax.lines
    assert list(points.get_xdata()) == [0, 2, 4, 6]
    assert list(points.get_ydata()) == pytest.approx([6, 10, 14, 18])  # (50 + 20 k + 10) / 10
    assert mean.get_ydata()[0] == pytest.approx(12)


def test_batches_without_bytes_have_no_expansion() -> None:
    records = make_records()
    records.batches = [replace(batch, loaded_bytes=0) for batch in records.batches]
    assert "expansion" not in make_report(records).available


def test_box_plots_are_by_sampler_and_batch_size_with_the_limit_less_the_model() -> None:
    records = Records()
    groups = {
        ("neighbor", 256): [1, 2, 3, 4, 5],
        ("neighbor", 64): [1, 1, 2],
        ("full", 1000): [9],
        ("labor", 64): [3, 5],
    }
    for (sampler, size), peaks in groups.items():
        for peak in peaks:
            records.batches.append(BatchRecord(0, sampler, size, size, 1, 1, MIB, 0.1, peak * MIB, True))
    records.batches.append(BatchRecord(0, "unmeasured", 1, 1, 1, 1, MIB, 0.1, None, True))
    _, ax = make_report(records, facts=make_facts(limit_bytes=20 * MIB, static_bytes=5 * MIB)).plot("peaks")
    labels = [text.get_text().split("\n")[:2] for text in ax.get_xticklabels()]
    order = [("labor", 64), ("neighbor", 64), ("neighbor", 256), ("full", 1000)]
    assert labels == [[sampler, f"{size:,} seeds"] for sampler, size in order]
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 2.0]
    assert medians == pytest.approx([1 + statistics.median(groups[group]) for group in order])
    limit = next(line for line in ax.lines if str(line.get_label()).startswith("limit"))
    assert limit.get_ydata()[0] == pytest.approx(15)
    assert ax.get_ylabel() == "peak of a step, with its batch [MiB]"
    # a limit that is far away would flatten the boxes: it is told, not drawn
    _, ax = make_report(records, facts=make_facts(limit_bytes=2**40, static_bytes=None)).plot("peaks")
    assert ax.get_title(loc="left") == "limit: 1,024.0 GiB: far above"
    assert ax.get_ylim()[1] < 11


def test_tensors_are_those_of_the_step_that_held_most() -> None:
    _, ax = make_report().plot("tensors")
    found = bars(ax)
    assert sorted(found.values(), reverse=True) == pytest.approx([3 * (12 - i) for i in range(8)])
    assert found["edge computation", "conv1 message: 12000 x 48"] == pytest.approx(36)


def test_the_sampling_sweep_splits_each_batch_and_shows_the_full_one() -> None:
    _, (split, peaks) = make_report().plot("sampling_sweep")
    found = bars(split)
    # 2 + 1 + 1 us a seed before a step of 1 ms and 8 us a seed
    total = 1e-3 + 12e-6 * 1024
    assert found["sample", "neighbor, 1,024"] == pytest.approx(100 * 2e-6 * 1024 / total)
    assert found["step", "neighbor, 1,024"] == pytest.approx(100 * (1e-3 + 8e-6 * 1024) / total)
    assert found["transfer", "full, 6,120"] == pytest.approx(100 * 2 / 92)
    assert sum(found[stage, "saint, 8,192"] for stage in ("sample", "slice", "transfer", "step")) == 0
    assert "failed" in [text.get_text() for text in split.texts]
    lines = {line.get_label(): line for line in peaks.lines}
    assert list(lines["neighbor"].get_xdata()) == [64, 256, 1024, 4096]
    assert list(lines["neighbor"].get_ydata()) == pytest.approx([44000 * n / MIB for n in (64, 256, 1024, 4096)])
    assert lines["full batch"].get_ydata()[0] == pytest.approx(400 + 3e7 / MIB)
    assert (peaks.get_xscale(), peaks.get_yscale()) == ("log", "log")


def test_the_graph_sweep_draws_share_time_and_memory() -> None:
    _, axes = make_report().plot("graph_sweep")
    share, time, memory = axes[:3]
    assert list(share.lines[0].get_ydata()) == pytest.approx([100 * (n + 3) / (n + 23) for n in range(12, 17)])
    assert list(time.lines[0].get_xdata()) == [2**n for n in range(12, 17)]
    assert list(time.lines[0].get_ydata()) == pytest.approx([20] * 5)
    assert list(memory.lines[0].get_ydata()) == pytest.approx([60 + 5e6 / MIB] * 5)
    for ax in (time, memory):
        low, high = ax.get_ylim()
        assert low < ax.lines[0].get_ydata()[0] < high
    assert axes[3].get_xlabel() == "mean degree of the graph"
    records = make_records()
    records.sweeps = [point for point in records.sweeps if point.sweep == "avg_degree"]
    assert len(make_report(records).plot("graph_sweep")[1]) == 3


@pytest.mark.parametrize(("sample_s", "error"), [(0.0, ""), (1.0, "out of memory")])
def test_sweeps_of_zeros_and_of_failures_are_drawn(sample_s: float, error: str) -> None:
    records = make_records()
    zeros: dict[str, Any] = {"slice_s": 0.0, "transfer_s": 0.0, "step_s": 0.0, "peak_bytes": None, "value": 0.0}
    records.sweeps = [replace(point, sample_s=sample_s, error=error, **zeros) for point in records.sweeps]
    report = make_report(records)
    for kind in ("sampling_sweep", "graph_sweep"):
        figure, _ = report.plot(kind)
        figure.canvas.draw()


def test_names_are_never_mathematics_and_long_ones_are_cut_at_the_front() -> None:
    names = ["$\\frac{1}{0$", "encoder.a_very_long_name_that_nobody_can_read.conv7"]
    figure, ax = make_report(make_records(layers=names)).plot("layers")
    figure.canvas.draw()  # raises on bad mathematics
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert shown[0] == "\\$\\frac{1}{0\\$"
    assert shown[1].startswith("…")
    assert shown[1].endswith("read.conv7")
    assert len(shown[1]) == 34


def test_the_breakdown_agrees_with_the_facts() -> None:
    report = BottleneckReport(make_records())
    assert report.facts.phase_s == pytest.approx(report.breakdown.phase_s)
    assert report.facts.step_s == pytest.approx(report.breakdown.step_s)
    layers = {row.layer: row.total_s for row in report.breakdown.layer_times}
    layers[""] = layers.pop("outside the layers")
    assert report.facts.layer_s == pytest.approx(layers)
    assert report.facts.peaks_bytes == tuple(report.breakdown.peaks_bytes["NeighborLoader", 512])
    ratios = report.breakdown.expansions.values()
    assert report.facts.expansion == pytest.approx(sum(ratios) / len(ratios))


def test_times_of_untimed_steps_and_of_zero_seconds_are_left_out() -> None:
    records = Records(
        batches=[BatchRecord(i, "s", 1, 1, 1, 1, 1, 5.0 * (1 - i), None, bool(i)) for i in (0, 1)],
        times=[TimeRecord(i, "forward", "conv", "edge", "message", 5.0 * (1 - i), 1) for i in (0, 1)],
    )
    report = make_report(records)
    assert report.available == ()
    assert report.breakdown.phase_s == {}

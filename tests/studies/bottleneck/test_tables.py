from __future__ import annotations

import csv
import io

import pytest

from lightning_gnnopt.studies.bottleneck.findings import findings, findings_markdown
from lightning_gnnopt.studies.bottleneck.folder import Cell
from lightning_gnnopt.studies.bottleneck.tables import spread_values, tables_of
from lightning_gnnopt.studies.tables import to_csv
from lightning_gnnopt.studies.thesis import Finding
from tests.studies.bottleneck.study_cells import GRAPH, made_cell, parts, split

MIB = 2**20


def test_shares_of_vertex_and_edge_are_those_of_forward_and_backward() -> None:
    spans = {
        ("wait", "", ""): 5.0,
        ("forward", "vertex", ""): 1.0,
        ("backward", "vertex", ""): 2.0,
        ("forward", "edge", "gather"): 1.5,
        ("backward", "edge", "message"): 2.5,
        ("forward", "", ""): 0.5,
        ("backward", "", ""): 0.5,
        ("optimizer", "", ""): 1.0,
    }
    (row,) = tables_of([made_cell(spans=spans, step_s=14.0)])["vertex_edge"].rows
    assert row.values == {
        "step": 14.0,
        "forward_backward": 8.0,
        "vertex": 3 / 8,
        "edge": 4 / 8,
        "outside": 1 / 8,
        "edge_of_layers": 4 / 7,
    }


def test_steps_of_the_edge_computation_add_up() -> None:
    spans = parts(gather=1.0, message=2.0, aggregate=3.0, edge_update=2.0) | {
        ("backward", "edge", "gather"): 1.0,
        ("forward", "edge", ""): 1.0,
        ("forward", "vertex", ""): 100.0,
    }
    (row,) = tables_of([made_cell(spans=spans)])["edge_steps"].rows
    found = {name: value for name, value in row.values.items() if value}
    assert found == {"edge": 10.0, "gather": 0.2, "message": 0.2, "aggregate": 0.3, "edge_update": 0.2, "between": 0.1}


def test_effects_hold_the_varied_settings_and_the_studys_own_by_value() -> None:
    cells = [
        made_cell(setting="full", peaks=[100, 300], step_s=2.0),
        made_cell(setting="hidden=128", hidden=128, varied="hidden", peaks=[900], step_s=3.0),
        made_cell(setting="hidden=16", hidden=16, varied="hidden", peaks=[50], step_s=1.0),
        made_cell(data="h", setting="full"),  # where nothing was varied
    ]
    tables = tables_of(cells)
    rows = tables["hidden"].rows
    assert [(row.setting, row.values["value"]) for row in rows] == [
        ("hidden=16", 16),
        ("full", 64),
        ("hidden=128", 128),
    ]
    assert [row.values["step"] for row in rows] == [1.0, 2.0, 3.0]
    # with the batch: 150 of 100; 200 and 400 of 100, on average 300; 1,000 of 100
    assert [row.values["peak"] for row in rows] == [150, 300, 1000]
    assert [row.values["expansion"] for row in rows] == [1.5, 3.0, 10.0]
    assert not tables["heads"].rows


def test_sampling_is_set_against_the_time_of_the_batch_and_the_full_peak() -> None:
    cells = [
        made_cell(peaks=[900]),
        made_cell(
            setting="sampler=neighbor-10", sampler="neighbor", batch_size=10, step_s=2.0, peaks=[100, 300],
            load=(0.2, 0.3, 0.1, 0.7),
        ),
    ]  # fmt: skip
    (row,) = tables_of(cells)["sampling"].rows
    assert row.values == pytest.approx(
        {
            "sample": 0.2,
            "slice": 0.3,
            "transfer": 0.1,
            "compute": 1.3,
            "before": 0.3,
            "edges": 1000,
            "peak": 300,
            "of_full_peak": 0.3,
        }
    )


def test_spread_of_peaks() -> None:
    found = spread_values(made_cell(peaks=[0, 100, 500]).records)
    # with batches of 100: 100, 200, 600, mean 300, deviations -200, -100, 300
    assert found["variation"] == pytest.approx(((200**2 + 100**2 + 300**2) / 2) ** 0.5 / 300)
    assert (found["measured"], found["min"], found["median"], found["max"]) == (3, 100, 200, 600)
    assert found["max_over_min"] == 6.0
    assert spread_values(made_cell(peaks=[7]).records)["variation"] is None
    assert spread_values(made_cell().records) == {
        "measured": 0, "min": None, "median": None, "max": None, "variation": None, "max_over_min": None,
    }  # fmt: skip


def test_nothing_measured_is_missing_not_zero() -> None:
    cell = made_cell()
    cell.records.batches.clear()
    tables = tables_of([cell])
    for name in ("vertex_edge", "edge_steps", "expansion"):
        (row,) = tables[name].rows
        assert set(row.values.values()) == {None}
        assert "| - |" in tables[name].markdown()


def test_a_failed_setting_shows_its_error() -> None:
    table = tables_of([made_cell(error="Out of | memory\nhere"), made_cell(model="gat", spans=split(1, 3))])[
        "vertex_edge"
    ]
    assert [row.values.get("edge") for row in table.rows] == [None, 0.75]
    assert r"| g | gcn | full | Out of \| memory here | - | - | - | - | - |" in table.markdown()
    lines = list(csv.DictReader(io.StringIO(to_csv([table]))))
    assert lines[0]["value"] == ""
    assert lines[0]["error"] == "Out of | memory\nhere"
    assert {line["column"]: float(line["value"]) for line in lines if line["model"] == "gat"}["edge"] == 0.75


def test_graphs_tell_their_sizes_once_and_from_a_profile_that_knows() -> None:
    cells = [
        made_cell(error="not found", graph={}),
        made_cell(model="gat"),
        made_cell(data="h", graph={**GRAPH, "published_edges": None}),
        made_cell(data="i", error="no files", graph={}),
    ]
    rows = tables_of(cells)["graphs"].rows
    assert [(row.data, row.values.get("edges"), row.values["of_published"], row.error) for row in rows] == [
        ("g", 1000, 0.25, ""),
        ("h", 1000, None, ""),
        ("i", None, None, "no files"),
    ]


def test_markdown_has_units_and_is_written_as_people_read() -> None:
    text = tables_of([made_cell(loaded=MIB, peaks=[2 * MIB])])["expansion"].markdown()
    assert "| graph | model | setting | loaded [MiB] | peak [MiB] | expansion [x] |" in text
    assert "| g | gcn | full | 1.0 | 3.0 | 3.00 |" in text


def finding(name: str, cells: list[Cell]) -> Finding:
    (found,) = (row for row in findings(tables_of(cells)) if row.name == name)
    return found


def test_without_profiles_nothing_is_found() -> None:
    found = findings(tables_of([made_cell(error="Out of memory")]))
    assert {row.agrees for row in found} == {None}
    assert findings_markdown(found).count("| not measured |") == 6


@pytest.mark.parametrize(("edge", "agrees"), [(5.1, True), (4.9, False)])
def test_edge_computation_dominates(edge: float, agrees: bool) -> None:
    cells = [made_cell(data=name, spans=split(3.0, edge, 7.0 - edge)) for name in "abc"]
    cells += [made_cell(data="d", spans=split(9.0, 1.0))]
    found = finding("edge_dominates", cells)
    assert found.agrees is agrees
    number = 3 if agrees else 0
    assert f"in {number} of 4 cases (between 10% and {edge / 10:.0%}, median {edge / 10:.0%})" in found.measured
    assert "within the layers alone, in 3 of 4" in found.measured


def test_half_of_the_cases_are_not_most() -> None:
    cells = [made_cell(data="a", spans=split(1, 9)), made_cell(data="b", spans=split(9, 1))]
    assert finding("edge_dominates", cells).agrees is False


@pytest.mark.parametrize(("coefficients", "agrees"), [(2.1, True), (1.9, False)])
def test_messages_dominate_with_their_attention(coefficients: float, agrees: bool) -> None:
    spans = parts(gather=3.0, message=2.0, edge_update=coefficients, aggregate=1.0, fused=3.0)
    cells = [made_cell(model="gat", spans=spans), made_cell(model="gcn", spans=parts(message=1.0))]
    found = finding("message_dominates", cells)
    assert found.agrees is agrees
    assert f"in {int(agrees)} of 1 gat cases" in found.measured


def test_a_model_that_always_agrees_does_not_make_up_for_one_that_never_does() -> None:
    heavy, light = parts(gather=1.0, message=3.0), parts(gather=3.0, message=1.0)
    cells = [made_cell(data=data, model="gat", spans=heavy) for data in ("a", "b", "c")]
    assert finding("message_dominates", cells).agrees is True
    found = finding("message_dominates", [*cells, made_cell(data="a", model="gaan", spans=light)])
    assert found.agrees is False
    assert "in 3 of 3 gat and 0 of 1 gaan cases" in found.measured


@pytest.mark.parametrize(("message", "agrees"), [(1.9, True), (2.1, False)])
def test_gather_and_aggregate_dominate(message: float, agrees: bool) -> None:
    spans = parts(gather=1.0, aggregate=1.0, message=message)
    cells = [made_cell(model="ggnn", spans=spans), made_cell(model="gaan", spans=parts(message=1.0))]
    found = finding("collecting_dominates", cells)
    assert found.agrees is agrees
    assert f"in {int(agrees)} of 1 ggnn cases: on average gather {1 / (2 + message):.0%}" in found.measured


@pytest.mark.parametrize(
    ("gcn", "gaan", "agrees"),
    [(7.6, 52.6, True), (29.9, 209.9, True), (7.4, 100, False), (15, 211, False), (31, 100, False)],
)
def test_expansion_is_near_the_thesis_within_twice_and_half(gcn: float, gaan: float, agrees: bool) -> None:
    cells = [
        made_cell(data="a", peaks=[int(10 * gcn) - 10], loaded=10),
        made_cell(data="b", peaks=[20], loaded=10),
        made_cell(data="a", model="gaan", peaks=[int(10 * gaan) - 10], loaded=10),
        made_cell(setting="sampler=neighbor-1", sampler="neighbor", batch_size=1, peaks=[10**6], loaded=10),
    ]
    found = finding("expansion", cells)
    assert found.agrees is agrees
    assert f"up to {gcn:.1f} for GCN (a) and {gaan:.1f} for GaAN (a), {gaan / gcn:.1f} times as much" in found.measured


def test_expansion_needs_both_models() -> None:
    assert finding("expansion", [made_cell(peaks=[1400])]).agrees is None


@pytest.mark.parametrize(("sample", "agrees"), [(0.16, True), (0.14, False)])
def test_sampling_is_a_large_share(sample: float, agrees: bool) -> None:
    load = (sample, 0.05, 0.05, 0.4)
    found = finding("sampling", [made_cell(setting="sampler=neighbor-1", sampler="neighbor", batch_size=1, load=load)])
    assert found.agrees is agrees
    assert f"between {sample + 0.1:.1%} and {sample + 0.1:.1%}" in found.measured


@pytest.mark.parametrize(("peak", "agrees"), [(26, True), (24, False)])
def test_memory_varies_between_batches(peak: int, agrees: bool) -> None:
    cells = [
        made_cell(setting="sampler=cluster-1", sampler="cluster", batch_size=1, peaks=[0, peak]),
        made_cell(setting="sampler=cluster-2", sampler="cluster", batch_size=2, peaks=[5]),  # one batch does not vary
    ]
    found = finding("spread", cells)
    assert found.agrees is agrees
    assert f"takes {1 + peak / 100:.2f} to {1 + peak / 100:.2f} times the memory of the smallest" in found.measured
    assert f"in {int(agrees)} of 1 cases" in found.measured

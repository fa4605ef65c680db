from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch_geometric.data import Data

from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.learned import Learned
from lightning_gnnopt.memory.predictors import AnalyticPredictor
from lightning_gnnopt.memory.report import control_rows, control_table, explain, plot_peaks
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.memory.tape import solve_tape

plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

# The table


def control_of(budget_bytes: int | None = 3 * 2**20, **amounts: float) -> Any:
    tally = Tally()
    tally.add(**amounts)
    return SimpleNamespace(tally=tally, budget_bytes=budget_bytes, budget="3MiB", coverage=0.999, controller=None)


def test_before_a_run_there_is_the_budget_alone() -> None:
    assert control_rows(control_of(None)) == {"Budget": "3MiB (no run yet)"}


def test_a_run_in_which_all_fitted() -> None:
    rows = control_rows(control_of(batches=1200, worker_s=0.5, inline_s=0.25, probe_s=0.125))
    assert rows == {
        "Budget": "3.0 MiB (3MiB)",
        "Over the budget as drawn": "0 of 1,200 batches",
        "Time": "0.50 s in the loader's threads, 0.25 s between steps (0.12 s of it for probes)",
    }


def test_batches_that_became_too_large_are_shown() -> None:
    assert control_rows(control_of(late=3))["Too large at their step"] == "3 batches, as the step had changed"


def test_a_run_in_which_all_was_done() -> None:
    control = control_of(
        batches=100,
        over=40,
        resamples=1234,
        pruned=10,
        edges=20_000,
        pruned_edges=500,
        splits=4,
        parts=10,
        shrunk=3,
        returned_seeds=77,
        out_of_memory=2,
    )
    control.tally.observe(100.0, 100.0, 120, touched=False)
    control.tally.observe(90.0, 100.0, 125, touched=True)
    rows = control_rows(control)
    assert rows["Over the budget as drawn"] == "40 of 100 batches"
    assert rows["Over the budget as run"] == "0 of 2 measured steps, the largest 100 B"
    assert rows["Predictions"] == "50.0% exact to the byte, mean error 5.000%, 10.000% under at worst"
    assert rows["Budget used"] == "80.0% by the 1 measured batches that were changed"
    assert rows["Drawn anew"] == "1,234 times"
    assert rows["Edges lost"] == "2.50% (500 edges of 10 batches)"
    assert rows["Run in parts"] == "4 batches, in 2.5 parts on average"
    assert rows["Came later"] == "77 seeds of 3 batches"
    assert rows["Ran out of memory"] == "2 steps"


def test_fitted_predictors_state_what_they_can() -> None:
    control, exact, fitted = control_of(batches=1), learned(), learned()
    fitted.tapes = {}
    (predictor,) = fitted.footprint.predictors.values()
    predictor.margin.replace(np.full(32, 10.0), np.full(32, 10.0))
    control.controller = SimpleNamespace(learned={("train", 0): exact})
    assert "Coverage" not in control_rows(control)
    control.controller.learned["val", 0] = fitted
    # 32 of 33: as many as there are, and the one to come.
    assert control_rows(control)["Coverage"] == "97.0% can be stated with the samples there are, of 99.9% asked for"


def test_the_table_has_all_rows() -> None:
    control = control_of(batches=5, over=1, resamples=2)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(control_table(control))
    text = console.export_text()
    for name, value in control_rows(control).items():
        assert re.search(rf"{re.escape(name)}\s*│?\s*{re.escape(value)}", text)


# The figure


def test_points_and_lines_are_where_they_should_be() -> None:
    pairs = [(2.0 * 2**20, 2.5 * 2**20), (4.0 * 2**20, 4.0 * 2**20), (1.0 * 2**20, 1.0 * 2**20)]
    figure, (scatter, histogram) = plot_peaks(pairs, 3 * 2**20)
    assert isinstance(figure, plt.Figure)
    points = next(line for line in scatter.lines if line.get_label() == "steps")
    np.testing.assert_allclose(points.get_xydata(), [(2, 2.5), (4, 4), (1, 1)])
    diagonal = next(line for line in scatter.lines if line.get_label() == "exact")
    np.testing.assert_allclose(diagonal.get_xydata(), [(1, 1), (4, 4)])
    budget = next(line for line in scatter.lines if line.get_label() == "budget")
    np.testing.assert_allclose(budget.get_ydata(), [3, 3])
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("predicted peak [MiB]", "measured peak [MiB]")
    assert sum(patch.get_height() for patch in histogram.patches) == 3
    budget = next(line for line in histogram.lines if line.get_label() == "budget")
    np.testing.assert_allclose(budget.get_xdata(), [3, 3])


@pytest.mark.parametrize(("largest", "unit"), [(500, "B"), (5e3, "KiB"), (5e6, "MiB"), (5e9, "GiB")])
def test_units_suit_the_sizes(largest: float, unit: str) -> None:
    _, (scatter, histogram) = plot_peaks([(largest, largest)], None)
    assert scatter.get_xlabel() == f"predicted peak [{unit}]"
    assert histogram.get_xlabel() == f"measured peak [{unit}]"
    assert not [line for line in [*scatter.lines, *histogram.lines] if line.get_label() == "budget"]


def test_without_steps_it_draws_the_budget() -> None:
    _, (scatter, _) = plot_peaks([], 2**30)
    (line,) = [line for line in scatter.lines if line.get_label() == "budget"]
    np.testing.assert_allclose(line.get_ydata(), [1, 1])


def test_it_draws_where_it_is_told() -> None:
    own, axes = plt.subplots(2, 1)
    figure, found = plot_peaks([(1.0, 1.0)], 2, axes)
    assert figure is own
    assert list(found) == list(axes)


# What a peak is made of


def learned(*, labels: list[str] | None = None) -> Learned:
    """A step of two growing blocks (100 bytes a node, 10 an edge), one that goes before the second, and 3 small."""
    example = batch(2, 3)
    reader = FeatureReader(example)
    rows = [[1, 4, 5], [2, 9, 3], [1, 20, 40], [3, 7, 30], [4, 5, 9], [2, 2, 2]]

    def events(seeds: int, others: int, edges: int) -> np.ndarray:
        temporary = 16 * edges
        return np.array([100 * (seeds + others), temporary, -temporary, 10 * edges + 8, 5000, 1, 2, 3])

    tape = solve_tape([events(*row) for row in rows], rows, reader.names)
    footprint = Footprint(
        reader=reader,
        predictors={"step": AnalyticPredictor(tape.pieces(), feature_names=reader.names)},
        batch_row=np.array([0.0, 4, 4, 16]),
        held_bytes=7000,
        ahead=Ahead(batches=2),
    )
    names = ["first", "temporary", "temporary", "second", "buffer", "a", "b", "c"] if labels is None else labels
    return Learned(footprint, {"step": tape}, names)


def batch(num_nodes: int, num_edges: int) -> Data:
    edge_index = torch.stack([torch.arange(num_edges) % num_nodes, torch.zeros(num_edges, dtype=torch.long)])
    return Data(num_nodes=num_nodes, edge_index=edge_index, batch_size=2)


def table_of(text: str) -> dict[str, int]:
    lines = re.findall(r"([\d,]+) +[│|] +[\d.]+% +[│|] +(\S.*?) +[│|]", text)
    return {what: int(size.replace(",", "")) for size, what in lines}


def test_the_tensors_of_a_peak_by_hand() -> None:
    text = explain(learned(), batch(50, 30))
    rows = table_of(text)
    assert rows == {
        "the model, its gradients and its optimizer": 7000,
        "the batch": 4 * 50 + 16 * 30,
        "batches that are ready": 2 * 680,
        "first": 5000,
        "buffer": 5000,
        "second": 308,
        "a": 1,
        "b": 2,
        "c": 3,
        "together": 7000 + 3 * 680 + 5000 + 5000 + 308 + 6,
    }
    predicted = learned().footprint.predict(learned().footprint.features(batch(50, 30)))
    assert rows["together"] == predicted


def test_shares_are_of_all_together() -> None:
    text = explain(learned(), batch(50, 30))
    shares = [float(share) for share in re.findall(r"([\d.]+)% ", text)]
    assert shares[-1] == 100.0
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.05 * len(shares))


def test_labels_that_are_not_of_the_tape_are_not_used() -> None:
    text = explain(learned(labels=["one"]), batch(50, 30))
    assert "one" not in table_of(text)
    assert "100 x nodes_0" in text


def test_a_step_without_a_tape_has_nothing_to_explain() -> None:
    known = learned()
    known.tapes, known.reason = {}, "the model is compiled"
    with pytest.raises(ValueError, match=r"no allocation tape .*, because the model is compiled\. HINT: "):
        explain(known, batch(5, 3))

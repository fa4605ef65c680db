from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch_geometric.data import Data

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.studies.pipeline import baseline as pipeline_baseline
from lightning_gnnopt.studies.pipeline import measuring
from lightning_gnnopt.studies.pipeline.fits import Fit
from lightning_gnnopt.studies.pipeline.loaders import PygBatches
from lightning_gnnopt.studies.pipeline.measuring import measure_setting
from lightning_gnnopt.studies.pipeline.settings import Setting
from tests.studies.pipeline.made import made_fit

STUDY = {"num_neighbors": 5, "clusters_per_batch": 2, "epochs": 4, "epoch_s": 12.0, "num_workers": 1, "max_s": None}
TIMES = {"baseline": 6.0, "prefetch": 5.0, "async": 4.0, "both": 3.0}


class Fits:
    """Stands in for `run_fit`: notes what it is asked for, and answers with made-up times."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.threads: set[int] = set()
        self.answer: Callable[[str, int], Fit] = lambda side, number: made_fit(
            (9.0, TIMES[side], TIMES[side]), beside=side in ("async", "both")
        )

    def __call__(self, module: Any, datamodule: Any, *, epochs: int, beside: bool) -> Fit:
        prefetched = getattr(datamodule, "num_workers", 0) > 0
        side = {(0, 0): "baseline", (1, 0): "prefetch", (0, 1): "async", (1, 1): "both"}[prefetched, beside]
        self.asked.append((side, datamodule._passes))
        self.threads.add(torch.get_num_threads())
        return self.answer(side, sum(name == side for name, _ in self.asked))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    found = Fits()
    monkeypatch.setattr(measuring, "run_fit", found)
    monkeypatch.setattr(measuring, "usable_cores", lambda: 4)
    monkeypatch.setattr(pipeline_baseline, "pyg_samples_with", lambda: None)  # whatever is installed here
    monkeypatch.setattr(measuring.gc, "collect", lambda: 0)  # a test process has much to look through
    return found


@pytest.fixture(scope="module")
def graph() -> Data:
    return load_dataset("dcsbm", num_nodes=400, num_features=8, avg_degree=6)


def measured(graph: Data, *, rounds: int = 1, sampler: str = "neighbor", **study: Any) -> dict[str, Any]:
    setting = Setting(sampler=sampler, batch_size=50, hidden=8, heads=None, layers=2, rounds=rounds)
    return measure_setting(setting, BoringModel, graph, {**STUDY, **study}, seed=0)


def test_sides_take_turns_after_a_first_try(graph: Data, fits: Fits) -> None:
    before = torch.get_num_threads()
    found = measured(graph, rounds=2)
    sides = ["baseline", "prefetch", "async", "both"]
    # One pass took 6 s, and an epoch is to take 12.
    assert fits.asked == [("baseline", 1), *((side, 2) for side in [*sides, *sides[1:], sides[0]])]
    assert fits.threads == {1}
    assert torch.get_num_threads() == before
    assert (found["passes"], found["torch_threads"], found["num_workers"]) == (2, 1, 1)
    assert found["baseline"] == "our loader, 0 workers"
    assert "neither pyg-lib nor torch-sparse" in found["baseline_note"]


def test_the_first_side_to_run_can_be_another(graph: Data, fits: Fits) -> None:
    setting = Setting(sampler="neighbor", batch_size=50, hidden=8, heads=None, layers=2, rounds=1)
    measure_setting(setting, BoringModel, graph, STUDY, seed=0, turn=6)
    assert [side for side, _ in fits.asked[1:]] == ["async", "both", "baseline", "prefetch"]


def test_speedups_are_measured_beside_the_theoretical_ones(graph: Data, fits: Fits) -> None:
    sides = measured(graph)["sides"]
    assert [sides[side]["speedup"] for side in ("prefetch", "async", "both")] == [1.2, 1.5, 2.0]
    assert [sides[side]["theory"] for side in ("prefetch", "async", "both")] == [1.2, 1.5, pytest.approx(6 / 3.25)]
    assert sides["both"]["effect"] == pytest.approx(2.0 * 3.25 / 6)
    assert sides["prefetch"]["gain_share"] == pytest.approx(1.0)
    # Fits: 9 + 2 * 6 against 9 + 2 * 4; four epochs of 6 against training, three steady epochs and validation.
    assert sides["async"]["fit_speedup"] == pytest.approx(21 / 17)
    assert sides["async"]["fit_theory"] == pytest.approx(24 / (6 + 3 * 4))
    assert (sides["async"]["startup_s"], sides["prefetch"]["startup_s"]) == (5.0, 0.0)


def test_rounds_are_compared_each_by_itself(graph: Data, fits: Fits) -> None:
    # All sides are slower in the second round: a ratio of medians would not be 1.2 and 3.
    pace = {1: 1.0, 2: 1.0, 3: 10.0}

    def answer(side: str, number: int) -> Fit:
        round_number = number - (side == "baseline")  # its first one is the try
        taken_s = TIMES[side] * pace[max(round_number, 1)] / (2.5 if side == "prefetch" and round_number == 2 else 1)
        return made_fit((9.0, taken_s, taken_s), beside=side in ("async", "both"))

    fits.answer = answer
    found = measured(graph, rounds=3)
    assert found["sides"]["prefetch"]["speedup"] == pytest.approx(1.2)  # of 1.2, 3.0 and 1.2
    assert found["sides"]["baseline"]["epoch_s"] == 6.0
    assert [round_["prefetch"]["epochs_s"][1] for round_ in found["rounds"]] == [5.0, 2.0, 50.0]


def test_losses_that_differ_are_told(graph: Data, fits: Fits) -> None:
    assert measured(graph)["losses_equal"] is True
    fits.answer = lambda side, number: made_fit(beside=side in ("async", "both"), losses=side)
    found = measured(graph)
    assert (found["losses_equal"], found["val_losses_equal"]) == (False, True)
    assert found["compared_sides"] == ["baseline", "prefetch", "async", "both"]


def test_no_round_begins_that_would_end_too_late(graph: Data, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    plain = fits.answer

    def answer(side: str, number: int) -> Fit:
        now[0] += 10.0
        return plain(side, number)

    fits.answer = answer
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])
    assert len(measured(graph, rounds=4, max_s=100.0)["rounds"]) == 2  # 40 s each
    assert len(measured(graph, rounds=4, max_s=1.0)["rounds"]) == 1
    assert len(measured(graph, rounds=3, max_s=None)["rounds"]) == 3


def test_a_batch_must_not_be_larger_than_the_training_set(graph: Data, fits: Fits) -> None:
    setting = Setting(sampler="neighbor", batch_size=201, hidden=8, heads=None, layers=2, rounds=1)
    with pytest.raises(ValueError, match="must not be above the 200 nodes that the graph has to train on, but is 201"):
        measure_setting(setting, BoringModel, graph, STUDY, seed=0)


def test_pyg_with_its_best_number_of_workers_is_the_baseline(
    graph: Data, fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_baseline, "pyg_samples_with", lambda: "torch-sparse")
    passes_s = {0: 6.0, 1: 3.0, 2: 4.0}
    tried: list[tuple[int, bool]] = []

    def run_fit(module: Any, datamodule: Any, *, epochs: int, beside: bool) -> Fit:
        if isinstance(datamodule, PygBatches):
            workers, passes = int(datamodule._workers["num_workers"]), datamodule._passes
            tried.append((workers, beside))
            taken_s = passes * passes_s[workers]
            return made_fit((9.0, taken_s, taken_s), beside=beside, losses="pyg")
        return made_fit((9.0, 6.0, 6.0), beside=beside)

    monkeypatch.setattr(measuring, "run_fit", run_fit)
    found = measured(graph)
    assert tried == [(0, False), (1, False), (2, False), (1, False), (1, True)]
    assert found["baseline"] == "PyG's loader with torch-sparse, 1 workers"
    assert found["baseline_tries_s"] == {"0": 6.0, "1": 3.0, "2": 4.0}
    assert (found["passes"], found["baseline_note"]) == (4, "")
    # Its stages are those of a try without workers, whose 6 s a pass could take 4 s at least beside validation.
    assert found["sides"]["async"]["theory"] == pytest.approx(3.0 / 4.0)
    assert found["sides"]["prefetch"]["speedup"] == 2.0
    assert found["compared_sides"] == ["prefetch", "both"]
    assert found["losses_equal"] is True


def test_a_pyg_that_does_not_run_is_told(graph: Data, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_baseline, "pyg_samples_with", lambda: "torch-sparse")

    def refused(*args: Any, **options: Any) -> Any:
        raise RuntimeError("Not compiled with METIS support\nTraceback")

    monkeypatch.setattr(pipeline_baseline, "ClusterData", refused)
    found = measured(graph, sampler="cluster")
    assert found["baseline"] == "our loader, 0 workers"
    assert found["baseline_note"] == "PyG's loader does not run with torch-sparse: Not compiled with METIS support"

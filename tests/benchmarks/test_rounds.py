from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from benchmarks.rounds import alternate, median, ratio, ratios


@pytest.fixture
def _no_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting takes long where torch, Lightning and pytest are loaded."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class Calls:
    """Sides that write down when they are called, and return how many runs there were before."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def side(self, name: str) -> Callable[[], int]:
        def run() -> int:
            self.order.append(name)
            return len(self.order) - 1

        return run

    def sides(self, names: str) -> dict[str, Callable[[], int]]:
        return {name: self.side(name) for name in names}


@pytest.mark.usefixtures("_no_gc")
def test_two_sides_take_turns_at_being_first() -> None:
    calls = Calls()
    runs = alternate(calls.sides("AB"), rounds=4, warmup=1)
    assert "".join(calls.order) == "AB" + "AB" + "BA" + "AB" + "BA"
    assert runs == {"A": [2, 5, 6, 9], "B": [3, 4, 7, 8]}


@pytest.mark.usefixtures("_no_gc")
def test_three_sides_rotate() -> None:
    calls = Calls()
    runs = alternate(calls.sides("ABC"), rounds=4, warmup=0)
    assert "".join(calls.order) == "ABC" + "BCA" + "CAB" + "ABC"
    assert list(runs) == ["A", "B", "C"]
    assert runs == {"A": [0, 5, 7, 9], "B": [1, 3, 8, 10], "C": [2, 4, 6, 11]}


@pytest.mark.usefixtures("_no_gc")
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_warm_up_rounds_run_but_do_not_count(warmup: int) -> None:
    calls = Calls()
    runs = alternate(calls.sides("AB"), rounds=2, warmup=warmup)
    assert "".join(calls.order) == "AB" * warmup + "ABBA"
    assert runs["A"] == [2 * warmup, 2 * warmup + 3]
    assert runs["B"] == [2 * warmup + 1, 2 * warmup + 2]


@pytest.mark.usefixtures("_no_gc")
def test_one_round_of_warming_up_is_the_default() -> None:
    calls = Calls()
    assert alternate(calls.sides("A"), rounds=1) == {"A": [1]}


def test_garbage_of_one_side_is_gone_before_the_next_runs() -> None:
    class Cycle:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Cycle.alive += 1

        def __del__(self) -> None:
            Cycle.alive -= 1

    gc.disable()  # only `alternate` collects
    try:
        runs = alternate({"litters": lambda: Cycle() and 0, "looks": lambda: Cycle.alive}, rounds=3)
    finally:
        gc.enable()
    assert runs["looks"] == [0, 0, 0]


def test_an_error_of_a_side_ends_the_benchmark() -> None:
    def fails() -> int:
        raise RuntimeError("side B broke")

    calls = Calls()
    with pytest.raises(RuntimeError, match="side B broke"):
        alternate({"A": calls.side("A"), "B": fails}, rounds=3)
    assert calls.order == ["A"]


def test_no_side() -> None:
    with pytest.raises(ValueError, match="`sides` must name at least one side"):
        alternate({}, rounds=1)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (-1, 0), (1, -1)])
def test_rounds_out_of_range(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"but got {rounds} and {warmup}"):
        alternate({"A": lambda: 0}, rounds=rounds, warmup=warmup)


@pytest.mark.usefixtures("_no_gc")
def test_progress_goes_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    alternate({"A": lambda: 0}, rounds=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    alternate({"A": lambda: 0}, rounds=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.removeprefix("\x1b[2K") for line in err.split("\r")[1:]] == [
        "warming up: A",
        "round 1 of 2: A",
        "round 2 of 2: A",
        "",
    ]


@pytest.mark.parametrize(
    ("runs", "expected"), [([7.0], 7.0), ([3.0, 1.0, 100.0], 3.0), ([4.0, 1.0, 2.0, 100.0], 3.0), ([2, 2, 3], 2.0)]
)
def test_median(runs: list[float], expected: float) -> None:
    assert median(runs) == expected
    assert isinstance(median(runs), float)


def test_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="`runs` must hold at least one run"):
        median([])


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The machine slows down tenfold in the last two rounds; A always takes twice as long as B but for one round.
    a, b = [2.0, 2.0, 30.0, 20.0, 20.0], [1.0, 1.0, 1.0, 10.0, 10.0]
    assert ratios(a, b) == [2.0, 2.0, 30.0, 2.0, 2.0]
    assert ratio(a, b) == 2.0
    assert median(a) / median(b) == 20.0  # what a ratio of medians would have said


def test_ratio_of_different_rounds() -> None:
    with pytest.raises(ValueError, match="but got 2 and 1 runs"):
        ratio([1.0, 2.0], [1.0])


def test_ratio_over_zero() -> None:
    with pytest.raises(ValueError, match=r"`b_runs` must hold no 0, but got \[1.0, 0.0\]"):
        ratio([1.0, 2.0], [1.0, 0.0])


def test_ratio_of_nothing() -> None:
    with pytest.raises(ValueError, match="`runs` must hold at least one run"):
        ratio([], [])

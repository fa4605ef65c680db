"""What is drawn is what was recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_gnnopt.evaluation.timeline import Span, Timeline


def recorded() -> Timeline:
    timeline = Timeline()
    for epoch in range(3):
        timeline.record("training", f"epoch {epoch}", 100.0 + epoch, 101.0 + epoch)
        timeline.record("training", f"snapshot {epoch}", 100.9 + epoch, 101.0 + epoch, step=10 * epoch)
        timeline.record("writing", f"step {epoch}", 101.0 + epoch, 101.1 + epoch, step=10 * epoch)
    timeline.record("validation", "step 0", 101.1, 102.6, step=0)
    timeline.record("validation", "step 10", 102.6, 104.1, step=10)
    return timeline


def test_the_last_spans_are_kept() -> None:
    timeline = Timeline(max_spans=3)
    for n in range(10):
        timeline.record("training", f"{n}", n, n + 1)
    assert timeline.spans == tuple(Span("training", f"{n}", n, n + 1) for n in (7, 8, 9))
    assert timeline.recorded == 10


def test_threads_may_record_while_another_reads() -> None:
    timeline = Timeline(max_spans=50)

    def record() -> None:
        for n in range(2000):
            timeline.record("writing", "x", n, n)

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    lengths = [len(timeline.spans) for _ in range(500)]
    for thread in threads:
        thread.join()
    assert max(lengths) <= 50
    assert timeline.spans[-1].start_s == 1999
    assert timeline.recorded == 4000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody", "x", 0.0, 1.0), r"Unknown side 'nobody'\. Known: training, validation, writing\. HINT: "),
        (("training", "x", 1.0, 0.5), r"`end_s` must not be before `start_s`, but 'x' is from 1\.0 to 0\.5\. HINT: "),
    ],
)
def test_spans_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline().record(*arguments)


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_spans` must be at least 1, but got 0\. HINT: "):
        Timeline(max_spans=0)


@pytest.fixture
def plt() -> Iterator[Any]:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def bars_of(ax: Any) -> dict[str, list[tuple[float, float]]]:
    """The bars of each row, by the row's label."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    rows: dict = {}
    for collection, name in zip(ax.collections, names, strict=True):
        boxes = [path.get_extents() for path in collection.get_paths()]
        rows[name] = [(round(box.x0, 6), round(box.x1, 6)) for box in boxes]
    return rows


def test_the_figure_has_the_spans_the_snapshots_and_how_long_verdicts_took(plt: Any) -> None:
    figure, ax = recorded().plot()
    assert figure is ax.figure
    assert bars_of(ax) == {
        "validation": [(1.1, 2.6), (2.6, 4.1)],
        "writing": [(1.0, 1.1), (2.0, 2.1), (3.0, 3.1)],
        "training": [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)],
    }
    assert ax.lines[0].get_xdata() == pytest.approx([1.0, 2.0, 3.0])
    numbers = [text for text in ax.texts if text.get_text()]
    assert [(text.get_text(), round(text.get_position()[0], 6)) for text in numbers] == [("0", 1.85), ("10", 3.35)]
    arrows = [text for text in ax.texts if not text.get_text()]
    assert [(round(arrow.get_position()[0], 6), round(arrow.xy[0], 6)) for arrow in arrows] == [(1.0, 2.6), (2.0, 4.1)]
    figure.canvas.draw()
    low, high = ax.get_xlim()
    assert low <= 0.0
    assert high >= 4.1


def test_a_figure_on_given_axes_that_lacks_some(plt: Any) -> None:
    timeline = Timeline(max_spans=2)
    for n in range(5):
        timeline.record("validation", f"step {n}", n, n + 1, step=n)
    _, given = plt.subplots()
    figure, ax = timeline.plot(given)
    assert ax is given
    assert bars_of(ax) == {"validation": [(0.0, 1.0), (1.0, 2.0)]}
    assert ax.get_title(loc="left") == "Training and validation (the last 2 of 5 spans)"
    figure.canvas.draw()


def test_many_validations_have_a_number_now_and_then(plt: Any) -> None:
    timeline = Timeline()
    for n in range(1000):
        timeline.record("validation", f"step {n}", n, n + 1, step=n)
    _, ax = timeline.plot()
    assert [text.get_text() for text in ax.texts] == [f"{n}" for n in range(0, 1000, 25)]


def test_an_empty_timeline_can_be_drawn(plt: Any) -> None:
    figure, ax = Timeline().plot()
    figure.canvas.draw()
    assert len(ax.collections) == 0

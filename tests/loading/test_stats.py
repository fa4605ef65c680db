from __future__ import annotations

from lightning_gnnopt.loading import LoaderStats


def test_totals_add_subtract_and_copy() -> None:
    a, b = LoaderStats(1, 20, 300, 0.5, 0.25, 0.125), LoaderStats(2, 30, 400, 1.5, 2.5, 3.5)
    assert a + b == LoaderStats(3, 50, 700, 2.0, 2.75, 3.625)
    assert (a + b) - b == a
    copy = a.copy()
    copy.edges += 1
    assert (copy.edges, a.edges) == (301, 300)
    assert LoaderStats() + a == a

"""The benchmark of messages in chunks: what it compares, never how long it takes."""

from __future__ import annotations

from benchmarks.chunked import CHUNKS, measure


def test_more_chunks_take_less_memory_where_messages_are_kept() -> None:
    figures, rows = measure(quick=True)
    assert [row["chunks"] for row in rows] == 2 * ["whole", *map(str, CHUNKS)]
    assert len(figures) == 2 * len(CHUNKS)
    peaks = [float(row["peak MiB"]) for row in rows if row["model"] == "gat"]  # type: ignore[arg-type]
    assert peaks[0] > 1.5 * peaks[1]
    assert peaks[1] > peaks[3]

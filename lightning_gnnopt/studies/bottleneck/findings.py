"""What the study found, beside what the thesis found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from lightning_gnnopt.studies.tables import StudyRow, StudyTable
from lightning_gnnopt.studies.thesis import Finding

EDGE_HEAVY = ("gat", "gaan")
"""Models whose messages cost much to compute."""
EDGE_LIGHT = ("gcn", "ggnn")
"""Models whose messages cost little."""
THESIS_EXPANSION = {"gcn": 15.0, "gaan": 105.0}
"""The largest memory expansion that the thesis found, by model."""
LARGE_SHARE = 0.25
"""Share of a batch's time from which on sampling and transfer count as a large part of it."""
STRONG_SPREAD = 1.25
"""Largest over smallest peak from which on memory counts as varying strongly between batches."""


def findings(tables: Mapping[str, StudyTable]) -> list[Finding]:
    """Compare the study's tables with what the thesis says.

    Args:
        tables: As of `tables_of`.
    """
    return [
        _edge_dominates(tables["vertex_edge"]),
        _message_dominates(tables["edge_steps"]),
        _collecting_dominates(tables["edge_steps"]),
        _expansion(tables["expansion"]),
        _sampling(tables["sampling"]),
        _spread(tables["batches"]),
    ]


def findings_markdown(found: Sequence[Finding]) -> str:
    """Write findings as a table for people."""
    words = {True: "agrees", False: "does not agree", None: "not measured"}
    lines = ["| the thesis | measured here | |", "|---|---|---|"]
    lines += [f"| {row.claim} | {row.measured} | {words[row.agrees]} |" for row in found]
    return "\n".join(lines) + "\n"


def _edge_dominates(table: StudyTable) -> Finding:
    claim = "Edge computation dominates in most cases."
    shares = _values(table.rows, "edge")
    of_layers = _values(table.rows, "edge_of_layers")
    if not shares:
        return _not_measured("edge_dominates", claim)
    above, above_in_layers = (sum(share > 0.5 for share in found) for found in (shares, of_layers))
    return Finding(
        "edge_dominates",
        claim,
        f"It is more than half of the forward and backward pass in {above} of {len(shares)} cases (between"
        f" {min(shares):.0%} and {max(shares):.0%}, median {statistics.median(shares):.0%}); within the layers alone,"
        f" in {above_in_layers} of {len(of_layers)}.",
        above > len(shares) / 2,
    )


def _message_dominates(table: StudyTable) -> Finding:
    claim = "Computing messages dominates the edge computation where edge complexity is high (GAT, GaAN)."
    rows = _of_models(table.rows, EDGE_HEAVY, "edge")
    if not rows:
        return _not_measured("message_dominates", claim)
    cases = _cases(rows, lambda row: _message(row) > max(_gather(row), _aggregate(row)))
    return Finding(
        "message_dominates",
        claim,
        f"Messages, attention coefficients included, are the largest step in {_counts(cases)} cases: on"
        f" average {_mean(rows, _message):.0%}, gather {_mean(rows, _gather):.0%}, aggregate"
        f" {_mean(rows, _aggregate):.0%}.",
        _most_of_each(cases),
    )


def _collecting_dominates(table: StudyTable) -> Finding:
    claim = "Gather and aggregate dominate the edge computation where edge complexity is low (GCN, GGNN)."
    rows = _of_models(table.rows, EDGE_LIGHT, "edge")
    if not rows:
        return _not_measured("collecting_dominates", claim)
    cases = _cases(rows, lambda row: _gather(row) + _aggregate(row) > 0.5)
    return Finding(
        "collecting_dominates",
        claim,
        f"They are more than half of it in {_counts(cases)} cases: on average gather {_mean(rows, _gather):.0%},"
        f" aggregate {_mean(rows, _aggregate):.0%}, messages {_mean(rows, _message):.0%}.",
        _most_of_each(cases),
    )


def _expansion(table: StudyTable) -> Finding:
    claim = "The peak of memory is up to 15 times the bytes loaded for GCN, and up to 105 times for GaAN."
    largest = {}
    for model in THESIS_EXPANSION:
        rows = [row for row in _of_models(table.rows, (model,), "expansion") if row.setting == "full"]
        if rows:
            largest[model] = max(rows, key=lambda row: row.values["expansion"] or 0.0)
    if len(largest) < len(THESIS_EXPANSION):
        return _not_measured("expansion", claim)
    ratios = {model: row.values["expansion"] or 0.0 for model, row in largest.items()}
    near = all(wanted / 2 <= ratios[model] <= 2 * wanted for model, wanted in THESIS_EXPANSION.items())
    return Finding(
        "expansion",
        claim,
        f"With full batches up to {ratios['gcn']:.1f} for GCN ({largest['gcn'].data}) and {ratios['gaan']:.1f} for GaAN"
        f" ({largest['gaan'].data}), {ratios['gaan'] / ratios['gcn']:.1f} times as much; the thesis's ratio of the two"
        f" is {THESIS_EXPANSION['gaan'] / THESIS_EXPANSION['gcn']:.1f}. Agreement means within twice and half of both.",
        near,
    )


def _sampling(table: StudyTable) -> Finding:
    claim = "Sampling and transfer are a large share of the time of a sampled batch."
    shares = _values(table.rows, "before")
    if not shares:
        return _not_measured("sampling", claim)
    above = sum(share > LARGE_SHARE for share in shares)
    return Finding(
        "sampling",
        claim,
        f"Sampling, slicing and transfer are between {min(shares):.1%} and {max(shares):.1%} of it, median"
        f" {statistics.median(shares):.1%}; more than {LARGE_SHARE:.0%} in {above} of {len(shares)} cases.",
        above > len(shares) / 2,
    )


def _spread(table: StudyTable) -> Finding:
    claim = "Memory varies strongly between batches."
    rows = [row for row in table.rows if row.values.get("variation") is not None]
    if not rows:
        return _not_measured("spread", claim)
    ratios = _values(rows, "max_over_min")
    widest = max(rows, key=lambda row: row.values["max_over_min"] or 0.0)
    above = sum(ratio > STRONG_SPREAD for ratio in ratios)
    return Finding(
        "spread",
        claim,
        f"The largest batch takes {min(ratios):.2f} to {max(ratios):.2f} times the memory of the smallest, median"
        f" {statistics.median(ratios):.2f} (most with {widest.model} on {widest.data}, {widest.setting}); more than"
        f" {STRONG_SPREAD} times in {above} of {len(ratios)} cases.",
        above > len(ratios) / 2,
    )


def _not_measured(name: str, claim: str) -> Finding:
    return Finding(name, claim, "No profile tells.", None)


def _values(rows: Sequence[StudyRow], column: str) -> list[float]:
    return [value for row in rows if (value := row.values.get(column)) is not None]


def _of_models(rows: Sequence[StudyRow], models: Sequence[str], column: str) -> list[StudyRow]:
    return [row for row in rows if row.model in models and row.values.get(column) is not None]


def _cases(rows: Sequence[StudyRow], holds: Callable[[StudyRow], bool]) -> dict[str, list[bool]]:
    """Whether something holds, by model."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(holds(row))
    return found


def _counts(cases: Mapping[str, Sequence[bool]]) -> str:
    return " and ".join(f"{sum(found)} of {len(found)} {model}" for model, found in cases.items())


def _most_of_each(cases: Mapping[str, Sequence[bool]]) -> bool:
    """Whether it holds in most cases of every model: one that agrees does not make up for one that does not."""
    return all(sum(found) > len(found) / 2 for found in cases.values())


def _share(row: StudyRow, part: str) -> float:
    return row.values.get(part) or 0.0


def _message(row: StudyRow) -> float:
    return _share(row, "message") + _share(row, "edge_update")


def _gather(row: StudyRow) -> float:
    return _share(row, "gather")


def _aggregate(row: StudyRow) -> float:
    return _share(row, "aggregate") + _share(row, "fused")


def _mean(rows: Sequence[StudyRow], read: Callable[[StudyRow], float]) -> float:
    return statistics.fmean(read(row) for row in rows)

"""What the study found, beside what the thesis found and what control aims at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from lightning_gnnopt.studies.tables import StudyRow, StudyTable
from lightning_gnnopt.studies.thesis import Finding

THESIS_SHARE = {"linear": 0.54, "forest": 0.74}
"""The largest share of a run that control took in the thesis, by predictor."""
THESIS_PREDICT_S = {"linear": 0.22e-3, "forest": 7.05e-3}
"""Seconds of one prediction in the thesis."""
THESIS_PRUNE_S = {"degree": 1.8, "pagerank": 13.8}
"""Seconds that pruning 100,000 edges took in the thesis, by score."""
TARGET_SHARE = 0.02
"""Of a run that control is to take at most."""
TARGET_ERROR = 0.001
"""The largest error of a prediction from probes: the first step of an epoch adds some bytes as it logs."""
_FITTED = ("linear", "forest", "boosting", "max_affine")
_NEAR = 2.0  # times and a half of a figure of the thesis's count as agreement


def findings(tables: Mapping[str, StudyTable]) -> list[Finding]:
    """Compare the study's tables with claims.

    Args:
        tables: As of `tables_of`.
    """
    return [
        _exact(tables["predictors"]),
        _predicting(tables["predictors"]),
        _within_limit(tables["limit"]),
        _thesis_share(tables["overhead"]),
        _target_share(tables["overhead"]),
        _cut_accuracy(tables["accuracy"]),
        _split_accuracy(tables["accuracy"]),
        _pruning(tables["pruning"]),
    ]


def findings_markdown(found: Sequence[Finding]) -> str:
    """Write findings as a table for people."""
    words = {True: "agrees", False: "does not agree", None: "not measured"}
    lines = ["| claim | measured here | |", "|---|---|---|"]
    lines += [f"| {row.claim} | {row.measured} | {words[row.agrees]} |" for row in found]
    return "\n".join(lines) + "\n"


def _exact(table: StudyTable) -> Finding:
    claim = f"Aim: probes alone predict what a step adds, to within {TARGET_ERROR:.1%} for every batch."
    ours = _values(_ending(table, "analytic"), "max")
    if not ours:
        return _not_measured("exact", claim)
    exact = _values(_ending(table, "analytic"), "exact")
    others = [
        f"{name} {statistics.median(of_kind):.1%} and {max(of_kind):.1%}"
        for name in _FITTED
        if (of_kind := _values(_ending(table, name), "p99"))
    ]
    return Finding(
        "exact",
        claim,
        f"The analytic predictor is exact for {statistics.fmean(exact):.1%} of the unseen batches, its largest error is"
        f" {max(ours):.3%}. Of the fitted ones the 99th percentile of the errors, median and worst case:"
        f" {', '.join(others) or 'none was measured'}.",
        max(ours) <= TARGET_ERROR,
    )


def _predicting(table: StudyTable) -> Finding:
    claim = "Thesis: one prediction takes 0.22 ms with the linear predictor and 7.05 ms with the forest."
    found = {kind: _values(_ending(table, kind), "predict_us") for kind in ("analytic", *THESIS_PREDICT_S)}
    if not all(found[kind] for kind in THESIS_PREDICT_S):
        return _not_measured("predicting", claim)
    medians = {kind: 1e-6 * statistics.median(times) for kind, times in found.items() if times}
    return Finding(
        "predicting",
        claim,
        f"Medians over the cases: {', '.join(f'{kind} {1000 * s:.3g} ms' for kind, s in medians.items())}. {_RULE}",
        all(_is_near(medians[kind], wanted) for kind, wanted in THESIS_PREDICT_S.items()),
    )


def _within_limit(table: StudyTable) -> Finding:
    claim = "Aim: under control no step is over the limit, and what it may take is used."
    rows = [row for row in table.rows if not row.error]
    if not rows:
        return _not_measured("within_limit", claim)
    before, after = _values(rows, "over_before"), _values(rows, "over_after")
    used, largest = _values(rows, "used"), _values(rows, "largest")
    edges = [row for row in rows if "prune" in row.setting]
    lost = f" At most {max(_values(edges, 'edges_pruned')):.1%} of the edges were pruned." if edges else ""
    refused = sum(bool(row.error) for row in table.rows)
    return Finding(
        "within_limit",
        claim,
        f"Without control {statistics.fmean(before):.1%} of the steps are over it, with control"
        f" {statistics.fmean(after):.1%}, in {len(rows)} cases; the largest takes {max(largest):.1%} of it. Batches"
        f" that were changed use {statistics.fmean(used) if used else 0.0:.1%} of it.{lost}"
        + (f" {refused} cases have no result." if refused else ""),
        max(after) == 0,
    )


def _thesis_share(table: StudyTable) -> Finding:
    claim = "Thesis: control takes up to 54 % of a run with the linear predictor, and up to 74 % with the forest."
    found = {kind: _values(_ending(table, kind), "own") for kind in THESIS_SHARE}
    if not all(found.values()):
        return _not_measured("thesis_share", claim)
    largest = {kind: max(shares) for kind, shares in found.items()}
    after = {kind: max(_values(_ending(table, kind), "steady")) for kind in THESIS_SHARE}
    words = [f"{kind} {share:.1%} ({after[kind]:.1%} behind the first epoch)" for kind, share in largest.items()]
    return Finding(
        "thesis_share",
        claim,
        f"At the limit, by its own count, up to: {', '.join(words)}. {_RULE}",
        all(_is_near(largest[kind], wanted) for kind, wanted in THESIS_SHARE.items()),
    )


def _target_share(table: StudyTable) -> Finding:
    claim = f"Aim: control with the default predictor takes at most {TARGET_SHARE:.0%} of a run."
    rows = [*_ending(table, "analytic"), *_ending(table, "untouched")]
    after, whole = _values(rows, "steady"), _values(rows, "own")
    if not after:
        return _not_measured("target_share", claim)
    wall, probes = _values(rows, "wall"), _values(rows, "probes")
    by_wall = f" By the wall clock {statistics.median(wall):.1%} (median of {len(wall)} cases)." if wall else ""
    return Finding(
        "target_share",
        claim,
        f"By its own count {min(after):.2%} to {max(after):.2%}, median {statistics.median(after):.2%}, behind the"
        f" first epoch. The probes at the start take {max(probes):.2f} s at most, once a run; with them it is up to"
        f" {max(whole):.1%} of these short runs.{by_wall} Judged by the count behind the first epoch.",
        max(after) <= TARGET_SHARE,
    )


def _cut_accuracy(table: StudyTable) -> Finding:
    claim = "Aim: cutting edges by degree or PageRank costs less accuracy than cutting them at random."
    at_random = {_case(row): row.values["accuracy"] for row in _ending(table, "random")}
    gains: dict[str, list[float]] = {}
    for score in ("degree", "pagerank"):
        for row in _ending(table, score):
            base, mine = at_random.get(_case(row)), row.values["accuracy"]
            if base is not None and mine is not None:
                gains.setdefault(score, []).append(mine - base)
    if not gains:
        return _not_measured("cut_accuracy", claim)
    words = [
        f"{score} {100 * statistics.fmean(found):+.2f} points (at least as good in"
        f" {sum(gain >= 0 for gain in found)} of {len(found)})"
        for score, found in gains.items()
    ]
    lost = _values([row for row in table.rows if row.values.get("cut")], "gain")
    worst = f" The worst cut of all costs {-100 * min(lost):.1f} points." if lost else ""
    return Finding(
        "cut_accuracy",
        claim,
        f"Beside random cuts of the same share, on average: {', '.join(words)}.{worst}",
        all(statistics.fmean(found) >= 0 for found in gains.values()),
    )


def _split_accuracy(table: StudyTable) -> Finding:
    claim = "Aim: running steps in parts keeps every edge and costs no accuracy."
    rows = [row for row in _ending(table, "split") if row.values.get("gain") is not None]
    if not rows:
        return _not_measured("split_accuracy", claim)
    gains, parts = _values(rows, "gain"), _values(rows, "parts")
    largest = max(map(abs, gains))
    return Finding(
        "split_accuracy",
        claim,
        f"The largest difference of a mean accuracy is {100 * largest:.2f} points, in {len(rows)} cases, with"
        f" {statistics.fmean(parts):.1f} parts a batch. Agreement means within half a point.",
        largest <= 0.005,
    )


def _pruning(table: StudyTable) -> Finding:
    claim = "Thesis: pruning 100,000 edges takes 1.8 s by degree and 13.8 s by PageRank."
    found = {score: [row for row in _ending(table, score) if row.values.get("all")] for score in THESIS_PRUNE_S}
    if not all(found.values()):
        return _not_measured("pruning", claim)
    words, per_edge = [], {}
    for score, rows in found.items():
        slowest = max(rows, key=lambda row: (row.values["all"] or 0.0) / (row.values["cut"] or 1.0))
        time_s, cut = slowest.values["all"] or 0.0, slowest.values["cut"] or 1.0
        per_edge[score] = time_s / cut
        words.append(f"{score} {1000 * time_s:.1f} ms for {cut:,.0f} of {slowest.values['edges'] or 0:,.0f}")
    return Finding(
        "pruning",
        claim,
        f"The slowest case: {', '.join(words)}. {_RULE}",
        all(_is_near(1e5 * per_edge[score], wanted) for score, wanted in THESIS_PRUNE_S.items()),
    )


_RULE = "Agreement means within twice and half of both."


def _is_near(found: float, wanted: float) -> bool:
    return wanted / _NEAR <= found <= _NEAR * wanted


def _not_measured(name: str, claim: str) -> Finding:
    return Finding(name, claim, "No cell tells.", None)


def _ending(table: StudyTable, name: str) -> list[StudyRow]:
    """Rows of a side, whatever the sampler."""
    return [row for row in table.rows if row.setting.rpartition(", ")[2] == name and not row.error]


def _values(rows: Sequence[StudyRow], column: str) -> list[float]:
    return [value for row in rows if (value := row.values.get(column)) is not None]


def _case(row: StudyRow) -> tuple[str, str, float | None]:
    return row.data, row.model, row.values["cut"]

"""What a job of the study runs: parts, each of them one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.studies.memory_control.accuracy import SPLIT, WHOLE, measure_accuracy
from lightning_gnnopt.studies.memory_control.limit import measure_limit
from lightning_gnnopt.studies.memory_control.overhead import measure_overhead
from lightning_gnnopt.studies.memory_control.predictors import measure_predictors
from lightning_gnnopt.studies.memory_control.pruning import measure_pruning
from lightning_gnnopt.studies.memory_control.setup import Setup

PARTS: Mapping[str, Callable[[Setup, Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {
        "predictors": measure_predictors,
        "limit": measure_limit,
        "overhead": measure_overhead,
        "accuracy": measure_accuracy,
        "pruning": measure_pruning,
    }
)
"""Parts of the study by name, each with what measures it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One cell of a job.

    Attributes:
        kind: A name in `PARTS`.
        variant: Which of the part's cells, such as ``"neighbor"``; ``""`` if it has one.
        options: What it is run with, in plain types.
    """

    kind: str
    variant: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder, such as ``"predictors=neighbor"``."""
        return f"{self.kind}={self.variant}" if self.variant else self.kind

    def measure(self, setup: Setup) -> dict[str, Any]:
        """Run it."""
        return PARTS[self.kind](setup, self.options)


def parts_of(study: Mapping[str, Any], *, data: str) -> list[Part]:
    """List the parts of a job, in the order in which they are run.

    Args:
        study: The config's group `memory`, in plain types.
        data: Name of the graph.

    Raises:
        ValueError: If a part is unknown.
    """
    parts: list[Part] = []
    for kind in study["parts"]:
        if kind not in PARTS:
            raise ValueError(unknown_name("part of the study", kind, PARTS))
        if kind == "accuracy" and data not in (study["accuracy"]["data"] or ()):
            continue
        parts += _variants(kind, study[kind])
    return parts


def _variants(kind: str, settings: Mapping[str, Any]) -> Sequence[Part]:
    if kind == "predictors":
        return _each(kind, settings, samplers="sampler")
    if kind == "pruning":
        return _each(kind, settings, scores="score")
    if kind == "accuracy":
        rest = {key: value for key, value in settings.items() if key not in ("data", "scores", "limit", "shares")}
        own: dict[str, Any] = {WHOLE: {}, **{score: {"shares": settings["shares"]} for score in settings["scores"]}}
        if settings["limit"] is not None:
            own[SPLIT] = {"limit": settings["limit"]}
        return [Part(kind=kind, variant=side, options={**rest, "side": side, **more}) for side, more in own.items()]
    if kind == "limit":
        rest = {key: value for key, value in settings.items() if key != "policies"}
        return [
            Part(
                kind=kind,
                variant=f"{sampler}-{'-'.join(policy)}",
                options={**rest, "sampler": sampler, "on_exceed": list(policy)},
            )
            for sampler, policies in settings["policies"].items()
            for policy in policies
        ]
    return [Part(kind=kind, variant="", options=dict(settings))]


def _each(kind: str, settings: Mapping[str, Any], **name: str) -> Sequence[Part]:
    """One part for each entry of a list."""
    ((many, one),) = name.items()
    rest = {key: value for key, value in settings.items() if key != many}
    return [Part(kind=kind, variant=str(value), options={**rest, one: value}) for value in settings[many]]

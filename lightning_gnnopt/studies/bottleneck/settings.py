"""What a job of the study runs: settings, each of them one profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_gnnopt._names import unknown_name

SAMPLERS = ("neighbor", "cluster")
"""Samplers that the study knows."""

EFFECTS = ("hidden", "heads", "layers")
"""Numbers of a model that the study varies."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and how it is trained for a few steps.

    Attributes:
        name: Name of its folder: ``"full"``, ``"hidden=32"`` or ``"sampler=neighbor-512"``.
        hidden: Width of the hidden layers.
        heads: Heads of each layer; None for a model without heads.
        layers: Number of layers.
        sampler: ``"full"`` for the whole graph as one batch, else one of `SAMPLERS`.
        batch_size: Seeds of a batch; None for the whole graph.
        varied: One of `EFFECTS` if that is not what the study's other settings have, else ``""``.
        steps: Steps that are run.
        skip: Of these, so many at the beginning are not recorded.
        memory_every: After those, of every so many steps the first is recorded for its memory.
    """

    name: str
    hidden: int
    heads: int | None
    layers: int
    sampler: str = "full"
    batch_size: int | None = None
    varied: str = ""
    steps: int
    skip: int
    memory_every: int

    @property
    def value(self) -> int | None:
        """What the varied number is; None if none is varied."""
        found: int | None = getattr(self, self.varied) if self.varied else None
        return found


def settings_of(study: Mapping[str, Any], *, data: str, has_heads: bool) -> list[Setting]:
    """List the settings of one model and graph, those that matter most first.

    Args:
        study: The config's group `study`.
        data: Name of the graph.
        has_heads: Whether the model has heads.

    Raises:
        ValueError: If a sampler is unknown, or steps are too few for a timed and a measured one.
    """
    base: dict[str, Any] = {
        "hidden": study["hidden"],
        "heads": study["heads"] if has_heads else None,
        "layers": study["layers"],
    }
    full, effects, sampled = (_checked(study[part], part) for part in ("full", "effects", "sampled"))
    settings = [Setting(name="full", **base, **full)]
    for sampler in study["sampled"]["samplers"]:
        if sampler not in SAMPLERS:
            raise ValueError(unknown_name("sampler of the study", sampler, SAMPLERS))
        settings += [
            Setting(name=f"sampler={sampler}-{size}", sampler=sampler, batch_size=size, **base, **sampled)
            for size in study["sampled"]["batch_sizes"]
        ]
    if data in (study["effects"]["data"] or ()):
        settings += _varied(base, study["effects"], effects)
    return settings


def _varied(base: Mapping[str, Any], values: Mapping[str, Any], steps: Mapping[str, Any]) -> Iterable[Setting]:
    for effect in EFFECTS:
        if base[effect] is None:  # no heads
            continue
        for value in values[effect] or ():
            if value != base[effect]:  # else it is the setting "full"
                yield Setting(name=f"{effect}={value}", varied=effect, **{**base, effect: value}, **steps)


def _checked(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    steps = {key: int(part[key]) for key in ("steps", "skip", "memory_every")}
    if steps["memory_every"] < 2 or steps["skip"] < 0 or steps["steps"] < steps["skip"] + 2:
        raise ValueError(
            f"`study.{name}` must have `memory_every` of at least 2 and `steps` of at least `skip` + 2, but has"
            f" {steps}. HINT: the step after those skipped is recorded for its memory, and the next one is timed."
        )
    return steps


def describe_setting(setting: Setting, **surroundings: Any) -> dict[str, Any]:
    """Say in plain types what a setting depends on, so that two runs can be compared."""
    return {**asdict(setting), **surroundings}

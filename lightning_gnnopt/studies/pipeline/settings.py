"""What a job of the study runs: settings, each of them one cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_gnnopt._names import unknown_name

SAMPLERS = ("neighbor", "cluster")
"""Samplers that the study knows."""

EFFECTS = ("batch_size", "hidden")
"""Numbers that the study varies."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, how its batches are made, and how often it is run.

    Attributes:
        sampler: One of `SAMPLERS`.
        batch_size: Seeds of a batch; of clusters, about so many.
        hidden: Width of the hidden layers.
        heads: Heads of each layer; None for a model without heads.
        layers: Number of layers, and of hops.
        rounds: How often each side is run.
        varied: One of `EFFECTS` if that is not what the study's other settings have, else ``""``.
    """

    sampler: str
    batch_size: int
    hidden: int
    heads: int | None
    layers: int
    rounds: int
    varied: str = ""

    @property
    def name(self) -> str:
        """Name of its folder, such as ``"neighbor-512"`` or ``"neighbor-512-hidden=256"``."""
        width = f"-hidden={self.hidden}" if self.varied == "hidden" else ""
        return f"{self.sampler}-{self.batch_size}{width}"


def settings_of(study: Mapping[str, Any], *, data: str, has_heads: bool) -> list[Setting]:
    """List the settings of one model and graph, those that matter most first.

    Args:
        study: The config's group `pipeline`.
        data: Name of the graph.
        has_heads: Whether the model has heads.

    Raises:
        ValueError: If a sampler is unknown, or there are too few epochs or rounds.
    """
    _check(study)
    settings = [
        Setting(
            sampler=sampler,
            batch_size=study["batch_size"],
            hidden=study["hidden"],
            heads=study["heads"] if has_heads else None,
            layers=study["layers"],
            rounds=study["rounds"],
        )
        for sampler in study["samplers"]
    ]
    effects = study["effects"]
    if data not in (effects["data"] or ()):
        return settings
    return settings + [
        replace(setting, varied=effect, rounds=effects["rounds"], **{effect: value})
        for setting in settings
        for effect in EFFECTS
        for value in effects[effect] or ()
        if value != study[effect]  # else it is there already
    ]


def describe_setting(setting: Setting, **surroundings: Any) -> dict[str, Any]:
    """Say in plain types what a cell depends on, so that two runs can be compared."""
    return {**asdict(setting), **surroundings}


def _check(study: Mapping[str, Any]) -> None:
    for sampler in study["samplers"]:
        if sampler not in SAMPLERS:
            raise ValueError(unknown_name("sampler of the study", sampler, SAMPLERS))
    if study["epochs"] < 4:
        raise ValueError(
            f"`pipeline.epochs` must be at least 4, but is {study['epochs']}. HINT: three are over before the first"
            " verdict of validation beside training can be, and those after it are timed."
        )
    for name, rounds in (("rounds", study["rounds"]), ("effects.rounds", study["effects"]["rounds"])):
        if rounds < 1:
            raise ValueError(f"`pipeline.{name}` must be at least 1, but is {rounds}. HINT: 1 runs each side once.")

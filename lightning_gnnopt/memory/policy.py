"""What is done with a batch that would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.memory.scores import SCORES

REMEDIES = ("resample", "prune", "shrink", "split", "watch")


class MemoryBudgetError(RuntimeError):
    """A batch cannot be made to fit into the budget."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is tried, in this order, when a batch would not fit.

    Attributes:
        on_exceed: One or several of ``"resample"``, ``"prune"``, ``"shrink"`` and ``"split"``, for training;
            ``"watch"`` alone changes nothing.
        max_resamples: How often a batch is drawn anew.
        pruning: The score by which edges go.
        keep_connected: Whether the best in-edge of each node is kept before any other.
        exact: Whether evaluation runs batches in parts instead of pruning them.
        depth: Layers of the model, for batches without hops that are split; None takes all that reaches the seeds.
        loss_reduction: Whether a step's loss is a ``"mean"`` over the seeds or their ``"sum"``.

    Raises:
        ValueError: If a name is unknown or a number out of its range.
    """

    on_exceed: tuple[str, ...] = ("resample", "prune")
    max_resamples: int = 10
    pruning: str = "degree"
    keep_connected: bool = False
    exact: bool = False
    depth: int | None = None
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        if isinstance(self.on_exceed, str):
            object.__setattr__(self, "on_exceed", (self.on_exceed,))
        object.__setattr__(self, "on_exceed", tuple(self.on_exceed))
        for remedy in self.on_exceed:
            if remedy not in REMEDIES:
                raise ValueError(unknown_name("on_exceed", remedy, REMEDIES))
        if not self.on_exceed or len(set(self.on_exceed)) < len(self.on_exceed):
            raise ValueError(
                f"`on_exceed` must name each remedy once and at least one, but got {self.on_exceed!r}."
                " HINT: ('resample', 'prune')."
            )
        if self.on_exceed == ("resample",):
            raise ValueError(
                "`on_exceed` must end with what makes any batch smaller, but got 'resample' alone."
                " HINT: ('resample', 'prune') or ('resample', 'split')."
            )
        for place, remedy in enumerate(self.on_exceed):
            if (remedy == "resample" and place) or (remedy == "split" and place < len(self.on_exceed) - 1):
                raise ValueError(
                    f"`on_exceed` must have 'resample' first and 'split' last, as nothing is tried after what always"
                    f" helps, but got {self.on_exceed!r}. HINT: ('resample', 'prune', 'split')."
                )
        if "watch" in self.on_exceed and len(self.on_exceed) > 1:
            raise ValueError(
                f"`on_exceed='watch'` changes no batch and must stand alone, but got {self.on_exceed!r}."
                " HINT: leave 'watch' out."
            )
        if self.pruning not in SCORES:
            raise ValueError(unknown_name("pruning", self.pruning, SCORES))
        if self.max_resamples < 0 or isinstance(self.max_resamples, bool):
            raise ValueError(f"`max_resamples` must be 0 or more, but got {self.max_resamples}. HINT: 10, say.")
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"`depth` must be at least 1, but got {self.depth}. HINT: the model's number of layers.")
        if self.loss_reduction not in ("mean", "sum"):
            raise ValueError(unknown_name("loss_reduction", self.loss_reduction, ("mean", "sum")))

    def with_depth_of(self, model: Any) -> Policy:
        """Take the model's number of layers for the depth where none was given."""
        num_layers = getattr(model, "num_layers", None)
        if self.depth is not None or not isinstance(num_layers, int) or num_layers < 1:
            return self
        return replace(self, depth=num_layers)

    def remedies(self, stage: str) -> Sequence[str]:
        """What is tried in a stage."""
        if stage == "train" or "watch" in self.on_exceed:
            return self.on_exceed
        return ("split",) if self.exact else ("prune",)

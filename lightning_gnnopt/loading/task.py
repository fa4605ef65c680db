"""What differs between the things a DataModule can load: nodes, nodes of several types, links."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.sharing import Share, Shareable
from lightning_gnnopt.loading.sources import BatchSource

T = TypeVar("T", bound=Shareable)

STAGES = ("train", "val", "test", "predict")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a task's batches are made and for whom.

    Attributes:
        module: What they are for, if it is known.
        share: Calls a function that makes something large, on one process of each machine, and hands all of them what
            it made, in memory that they share; None for a process that is alone on its machine.
        cache: Puts hot rows of ``x`` on the device; None where nothing is to be cached.
    """

    module: L.LightningModule | None = None
    share: Share | None = None
    cache: Callable[[GraphTask, FeatureStore], FeatureStore] | None = None

    @property
    def in_degree(self) -> bool:
        """Whether the batches have to bring in-degrees."""
        return bool(getattr(self.module, "needs_in_degree", False))

    def make(self, function: Callable[[], T]) -> T:
        """Make something that has a method `share`, once on each machine."""
        return function() if self.share is None else self.share(function)


class GraphTask(ABC):
    """The inputs of each stage of a graph, and how batches are made around them."""

    data: Any

    def __init__(self) -> None:
        self._nodes: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def topology(self) -> Any:
        """The graph by destination."""

    @abstractmethod
    def sampler(self, stage: str) -> Any:
        """What draws the batches of a stage."""

    def nodes(self, stage: str) -> NDArray[np.int64]:
        """Ids of a stage's nodes; empty if it has none."""
        nodes = self._nodes.get(checked_stage(stage))
        return np.empty(0, np.int64) if nodes is None else nodes.numpy()

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Number of features per node."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, or of labels per node."""

    @property
    @abstractmethod
    def multilabel(self) -> bool:
        """Whether a node can have several labels."""

    def has(self, stage: str) -> bool:
        """Whether there is something to load in a stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``."""
        return checked_stage(stage) in self._nodes

    @abstractmethod
    def missing(self, stage: str) -> ValueError:
        """Say what has to be given for a stage to have something to load."""

    @abstractmethod
    def build(self, surroundings: Surroundings) -> None:
        """Build what batches are made with, as far as it is not there; refuse a module that they do not fit."""

    @abstractmethod
    def source(self, stage: str) -> BatchSource:
        """What the batches of a stage are made from; after :meth:`build`."""

    def order(self, stage: str, batch_size: int, **arguments: Any) -> SeedOrder:
        """Which inputs of a stage stand in which batch; `arguments` are those of `SeedOrder`."""
        return SeedOrder(self.source(stage).num_inputs, batch_size, **arguments)


def checked_stage(stage: str) -> str:
    """Refuse what is no stage.

    Raises:
        ValueError: If `stage` is not ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
    """
    if stage not in STAGES:
        raise ValueError(unknown_name("stage", stage, STAGES))
    return stage

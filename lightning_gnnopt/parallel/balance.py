"""Parts of equal time rather than equal size: a cost model, fitted in the run, moves the cuts (ROC, MLSys 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import coo_matrix

from lightning_gnnopt.sampling.partition import partition_nodes
from lightning_gnnopt.sampling.topology import Topology

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LearnedBalance:
    """When and how far cuts are moved.

    Args:
        every_n_steps: Steps whose times, in the median, are one observation.
        max_updates: How often the cuts may be moved in a run; each time the graph is cut and written anew.
        tolerance: Nothing is moved while the slowest rank is no further above the mean, as a share.
        cells_per_part: Pieces of a part that are moved whole.

    Raises:
        ValueError: If a number is out of range.
    """

    every_n_steps: int = 5
    max_updates: int = 5
    tolerance: float = 0.05
    cells_per_part: int = 32

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "max_updates", "cells_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if not self.tolerance > 0:
            raise ValueError(f"`tolerance` must be positive, but got {self.tolerance}. HINT: 0.05 is five percent.")


class CostModel:
    """Seconds of a rank's step: ``speed * (a * nodes + b * in-edges)``, fitted to all that was observed.

    ROC fits one model of a vertex's cost for all ranks; ranks on one machine, or with other work beside them, differ in
    speed as well.

    Args:
        num_parts: Number of ranks, ``P``.
    """

    def __init__(self, num_parts: int) -> None:
        self.speed: Floats = np.ones(num_parts)
        self.costs: Floats = np.zeros(2)
        self._sizes: list[Floats] = []
        self._seconds: list[Floats] = []

    def observe(self, sizes: Floats, seconds: Floats) -> None:
        """Learn from a step.

        Args:
            sizes: Nodes and in-edges of each rank, shape ``(P, 2)``.
            seconds: Of each rank, without what it waited for others, shape ``(P,)``.
        """
        self._sizes.append(np.asarray(sizes, np.float64))
        self._seconds.append(np.asarray(seconds, np.float64))
        all_sizes, all_seconds = np.stack(self._sizes), np.stack(self._seconds)
        scale = np.maximum(all_sizes.reshape(-1, 2).mean(0), 1.0)
        for _ in range(50):  # in turn: costs with the speeds held, and speeds with the costs held
            design = (all_sizes * self.speed[:, None] / scale).reshape(-1, 2)
            self.costs = nnls(design, all_seconds.reshape(-1))[0] / scale
            plain = all_sizes @ self.costs
            self.speed = (plain * all_seconds).sum(0) / np.maximum((plain * plain).sum(0), 1e-300)
            self.speed = self.speed / self.speed.mean()

    def predict(self, sizes: Floats) -> Floats:
        """Seconds of each rank with parts of such sizes: ``(P, 2)`` to ``(P,)``."""
        seconds: Floats = self.speed * (np.asarray(sizes, np.float64) @ self.costs)
        return seconds


def imbalance(seconds: Floats) -> float:
    """How far the slowest rank is above the mean.

    Examples:
        >>> imbalance(np.array([1.0, 1.0, 1.0, 5.0]))
        1.5
    """
    return float(seconds.max() / seconds.mean() - 1.0) if seconds.mean() > 0 else 0.0


class Balancer:
    """Moves cells, pieces of a few nodes that lie together, from slow ranks to fast ones.

    Args:
        edge_index: Int64, shape ``(2, E)``.
        owner: The part of each node to begin with, shape ``(N,)``.
        num_parts: Number of parts, ``P``.
        options: How.
        seed: Of the division into cells.

    Attributes:
        owner: The part of each node now.
        model: What was learned.
        updates: How often cuts were moved.
    """

    def __init__(
        self,
        edge_index: NDArray[np.int64],
        owner: NDArray[np.integer[Any]],
        num_parts: int,
        options: LearnedBalance,
        *,
        seed: int = 0,
    ) -> None:
        self.options, self.model, self.updates = options, CostModel(num_parts), 0
        num_nodes = len(owner)
        topology = Topology.from_edge_index(torch.from_numpy(edge_index), num_nodes=num_nodes)
        num_cells = min(num_nodes, options.cells_per_part * num_parts)
        pieces = partition_nodes(topology, num_cells, seed=seed).astype(np.int64)
        # A piece that several parts share is a cell of each of them: the first assignment is the given one.
        keys, self._cell = np.unique(pieces * num_parts + owner, return_inverse=True)
        self._assigned: NDArray[np.int64] = keys % num_parts
        degree = np.bincount(edge_index[1], minlength=num_nodes)
        self._sizes: Floats = np.stack(
            [np.bincount(self._cell), np.bincount(self._cell, weights=degree)], axis=1
        ).astype(np.float64)
        between = self._cell[edge_index]
        ones = np.ones(between.shape[1])
        links = coo_matrix((ones, (between[0], between[1])), shape=(len(keys), len(keys))).tocsr()
        self._links = (links + links.T).tocsr()

    @property
    def owner(self) -> NDArray[np.int64]:
        """The part of each node, shape ``(N,)``."""
        owner: NDArray[np.int64] = self._assigned[self._cell]
        return owner

    @property
    def sizes(self) -> Floats:
        """Nodes and in-edges of each part, shape ``(P, 2)``."""
        return np.stack(
            [np.bincount(self._assigned, weights=column, minlength=len(self.model.speed)) for column in self._sizes.T],
            axis=1,
        )

    def observe(self, seconds: Floats) -> bool:
        """Learn from what ranks took, and move cuts if that helps.

        Args:
            seconds: Of each rank's step, shape ``(P,)``.

        Returns:
            Whether `owner` is another one now.
        """
        self.model.observe(self.sizes, seconds)
        if self.updates >= self.options.max_updates or imbalance(seconds) <= self.options.tolerance:
            return False
        before = self._assigned.copy()
        while self._move_one():
            pass
        moved = not np.array_equal(before, self._assigned)
        self.updates += moved
        return moved

    def _move_one(self) -> bool:
        """Move the cell to the fastest rank that makes the slower of the two fastest; of equals, the best connected."""
        seconds = self.model.predict(self.sizes)
        slow, fast = int(seconds.argmax()), int(seconds.argmin())
        cells = np.flatnonzero(self._assigned == slow)
        if len(cells) < 2:
            return False
        costs = self._sizes[cells] @ self.model.costs
        slower = np.maximum(
            seconds[slow] - self.model.speed[slow] * costs, seconds[fast] + self.model.speed[fast] * costs
        )
        # What is linked to the fast rank adds little to halos; a move must make up for the rest by its time.
        towards = np.asarray(self._links[cells][:, self._assigned == fast].sum(1)).ravel()
        within = np.asarray(self._links[cells].sum(1)).ravel()
        better = np.flatnonzero(slower < seconds[slow] * (1 - 1e-3))
        if not len(better):
            return False
        share = towards[better] / np.maximum(within[better], 1.0)
        gain = (seconds[slow] - slower[better]) / seconds[slow]
        self._assigned[cells[better[np.argmax(gain * (0.05 + share))]]] = fast
        return True

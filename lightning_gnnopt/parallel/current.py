"""The part that a thread computes on, which layers look up."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel
from lightning_gnnopt.parallel.halo import HaloPlan, Wire, fetch_halo, plain_wire
from lightning_gnnopt.parallel.policies import Policies
from lightning_gnnopt.parallel.sampled import sample_plan
from lightning_gnnopt.parallel.softmax import Softmax
from lightning_gnnopt.parallel.wires import StaleWires, quantized_wire


class CurrentPart:
    """A part in the course of a run.

    Args:
        plan: Who sends what.
        channel: What it is sent over.
        num_nodes: Nodes of the whole graph, ``N``.
        policies: What is fetched in training.

    Attributes:
        kept: What is the same in all layers and steps, such as norms.
        kept_in_pass: What is the same in all layers of a pass.
        drawn: Which rows are fetched in this pass.
        current_softmax: What takes the place of a softmax over in-edges now.
        live_rows: Rows of the halo that are there now, where they come one rank after the other.
        most_live_rows: The most there have been.
        has_all_nodes: Whether rows are those of all nodes just now.
    """

    def __init__(self, plan: HaloPlan, channel: Channel, num_nodes: int, *, policies: Policies | None = None) -> None:
        self.plan, self.channel, self.num_nodes = plan, channel, num_nodes
        self.kept: dict[Any, Any] = {}
        self._policies = Policies() if policies is None else policies
        self._plain = self._wire = plain_wire(channel)
        self._stale: StaleWires | None = None
        if (quantized := self._policies.quantized) is not None:
            generator = torch.Generator(plan.send_index.device)
            generator.manual_seed(quantized.seed * 100_003 + channel.rank)  # of each rank another one
            self._wire = quantized_wire(channel, quantized.bits, generator)
        if (stale := self._policies.stale) is not None:
            self._stale = StaleWires(stale.delay, stale.smooth)
        self.drawn = plan
        self.kept_in_pass: dict[Any, Any] = {}
        self.current_softmax: Softmax | None = None
        self.live_rows = self.most_live_rows = 0
        self.has_all_nodes = False
        self._is_training = False
        self._fetched: dict[tuple[int, bool], tuple[Any, int, Tensor]] = {}

    def start(self, step: int, *, training: bool) -> None:
        """Begin a pass.

        Args:
            step: Its number, the same on all ranks.
            training: Whether policies count; evaluation fetches all rows as they are.
        """
        self._is_training, self.drawn = training, self.plan
        self.forget()
        self.kept_in_pass.clear()
        if training and (sampled := self._policies.sampled) is not None:
            share = sampled.share(step)
            self.drawn = sample_plan(self.plan, share, rank=self.channel.rank, key=(sampled.seed, step))
        if training and self._stale is not None:
            self._stale.start()

    @property
    def is_sampled(self) -> bool:
        """Whether some rows of the halo are left out in this pass."""
        return self.drawn.recv_index is not None

    def halo_of(self, rows: Tensor, *, scaled: bool = True) -> Tensor:
        """Return the halo's rows; of rows that were asked for before in this layer, the same ones.

        A layer may ask for the same rows several times: for attention and for messages, or once for each relation.

        Args:
            rows: Of the part's own nodes, shape ``(n, ...)``.
            scaled: Whether rows of a sampled halo are scaled up.

        Returns:
            Shape ``(h, ...)``; rows that are left out are zero.
        """
        key = id(rows), scaled
        found = self._fetched.get(key)
        if found is not None and found[0]() is rows and found[1] == rows._version:
            return found[2]
        halo = fetch_halo(rows, self.drawn if scaled else self.drawn.unscaled(), self.next_wire())
        self._fetched[key] = weakref.ref(rows), rows._version, halo
        return halo

    def whole_halo_of(self, rows: Tensor) -> Tensor:
        """Return the halo's rows whatever the policy: for what does not depend on the weights."""
        return fetch_halo(rows, self.plan, self._plain)

    def fetched_edges(self, edge_index: Tensor) -> Tensor:
        """Say of which edges the source is there, in a sampled halo: bool, shape ``(e,)``."""
        key = "fetched_edges", id(edge_index)
        if key not in self.kept_in_pass:
            assert self.drawn.recv_index is not None
            size = self.plan.num_inner + self.plan.num_halo
            is_there = torch.arange(size, device=edge_index.device) < self.plan.num_inner
            is_there[self.plan.num_inner + self.drawn.recv_index] = True
            self.kept_in_pass[key] = edge_index, is_there[edge_index[0]]
        found: Tensor = self.kept_in_pass[key][1]
        return found

    @property
    def is_sequential(self) -> bool:
        """Whether messages are computed from one rank's rows after the other's, in this pass."""
        return self._policies.sequential is not None

    @property
    def is_by_columns(self) -> bool:
        """Whether messages are of some columns of all nodes, where a convolution allows it."""
        return self._policies.columns is not None

    @contextmanager
    def in_columns(self) -> Iterator[None]:
        """Compute on all nodes in this block: nothing is fetched."""
        before, self.has_all_nodes = self.has_all_nodes, True
        try:
            yield
        finally:
            self.has_all_nodes = before

    @property
    def prefetch(self) -> int:
        """Of how many further ranks rows are fetched ahead, then."""
        return 0 if self._policies.sequential is None else self._policies.sequential.prefetch

    @contextmanager
    def softmax(self, softmax: Softmax | None) -> Iterator[None]:
        """Put something in the place of a softmax over in-edges, within a block."""
        before, self.current_softmax = self.current_softmax, softmax
        try:
            yield
        finally:
            self.current_softmax = before

    def forget(self) -> None:
        """Let go of what was fetched: the layer that asked for it has ended."""
        self._fetched.clear()

    def next_wire(self) -> Wire:
        """What brings the next rows of this pass."""
        if not self._is_training:
            return self._plain
        return self._wire if self._stale is None else self._stale.next(self._wire)


_CURRENT = threading.local()


def current_part() -> CurrentPart | None:
    """The part that this thread computes on, if any."""
    return getattr(_CURRENT, "part", None)


@contextmanager
def computing_on(part: CurrentPart | None) -> Iterator[None]:
    """Compute on a part in this block."""
    before = current_part()
    _CURRENT.part = part
    try:
        yield
    finally:
        _CURRENT.part = before

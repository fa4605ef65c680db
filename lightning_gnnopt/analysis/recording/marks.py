"""When what began: a step's time, cut into labelled stretches without a gap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch_geometric.data.data import BaseData

from lightning_gnnopt.analysis.recording.clocks import Clock
from lightning_gnnopt.analysis.recording.labels import Label

OTHER = Label("other")
BACKWARD = Label("backward")


class Marks:
    """A log of labels and of the moments from which they hold.

    A label holds until the next one, so the stretches of a step add up to the step. :meth:`push` and :meth:`pop` nest.

    The backward pass is cut where the forward pass was: autograd runs nodes in the reverse order of their making, as
    far as one thread makes and runs them. So a hook before the last node that a part made tells when the part's
    backward pass begins (:meth:`cover`), and one after the first node of several parts tells when theirs is over
    (:meth:`bound`). When a backward pass has ended, what went on before it goes on.

    Only the thread that made it is heard.

    Args:
        clock: Takes the stamps.

    Attributes:
        labels: Labels of the open step.
        stamps: Their stamps.
        host_s: Their moments on the host, by `time.perf_counter`, if `keeps_host`.
        spent_s: Seconds that the profiler has taken in total.
        spent_at_s: What that was at each stamp.
        on_mark: Called after each mark; for what else is read there.
        had_backward: Whether a backward pass came by in the open step.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.labels: list[Label] = []
        self.stamps: list[Any] = []
        self.host_s: list[float] = []
        self.spent_at_s: list[float] = []
        self.keeps_host = False
        self.spent_s = 0.0
        self.on_mark: Callable[[], None] | None = None
        self.current = OTHER
        self._stack: list[Label] = []
        self._covered = 0
        self._before_backward: Label | None = None  # while one runs: what went on before
        self._backward = -1  # its number, which autograd gives it
        self.had_backward = False
        self._is_open = False
        self._thread = threading.get_ident()

    @property
    def is_open(self) -> bool:
        """Whether a step is open and this thread is its thread, or runs a backward pass.

        That of a device runs in a thread of the engine's own, and what it computes anew (checkpointing) with it.
        """
        return self._is_open and (threading.get_ident() == self._thread or torch._C._current_graph_task_id() != -1)

    @property
    def depth(self) -> int:
        """Number of labels to return to."""
        return len(self._stack)

    def open(self, label: Label = OTHER) -> None:
        """Begin a step."""
        self._thread = threading.get_ident()
        self.labels, self.stamps, self.host_s, self.spent_at_s = [], [], [], []
        self._stack = []
        self._is_open = True
        self._covered = _get_sequence_nr()
        self._before_backward = None
        self.had_backward = False
        self._mark(label)

    def close(self) -> tuple[list[Label], list[Any]]:
        """End the step.

        Returns:
            Its labels, and their stamps with one more for the end.
        """
        self._mark(OTHER)
        self._is_open = False
        self._stack = []
        return self.labels[:-1], self.stamps

    def push(self, label: Label) -> None:
        """Begin something within what is going on."""
        self._stack.append(self.current)
        self.switch(label)

    def pop(self, depth: int | None = None) -> None:
        """End it, and return to what was going on; with `depth` all that was begun since that depth."""
        target = len(self._stack) - 1 if depth is None else depth
        if 0 <= target < len(self._stack):
            label = self._stack[target]
            del self._stack[target:]
            self.switch(label)

    def switch(self, label: Label) -> None:
        """Say what is going on from now on."""
        if self.current is not label and self.current != label:
            self._mark(label)

    def begin_part(self) -> int:
        """Say that what has been computed so far belongs to no part; return the number of autograd's next node."""
        self._covered = _get_sequence_nr()
        return self._covered

    def cover(self, value: Any, label: Label) -> None:
        """Let the backward pass of what was computed since the last call count for `label`.

        Args:
            value: What has been computed: tensors, also within containers, dataclasses and PyG's batches.
            label: The backward pass's label.
        """
        if not torch.is_grad_enabled():
            return
        began_s = time.perf_counter()
        node, number = None, self._covered - 1
        for candidate in _nodes(value):
            candidate_number = candidate._sequence_nr()
            if number < candidate_number < _LEAF:
                node, number = candidate, candidate_number
        if node is not None:
            node.register_prehook(lambda _: self._in_backward(label))
        self._covered = _get_sequence_nr()
        self.spent_s += time.perf_counter() - began_s

    def bound(self, value: Any, since: int, label: Label) -> None:
        """Let `label` hold once the backward pass of all that was computed since then is over.

        Args:
            value: What has been computed.
            since: What :meth:`begin_part` returned before.
            label: What the backward pass goes on with.
        """
        if not torch.is_grad_enabled():
            return
        began_s = time.perf_counter()
        first, number = None, _LEAF
        nodes = {node._sequence_nr(): node for node in _nodes(value)}
        seen = set(nodes)
        while nodes:
            place, node = nodes.popitem()
            if not since <= place < _LEAF:
                continue
            if place < number:
                first, number = node, place
            for below, _ in node.next_functions:
                if below is not None and (below_place := below._sequence_nr()) not in seen:
                    seen.add(below_place)
                    nodes[below_place] = below
        if first is not None:
            first.register_hook(lambda *_: self._in_backward(label))
        self.spent_s += time.perf_counter() - began_s

    def _in_backward(self, label: Label) -> None:
        # The engine runs a device's nodes in a thread of its own, while the thread of the step waits for it.
        if not self._is_open:
            return
        if self._before_backward is None:
            self._before_backward, self._backward, self.had_backward = self.current, -1, True
        number = torch._C._current_graph_task_id()
        if number > self._backward:  # none of before: one that raised has dropped its callback; or one within another
            self._backward = number
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)
        self.switch(label)

    def _backward_ended(self) -> None:
        label, self._before_backward = self._before_backward, None
        if self._is_open and label is not None:
            self.switch(label)

    def _mark(self, label: Label) -> None:
        began_s = time.perf_counter()
        self.current = label
        self.labels.append(label)
        self.stamps.append(self.clock.stamp())
        self.spent_at_s.append(self.spent_s)
        if self.keeps_host:
            self.host_s.append(began_s)
        if self.on_mark is not None:
            self.on_mark()
        self.spent_s += time.perf_counter() - began_s


_LEAF = 2**63  # autograd numbers nodes of leaves by the largest number there is


def _nodes(value: Any) -> Iterable[Any]:
    """The nodes of autograd that made the tensors in a value."""
    return [tensor.grad_fn for tensor in _tensors(value) if tensor.grad_fn is not None]


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, BaseData):
        for store in value.stores:
            yield from _tensors(list(store.values()))
    elif is_dataclass(value):
        yield from _tensors(vars(value))

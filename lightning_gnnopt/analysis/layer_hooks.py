"""Hooks that say which layer computes, and which step of its edge computation."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.analysis.labels import Kind, Label, Part
from lightning_gnnopt.analysis.layers import Layer, normalizing_functions
from lightning_gnnopt.analysis.marks import BACKWARD, Marks


class LayerHooks:
    """Marks where layers begin and end, and the steps of message passing within them.

    PyG calls hooks around `propagate`, `message`, `aggregate`, `message_and_aggregate` and `edge_update`, and what
    lies between two of them is known too: `gather` lies before the message, `update` after the aggregation.
    `edge_updater` has no hook where it begins, so that method is wrapped; and so are the functions that weigh edges
    outside of `propagate`, where the classes of the model look them up.

    Everything is there between :meth:`attach` and :meth:`detach` only: a model that is copied or pickled between two
    steps has no trace of it.

    Args:
        model: The model.
        layers: Its layers.
        marks: Where to mark.

    Attributes:
        calls: Calls of each layer, by its name.
        fused: Calls of `propagate` in it that took the fused path.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], marks: Marks) -> None:
        self._layers = layers
        self._marks = marks
        self._functions = normalizing_functions(model) if layers else []
        self._undo: list[Callable[[], None]] = []
        self._name = ""
        self.calls: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()

    def attach(self) -> None:
        """Begin to mark."""
        if self._undo:
            return
        for layer in self._layers:
            self._attach_layer(layer)
        for module, name in self._functions:
            self._wrap_function(module, name)

    def detach(self) -> None:
        """Leave no trace of it in the model."""
        while self._undo:
            self._undo.pop()()
        self._name = ""

    def _attach_layer(self, layer: Layer) -> None:
        marks, name = self._marks, layer.name
        depths: list[int] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not marks.is_open:
                return
            marks.cover((args, kwargs), BACKWARD)
            self.calls[name] += 1
            self._name = name
            depths.append(marks.depth)
            self._push("vertex")

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if not depths:
                return
            depth = depths.pop()
            if marks.is_open:
                self._cover(out, "vertex")
                marks.pop(depth)  # also of what an error has left open
            self._name = ""

        self._undo.append(layer.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        self._undo.append(layer.module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
        for part in layer.parts:
            self._attach_part(part)

    def _attach_part(self, module: MessagePassing) -> None:
        marks = self._marks

        def propagates(_: Any, inputs: Any) -> None:
            if marks.is_open:
                self._cover(inputs, "vertex")
                self._push("edge", "gather")

        def propagated(_: Any, inputs: Any, out: Any) -> None:
            if marks.is_open:
                self._cover(out, "edge", "update")
                marks.pop()

        def reaches(done: Part, begun: Part) -> Callable[..., None]:
            def hook(_: Any, inputs: Any, out: Any = None) -> None:
                if marks.is_open:
                    self._cover(inputs if out is None else out, "edge", done)
                    self._switch(begun)

            return hook

        def fuses(_: Any, inputs: Any) -> None:
            if marks.is_open:
                self.fused[self._name] += 1
                self._cover(inputs, "edge", "gather")
                self._switch("fused")

        for registered in (
            module.register_propagate_forward_pre_hook(propagates),
            module.register_message_forward_pre_hook(reaches("gather", "message")),
            module.register_message_forward_hook(reaches("message", "aggregate")),
            module.register_aggregate_forward_hook(reaches("aggregate", "update")),
            module.register_message_and_aggregate_forward_pre_hook(fuses),
            module.register_message_and_aggregate_forward_hook(reaches("fused", "update")),
            module.register_propagate_forward_hook(propagated),
            module.register_edge_update_forward_pre_hook(reaches("gather", "edge_update")),
            module.register_edge_update_forward_hook(reaches("edge_update", "edge_update")),
        ):
            self._undo.append(registered.remove)
        self._wrap_edge_updater(module)

    def _wrap_edge_updater(self, module: MessagePassing) -> None:
        marks, plain = self._marks, module.edge_updater

        @functools.wraps(plain)
        def edge_updater(*args: Any, **kwargs: Any) -> Any:
            if not marks.is_open:
                return plain(*args, **kwargs)
            self._cover((args, kwargs), "vertex")
            depth = marks.depth
            self._push("edge", "gather")
            try:
                return plain(*args, **kwargs)
            finally:
                marks.pop(depth)

        had_own = "edge_updater" in module.__dict__
        module.edge_updater = edge_updater

        def undo() -> None:
            if had_own:
                module.edge_updater = plain
            else:
                del module.edge_updater

        self._undo.append(undo)

    def _wrap_function(self, module: ModuleType, name: str) -> None:
        marks, plain = self._marks, getattr(module, name)

        @functools.wraps(plain)
        def normalize(*args: Any, **kwargs: Any) -> Any:
            if not marks.is_open or marks.current.part:
                return plain(*args, **kwargs)
            depth = marks.depth
            if self._name:
                self._cover((args, kwargs), "vertex")
            else:
                marks.cover((args, kwargs), BACKWARD)
            self._push("edge", "normalize")
            try:
                out = plain(*args, **kwargs)
                self._cover(out, "edge", "normalize")
                return out
            finally:
                marks.pop(depth)

        setattr(module, name, normalize)
        self._undo.append(lambda: setattr(module, name, plain))

    def _push(self, kind: Kind, part: Part = "") -> None:
        self._marks.push(Label(self._marks.current.phase, self._name, kind, part))

    def _switch(self, part: Part) -> None:
        self._marks.switch(Label(self._marks.current.phase, self._name, "edge", part))

    def _cover(self, value: Any, kind: Kind, part: Part = "") -> None:
        self._marks.cover(value, Label("backward", self._name, kind, part))

"""Hooks that say which layer computes, and which step of its edge computation."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.analysis.recording.labels import Kind, Label, Part
from lightning_gnnopt.analysis.recording.layers import Layer, is_written_by_pyg, normalizing_functions
from lightning_gnnopt.analysis.recording.marks import BACKWARD, Marks
from lightning_gnnopt.analysis.recording.uncopied_hook import UncopiedHook


class LayerHooks:
    """Marks where layers begin and end, and the steps of message passing within them.

    PyG calls hooks around `propagate`, `message`, `aggregate`, `message_and_aggregate` and `edge_update`, and what lies
    between two of them is known too: `gather` lies before the message, `update` after the aggregation. `edge_updater`
    has no hook where it begins, and a `propagate` of a layer's own has none at all, so these methods are wrapped in
    their classes; and so are the functions that weigh edges outside of `propagate`, where the classes of the model
    look them up.

    Everything is there between :meth:`attach` and :meth:`detach` only, and does nothing in a copy of the model that is
    made meanwhile.

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
        self._name_of = {id(part): layer.name for layer in layers for part in layer.parts}
        self._undo: list[Callable[[], None]] = []
        self._name: str | None = None  # of the layer that computes
        self.calls: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()

    def attach(self) -> None:
        """Begin to mark."""
        if self._undo:
            return
        for layer in self._layers:
            self._attach_layer(layer)
        parts = [part for layer in self._layers for part in layer.parts]
        for cls in dict.fromkeys(type(part) for part in parts):
            self._wrap_method(cls, "edge_updater", "gather")
            if not is_written_by_pyg(cls.propagate):
                self._wrap_method(cls, "propagate", "fused")
        for module, name in self._functions:
            self._wrap_function(module, name)

    def detach(self) -> None:
        """Leave no trace of it in the model."""
        while self._undo:
            self._undo.pop()()
        self._name = None

    def _attach_layer(self, layer: Layer) -> None:
        marks, name = self._marks, layer.name
        entered: list[tuple[int, str | None, int]] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if marks.is_open:
                self.calls[name] += marks.current.phase != "validation"
                entered.append((marks.depth, self._name, marks.begin_part()))
                self._name = name
                self._push("vertex")

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if not entered:
                return
            depth, outer, since = entered.pop()
            if marks.is_open:
                self._cover(out, "vertex")
                marks.bound(out, since, BACKWARD if outer is None else Label("backward", outer, "vertex"))
                marks.pop(depth)  # also of what an error has left open
            self._name = outer

        module = layer.module
        self._undo.append(module.register_forward_pre_hook(UncopiedHook(enter), with_kwargs=True).remove)
        self._undo.append(module.register_forward_hook(UncopiedHook(leave), with_kwargs=True, always_call=True).remove)
        for part in layer.parts:
            self._attach_part(part, name)

    def _attach_part(self, module: MessagePassing, layer: str) -> None:
        marks = self._marks
        begun: list[tuple[int, int]] = []

        def propagates(_: Any, inputs: Any) -> None:
            if marks.is_open:
                begun.append((marks.depth, marks.begin_part()))
                self._push("edge", "gather", layer)

        def propagated(_: Any, inputs: Any, out: Any) -> None:
            if marks.is_open and begun:
                depth, since = begun.pop()
                self._cover(out, "edge", "update", layer)
                self._bound(out, since, layer)
                marks.pop(depth)

        def reaches(done: Part, next_part: Part) -> Callable[..., None]:
            def hook(_: Any, inputs: Any, out: Any = None) -> None:
                if marks.is_open:
                    self._cover(inputs if out is None else out, "edge", done, layer)
                    self._switch(next_part, layer)

            return hook

        def fuses(_: Any, inputs: Any) -> None:
            if marks.is_open:
                self.fused[self._layer(layer)] += 1
                self._cover(inputs, "edge", "gather", layer)
                self._switch("fused", layer)

        for register, hook in (
            (module.register_propagate_forward_pre_hook, propagates),
            (module.register_message_forward_pre_hook, reaches("gather", "message")),
            (module.register_message_forward_hook, reaches("message", "aggregate")),
            (module.register_aggregate_forward_hook, reaches("aggregate", "update")),
            (module.register_message_and_aggregate_forward_pre_hook, fuses),
            (module.register_message_and_aggregate_forward_hook, reaches("fused", "update")),
            (module.register_propagate_forward_hook, propagated),
            (module.register_edge_update_forward_pre_hook, reaches("gather", "edge_update")),
            (module.register_edge_update_forward_hook, reaches("edge_update", "edge_update")),
        ):
            self._undo.append(register(UncopiedHook(hook)).remove)
        self._undo.append(begun.clear)  # of what an error has left open

    def _wrap_method(self, cls: type[MessagePassing], name: str, part: Part) -> None:
        marks, plain = self._marks, getattr(cls, name)

        @functools.wraps(plain)
        def wrapped(module: MessagePassing, *args: Any, **kwargs: Any) -> Any:
            layer = self._name_of.get(id(module))
            if layer is None or not marks.is_open:
                return plain(module, *args, **kwargs)
            depth, since = marks.depth, marks.begin_part()
            self._push("edge", part, layer)
            try:
                out = plain(module, *args, **kwargs)
                if part == "fused":
                    self._cover(out, "edge", part, layer)
                self._bound(out, since, layer)
                return out
            finally:
                marks.pop(depth)

        self._replace(cls, name, wrapped)

    def _wrap_function(self, module: ModuleType, name: str) -> None:
        marks, plain = self._marks, getattr(module, name)

        @functools.wraps(plain)
        def normalize(*args: Any, **kwargs: Any) -> Any:
            if not marks.is_open or marks.current.part:
                return plain(*args, **kwargs)
            depth, since = marks.depth, marks.begin_part()
            self._push("edge", "normalize")
            try:
                out = plain(*args, **kwargs)
                self._cover(out, "edge", "normalize")
                marks.bound(out, since, BACKWARD if self._name is None else Label("backward", self._name, "vertex"))
                return out
            finally:
                marks.pop(depth)

        self._replace(module, name, normalize)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        had_own, before = name in vars(owner), vars(owner).get(name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before) if had_own else delattr(owner, name))

    def _layer(self, own: str = "") -> str:
        # A layer's steps that are called past its `forward` are still its own.
        return own if self._name is None else self._name

    def _push(self, kind: Kind, part: Part = "", layer: str = "") -> None:
        self._marks.push(Label(self._marks.current.phase, self._layer(layer), kind, part))

    def _switch(self, part: Part, layer: str) -> None:
        self._marks.switch(Label(self._marks.current.phase, self._layer(layer), "edge", part))

    def _cover(self, value: Any, kind: Kind, part: Part = "", layer: str = "") -> None:
        self._marks.cover(value, Label("backward", self._layer(layer), kind, part))

    def _bound(self, value: Any, since: int, layer: str) -> None:
        self._marks.bound(value, since, Label("backward", self._layer(layer), "vertex"))

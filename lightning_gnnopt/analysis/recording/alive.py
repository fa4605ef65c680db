"""Which tensors are alive when a step holds most, and which line made them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from lightning_gnnopt.analysis.recording.labels import Label

_FRAMEWORKS = ("torch", "torch_geometric", "torchmetrics", "lightning", "pytorch_lightning")
_COLLECTS = {"collect", "edge_collect"}
_OURS = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class AliveTensor:
    """A tensor's storage.

    Attributes:
        nbytes: Its bytes.
        shape: Shape of the first tensor on it.
        dtype: Type of that tensor.
        label: What was going on when it was made.
        op: The operator that made it.
        line: The line of Python that called it; for a backward pass, the line that ran the forward pass.
    """

    nbytes: int
    shape: str
    dtype: str
    label: Label
    op: str
    line: str


class AliveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows each tensor that an operator makes until it is released; for one step, as it makes operators slower.

    Memory that an operator takes and gives back within itself is not seen, so the peak it finds may lie below the
    measured one.

    Args:
        current: Says what is going on.

    Attributes:
        peak_bytes: Most bytes of tensors that were alive together.
        at_peak: Those tensors, largest first.
    """

    def __init__(self, current: Callable[[], Label]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self.at_peak: list[AliveTensor] = []
        self._current = current
        self._token = object()
        self._alive: dict[int, AliveTensor] = {}
        self._held = 0
        self._number = 0
        self._pending = False
        self._lines: dict[int, str] = {}

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {_key(tensor) for tensor in _flat((args, kwargs))}
        made = [tensor for tensor in _flat(out) if _key(tensor) not in known]
        line = self._line()
        for tensor in made:
            self._follow(tensor, str(func.name()), line)
        return out

    def begin(self) -> None:
        """Follow what this thread makes from now on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Take the last peak, and forget the rest."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._take_peak()
        self._alive.clear()
        self._lines.clear()

    def _follow(self, tensor: Tensor, op: str, line: str) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0 or getattr(storage, "_gnnopt_followed", None) is self._token:
            return
        # A tensor may outlive the profile: it must not hold on to it.
        storage._gnnopt_followed = self._token  # type: ignore[attr-defined]
        self._number += 1
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._alive[self._number] = AliveTensor(storage.nbytes(), shape, dtype, self._current(), op, line)
        self._held += storage.nbytes()
        weakref.finalize(storage, _released, weakref.ref(self), self._number).atexit = False
        if self._held > self.peak_bytes:
            self.peak_bytes = self._held
            self._pending = True

    def _release(self, number: int) -> None:
        tensor = self._alive.get(number)
        if tensor is None:
            return
        self._take_peak()
        del self._alive[number]
        self._held -= tensor.nbytes

    def _take_peak(self) -> None:
        # A peak ends with a release: so the list is copied once for each, and not with each tensor.
        if self._pending:
            self.at_peak = sorted(self._alive.values(), key=lambda tensor: -tensor.nbytes)
            self._pending = False

    def _line(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._lines.get(node._sequence_nr(), "")
        line = _caller()
        # Autograd has numbered the node of this operator before the operator runs.
        self._lines[_get_sequence_nr() - 1] = line
        return line


def _released(following: weakref.ref[AliveTensors], number: int) -> None:
    alive = following()
    if alive is not None:
        alive._release(number)


def _caller() -> str:
    """Find the innermost line outside of torch, PyG, Lightning and this room; PyG's own where there is none."""
    frame: FrameType | None = sys._getframe(1)
    inner = ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        # PyG writes the methods of a layer that a user derives into modules of their own.
        is_written = name.endswith(("_propagate", "_edge_updater")) and not _COLLECTS.isdisjoint(frame.f_globals)
        framework = "torch_geometric" if is_written else name.partition(".")[0]
        if framework not in _FRAMEWORKS and not name.startswith(_OURS):
            return _describe(frame)
        if framework == "torch_geometric":  # the outermost of its lines
            inner = _describe(frame)
        frame = frame.f_back
    return inner


def _describe(frame: FrameType) -> str:
    file = Path(frame.f_code.co_filename)
    where = file.name if frame.f_globals.get("__name__") == "__main__" else "/".join(file.parts[-2:]).lstrip("/")
    return f"{where}:{frame.f_lineno} in {frame.f_code.co_name}"


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_meta:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)

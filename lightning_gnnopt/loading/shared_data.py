"""A PyG graph in memory that processes share."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.sampling.shared_arrays import SharedArrays

_COMPRESSED = {
    torch.sparse_csr: (torch.Tensor.crow_indices, torch.Tensor.col_indices),
    torch.sparse_csc: (torch.Tensor.ccol_indices, torch.Tensor.row_indices),
}


@dataclass(frozen=True)
class _Form:
    """What a tensor's parts make together."""

    layout: torch.layout
    shape: tuple[int, ...]
    parts: list[tuple[torch.dtype, tuple[int, ...]]]

    def join(self, parts: list[Tensor]) -> Tensor:
        if self.layout == torch.strided:
            return parts[0]
        if self.layout == torch.sparse_coo:
            indices, values = parts
            return torch.sparse_coo_tensor(indices, values, self.shape, is_coalesced=True, check_invariants=False)
        outer, inner, values = parts
        return torch.sparse_compressed_tensor(
            outer, inner, values, size=self.shape, layout=self.layout, check_invariants=False
        )


class SharedData:
    """Hands a graph to other processes of the machine without a copy of its tensors.

    Pickled, once shared, it is as large as what is not a tensor; what another process unpickles maps the same
    memory. Writing to a tensor changes nothing for the others.

    Args:
        data: The graph. It is left as it is.
    """

    def __init__(self, data: Data | HeteroData) -> None:
        self.data = data
        self._source: SharedArrays | None = None

    def share(self) -> Self:
        """Copy the tensors into memory that processes share; :attr:`data` of the result has those."""
        rest = copy.copy(self.data)
        forms: dict[tuple[int, str], _Form] = {}
        arrays: dict[str, NDArray[np.uint8]] = {}
        for number, storage in enumerate(rest.stores):
            for name, value in list(storage.items()):
                parts = _parts_of(value)
                if parts:
                    forms[number, name] = _Form(value.layout, tuple(value.shape), [_form(part) for part in parts])
                    arrays |= {f"{number}/{name}/{k}": _bytes(part) for k, part in enumerate(parts)}
                    del storage[name]
        return type(self)._open(rest, forms, SharedArrays(arrays))

    @classmethod
    def _open(cls, rest: Any, forms: dict[tuple[int, str], _Form], source: SharedArrays) -> Self:
        data, arrays = copy.copy(rest), source.arrays()
        stores = list(data.stores)
        for (number, name), form in forms.items():
            parts = [
                _tensor(arrays[f"{number}/{name}/{k}"], dtype, shape) for k, (dtype, shape) in enumerate(form.parts)
            ]
            stores[number][name] = form.join(parts)
        shared = cls(data)
        shared._source = source
        shared._parts = (rest, forms, source)
        return shared

    _parts: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self)._open, self._parts) if self._source is not None else (type(self), (self.data,))


def _parts_of(value: Any) -> list[Tensor]:
    """Take a tensor apart into dense ones; nothing for what is not shared."""
    if type(value) is not Tensor:
        return []
    value = value.detach().cpu()
    if value.layout == torch.strided:
        return [value.contiguous()]
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        return [value.indices().contiguous(), value.values().contiguous()]
    if value.layout in _COMPRESSED:
        outer, inner = _COMPRESSED[value.layout]
        return [outer(value).contiguous(), inner(value).contiguous(), value.values().contiguous()]
    return []


def _form(part: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return part.dtype, tuple(part.shape)


def _bytes(part: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = part.view(-1).view(torch.uint8).numpy()
    return array


def _tensor(array: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    # torch does not look at no bytes as another type
    if not len(array):
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.from_numpy(array).view(dtype).view(shape)

"""Dense rows in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.copies import Copy
from lightning_gnnopt.loading.features import FeatureStore, bytes_of, check_out, kernel_ids
from lightning_gnnopt.loading.gather import gather_rows
from lightning_gnnopt.loading.narrowing import empty_rows, narrow_dtype, narrow_rows
from lightning_gnnopt.loading.widening import widen_rows
from lightning_gnnopt.sampling.shared_arrays import SharedArrays

_ROWS, _SCALE = "rows", "scale"


class DenseFeatures(FeatureStore):
    """Rows of a dense tensor.

    Args:
        source: Tensor of shape ``(N, ...)``; it is not copied if it is contiguous and in host memory.
        stored_as: Store floating-point values in fewer bits: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int8"``.

    Raises:
        ValueError: If `source` is a single number, or cannot be stored so.

    Examples:
        >>> store = DenseFeatures(torch.tensor([[1.0, 2.0], [127.0, -254.0]]), stored_as="int8")
        >>> store.rows(torch.tensor([1, 0]))
        tensor([[ 127., -254.],
                [   1.,    2.]])
    """

    def __init__(self, source: Tensor, *, stored_as: str | torch.dtype | None = None) -> None:
        if source.ndim == 0:
            raise ValueError(
                "`source` must have a row for each node or edge, but got a single number."
                " HINT: give it a first dimension that counts them."
            )
        values = source.detach().resolve_conj().resolve_neg()
        stored_dtype, scale = narrow_dtype(stored_as, source.dtype), None
        if stored_dtype != source.dtype:
            values, scale = narrow_rows(values, stored_dtype)
        super().__init__(source.shape, dtype=source.dtype, stored_dtype=stored_dtype, scale=scale)
        if values.device.type != "cpu" or not values.is_contiguous():
            values = empty_rows(source.shape, source.dtype).copy_(values)
        self._rows = bytes_of(values)
        self._shared: SharedArrays | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._rows.nbytes

    def gather(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Copy rows as they are stored; see :meth:`FeatureStore.gather`."""
        check_out(out, (len(ids), *self.shape[1:]), self.stored_dtype)
        gather_rows(self._rows, kernel_ids(ids), bytes_of(out), row_bytes=self.row_bytes)

    def copied(self, ids: NDArray[np.integer]) -> Copy:
        """Say which rows :meth:`gather` copies; see :meth:`FeatureStore.copied`."""
        return Copy.of_rows(self._rows, kernel_ids(ids), self.row_bytes)

    def write(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Copy rows as a batch has them; see :meth:`FeatureStore.write`."""
        if self.stored_dtype == self.dtype or self.dtype != torch.float32:
            super().write(ids, out)
            return
        check_out(out, (len(ids), *self.shape[1:]), self.dtype)
        widen_rows(
            self._rows,
            kernel_ids(ids),
            bytes_of(out),
            stored_dtype=self.stored_dtype,
            row_width=self.row_bytes // self.stored_dtype.itemsize,
            scale=None if self.scale is None else self.scale.numpy().reshape(-1),
        )

    def share(self) -> DenseFeatures:
        """Copy the rows to memory that processes share; see :meth:`FeatureStore.share`."""
        if self._shared is not None:
            return self
        shared = DenseFeatures.__new__(DenseFeatures)
        arrays = {_ROWS: self._rows} | ({} if self.scale is None else {_SCALE: self.scale.numpy().reshape(-1)})
        shared.__setstate__(self.__getstate__() | {"_shared": SharedArrays(arrays)})
        return shared

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state if self._shared is None else state | {"_rows": None, "scale": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shared is not None:
            arrays = self._shared.arrays()
            self._rows = arrays[_ROWS]
            self.scale = torch.from_numpy(arrays[_SCALE]).reshape(self.shape[1:] or (1,)) if _SCALE in arrays else None

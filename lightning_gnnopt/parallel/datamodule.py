"""A cut graph as a Lightning DataModule: each process gets its own part."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.parallel.part_data import PartData
from lightning_gnnopt.parallel.part_files import PartitionInfo, describe_attributes, load_part, read_info
from lightning_gnnopt.parallel.partition import partition_graph
from lightning_gnnopt.sampling.partition import Objective, PartitionMethod


class PartitionDataModule(L.LightningDataModule):
    """Give each process of a `GraphParallelStrategy` its part of a graph, as one full-graph batch an epoch.

    Batches are :class:`PartData`. The graph is cut into as many parts as there are processes when it is first needed,
    and found again in later runs.

    Args:
        data: The graph, with `train_mask`, `val_mask` and `test_mask`; None where `folder` is there already, cut by
            ``gnnopt-partition`` or an earlier run: no process then needs room for the whole graph.
        folder: Where the parts are, or will be: ``folder/2-parts`` for two processes.
        method: How to cut it, see :func:`~lightning_gnnopt.parallel.partition.partition_graph`.
        objective: What METIS makes small.
        owner: The part of each node, ``(N,)``, for a partition of one's own.
        seed: Of the cut.

    Raises:
        FileNotFoundError: When a stage starts, if there is no `data` and no such folder.
        ValueError: When a stage starts, if what is in the folder is another graph.
    """

    def __init__(
        self,
        data: Data | None = None,
        *,
        folder: Path | str,
        method: PartitionMethod = "auto",
        objective: Objective = "vol",
        owner: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.folder = data, Path(folder)
        self.method, self.objective, self.owner, self.seed = method, objective, owner, seed
        self.info: PartitionInfo | None = None
        self._batch: PartData | None = None
        self._cut: Path | None = None
        self._old_cut: Path | None = None
        self._moved: tuple[torch.device, PartData] | None = None

    @property
    def num_features(self) -> int:
        """Features of a node."""
        return int(self._described("x")["shape"][-1])

    @property
    def num_classes(self) -> int:
        """Classes, or labels where a node has several."""
        y = self._described("y")
        return int(y["shape"][-1]) if self.multilabel else int(y["largest"]) + 1

    @property
    def multilabel(self) -> bool:
        """Whether a node can have several labels (``y`` of shape ``(N, C)``)."""
        return len(self._described("y")["shape"]) > 1

    @override
    def prepare_data(self) -> None:
        num_parts = self._num_parts()
        path = self._path(num_parts)
        if not path.exists() and self.data is not None:
            try:
                partition_graph(
                    self.data, num_parts, folder=path, method=self.method, objective=self.objective, owner=self.owner,
                    seed=self.seed,
                )  # fmt: skip
            except FileExistsError:  # another machine's process, on the same disk, was faster
                read_info(path)

    @override
    def setup(self, stage: str) -> None:
        num_parts = self._num_parts()
        path = self._path(num_parts)
        self.info = read_info(path)
        if self.info.num_parts != num_parts:
            raise ValueError(
                f"'{path}' has {self.info.num_parts} parts, but there are {num_parts} processes."
                " HINT: choose another `folder`, or remove this one."
            )
        if self.data is not None:
            found, given = (self.info.num_nodes, self.info.num_edges), (self.data.num_nodes, self.data.num_edges)
            if found != given:
                raise ValueError(
                    f"'{path}' holds a graph of {found[0]:,} nodes and {found[1]:,} edges, but `data` has {given[0]:,}"
                    f" and {given[1]:,}. HINT: choose another `folder`, or remove this one."
                )
        self._load(path)

    @override
    def train_dataloader(self) -> Any:
        return OneBatch(self._part)

    @override
    def val_dataloader(self) -> Any:
        return OneBatch(self._part)

    @override
    def test_dataloader(self) -> Any:
        return OneBatch(self._part)

    @override
    def predict_dataloader(self) -> Any:
        return OneBatch(self._part)

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the part once, not in every step."""
        if batch is not self._batch:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._moved is None or self._moved[0] != device:
            self._moved = device, super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self._moved[1]

    @override
    def teardown(self, stage: str) -> None:
        self._moved = None

    def owner_of_nodes(self) -> NDArray[np.int64]:
        """The part of each node, shape ``(N,)``, as the graph is cut now."""
        assert self.info is not None
        assert self._cut is not None
        owner = np.empty(self.info.num_nodes, np.int64)
        for rank in range(self.info.num_parts):
            owner[load_part(self._cut, rank)[0].inner] = rank
        return owner

    def cut_anew(self, owner: NDArray[np.int64]) -> int:
        """Write the graph in other parts beside the present ones.

        Args:
            owner: The part of each node.

        Returns:
            A number, by which `use_cut` finds it on all ranks.
        """
        assert self.info is not None
        assert self.data is not None
        number = secrets.randbelow(2**62) + 1
        partition_graph(self.data, self.info.num_parts, folder=self._beside(number), owner=owner)
        return number

    def use_cut(self, number: int) -> None:
        """Go on with what `cut_anew` has written, from the next epoch on."""
        self._old_cut = self._cut
        self._load(self._beside(number))

    def drop_old_cut(self) -> None:
        """Remove what no rank goes on with, unless it is what the run has begun with."""
        old, self._old_cut = self._old_cut, None
        if self._rank() == 0 and old is not None and old != self._path(self._num_parts()):
            shutil.rmtree(old)

    def _beside(self, number: int) -> Path:
        return self.folder / f"{self._num_parts()}-parts-moved" / f"{number:x}"

    def _load(self, path: Path) -> None:
        self.info, self._cut = read_info(path), path
        self._batch, self._moved = PartData.of(*load_part(path, self._rank())), None

    def _part(self) -> PartData:
        if self._batch is None:
            raise RuntimeError("The part is not loaded yet. HINT: a Trainer calls `setup` first.")
        return self._batch

    def _described(self, name: str) -> Mapping[str, Any]:
        """What the graph, or else a folder's header, says of an attribute."""
        if self.data is not None:
            attributes: Mapping[str, Mapping[str, Any]] = describe_attributes(self.data)
        else:
            found = sorted(self.folder.glob("*-parts"))
            attributes = read_info(found[0] if found else self._path(self._num_parts())).attributes
        if "shape" not in attributes.get(name, ()):
            raise ValueError(f"The graph must have `{name}`, but has {sorted(attributes)}. HINT: set `data.{name}`.")
        return attributes[name]

    def _path(self, num_parts: int) -> Path:
        return self.folder / f"{num_parts}-parts"

    def _num_parts(self) -> int:
        return int(self.trainer.world_size) if self.trainer is not None else 1

    def _rank(self) -> int:
        return int(self.trainer.global_rank) if self.trainer is not None else 0


class OneBatch:
    """A loader with one batch.

    Args:
        find: Called in each epoch for the batch: cuts may have moved.
    """

    def __init__(self, find: Callable[[], PartData]) -> None:
        self.find = find

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[PartData]:
        yield self.find()

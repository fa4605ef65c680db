"""What a user says about training on links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.link_source import LinkSource
from lightning_gnnopt.loading.link_split import LinkSplit, find_edge_type, is_zero
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, LinkSampler, NodeSampler, Topology
from lightning_gnnopt.sampling.hetero_topology import EdgeType
from lightning_gnnopt.sampling.link_ends import num_ends

_MODES = ("binary", "triplet")
_STAGES = ("train", "val", "test", "predict")

Weight = NDArray[Any] | Tensor | Sequence[float]


@dataclass(frozen=True, eq=False, kw_only=True)
class LinkTask:
    """The links of each stage, and the negatives to draw for them.

    No negatives are drawn for a split that has its own (`LinkSplit.has_negatives`), nor to predict: what is predicted
    are the links that were given. With binary negatives, which are labelled 0, the labels of the other splits are all
    raised by one if the lowest of any is 0.

    Attributes:
        train: Links to train on.
        val: Links to validate on.
        test: Links to test on.
        predict: Links to predict.
        negatives: ``"binary"``: random pairs of nodes. ``"triplet"``: for each link random destinations. None: none.
        amount: Negatives per link; for triplets a whole number.
        edge_type: The links' type, in a heterogeneous graph.
        src_weight: How likely each node is the source of a binary negative, shape ``(N,)``; all alike by default.
        dst_weight: How likely each node is the destination of a negative, shape ``(N,)``; all alike by default.
        exclude_positives: Whether pairs that an edge of the sampled graph joins are drawn anew; see `LinkSampler`.

    Raises:
        ValueError: If there is no split, `negatives` is unknown, `amount` is not positive or not whole for triplets,
            `edge_type` does not consist of three names, or triplets are to be drawn for links with labels.

    Examples:
        >>> import torch
        >>> links = LinkSplit(torch.tensor([[0, 1], [2, 3]]))
        >>> task = LinkTask(train=links, val=links, negatives="binary", amount=2.0)
        >>> list(task.splits), task.draws_negatives("train")
        (['train', 'val'], True)
    """

    train: LinkSplit | None = None
    val: LinkSplit | None = None
    test: LinkSplit | None = None
    predict: LinkSplit | None = None
    negatives: Literal["binary", "triplet"] | None = None
    amount: float = 1.0
    edge_type: EdgeType | None = None
    src_weight: Weight | None = None
    dst_weight: Weight | None = None
    exclude_positives: bool = False

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError(
                "A `LinkTask` must have links for a stage, but got none."
                " HINT: `train=LinkSplit(edge_label_index)`; `LinkTask.from_splits` reads what `RandomLinkSplit` makes."
            )
        for stage, split in self.splits.items():
            if not isinstance(split, LinkSplit):
                raise ValueError(
                    f"`{stage}` must be a `LinkSplit`, but got {type(split).__name__}."
                    " HINT: `LinkSplit(edge_label_index)`, or `LinkSplit.from_data(data)`."
                )
        if self.negatives is not None and self.negatives not in _MODES:
            raise ValueError(
                f"{unknown_name('negatives', self.negatives, _MODES)} HINT: `negatives=None` draws no negatives."
            )
        if not self.amount > 0 or (self.negatives == "triplet" and self.amount != int(self.amount)):
            raise ValueError(
                f"`amount` must be positive, and a whole number for triplets, but got {self.amount}."
                " HINT: `negatives=None` draws no negatives."
            )
        parts = self.edge_type
        if parts is not None:
            if isinstance(parts, str) or len(parts) != 3 or not all(isinstance(part, str) for part in parts):
                raise ValueError(
                    f"`edge_type` must be three names, but got {parts!r}."
                    ' HINT: ("author", "writes", "paper") has authors as sources and papers as destinations.'
                )
            object.__setattr__(self, "edge_type", tuple(parts))  # Hydra makes lists of tuples
        for stage, split in self.splits.items():
            if self.negatives == "triplet" and stage != "predict" and split.edge_label is not None:
                raise ValueError(
                    f"`{stage}.edge_label` must be None for triplets, whose loss compares destinations, but labels were"
                    ' given. HINT: leave them away, or use negatives="binary".'
                )
        self._warn()

    @classmethod
    def from_splits(
        cls,
        train_data: Data | HeteroData | None = None,
        val_data: Data | HeteroData | None = None,
        test_data: Data | HeteroData | None = None,
        **options: Any,
    ) -> Self:
        """Read the links that PyG's `RandomLinkSplit` chose.

        Negatives that it added (labelled 0, behind the others) are taken as they are, and no others are drawn for that
        split: so it is by default for all three, and with ``add_negative_train_samples=False`` for validation and test
        alone, which then have the same negatives in every epoch, while training draws its own. For triplets, which have
        no labels, they are left out, and all stages draw theirs.

        Args:
            train_data: The first graph that `RandomLinkSplit` returns.
            val_data: The second.
            test_data: The third.
            **options: Further arguments of `LinkTask`. `edge_type` may be left out if only one type was split.

        Returns:
            The task.

        Raises:
            ValueError: If a graph has no ``edge_label_index``, or as said of `LinkTask`.

        Examples:
            >>> import torch
            >>> from torch_geometric.transforms import RandomLinkSplit
            >>> data = Data(edge_index=torch.randint(50, (2, 200)), num_nodes=50)
            >>> split = RandomLinkSplit(num_val=0.1, num_test=0.1, add_negative_train_samples=False)
            >>> task = LinkTask.from_splits(*split(data), negatives="binary")
            >>> {stage: (links.num_links, task.draws_negatives(stage)) for stage, links in task.splits.items()}
            {'train': (160, True), 'val': (40, False), 'test': (40, False)}
        """
        graphs = {"train": train_data, "val": val_data, "test": test_data}
        splits: dict[str, Any] = {}
        for stage, data in graphs.items():
            if data is None:
                continue
            if isinstance(data, HeteroData):
                options["edge_type"] = find_edge_type(data, options.get("edge_type"))
            split = LinkSplit.from_data(data, options.get("edge_type"))
            splits[stage] = _positives(split) if options.get("negatives") == "triplet" else split
        return cls(**splits, **options)

    @property
    def splits(self) -> Mapping[str, LinkSplit]:
        """The links of each stage that has some."""
        return {stage: split for stage in _STAGES if (split := getattr(self, stage)) is not None}

    def draws_negatives(self, stage: str) -> bool:
        """Whether negatives are drawn in a stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``."""
        return self.negatives is not None and stage != "predict" and not self.splits[stage].has_negatives

    def check(self, topology: Topology | HeteroTopology) -> None:
        """Refuse links that are not in a graph.

        Raises:
            ValueError: If `edge_type` does not fit the graph, or an end of a link is no node of it.
        """
        counts = num_ends(topology, self.edge_type)
        for stage, split in self.splits.items():
            split.check_ids(*counts, name=f"{stage}.edge_label_index")

    def sampler(self, stage: str, sampler: NodeSampler | HeteroNeighborSampler) -> LinkSampler:
        """Make what samples the links of a stage.

        Args:
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
            sampler: Samples around the links' ends.

        Raises:
            ValueError: As said of `LinkSampler`.
        """
        if not self.draws_negatives(stage):
            return LinkSampler(sampler, edge_type=self.edge_type)
        return LinkSampler(
            sampler,
            negatives=self.negatives,
            amount=self.amount,
            edge_type=self.edge_type,
            src_weight=self.src_weight,
            dst_weight=self.dst_weight,
            exclude_positives=self.exclude_positives,
        )

    def source(
        self, stage: str, sampler: NodeSampler | HeteroNeighborSampler, builder: BatchBuilder | HeteroBatchBuilder
    ) -> LinkSource:
        """Make what the batches of a stage are made from.

        Args:
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
            sampler: Samples around the links' ends.
            builder: Slices the graph's attributes.

        Raises:
            ValueError: As said of `LinkSampler` and `LinkSource`.
        """
        split = self.splits[stage]
        if split.edge_label is not None and self.draws_negatives(stage):
            drawn = [part.edge_label for name, part in self.splits.items() if self.draws_negatives(name)]
            # One split may lack the class 0 by chance: classes have the same numbers in all of them.
            if any(label is not None and label.min() == 0 for label in drawn):
                split = replace(split, edge_label=split.edge_label + 1)
        return LinkSource(self.sampler(stage, sampler), builder, split)

    def _warn(self) -> None:
        """Warn of what is asked for and does nothing."""
        if self.negatives is not None and self.train is not None and self.train.has_negatives:
            rank_zero_warn(
                f"`negatives={self.negatives!r}` draws nothing in training: `train` has {self.train.num_negatives:,}"
                " negatives of its own, labelled 0, which stay the same in every epoch."
                " HINT: `RandomLinkSplit(add_negative_train_samples=False)` leaves them to be drawn."
            )
        options = {
            "amount": self.amount != 1.0,
            "src_weight": self.src_weight is not None,
            "dst_weight": self.dst_weight is not None,
            "exclude_positives": self.exclude_positives,
        }
        idle = [f"`{name}`" for name, is_set in options.items() if is_set and self.negatives is None]
        if idle:
            rank_zero_warn(
                f"{', '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing with `negatives=None`, which draws no"
                ' negatives. HINT: `negatives="binary"` draws pairs of nodes.'
            )
        if self.negatives == "triplet" and self.src_weight is not None:
            rank_zero_warn(
                "`src_weight` does nothing with triplets, of which only destinations are drawn. HINT: leave it away."
            )


def _positives(split: LinkSplit) -> LinkSplit:
    """Leave negatives out, and labels that only tell them apart."""
    label = split.edge_label
    if label is None:
        return split
    kept = ~(is_zero(label) & split.has_negatives)
    time = split.edge_label_time
    return LinkSplit(
        split.edge_label_index[:, kept],
        edge_label=None if bool((label[kept] == 1).all()) else label[kept],
        edge_label_time=None if time is None else time[kept],
    )

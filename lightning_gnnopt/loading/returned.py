"""Inputs that a transform leaves out of their batch, and the batches in which they come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lightning_gnnopt.loading.groups import GroupOrder
from lightning_gnnopt.loading.pipeline import Stages
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.sources import BatchSource
from lightning_gnnopt.loading.transform import SubgraphTransform
from lightning_gnnopt.sampling import SampleKey


class EpochBatches:
    """The batches of one epoch: those that are planned and, in rounds, those of the inputs that they left out.

    A batch may keep only the first of its inputs. When all batches of a round are through (the planned ones are the
    first round), the inputs that they left out, in the order of the batches, are cut into batches of `batch_size`: the
    next round. The last round is one that leaves out nothing. So each input is kept once, and which batch it is in
    depends on what the batches kept and on nothing else.

    Under DDP all ranks need equally many batches. In each round a rank that has fewer goes on with batches of inputs
    that it has had before, in the order of its epoch from the start; what these leave out does not come back.

    Args:
        order: Which inputs stand in which planned batch.
        epoch: The epoch.
        kept: How many inputs the batches kept that left some out, by the number of the batch.
        rounds: Batches in each round after the planned ones, as far as they are known.

    Examples:
        >>> batches = EpochBatches(SeedOrder(5, 3), 0)
        >>> rounds = batches.rounds()
        >>> [batches.inputs(index).tolist() for index in next(rounds)]
        [[0, 1, 2], [3, 4]]
        >>> batches.keep(0, 1)
        >>> [batches.inputs(index).tolist() for index in next(rounds)]
        [[1, 2]]
        >>> list(rounds)
        []
    """

    def __init__(
        self, order: SeedOrder, epoch: int, *, kept: Mapping[int, int] | None = None, rounds: Sequence[int] = ()
    ) -> None:
        self.epoch = epoch
        self._order = order
        self._places = order.epoch(epoch)
        self._kept = dict(kept or {})
        self._rounds = [range(len(order))]
        self._extra: list[NDArray[np.int64]] = []  # inputs of the extra batches
        self._repeats: set[int] = set()
        for num_batches in rounds:
            self._add_round(self._left_out(), num_batches)

    @property
    def has_left_out(self) -> bool:
        """Whether any batch has left out inputs so far."""
        return bool(self._kept)

    def inputs(self, index: int) -> NDArray[np.int64]:
        """Look up which inputs a batch is to have, shape ``(B,)``."""
        num_planned = len(self._order)
        return self._order.batch(self._places, index) if index < num_planned else self._extra[index - num_planned]

    def first(self, num_inputs: int) -> NDArray[np.int64]:
        """Look up the first inputs of the epoch, all if there are fewer, shape ``(num_inputs,)``."""
        found, num_missing = [np.empty(0, np.int64)], num_inputs
        for index in range(len(self._order)):
            if num_missing <= 0:
                break
            found.append(self.inputs(index))
            num_missing -= len(found[-1])
        return np.concatenate(found)[:num_inputs]

    def keep(self, index: int, num_kept: int) -> None:
        """Be told that a batch kept only the first of its inputs; safe to be called from many threads."""
        self._kept[index] = num_kept

    def rounds(self, start: int = 0, *, agree: Callable[[int], int] | None = None) -> Iterator[range]:
        """Give the numbers of the batches, round by round; a round is to be through when the next is asked for.

        Args:
            start: Batches that are through already.
            agree: Maps this rank's number of batches in the coming round to the largest of all ranks.

        Raises:
            ValueError: If `agree` returns less than it was given.
        """
        yield range(max(start, self._rounds[-1].start), self._rounds[-1].stop)
        while True:
            left_out = self._left_out()
            num_own = -(-len(left_out) // self._order.batch_size)
            num_batches = num_own if agree is None else agree(num_own)
            if num_batches < num_own:
                raise ValueError(
                    f"`agree` must return the largest number of batches of all ranks, but this rank has {num_own:,} and"
                    f" it returned {num_batches:,}. HINT: reduce with the maximum."
                )
            if num_batches == 0:
                return
            yield self._add_round(left_out, num_batches)

    def state(self, num_through: int) -> tuple[dict[int, int], list[int]]:
        """Tell what `kept` and `rounds` are once so many batches, and no more, are through."""
        kept = {index: num_kept for index, num_kept in sorted(self._kept.items()) if index < num_through}
        # A round that no batch is through of is agreed on anew.
        return kept, [len(batches) for batches in self._rounds[1:] if batches.start < num_through]

    def _left_out(self) -> NDArray[np.int64]:
        """What the batches of the last round left out, in their order."""
        left_out = [
            self.inputs(index)[self._kept[index] :]
            for index in self._rounds[-1]
            if index in self._kept and index not in self._repeats
        ]
        return np.concatenate([np.empty(0, np.int64), *left_out])

    def _add_round(self, left_out: NDArray[np.int64], num_batches: int) -> range:
        size, first = self._order.batch_size, self._rounds[-1].stop
        self._rounds.append(range(first, first + num_batches))
        for place in range(num_batches):
            inputs = left_out[place * size : (place + 1) * size]
            if not len(inputs):
                self._repeats.add(first + place)
                start = len(self._extra) * size
                inputs = self._places[np.arange(start, start + min(size, len(self._places))) % len(self._places)]
            self._extra.append(inputs)
        return self._rounds[-1]


def check_state(state: Mapping[str, Any], own: Mapping[str, Any], *, rank: int, returns_seeds: bool) -> bool:
    """Refuse to go on in the middle of an epoch whose batches were others than a loader's.

    Args:
        state: What was saved.
        own: What the loader's batches depend on, by the names in `state`.
        rank: The loader's rank.
        returns_seeds: Whether its transforms may leave out inputs.

    Returns:
        Whether the saved epoch has no batch left.

    Raises:
        ValueError: If it has and its batches were others, or what they left out on this rank was not saved.
    """
    batch, kept, rounds = int(state["batch"]), state.get("kept"), state.get("rounds", [])
    num_planned = int(state.get("num_batches", own["num_batches"]))
    end = num_planned + sum(rounds)
    start = end - (rounds[-1] if rounds else num_planned)  # of the last round
    is_over = batch >= end and all(index < start for of_rank in (kept or {}).values() for index in of_rank)
    others = {name: (state[name], value) for name, value in own.items() if state.get(name, value) != value}
    if kept is not None and not returns_seeds:
        others["returns_seeds"] = (True, False)
    elif kept is not None and rank not in kept:
        others["rank"] = (next(iter(kept)), rank)
    if others and batch > 0 and not is_over:
        changes = ", ".join(f"`{name}` {was} (now {now})" for name, (was, now) in others.items())
        raise ValueError(
            f"The checkpoint was saved after batch {batch} of epoch {state['epoch']} of a loader with {changes}: the"
            " rest of that epoch cannot be told from what was trained already. HINT: resume with the same settings, or"
            " from a checkpoint saved at the end of a whole epoch (`limit_train_batches` cuts epochs)."
        )
    return is_over


def trainer_calls(
    trainer: L.Trainer,
) -> tuple[Callable[[], int], Callable[[int], int] | None, Callable[[Any], list[Any]] | None]:
    """Make the `num_used`, `agree` and `gather` of a loader that a Trainer trains on; one rank needs the first only."""
    strategy, progress = trainer.strategy, trainer.fit_loop.epoch_loop.batch_progress

    def num_used() -> int:
        return progress.total.ready

    def agree(number: int) -> int:
        return int(strategy.reduce(torch.tensor(float(number), device=strategy.root_device), reduce_op="max"))

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(values, value)
        return values

    return (num_used, agree, gather) if trainer.world_size > 1 else (num_used, None, None)


def refuse_returning(order: SeedOrder, source: Any) -> None:
    """Refuse that inputs are left out where batches cannot do without some of theirs.

    Raises:
        ValueError: If batches are whole groups, or are made from links or by a sampler that draws its own seeds.
    """
    if isinstance(order, GroupOrder):
        reason = "batches are whole groups of seeds (clusters)"
    elif not hasattr(source, "num_seeds"):
        reason = f"batches are not made from single nodes but from a {type(source).__name__} (links)"
    elif not source.keeps_inputs:
        reason = f"{type(source.sampler).__name__} draws its own seeds"
    else:
        return
    raise ValueError(
        f"`transforms` must not leave out inputs (`returns_seeds`) where {reason}."
        " HINT: let a transform remove edges instead, as `MemoryControl(on_exceed=('resample', 'prune'))` does."
    )


def epoch_stages(
    batches: EpochBatches, source: BatchSource, transforms: Sequence[SubgraphTransform], key: Callable[[int], SampleKey]
) -> Stages:
    """Say what is done for the batches of an epoch before they are written.

    Args:
        batches: Says which inputs they have, and is told which they kept.
        source: What they are made from.
        transforms: Applied to what is sampled, in this order.
        key: What a batch's random numbers are keyed by.
    """
    returns_seeds = any(getattr(transform, "returns_seeds", False) for transform in transforms)
    num_seeds: Callable[[Any], int] | None = None
    if transforms and getattr(source, "keeps_inputs", False):
        num_seeds = source.num_seeds  # type: ignore[attr-defined]

    def describe(index: int) -> str:
        return f"batch {index} of epoch {batches.epoch}"

    def sample(index: int) -> Any:
        input_id, first_key = batches.inputs(index), key(index)

        def resample(attempt: int) -> Any:
            return source.sample(input_id, first_key._replace(attempt=attempt))

        sampled = resample(0)
        for transform in transforms:
            sampled = transform(sampled, resample)
        if num_seeds is not None:
            num_kept = num_seeds(sampled)
            _check_kept(num_kept, len(input_id), returns_seeds, describe(index))
            if num_kept < len(input_id):
                batches.keep(index, num_kept)
        return sampled

    def plan(index: int, sampled: Any) -> BatchPlan:
        input_id = batches.inputs(index)
        return source.plan(sampled, input_id if num_seeds is None else input_id[: num_seeds(sampled)])

    return Stages(sample=sample, plan=plan, describe=describe)


def _check_kept(num_seeds: int, num_inputs: int, returns_seeds: bool, name: str) -> None:
    """Refuse what transforms made of a batch if it does not have the inputs that it should."""
    if num_seeds == num_inputs or (returns_seeds and 0 < num_seeds < num_inputs):
        return
    expected = f"from 1 to {num_inputs:,}" if returns_seeds else f"all {num_inputs:,}"
    hint = (
        "seeds that are too large even alone have to be dealt with in another way, such as pruning."
        if returns_seeds
        else "one that keeps only the first of them says so by an attribute `returns_seeds = True`."
    )
    raise ValueError(
        f"`transforms` must return {expected} of the seeds of {name}, but returned {num_seeds:,}. HINT: {hint}"
    )
